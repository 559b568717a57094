"""What tasks log and print is in the worker's log with its job, and `zq logs` finds it there. Whole workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_until
from tests.workers.worker_system import System
from zq.cli_logs import JobLogs, LogFile, as_object, entries


def start(system: System, *arguments: str, **environ: str) -> None:
    system.broker()
    system.start("zq.workers", "--queue", "q", "--tasks", "async_tasks", "--name", system.host, *arguments, **environ)
    folder = system.folder / "var" / "log"
    folder.mkdir(parents=True)
    (folder / "worker.log").symlink_to(system.folder / "zq.workers.log")


def zq_logs(system: System, *arguments: str, code: int = 0) -> tuple[list[str], str]:
    command = [sys.executable, "-m", "zq.cli", "--config", str(system.folder / "zq.toml"), "logs", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=system.folder, timeout=60)
    assert done.returncode == code, done.stderr
    return done.stdout.splitlines(), done.stderr


def objects(system: System, job_id: str) -> list[dict[str, Any]]:
    lines, said = zq_logs(system, "--json", job_id)
    assert said == ""
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("form", ["true", "false"])
def test_every_line_of_a_task_has_its_job(system: System, form: str) -> None:
    start(system, "--slots", "1", ZQ_LOG_JSON=form)
    job = system.submit("async_tasks.say_plain", "王小明")
    other = system.submit("async_tasks.say_plain", "other")
    for one in (job, other):
        one.result(timeout_s=30)
    found = objects(system, job.id)
    assert {(one["job_id"], one["task"], one["attempt"]) for one in found} == {(job.id, "async_tasks.say_plain", 1)}
    messages = [one["message"] for one in found]
    assert messages[:4] == ["第一行", "second line of 王小明", "from a thread", "程序"]
    assert messages[-1] == "no end of line"
    assert messages[-3] == "it goes on, and is no longer logged", messages[-5:]
    wrong = found[-2]
    assert (wrong["level"], wrong["logger"], wrong["message"].split("\n")[0]) == ("error", "my.module", "it went wrong")
    assert [one["program"] for one in found if one["logger"] == "zq.task.program"] == ["sh"] * 201
    assert [one["message"] for one in objects(system, other.id)][1] == "second line of other"
    lines, _ = zq_logs(system, "-n", "2", job.id)
    assert "traced" in "\n".join(lines)
    assert "程序" not in "\n".join(lines)


def test_tasks_that_run_at_once_do_not_mix_their_lines(system: System) -> None:
    start(system, "--slots", "1", "--concurrency", "10")
    jobs = [system.submit("async_tasks.say_async", f"n{n}") for n in range(10)]
    for n, job in enumerate(jobs):
        job.result(timeout_s=30)
        messages = [one["message"] for one in objects(system, job.id)]
        assert sorted(messages) == sorted(["end", f"n{n} has spoken", f"n{n}: 0, n{n}: 1, n{n}: 2, "])


def test_follow_goes_on_until_the_job_has_ended(system: System) -> None:
    start(system, "--slots", "1")
    job = system.submit("async_tasks.meet", str(system.folder), "a", 1)
    command = [sys.executable, "-m", "zq.cli", "--config", str(system.folder / "zq.toml"), "logs", "-f", job.id]
    following = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until((system.folder / "here-a").exists)
    with (system.folder / "zq.workers.log").open("a") as file:
        print(f"2026-01-01 00:00:00.000 info    x: by hand  job_id={job.id}", file=file)
    assert following.stdout is not None
    assert "by hand" in following.stdout.readline()
    (system.folder / "here-b").touch()
    assert following.wait(30) == 0
    following.communicate()


def test_what_cannot_be_found_is_said(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.broker()
    waits = system.submit("nobody.has_it")
    assert zq_logs(system, waits.id) == ([], "zq logs: it has not run yet\n")
    unknown = "01890000-0000-7000-8000-000000000000"
    assert "not_found" in zq_logs(system, unknown, code=1)[1].lower()
    assert "is not a job id" in zq_logs(system, "nonsense", code=2)[1]
    nobody = ("--broker", "tcp://127.0.0.1:9", unknown)
    with monkeypatch.context() as patch:
        patch.setenv("ZQ_CLIENT_TIMEOUT_S", "0.5")
        assert "no answer from the broker" in zq_logs(system, *nobody, code=69)[1]
    system.start("zq.workers", "--queue", "q", "--tasks", "async_tasks", "--name", system.host)
    quiet = system.submit("async_tasks.plain")
    quiet.result(timeout_s=30)
    assert "its worker was not started by `zq up`" in zq_logs(system, quiet.id)[1]
    for lock in (system.folder / "var" / "run").glob("worker-*"):
        lock.unlink()
    assert f"ran in worker {system.host}, whose log is on another machine" in zq_logs(system, quiet.id)[1]


def test_files_that_were_moved_away_are_read_and_a_new_one_is_followed(tmp_path: Path) -> None:
    def line(number: int, job: str = "J") -> str:
        return f"2026-01-01 00:00:0{number}.000 info    x: n{number}  job_id={job} task=t attempt=2\n"

    def append(text: str) -> None:
        with (tmp_path / "w.log").open("a") as file:
            file.write(text)

    (tmp_path / "w.log.1").write_text(line(1) + line(2, "other"))
    (tmp_path / "w.log").write_text(line(3) + "    more of 3\n" + line(4, "other") + "    more of 4\n")
    logs = JobLogs(tmp_path, b"J")
    assert [as_object(entry, "J")["message"] for entry in logs.past()] == ["n1", "n3\n    more of 3"]
    append(line(5)[:30])
    assert logs.news() == []
    append(line(5)[30:])
    assert [as_object(entry, "J")["attempt"] for entry in logs.news()] == [2]
    append(line(6))
    os.rename(tmp_path / "w.log", tmp_path / "w.log.2")
    (tmp_path / "w.log").write_text(line(7))
    assert [as_object(entry, "J")["message"] for entry in logs.news()] == ["n6", "n7"]
    logs.close()


def test_a_log_of_any_bytes_is_read(tmp_path: Path) -> None:
    (tmp_path / "w.log").write_bytes(b"{J\n\xff\xfeJ\0\n{\"time\": 3, \"J\": 1}\n" + b"J" * 3_000_000 + b"\nJ no end")
    file = LogFile(tmp_path / "w.log", b"J")
    found = entries(file.read())
    assert [bool(as_object(entry, "J")) for entry in found] == [True] * 4
    file.close()
