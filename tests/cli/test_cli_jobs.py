from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner, Result

from tests.conftest import LiveBroker
from tests.ports import free_port
from zq import Client, cli, cli_jobs, cli_text
from zq.cli_audit import audit_row
from zq.cli_config import to_toml
from zq.config import ClientSection, Config, QueueSection, ScheduleSection, load
from zq.exceptions import Invalid
from zq.protocol.job import format_id, new_job_id
from zq.protocol.messages import QueueInfo


def zq(*words: str, broker: str | None = None) -> Result:
    env = {"ZQ_CLIENT_BROKER": broker} if broker is not None else {}
    return CliRunner(env=env).invoke(cli.main, list(words))


def test_a_job_from_submit_to_audit(live_broker: LiveBroker) -> None:
    address = live_broker.address
    given = ["--arg", "name=张伟", "--arg", "n=3", "--priority", "9"]
    first = zq("submit", "m.f", "--queue", "合并", *given, broker=address)
    assert first.exit_code == 0
    job_id = first.stdout.strip()
    assert "no worker serves queue '合并'" in first.stderr

    shown = json.loads(zq("show", job_id, "--json", broker=address).stdout)
    assert (shown["id"], shown["state"], shown["priority"]) == (job_id, "ready", 9)
    assert (shown["args"], shown["kwargs"]) == ([], {"name": "张伟", "n": 3})
    assert '"张伟"' in zq("show", job_id, broker=address).stdout

    listed = json.loads(zq("ls", "合并", "--json", broker=address).stdout)
    assert [job["id"] for job in listed] == [job_id]
    assert job_id in zq("ls", "合并", "--state", "READY", broker=address).stdout
    assert json.loads(zq("ls", "合并", "--state", "dead", "--json", broker=address).stdout) == []

    counted = json.loads(zq("len", "合并", "--json", broker=address).stdout)
    assert (counted[0]["ready"], counted[0]["accepted"]) == (1, 1)

    cancelled = zq("cancel", job_id, format_id(new_job_id()), broker=address)
    assert cancelled.exit_code == cli.EXIT_REFUSED
    assert "cancelled" in cancelled.stdout
    assert "no such job" in cancelled.stdout
    again = json.loads(zq("retry", job_id, "--json", broker=address).stdout)
    assert again == [{"id": job_id, "done": True, "code": None, "state": "ready"}]
    assert zq("retry", job_id, broker=address).exit_code == cli.EXIT_REFUSED

    audit = zq("audit", "--json", broker=address)
    assert audit.exit_code == 0
    assert json.loads(audit.stdout) == [
        {"queue": "合并", "accepted": 1, "finished": 0, "waiting": 1, "running": 0, "missing": 0}
    ]
    assert zq("audit", broker=address).stdout.splitlines()[-1].split() == ["all", "1", "0", "1", "0", "0"]
    by_hour = json.loads(zq("audit", "--hours", "2", "--json", broker=address).stdout)[0]["hours"]
    assert [(hour["accepted"], hour["waiting"], hour["missing"]) for hour in by_hour] == [(1, 1, 0)]
    assert by_hour[0]["start"][:4].isdigit()
    assert by_hour[0]["start"] in zq("audit", "--hours", "2", broker=address).stdout
    assert json.loads(zq("workers", "--json", broker=address).stdout) == []


def test_looking_consumes_nothing_and_pages_are_joined(live_broker: LiveBroker) -> None:
    with Client(live_broker.config) as client:
        for number in range(25):
            client.submit("m.f", queue="q", priority=number % 10)
    for _ in range(2):
        listed = json.loads(zq("ls", "q", "--json", broker=live_broker.address).stdout)
        assert len(listed) == 25
    priorities = [job["priority"] for job in listed]
    assert priorities == sorted(priorities, reverse=True)
    assert len(json.loads(zq("ls", "q", "--json", "--limit", "3", broker=live_broker.address).stdout)) == 3


def test_a_list_tells_jobs_apart_and_an_empty_one_where_they_are(live_broker: LiveBroker) -> None:
    address = live_broker.address
    with Client(live_broker.config) as client:
        jobs = [client.submit("m.f", args=(n,), kwargs={"名字": "张伟"}, queue="q") for n in range(2)]
        client.submit("m.f", queue="q", key="merge:49")
        shown = zq("ls", "q", broker=address)
        assert [line.split("  ")[-1] for line in shown.stdout.splitlines()[1:]] == [
            "0 名字=张伟", "1 名字=张伟", "merge:49"
        ]  # fmt: skip
        assert not shown.stderr
        client.cancel([job.id for job in jobs])
    found = zq("ls", "q", "--where", "0=7", broker=address)
    said = "no job of q is running, ready or scheduled and has these arguments; ended so far: 2 cancelled"
    assert said in found.stderr
    assert "no job of q is dead" in zq("ls", "q", "--state", "dead", broker=address).stderr


def test_times_are_of_this_machine_as_in_its_logs(live_broker: LiveBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(live_broker.config) as client:
        job_id = client.submit("m.f", queue="q").id
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    try:
        told = json.loads(zq("show", job_id, "--json", broker=live_broker.address).stdout)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert told["accepted_at"].endswith("+05:45")


def test_submit_tells_a_taken_key_and_waits_for_an_end(live_broker: LiveBroker) -> None:
    address = live_broker.address
    words = ["submit", "m.f", "--queue", "q", "--key", "k"]
    first, second = zq(*words, broker=address), zq(*words, broker=address)
    assert first.stdout == second.stdout
    assert "key 'k' already" in second.stderr
    late = zq(*words, "--wait", "--timeout", "0.1", broker=address)
    assert late.exit_code == cli.EXIT_REFUSED
    assert "has not ended" in late.stderr
    with Client(live_broker.config) as client:
        client.cancel([first.stdout.strip()])
    ended = zq("submit", "m.f", "--queue", "q", "--id", first.stdout.strip(), "--key", "k", "--wait", broker=address)
    assert ended.exit_code == cli.EXIT_REFUSED
    assert "is cancelled" in ended.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["submit", "m.f"], 2, "--queue"),
        (["submit", "a b", "--queue", "q"], 2, "without blanks"),
        (["submit", "m.f", "--queue", "q", "--arg", "novalue"], 2, "name=value"),
        (["submit", "m.f", "--queue", "q", "--args", "{"], 2, "not JSON"),
        (["submit", "m.f", "--queue", "q", "--args", '{"a": 1}'], 2, "array"),
        (["submit", "m.f", "--queue", "q", "--priority", "10"], 2, "0 to 9"),
        (["submit", "m.f", "--queue", "q", "--eta", "tomorrow"], 2, "ISO 8601"),
        (["submit", "m.f", "--queue", "q", "--eta", "2025-01-01T00:00"], 2, "time zone"),
        (["show", "123"], 2, "not a job id"),
        (["cancel"], 2, "ID"),
        (["ls", "q", "--limit", "0"], 2, "range"),
        (["len", "--broker", "localhost:5570"], 2, "tcp://"),
        (["nonsense"], 2, "No such command"),
        (["lenn"], 2, "Did you mean 'len'?"),
        (["--config", "/none/zq.toml", "len"], 78, "/none/zq.toml"),
        (["config", "check", "--config", "/none/zq.toml"], 78, "no such file"),
    ],
)
def test_wrong_words_are_answered_with_what_would_be_right(words: list[str], code: int, said: str) -> None:
    result = zq(*words)
    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_a_broker_that_is_away_is_69(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZQ_CLIENT_TIMEOUT_S", "0.2")
    address = f"tcp://127.0.0.1:{free_port()}"
    for words in (["len"], ["workers", "--json"], ["submit", "m.f", "--queue", "q"], ["show", format_id(bytes(16))]):
        result = zq(*words, "--broker", address)
        assert result.exit_code == cli.EXIT_BROKER_AWAY
        assert address in result.stderr
        assert result.stdout == ""


def test_queues_and_states_that_are_not_there_name_those_that_are(live_broker: LiveBroker) -> None:
    with Client(live_broker.config) as client:
        client.submit("m.f", queue="合并")
    for words in (["len", "nope"], ["ls", "nope"]):
        result = zq(*words, broker=live_broker.address)
        assert result.exit_code == 2
        assert "合并" in result.stderr
    result = zq("ls", "合并", "--state", "sleeping", broker=live_broker.address)
    assert result.exit_code == 2
    assert "scheduled, ready, running" in result.stderr


def test_a_configuration_with_a_wrong_key_names_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "zq.toml"
    file.write_text("[broker]\nheartbeats = 1\n")
    result = zq("--config", str(file), "config", "check")
    assert result.exit_code == 78
    assert "heartbeat_s" in result.stderr
    file.write_text("[broker]\nheartbeat_s = 1\n")
    assert zq("config", "check", "--config", str(file)).exit_code == 0
    shown = json.loads(zq("config", "show", "--json", "--config", str(file)).stdout)
    assert shown["broker"]["heartbeat_s"] == 1


def test_what_config_show_prints_is_read_as_the_same(tmp_path: Path) -> None:
    config = Config(
        data_dir=str(tmp_path / '张 "伟"\\'),
        queues={**Config().queues, "a.b": QueueSection(slots=3, tasks=("m", "n"))},
        schedules={"tick": ScheduleSection(task="m.f", queue="q", every_s=1.5, args=(1, "二"), kwargs={"k": [True]})},
        client=ClientSection(timeout_s=0.5),
    )
    file = tmp_path / "zq.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    assert msgspec.structs.replace(load(file, {}), source="") == config


def test_every_command_has_help_and_the_list_imports_none() -> None:
    code = "import sys\nfrom click.testing import CliRunner\nfrom zq import cli\n"
    code += "r = CliRunner().invoke(cli.main, ['--help'])\nassert r.exit_code == 0\nprint(r.stdout)\n"
    code += "assert not [m for m in sys.modules if m in ('zmq', 'starlette', 'lmdb', 'psutil', 'zq.cli_jobs')]\n"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name, lazy in cli.COMMANDS.items():
        assert f"  {name} " in ran.stdout
        assert lazy.help in " ".join(ran.stdout.split())
    for name in ("submit", "show", "cancel", "retry", "len", "ls", "workers", "audit"):
        result = zq(name, "--help")
        assert result.exit_code == 0
        assert "--json" in result.stdout


def test_a_command_whose_package_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "web", cli.Lazy("no_such_package", "command", "…", "web"))
    result = zq("web")
    assert result.exit_code == 1
    assert "pip install 'zq[web]'" in result.stderr


def test_the_real_command_in_a_pipe_has_no_colours(live_broker: LiveBroker) -> None:
    with Client(live_broker.config) as client:
        job_id = client.submit("m.f", queue="合并").id
    env = {**os.environ, "ZQ_CLIENT_BROKER": live_broker.address, "PYTHONIOENCODING": "utf-8"}
    ran = subprocess.run([sys.executable, "-m", "zq.cli", "ls", "合并"], capture_output=True, env=env, check=True)
    assert job_id in ran.stdout.decode()
    assert b"\x1b" not in ran.stdout
    assert ran.stderr == b""
    ran = subprocess.run([sys.executable, "-m", "zq.cli", "show", "x"], capture_output=True, env=env, check=False)
    assert ran.returncode == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("n=3", 3),
        ("n=3.5", 3.5),
        ("n=true", True),
        ("n=null", None),
        ("n=[1, 2]", [1, 2]),
        ('n={"a": "b"}', {"a": "b"}),
        ('n="3"', "3"),
        ("n=张伟", "张伟"),
        ("n=", ""),
        ("n=a=b", "a=b"),
        ("n=NaN", "NaN"),
        ("n=2025-01-01", "2025-01-01"),
    ],
)
def test_values_are_json_or_text(text: str, value: Any) -> None:
    assert cli_jobs.parse_keyword(text) == ("n", value)


def test_a_queue_is_found_by_its_tasks() -> None:
    config = Config(queues={"a": QueueSection(tasks=("m", "n")), "b": QueueSection(tasks=("n",))})
    assert cli_jobs.queue_of("m.f", config) == "a"
    for task in ("n.f", "other.f", "f"):
        with pytest.raises(Invalid, match="--queue"):
            cli_jobs.queue_of(task, config)


def test_columns_stand_with_wide_characters_and_harmless_text() -> None:
    lines = cli_text.table(["name", "n"], [["张伟", "1"], ["ab", "22"], ["\x1b[31mred", "3"]], right=frozenset({1}))
    assert lines.splitlines() == ["name       n", "张伟       1", "ab        22", "?[31mred   3"]


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    table = cli_text.table(["state"], [["dead"]], state=0)
    assert table != click.unstyle(table)
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli_text.table(["state"], [["dead"]], state=0) == "state\ndead"


def test_a_missing_job_is_counted() -> None:
    queue = QueueInfo("q", 1, 2, 3, 4, 5, 6, 7, 29, 0, 0, 0, 0)
    assert audit_row(queue) == {
        "queue": "q", "accepted": 29, "finished": 22, "waiting": 3, "running": 3, "missing": 1,
    }  # fmt: skip
