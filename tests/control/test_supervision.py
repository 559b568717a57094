"""What supervisord is told, and which data_dir it can work in."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zq.config import Config, ConfigError, QueueSection, WorkerSection, load
from zq.supervised import STARTED_AFTER_S, run
from zq.supervision import (
    SOCKET_PATH_BYTES_MAX,
    ControlError,
    Supervisor,
    check_usable,
    configuration_file,
    configuration_text,
    environment,
    own_configuration,
)
from zq.system_processes import SystemProcesses, what_is
from zq.workers.process import key_of
from zq.workers.sweep import SYSTEM_MARK


def read(text: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";",))
    parser.read_string(text)
    return parser


def test_every_program_stops_by_term_and_is_killed_as_a_group_and_started_again_only_after_a_crash() -> None:
    parser = read(configuration_file().read_text("utf-8"))
    programs = [parser[name] for name in parser.sections() if name.startswith("program:")]
    assert len(programs) == 5
    for program in programs:
        assert program["stopsignal"] == "TERM"
        assert program["killasgroup"] == "true"
        assert "stopasgroup" not in program
        assert program["autorestart"] == "unexpected"
        assert program["exitcodes"] == "0,2,78"
        assert float(program["startsecs"]) < STARTED_AFTER_S
    priorities = {program.name.partition(":")[2]: int(program["priority"]) for program in programs}
    assert priorities["broker"] < min(priority for name, priority in priorities.items() if name != "broker")


@pytest.mark.parametrize("program", ["broker", "scheduler", "status-worker", "merge-worker"])
def test_it_runs_without_its_command_line_in_memory(program: str, tmp_path: Path) -> None:
    (tmp_path / "zq.toml").write_text('data_dir = "/dev/null"\n[broker]\nbind = "none"\n[client]\nbroker = "none"\n')
    words = read(configuration_file().read_text("utf-8"))[f"program:{program}"]["command"].split()[3:]
    code = (
        "import sys; from zq.supervised import run\n"
        "try: run(sys.argv[1], sys.argv[2:])\n"
        "finally: print('click' in sys.modules)"
    )
    env = {**os.environ, "ZQ_CONFIG": str(tmp_path / "zq.toml")}
    ran = subprocess.run(
        [sys.executable, "-c", code, *words], env=env, capture_output=True, text=True, timeout=30, check=False
    )
    assert (ran.returncode, ran.stdout) == (78, "False\n"), ran.stderr


@pytest.mark.parametrize("options", [[], ["--queue"], ["--queue", "q", "--slots", "0"], ["--queue", "a b"]])
def test_every_other_command_line_of_a_worker_is_read_as_ever(
    options: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run("zq.workers", options)
    assert end.value.code == 2
    assert "--" in capfd.readouterr().err


def test_a_drain_is_never_cut_short_by_supervisord() -> None:
    parser = read(configuration_file().read_text("utf-8"))
    for name in ("status-worker", "merge-worker"):
        assert int(parser[f"program:{name}"]["stopwaitsecs"]) > Config().worker.time_limit_s


def test_a_longer_drain_has_its_time(tmp_path: Path) -> None:
    long = Config(data_dir=str(tmp_path), worker=WorkerSection(drain_s=7200))
    assert not own_configuration(Config())
    assert own_configuration(long)
    parser = read(configuration_text(long))
    assert int(parser["program:merge-worker"]["stopwaitsecs"]) > 7200 + long.worker.kill_grace_s
    assert parser["program:broker"]["stopwaitsecs"] == "30"


def test_the_socket_is_for_its_owner_and_there_is_no_other_door() -> None:
    parser = read(configuration_file().read_text("utf-8"))
    assert parser["unix_http_server"]["chmod"] == "0700"
    assert not parser.has_section("inet_http_server")


def test_a_further_queue_gets_a_program_of_its_own_and_the_others_stay() -> None:
    config = Config(queues={**Config().queues, "reports": QueueSection(slots=3, tasks=("reports",))})
    before, after = read(configuration_file().read_text("utf-8")), read(configuration_text(config))
    assert set(after.sections()) - set(before.sections()) == {"program:worker-reports"}
    program = after["program:worker-reports"]
    assert program["command"].endswith("--queue reports")
    assert program["stdout_logfile"].endswith("/worker-reports.log")
    assert all(dict(after[name]) == dict(before[name]) for name in before.sections())


def test_what_the_file_says_of_one_queue_changes_only_that(tmp_path: Path) -> None:
    file = tmp_path / "zq.toml"
    file.write_text('[queues.video_merge]\nslots = 4\n[queues.reports]\ntasks = ["reports"]\n', "utf-8")
    queues = load(file, {}).queues
    assert queues["video_merge"] == QueueSection(slots=4, tasks=("zq.workers.merge",))
    assert queues["status_check"] == Config().queues["status_check"]
    assert queues["reports"].tasks == ("reports",)


def test_the_programs_run_in_this_python_and_with_this_configuration(tmp_path: Path) -> None:
    env = environment(Config(data_dir=str(tmp_path), source="/etc/zq.toml"), {"PATH": "/bin", "HOME": "/h"})
    assert env["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/bin"]
    assert (env["ZQ_CONFIG"], env["ZQ_DATA_DIR"], env[SYSTEM_MARK]) == ("/etc/zq.toml", str(tmp_path), str(tmp_path))


@pytest.mark.parametrize("name", ['a"b', "a\nb", "a\\b", "x" * 120, "中" * 40])
def test_a_folder_in_which_supervisord_cannot_work_is_refused_with_a_reason(name: str) -> None:
    with pytest.raises(ConfigError, match="data_dir"):
        check_usable(Path("/srv") / name)


def test_a_socket_path_of_just_the_bound_is_fine() -> None:
    room = SOCKET_PATH_BYTES_MAX - len("/supervisor.sock")
    check_usable(Path("/" + "x" * (room - 1)))
    with pytest.raises(ConfigError, match="too long by 1 byte"):
        check_usable(Path("/" + "x" * room))


def test_nobody_there_is_an_error_that_names_the_socket(tmp_path: Path) -> None:
    assert Supervisor(tmp_path).pid() is None
    with pytest.raises(ControlError, match=r"supervisor\.sock"):
        Supervisor(tmp_path).programs()


def test_all_workers_are_told_to_stop_at_once_and_the_broker_by_the_shutdown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[object, ...]] = []
    names = ["broker", "merge-worker", "scheduler", "web"]

    def call(_supervisor: Supervisor, method: str, *arguments: object) -> object:
        if method != "supervisor.getAllProcessInfo":
            said.append((method.removeprefix("supervisor."), *arguments))
        if arguments == ("scheduler", False):
            raise ControlError("supervisord: NOT_RUNNING: scheduler")
        if arguments == ("web", False):
            raise ControlError("supervisord: FAILED: web")
        rest = {"statename": "RUNNING", "stdout_logfile": "", "spawnerr": ""} | dict.fromkeys(
            ("pid", "now", "start", "exitstatus"), 1
        )
        return [{"name": name, **rest} for name in names]

    monkeypatch.setattr(Supervisor, "_call", call)
    Supervisor(tmp_path).shut_down()
    assert said == [("stopProcess", name, False) for name in names[1:]] + [("shutdown",)]


def test_processes_are_found_by_their_mark_with_all_below_them_and_no_others(tmp_path: Path) -> None:
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '60'], env={}); print(p.pid, flush=True); p.wait()"
    ours = subprocess.Popen(
        [sys.executable, "-c", child], env={SYSTEM_MARK: str(tmp_path)}, stdout=subprocess.PIPE, text=True
    )
    other = subprocess.Popen(["sleep", "60"], env={SYSTEM_MARK: f"{tmp_path}2"})
    below = 0
    try:
        assert ours.stdout is not None
        below = int(ours.stdout.readline())
        processes = SystemProcesses(tmp_path, None)
        assert {key.pid for key in processes.living()} == {ours.pid, below}
        assert [key.pid for key in processes.tops()] == [ours.pid]
        key = key_of(below)
        assert key is not None
        assert what_is(key) == f"sleep (pid {below})"
        # Its parent dies: it carries no mark, and is still known.
        ours.kill()
        ours.wait()
        assert {key.pid for key in processes.living()} == {below}
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()
        if below:
            os.kill(below, 9)
        assert ours.stdout is not None
        ours.stdout.close()
    until_s = time.monotonic() + 5
    while processes.living():
        assert time.monotonic() < until_s
