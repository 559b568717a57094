"""Async tasks, hooks, command tasks and the recycling of slots, in whole workers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_until
from tests.workers.worker_system import System
from zq.client.job import Job
from zq.exceptions import JobFailed
from zq.protocol.job import Cause, Outcome, State

Starter = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(system: System) -> Starter:
    system.broker()

    def worker(*arguments: str) -> subprocess.Popen[bytes]:
        arguments = (*arguments, "--tasks", "async_tasks", "--name", system.host)
        return system.start("zq.workers", "--queue", "q", *arguments)

    return worker


def submit(system: System, task: str, *args: Any, **options: Any) -> Job[Any]:
    return system.submit(f"async_tasks.{task}", *args, **options)


@pytest.mark.parametrize("at_once", ["1", "8"])
def test_a_task_of_the_loop_has_its_job_its_pool_and_its_limits(start: Starter, system: System, at_once: str) -> None:
    start("--slots", "1", "--concurrency", at_once)
    jobs = [submit(system, "who", 0.01 * n) for n in range(6)]
    found = [job.result(timeout_s=30) for job in jobs]
    for job, one in zip(jobs, found, strict=True):
        assert one["id"] == one["before"] == one["child"] == job.id
        assert one["pool"] == one["pid"]
    assert len({one["pid"] for one in found}) == 1
    text = submit(system, "softly", soft_time_limit_s=0.3).result(timeout_s=30)
    assert text == "over the soft limit of 0.3 s; 0"
    for task, why in (("leave", "the task called sys.exit(3)"), ("block", "run_process_async()")):
        with pytest.raises(JobFailed, match=why.replace("(", r"\(").replace(")", r"\)")):
            submit(system, task, max_retries=0).result(timeout_s=30)
    # The process has survived all of it.
    assert submit(system, "who").result(timeout_s=30)["pid"] == found[0]["pid"]


@pytest.mark.parametrize("at_once", [pytest.param("1", marks=pytest.mark.long), "4"])
def test_tasks_of_the_loop_that_wait_without_a_sign_of_life_have_stalled(
    start: Starter, system: System, at_once: str, tmp_path: Path
) -> None:
    start("--slots", "1", "--concurrency", at_once)
    job = submit(system, "wait_for_ever", str(tmp_path), stall_after_s=1)
    with pytest.raises(JobFailed, match="stalled: no sign of life for 1 s"):
        job.result(timeout_s=30)
    assert Cause.STALL in [event.cause for event in system.detail(job).history]
    assert submit(system, "who").result(timeout_s=30)


@pytest.mark.parametrize("at_once", ["1", "4"])
def test_what_a_task_awaits_of_its_worker(start: Starter, system: System, at_once: str, tmp_path: Path) -> None:
    start("--slots", "1", "--concurrency", at_once)
    done = submit(system, "services", str(tmp_path))
    assert done.result(timeout_s=30) == {"codes": [3, 0], "stderr": "oops\n", "lines": ["一", "二"]}
    assert (tmp_path / "out.txt").read_text() == "published"
    assert not list(tmp_path.glob(".zq-*"))
    late = submit(system, "program_past_its_time", str(tmp_path), soft_time_limit_s=0.4, max_retries=0)
    with pytest.raises(JobFailed, match="SoftTimeLimitExceeded"):
        late.result(timeout_s=30)
    assert (tmp_path / "asked").exists()


def test_tasks_of_one_slot_run_at_the_same_time_and_a_plain_one_is_refused(
    start: Starter, system: System, tmp_path: Path
) -> None:
    start("--slots", "1", "--concurrency", "20")
    jobs = [submit(system, "meet", str(tmp_path), str(n), 19) for n in range(20)]
    assert len({job.result(timeout_s=30) for job in jobs}) == 1
    with pytest.raises(JobFailed, match="is not async"):
        submit(system, "plain").result(timeout_s=30)


def test_a_cancelled_task_ends_alone(start: Starter, system: System, tmp_path: Path) -> None:
    start("--slots", "1", "--concurrency", "4")
    beside = submit(system, "meet", str(tmp_path), "a", 1)
    doomed = submit(system, "wait_for_ever", str(tmp_path))
    wait_until((tmp_path / "waiting").exists)
    doomed.cancel()
    wait_until(lambda: doomed.state() is State.CANCELLED)
    assert (tmp_path / "cancelled").exists()
    (tmp_path / "here-b").touch()
    pid = beside.result(timeout_s=30)
    assert system.detail(beside).job.attempt == 1
    assert submit(system, "who").result(timeout_s=30)["pid"] == pid


def test_a_task_that_heeds_no_cancellation_takes_the_process_along_and_nobody_else_pays(
    start: Starter, system: System, tmp_path: Path
) -> None:
    start("--slots", "1", "--concurrency", "4")
    beside = submit(system, "meet", str(tmp_path), "a", 1)
    wait_until((tmp_path / "here-a").exists)
    short = {"time_limit_s": 0.4, "soft_time_limit_s": 0.2, "max_retries": 0}
    doomed = submit(system, "wait_for_ever", str(tmp_path), False, **short)
    with pytest.raises(JobFailed, match="over the hard limit"):
        doomed.result(timeout_s=30)
    (tmp_path / "here-b").touch()
    beside.result(timeout_s=30)
    outcomes = [attempt.outcome for attempt in system.detail(beside).attempts]
    assert outcomes[-1] is Outcome.DONE
    assert set(outcomes[:-1]) <= {Outcome.HANDED_BACK}


def test_a_drain_hands_back_what_runs_in_lanes(start: Starter, system: System, tmp_path: Path) -> None:
    worker = start("--slots", "1", "--concurrency", "4")
    jobs = [submit(system, "meet", str(tmp_path), str(n), 3) for n in range(3)]
    wait_until(lambda: len(list(tmp_path.glob("here-*"))) == 3)
    worker.terminate()
    assert worker.wait(30) == 0
    (tmp_path / "here-3").touch()
    start("--slots", "1", "--concurrency", "4")
    for job in jobs:
        job.result(timeout_s=30)
        assert system.detail(job).attempts[-1].outcome is Outcome.DONE
    assert list(tmp_path.glob("stopped-*"))
    assert list(tmp_path.glob("closed-*"))


def test_slots_are_replaced_by_count_and_by_size_and_their_hooks_run(
    start: Starter, system: System, tmp_path: Path
) -> None:
    start("--slots", "1", "--max-tasks-per-slot", "2")
    pids = [submit(system, "who").result(timeout_s=30)["pid"] for _ in range(6)]
    assert len(set(pids)) == 3
    wait_until(lambda: len(list(tmp_path.glob("stopped-*"))) >= 2)
    assert len(list(tmp_path.glob("closed-*"))) >= 2  # the last one is called first


@pytest.mark.parametrize("at_once", ["1", "3"])
def test_a_slot_that_has_grown_is_replaced(start: Starter, system: System, at_once: str) -> None:
    start("--slots", "1", "--concurrency", at_once, "--max-memory-per-slot", "1")
    pids: set[int] = set()
    while len(pids) < 2:
        pids.add(submit(system, "who").result(timeout_s=30)["pid"])
    assert "has grown to" in system.log()


def test_a_slot_whose_hook_raises_runs_nothing_and_is_tried_again(
    start: Starter, system: System, tmp_path: Path
) -> None:
    (tmp_path / "no-start").touch()
    start("--slots", "1")
    job = submit(system, "who")
    wait_until(lambda: "the pool cannot be opened" in system.log())
    (tmp_path / "no-start").unlink()
    job.result(timeout_s=30)
    assert system.detail(job).job.attempt == 1


def test_command_tasks(start: Starter, system: System) -> None:
    start("--slots", "1")
    shown = submit(system, "show", "-a b$(id).png", ["二", "3"])
    assert shown.result(timeout_s=30) == {"exit_code": 0, "output": "--|-a b$(id).png|二|3|w=320|\n3 of 4"}
    failed = submit(system, "end_with", 3, max_retries=1)
    with pytest.raises(JobFailed, match=r"(?s)CommandFailed: sh ended with exit code 3.*坏"):
        failed.result(timeout_s=30)
    assert len(system.detail(failed).attempts) == 2
    refused = submit(system, "end_with", 4)
    with pytest.raises(JobFailed, match="ended with exit code 4: 坏"):
        refused.result(timeout_s=30)
    assert len(system.detail(refused).attempts) == 1
    option = submit(system, "end_with", "-x")
    with pytest.raises(JobFailed, match="would be taken for an option"):
        option.result(timeout_s=30)
