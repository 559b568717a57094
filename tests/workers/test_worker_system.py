"""Whole workers and a whole broker, as processes: what is killed, restarted or stopped, and what becomes of the job."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import wait_gone, wait_until
from tests.workers.worker_system import DEADLINE_S, PYTHONPATH, System, kill
from zq.client.requests import JobRequest
from zq.client.sync import Client
from zq.config import load
from zq.keys import new_key
from zq.protocol.job import Outcome, State
from zq.protocol.messages import QueueSlots, WhyReason


def test_a_job_goes_only_to_a_worker_with_its_tags(system: System) -> None:
    system.broker()
    job = system.submit("add", 2, 3, tags=["gpu", "disk=甲"])
    system.worker(ZQ_WORKER_TAGS="gpu")
    # Its HELLO makes it a worker, its credit a consumer.
    wait_until(lambda: job.why().reason is not WhyReason.NO_CONSUMER)
    assert [info.tags for info in system.client.workers()] == [["gpu"]]
    assert job.why().reason is WhyReason.TAGS
    assert system.submit("add", 1, 1).result(timeout_s=DEADLINE_S) == 2
    assert job.state() is State.READY
    words = ["--queue", "q", "--name", f"{system.host}-2", "--tag", "disk=甲", "--tag", "gpu", "--tag", "ssd"]
    system.start("zq.workers", *words, ZQ_WORKER_TAGS="gpu")
    assert job.result(timeout_s=DEADLINE_S) == 5
    (attempt,) = system.detail(job).attempts
    assert attempt.worker.endswith("-2")
    assert sorted(info.tags for info in system.client.workers()) == [["disk=甲", "gpu", "ssd"], ["gpu"]]


@pytest.mark.parametrize("tag", ["", "a b", "x" * 65])
def test_a_tag_that_is_none_is_wrong_usage(system: System, tag: str) -> None:
    assert system.start("zq.workers", "--queue", "q", "--tag", tag).wait(DEADLINE_S) == 2
    assert "--tag" in system.log()


def test_jobs_run_and_idle_workers_leave_at_once(system: System) -> None:
    system.broker()
    worker = system.worker()
    assert system.submit("add", 2, 3).result(timeout_s=DEADLINE_S) == 5
    wait_until(lambda: [info.queues for info in system.client.workers()] == [[QueueSlots("q", 2)]])
    assert system.client.workers()[0].instance == system.host
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(5) == 0
    assert system.client.workers() == []


def test_a_killed_worker_leaves_no_process_and_its_job_runs_again(system: System) -> None:
    system.broker()
    worker = system.worker()
    job = system.submit("leave_a_child", str(system.folder))
    pids = system.left_pids()
    kill(worker)
    wait_gone(pids, within_s=2.0)
    system.worker()
    # Long before the session's silence would tell: the new process has the old one's name.
    assert job.result(timeout_s=5) == 2
    assert [attempt.outcome for attempt in system.detail(job).attempts] == [Outcome.LOST, Outcome.DONE]


def test_a_job_that_always_fails_runs_four_times_and_is_dead(running: System) -> None:
    job = running.submit("fail")
    ended = running.client.wait(job.id, DEADLINE_S)
    assert ended is not None
    assert ended.state is State.DEAD
    assert "no luck in attempt 4" in ended.error
    assert [attempt.outcome for attempt in running.detail(job).attempts] == [Outcome.FAILED] * 4


def test_over_the_hard_limit_nothing_lives_and_the_slot_works_again(running: System) -> None:
    job = running.submit("leave_a_child", str(running.folder), max_retries=0, soft_time_limit_s=1, time_limit_s=1)
    ended = running.client.wait(job.id, DEADLINE_S)
    assert ended is not None
    assert ended.error == "over the hard limit of 1 s"
    # Said when nothing lived any more, not before.
    wait_gone(running.left_pids(), within_s=0.1)
    [attempt] = running.detail(job).attempts
    assert attempt.usage.processes >= 3
    assert {running.submit("add", n, 1).result(timeout_s=DEADLINE_S) for n in range(4)} == {1, 2, 3, 4}


def test_a_soft_limit_is_raised_in_the_task(running: System) -> None:
    job = running.submit("wait_for_file", str(running.folder), max_retries=0, soft_time_limit_s=0.5, time_limit_s=20)
    ended = running.client.wait(job.id, DEADLINE_S)
    assert ended is not None
    assert "SoftTimeLimitExceeded" in ended.error


def test_a_slot_that_is_killed_fails_its_job_with_the_signal(running: System) -> None:
    job = running.submit("die", max_retries=1)
    ended = running.client.wait(job.id, DEADLINE_S)
    assert ended is not None
    assert "signal 9 (SIGKILL)" in ended.error
    assert len(running.detail(job).attempts) == 2


def test_a_job_over_the_memory_limit_is_ended(system: System) -> None:
    system.broker()
    system.worker(ZQ_WORKER_MEMORY_LIMIT_MIB="150")
    job = system.submit("eat_memory", max_retries=0)
    ended = system.client.wait(job.id, DEADLINE_S)
    assert ended is not None
    assert "over the memory limit" in ended.error
    assert system.detail(job).attempts[0].usage.peak_rss_bytes > 150 << 20


def test_a_broker_that_is_killed_and_restarted_costs_a_running_job_nothing(system: System) -> None:
    broker = system.broker()
    system.worker()
    job = system.submit("wait_for_file", str(system.folder))
    system.started()
    kill(broker)
    system.broker()
    wait_until(lambda: "claiming 1 jobs again" in system.log())
    assert job.state() is State.RUNNING
    system.go()
    assert job.result(timeout_s=DEADLINE_S) == 1
    assert not (system.folder / "started-2").exists()


def test_a_result_is_held_while_the_broker_is_away(system: System) -> None:
    broker = system.broker()
    system.worker()
    job = system.submit("wait_for_file", str(system.folder))
    system.started()
    kill(broker)
    system.go()
    wait_until(lambda: "1 jobs and results are kept" in system.log())
    system.broker()
    assert job.result(timeout_s=DEADLINE_S) == 1
    assert len(system.detail(job).attempts) == 1


def test_still_mine_waits_for_a_broker_that_is_away(system: System) -> None:
    broker = system.broker()
    system.worker()
    job = system.submit("ask_and_wait", str(system.folder))
    system.started()
    kill(broker)
    system.go()
    wait_until(lambda: "no session" in system.log())
    assert not (system.folder / "answered").exists()
    system.broker()
    assert job.result(timeout_s=DEADLINE_S) == 1


def test_a_worker_frozen_past_its_lease_changes_nothing(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZQ_BROKER_SESSION_TIMEOUT_S", "0.7")
    system.broker()
    frozen = system.worker()
    job = system.submit("wait_for_file", str(system.folder))
    system.started(1)
    frozen.send_signal(signal.SIGSTOP)
    system.start("zq.workers", "--queue", "q", "--name", f"{system.host}-2")
    system.started(2)
    system.go()
    assert job.result(timeout_s=DEADLINE_S) == 2
    frozen.send_signal(signal.SIGCONT)
    wait_until(lambda: "it is not ours now" in system.log())
    assert job.result(timeout_s=0) == 2
    assert [attempt.outcome for attempt in system.detail(job).attempts] == [Outcome.LOST, Outcome.DONE]
    # And it works again.
    assert {system.submit("add", n, 1).result(timeout_s=DEADLINE_S) for n in range(6)} == {1, 2, 3, 4, 5, 6}


def test_a_drain_hands_back_without_costing_an_attempt(system: System) -> None:
    system.broker()
    worker = system.worker()
    job = system.submit("wait_for_file", str(system.folder), max_retries=0)
    system.started()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 0
    assert job.state() is State.READY
    system.go()
    system.worker()
    job.result(timeout_s=DEADLINE_S)
    assert [attempt.outcome for attempt in system.detail(job).attempts] == [Outcome.HANDED_BACK, Outcome.DONE]


def test_a_second_signal_hands_back_at_once(system: System) -> None:
    system.broker()
    worker = system.worker(ZQ_WORKER_DRAIN_S="60")
    job = system.submit("wait_for_file", str(system.folder))
    system.started()
    worker.send_signal(signal.SIGTERM)
    wait_until(lambda: "draining" in system.log())
    worker.send_signal(signal.SIGINT)
    assert worker.wait(10) == 0
    assert job.state() is State.READY


def test_a_drain_lets_a_running_job_finish(system: System) -> None:
    system.broker()
    worker = system.worker(ZQ_WORKER_DRAIN_S="60")
    job = system.submit("wait_for_file", str(system.folder))
    system.started()
    worker.send_signal(signal.SIGTERM)
    wait_until(lambda: "draining" in system.log())
    system.go()
    assert worker.wait(10) == 0
    assert job.result(timeout_s=0) == 1


def test_a_cancelled_job_is_ended(running: System) -> None:
    job = running.submit("leave_a_child", str(running.folder))
    pids = running.left_pids()
    job.cancel()
    wait_until(lambda: job.state() is State.CANCELLED)
    wait_gone(pids, within_s=0.1)


def test_progress_and_usage_are_seen_while_the_job_runs(running: System) -> None:
    job = running.submit("report_progress", str(running.folder))
    wait_until(lambda: running.detail(job).job.progress_done == 3)
    wait_until(lambda: running.detail(job).job.usage.peak_rss_bytes > 1 << 20)
    seen = running.detail(job).job
    assert (seen.progress_total, seen.progress_message) == (10, "三")
    running.go()
    assert job.result(timeout_s=DEADLINE_S) == 1


def test_slots_are_replaced_after_so_many_jobs_and_none_is_lost(system: System) -> None:
    system.broker()
    system.worker(ZQ_WORKER_MAX_TASKS_PER_SLOT="3")
    jobs = [system.submit("whoami") for _ in range(30)]
    pids = [job.result(timeout_s=DEADLINE_S) for job in jobs]
    assert len(set(pids)) >= 10
    assert max(pids.count(pid) for pid in pids) <= 3
    for job in jobs:
        # One that came in advance may have been given back meanwhile, which costs it nothing.
        outcomes = [attempt.outcome for attempt in system.detail(job).attempts]
        assert [outcome for outcome in outcomes if outcome is not Outcome.HANDED_BACK] == [Outcome.DONE]


def test_a_killed_keeper_is_replaced_and_its_jobs_run_again(running: System) -> None:
    job = running.submit("leave_a_child", str(running.folder))
    pids = running.left_pids()
    worker = running.processes[1]
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    assert job.result(timeout_s=DEADLINE_S) == 2
    wait_gone(pids, within_s=0.1)
    assert "its keeper died" in running.detail(job).attempts[0].error


# ---------------------------------------------------------------------------------------------------- bad input


def run_worker(system: System, *arguments: str) -> tuple[int, str]:
    run = subprocess.run(
        [sys.executable, "-m", "zq.workers", *arguments],
        env={**os.environ, "ZQ_CONFIG": str(system.folder / "zq.toml"), "PYTHONPATH": PYTHONPATH},
        cwd=system.folder,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    return run.returncode, run.stderr


def test_a_worker_without_queues_names_the_configured_ones(system: System) -> None:
    code, said = run_worker(system)
    assert code == 2
    assert re.search(r"--queue NAME; configured here: .*\bq\b", said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--queue", "q", "--tasks", "no_such_module"), "task module 'no_such_module' cannot be imported"),
        (("--queue", "q", "--tasks", "colorsys"), "define no task"),
        (("--queue", "q", "--broker", "127.0.0.1:5570"), "give tcp://HOST:PORT"),
        (("--queue", "q", "--name", "a b"), "worker name"),
        (("--queue", "q", "--config", "nowhere.toml"), "no such file"),
    ],
)
def test_what_a_restart_does_not_mend_exits_78_and_says_why(
    system: System, arguments: tuple[str, ...], said: str
) -> None:
    code, error = run_worker(system, *arguments)
    assert code == 78
    assert said in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--queue", "other"), "give --tasks MODULE"),
        (("--queue", "q", "--queue", "b", "--slots", "2"), "2 --queue but 1 --slots"),
        (("--queue", "q", "--queue", "q"), "name each --queue once"),
        (("--queue", "a b"), "is no name"),
        (("--queue", "q", "--slots", "0"), "0 is not in the range"),
    ],
)
def test_a_wrong_command_line_says_what_to_give(system: System, arguments: tuple[str, ...], said: str) -> None:
    code, error = run_worker(system, *arguments)
    assert code == 2
    assert said in error


# ---------------------------------------------------------------------------------------------------- keys


def test_a_worker_of_another_machine_comes_in_with_its_key_and_only_with_one(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZQ_BROKER_CURVE", "true")
    system.broker()
    client = Client(load(system.folder / "zq.toml"))
    job = client.submit("add", (2, 3), queue="q")
    elsewhere = system.folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "zq.toml").write_text(f'[client]\nbroker = "{system.address}"\n[worker]\ntasks = ["system_tasks"]\n')
    environ = {"ZQ_CONFIG": str(elsewhere / "zq.toml"), "ZQ_BROKER_CURVE": "false"}
    stranger = system.start("zq.workers", "--queue", "q", "--name", f"{system.host}-stranger", **environ)
    wait_until(lambda: "does one side use CURVE and the other not" in system.log())
    assert client.workers() == []
    kill(stranger)
    key = new_key(system.config.data_path / "keys", "second", "worker", ("q",))
    system.start("zq.workers", "--queue", "q", "--name", f"{system.host}-2", ZQ_CLIENT_KEY=str(key), **environ)
    assert job.result(timeout_s=DEADLINE_S) == 5
    client.close()


def test_tiny_jobs_are_not_held_up_by_a_slow_one_among_them(system: System) -> None:
    """Two slots with batches of tiny jobs; one job in the middle is slow: the other slot takes what was behind it."""
    system.broker()
    tiny = [JobRequest(task="moment", queue="q") for _ in range(1500)]
    slow = JobRequest(task="wait_for_file", queue="q", args=(str(system.folder),))
    ids = [receipt.job_id for receipt in system.client.submit_many([*tiny[:700], slow, *tiny[700:]])]
    system.worker(ZQ_WORKER_MAX_TASKS_PER_SLOT="0")
    slow_job = system.client.job(ids.pop(700))
    times = [system.client.job(job_id).result(timeout_s=DEADLINE_S) for job_id in ids]
    assert slow_job.state() is State.RUNNING
    waits = [after - before for before, after in itertools.pairwise(sorted(times))]
    # Some tens of milliseconds; on a machine that does much else a process may have to wait for its turn.
    assert max(waits) < 1.0
    [queue] = [queue for queue in system.client.queues() if queue.name == "q"]
    assert (queue.done, queue.running) == (1500, 1)
    system.go()
    slow_job.result(timeout_s=DEADLINE_S)
    # It may have been given back before it began, which costs it nothing; it began once.
    assert len(list(system.folder.glob("started-*"))) == 1
