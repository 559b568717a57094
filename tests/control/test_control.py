"""Whole systems under a real supervisord: up, down, status, restart, side by side, and what is left behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.ports import free_port
from zq.client.sync import Client
from zq.config import Config, load
from zq.supervision import Supervisor

T = TypeVar("T")
PROGRAMS = {"broker", "scheduler", "status-worker", "merge-worker", "web"}
TASKS = """
import zq

app = zq.App()

@app.task(queue="reports")
def add(a, b):
    return a + b

@app.task(queue="reports")
def nap():
    zq.current_job().run_process(["sleep", "100"], env={})
"""


def wait_for(look: Callable[[], T | None], timeout_s: float = 30.0) -> T:
    until_s = time.monotonic() + timeout_s
    while (found := look()) is None:
        assert time.monotonic() < until_s, "it did not come about in time"
        time.sleep(0.05)
    return found


class System:
    """A system of its own: folder, ports, configuration."""

    def __init__(self, folder: Path, more: str = "", *, drain_s: float = 5.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        broker, web = free_port(), free_port()
        self.file = folder / "zq.toml"
        self.file.write_text(
            f'data_dir = "数据"\n[broker]\nbind = "tcp://127.0.0.1:{broker}"\n'
            f'[client]\nbroker = "tcp://127.0.0.1:{broker}"\n[web]\nport = {web}\n'
            f"[worker]\ndrain_s = {drain_s}\n{more}",
            "utf-8",
        )
        self.config: Config = load(self.file, {})
        self.supervisor = Supervisor(self.config.data_path)

    def zq(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("ZQ_")}
        # Another folder than that of zq.toml: nothing may depend on where it is called.
        return subprocess.run(
            [sys.executable, "-m", "zq.cli", *arguments, "--config", str(self.file)],
            capture_output=True,
            text=True,
            env=env,
            cwd="/",
            check=False,
            timeout=110,
        )

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.zq("status", "--json").stdout)
        return found

    def pids(self) -> dict[str, int]:
        return {program.name: program.pid for program in self.supervisor.programs()}

    def processes(self) -> list[int]:
        """Every living process that carries the mark of this system: looked for without any code of zq's."""
        mark = f"ZQ_SYSTEM={self.config.data_dir}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                state = (entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0]
                if state not in "ZX" and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found


@contextlib.contextmanager
def running(system: System) -> Iterator[System]:
    try:
        up = system.zq("up")
        assert up.returncode == 0, up.stdout + up.stderr
        yield system
    finally:
        down = system.zq("down")
        assert down.returncode == 0, down.stdout + down.stderr
        assert system.processes() == []


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("system")
    (folder / "reports.py").write_text(TASKS, "utf-8")
    with running(System(folder, '[queues.reports]\nslots = 2\ntasks = ["reports"]\n')) as system:
        yield system


def test_up_is_ready_when_it_returns_and_all_programs_run(system: System) -> None:
    status = system.status()
    assert {program["name"] for program in status["programs"]} == PROGRAMS | {"worker-reports"}
    assert {program["state"] for program in status["programs"]} == {"RUNNING"}
    assert (status["running"], status["ready"], status["reasons"]) == (True, True, [])
    assert system.zq("status").returncode == 0


def test_up_again_changes_nothing_and_shows_the_page_that_opens(system: System) -> None:
    before = system.pids()
    up = system.zq("up")
    assert up.returncode == 0, up.stderr
    assert "running already" in up.stdout
    assert system.pids() == before
    host, path = re.search(r"http://([^/]+)(/\S*)", up.stdout).groups()  # type: ignore[union-attr]
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.request("GET", path)
    assert connection.getresponse().status in (200, 303)
    connection.close()


def test_the_socket_and_the_token_are_for_their_owner_alone(system: System) -> None:
    for name in ("supervisor.sock", "token"):
        assert (system.config.data_path / name).stat().st_mode & 0o077 == 0


def test_a_queue_of_the_configuration_has_a_worker_with_its_slots(system: System) -> None:
    with Client(system.config) as client:
        assert client.submit("reports.add", (2, 3), queue="reports").result(timeout_s=30) == 5
        (queue,) = [queue for queue in client.queues() if queue.name == "reports"]
    assert (queue.consumers, queue.slots) == (1, 2)


def test_a_program_of_a_task_carries_the_mark_whatever_environment_it_was_given(system: System) -> None:
    def naps() -> list[int] | None:
        found = [pid for pid in system.processes() if Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x00100\x00"]
        return found or None

    with Client(system.config) as client:
        job = client.submit("reports.nap", queue="reports")
        wait_for(naps)
        job.cancel()
        wait_for(lambda: None if naps() else True)


def test_what_is_killed_is_started_again(system: System) -> None:
    before = system.pids()["scheduler"]
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: system.pids()["scheduler"] not in (0, before) or None)


def test_restart_stops_cleanly_and_starts_again_only_what_was_named(system: System) -> None:
    wait_for(lambda: system.status()["running"] or None)
    before = system.pids()
    restart = system.zq("restart", "status-worker")
    assert restart.returncode == 0, restart.stderr
    after = system.pids()
    assert {name for name in after if after[name] != before[name]} == {"status-worker"}
    assert "leaves" in (system.config.data_path / "log" / "status-worker.log").read_text("utf-8")


def test_restart_of_a_program_that_does_not_exist_names_the_nearest(system: System) -> None:
    restart = system.zq("restart", "merge-wroker")
    assert restart.returncode == 1
    assert "did you mean 'merge-worker'?" in restart.stderr


def test_a_second_system_comes_and_goes_beside_the_first(system: System, tmp_path: Path) -> None:
    before = system.pids()
    with running(System(tmp_path)) as other:
        assert set(other.pids()) == PROGRAMS
        assert set(other.processes()).isdisjoint(system.processes())
    assert system.pids() == before


def test_what_a_killed_supervisord_leaves_is_ended_by_up_and_by_down(tmp_path: Path) -> None:
    with running(System(tmp_path)) as system:
        for command in ("up", "down"):
            supervisor = system.supervisor.pid()
            assert supervisor is not None
            orphans = set(system.processes()) - {supervisor}
            os.kill(supervisor, signal.SIGKILL)
            run = system.zq(command)
            assert run.returncode == 0, run.stdout + run.stderr
            assert "is gone" in run.stdout
            assert orphans.isdisjoint(system.processes())
        assert system.processes() == []


HOSTILE = """
import os, signal, subprocess, sys, time
import zq

app = zq.App()
DAEMON = '''
import os, signal, sys, time
for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(s, signal.SIG_IGN)
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
os.chdir("/")
with open(sys.argv[1], "w") as file: file.write(str(os.getpid()))
while True: time.sleep(600)
'''

@app.task(queue="hostile")
def daemon(path):
    subprocess.run([sys.executable, "-c", DAEMON, path], env={}, check=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)

@app.task(queue="hostile")
def crowd(path):
    pids = [os.getpid()]
    for _ in range(50):
        pid = os.fork()
        if pid == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True: time.sleep(600)
        pids.append(pid)
    with open(path, "w") as file: file.write(" ".join(map(str, pids)))
    os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_down_returns_when_nothing_of_the_most_hostile_tasks_is_left(tmp_path: Path) -> None:
    (tmp_path / "hostile.py").write_text(HOSTILE, "utf-8")
    queue = '[queues.hostile]\nslots = 2\ntasks = ["hostile"]\n'
    with running(System(tmp_path, queue, drain_s=0.5)) as system:
        files = [tmp_path / "daemon", tmp_path / "crowd"]
        with Client(system.config) as client:
            for file in files:
                client.submit(f"hostile.{file.name}", (str(file),), queue="hostile")
        wait_for(lambda: all(file.exists() and file.read_text() for file in files) or None)
        pids = [int(pid) for file in files for pid in file.read_text().split()]
        assert len(pids) == 52
        down = system.zq("down")
        assert down.returncode == 0, down.stdout + down.stderr
        # The daemon carries no mark of any kind.
        assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


def test_down_twice_and_status_and_restart_of_what_does_not_run(tmp_path: Path) -> None:
    system = System(tmp_path)
    for _ in range(2):
        down = system.zq("down")
        assert (down.returncode, "nothing to stop" in down.stdout) == (0, True)
    status = system.zq("status")
    assert (status.returncode, "not running" in status.stdout) == (3, True)
    restart = system.zq("restart", "all")
    assert (restart.returncode, "`zq up` starts it" in restart.stderr) == (1, True)
    assert not system.config.data_path.exists()


def test_a_program_that_no_restart_can_mend_is_tried_once_and_its_reason_shown(tmp_path: Path) -> None:
    system = System(tmp_path, '[queues.reports]\ntasks = ["no_such_module"]\n')
    try:
        up = system.zq("up")
        assert up.returncode == 1
        assert "no_such_module" in up.stderr
        (program,) = [p for p in system.supervisor.programs() if p.name == "worker-reports"]
        assert (program.state, program.exit_code) == ("EXITED", 78)
        log = (system.config.data_path / "log" / "supervisord.log").read_text("utf-8")
        assert log.count("spawned: 'worker-reports'") == 1
    finally:
        assert system.zq("down").returncode == 0


def test_a_port_that_is_taken_is_said_at_once_and_nothing_is_started(tmp_path: Path) -> None:
    system = System(tmp_path)
    with socket.create_server(("127.0.0.1", system.config.web.port)):
        up = system.zq("up")
    assert up.returncode == 1
    assert f"port {system.config.web.port} is in use" in up.stderr
    assert system.processes() == []


@pytest.mark.parametrize("text", ['[web]\nprot = 1\n', '[web]\nport = "x"\n', "="])
def test_a_wrong_configuration_starts_nothing_and_is_code_78(tmp_path: Path, text: str) -> None:
    system = System(tmp_path)
    system.file.write_text(text, "utf-8")
    up = system.zq("up")
    assert up.returncode == 78
    assert "zq.toml" in up.stderr
    assert list(tmp_path.iterdir()) == [system.file]
