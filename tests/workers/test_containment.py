"""Whole workers against hostile tasks: whatever ends them, nothing lives two seconds later and the slot works again."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import psutil
import pytest

from tests.waiting import wait_gone, wait_until
from tests.workers.worker_system import DEADLINE_S, System
from zq.client.job import Job
from zq.protocol.job import Cause, Outcome, State

HOSTILE = ("deaf_daemons", "full_pipes", "hundred_children", "stopped", "holds_the_gil", "leave_a_child", "film")
ENDLESS_FILM = ("-re", "-f", "lavfi", "-i", "testsrc=size=64x64:rate=5", "-f", "null", "-")


def start(system: System, task: str, **options: object) -> tuple[Job[object], list[int]]:
    """The job, and the pids of its processes once they stand."""
    film = ENDLESS_FILM if task == "film" else ()
    job = system.submit(task, str(system.folder), *film, max_retries=0, **options)
    if task == "leave_a_child":
        return job, system.left_pids()
    file = system.folder / ("ffmpeg" if task == "film" else f"pids-{task}")
    wait_until(file.exists)
    return job, [int(pid) for pid in file.read_text().split()]


def no_zombies(worker: subprocess.Popen[bytes]) -> bool:
    below = psutil.Process(worker.pid).children(recursive=True)
    return not any(process.status() == psutil.STATUS_ZOMBIE for process in below)


def works_again(system: System) -> bool:
    return {system.submit("add", n, 1).result(timeout_s=DEADLINE_S) for n in range(4)} == {1, 2, 3, 4}


def test_cancelled_or_over_the_hard_limit_nothing_of_any_task_is_left(system: System) -> None:
    system.broker()
    worker = system.worker()
    for task in HOSTILE:
        job, pids = start(system, task, soft_time_limit_s=600, time_limit_s=600)
        job.cancel()
        wait_until(lambda job=job: job.state() is State.CANCELLED)  # type: ignore[misc]
        wait_gone(pids, within_s=0.1)  # said when nothing lived any more
    limited = [system.submit(task, str(system.folder), max_retries=0, soft_time_limit_s=1, time_limit_s=1)
               for task in HOSTILE if task not in ("stopped", "film", "leave_a_child")]  # fmt: skip
    for job in limited:
        ended = system.client.wait(job.id, DEADLINE_S)
        assert ended is not None
        assert ended.error == "over the hard limit of 1 s"
    wait_until(lambda: no_zombies(worker))
    assert works_again(system)
    below = psutil.Process(worker.pid).children(recursive=True)
    assert len(below) == 3, "a keeper and two slots"


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_worker_that_dies_takes_every_task_with_it(system: System, signum: signal.Signals) -> None:
    system.broker()
    worker = system.start("zq.workers", "--queue", "q", "--slots", str(len(HOSTILE)), "--name", system.host)
    pids = [pid for task in HOSTILE for pid in start(system, task)[1]]
    keeper, *rest = (p.pid for p in psutil.Process(worker.pid).children(recursive=True))
    assert len(rest) > 100
    worker.send_signal(signum)
    if signum is signal.SIGTERM:
        assert worker.wait(DEADLINE_S) == 0  # after its drain, not before all is gone
        wait_gone([keeper, *rest, *pids], within_s=0.1)
    else:
        worker.wait()
        wait_gone([keeper, *rest, *pids], within_s=2.0)


def test_a_tree_over_its_tasks_memory_limit_is_ended_though_no_process_is_large(running: System) -> None:
    job, pids = start(running, "hungry_children", memory_limit_bytes=200 << 20)
    ended = running.client.wait(job.id, DEADLINE_S)
    assert ended is not None
    assert "over the memory limit: 5 processes" in ended.error
    assert ended.error.endswith("; 200 are allowed")
    wait_gone(pids, within_s=0.1)
    assert works_again(running)


def test_a_workers_own_memory_limit_holds_whatever_the_task_asks(system: System) -> None:
    system.broker()
    system.worker(ZQ_WORKER_MEMORY_LIMIT_MIB="150")
    job, _ = start(system, "hungry_children", memory_limit_bytes=1 << 40)
    ended = system.client.wait(job.id, DEADLINE_S)
    assert ended is not None
    assert ended.error.endswith("; 150 are allowed")


def test_a_task_that_stopped_itself_gets_its_chance_to_finish_at_the_soft_limit(running: System) -> None:
    job, _ = start(running, "stopped", soft_time_limit_s=0.5, time_limit_s=60)
    assert job.result(timeout_s=DEADLINE_S) == "finished: over the soft limit of 0.5 s"


def test_what_a_job_uses_is_seen_while_it_runs_and_stays_with_its_attempt_however_it_ends(running: System) -> None:
    job = running.submit("spin_until", str(running.folder), "1", max_retries=0)
    wait_until(lambda: running.detail(job).job.usage.cpu_ms > 300)
    live = running.detail(job)
    assert live.attempts[-1].usage == live.job.usage
    job.cancel()
    wait_until(lambda: job.state() is State.CANCELLED)
    (attempt,) = running.detail(job).attempts
    assert attempt.usage.cpu_ms >= live.job.usage.cpu_ms
    assert attempt.usage.peak_rss_bytes > 5 << 20
    assert attempt.usage.processes == 1


# ---------------------------------------------------------------------------------------------- stuck or slow


def test_a_stopped_ffmpeg_has_stalled_and_is_told_and_runs_again(running: System) -> None:
    """Not told of it by name: no CPU, no bytes, no progress."""
    job = running.submit("film", str(running.folder), *ENDLESS_FILM, max_retries=0, stall_after_s=2)
    file = running.folder / "ffmpeg"
    wait_until(file.exists)
    ffmpeg = int(file.read_text())
    os.kill(ffmpeg, signal.SIGSTOP)
    ended = running.client.wait(job.id, DEADLINE_S)
    assert ended is not None
    assert ended.error.startswith("stalled: no sign of life for 2 s")
    wait_gone([ffmpeg], within_s=0.1)
    detail = running.detail(job)
    assert [event.cause for event in detail.history if event.cause is Cause.STALL] == [Cause.STALL]
    assert "no sign of life for 2" in next(e.detail for e in detail.history if e.cause is Cause.STALL)
    assert works_again(running)


def test_a_task_that_stalls_and_does_not_listen_is_ended_long_before_its_hard_limit(running: System) -> None:
    job = running.submit("deaf_daemons", str(running.folder), max_retries=0, stall_after_s=0.7)
    wait_until(lambda: running.detail(job).job.stalled)
    assert "it has stalled: no sign of life" in job.why().text
    assert [worker.stalled for worker in running.client.workers()] == [1]
    ended = running.client.wait(job.id, DEADLINE_S)
    assert ended is not None
    assert "stalled: no sign of life for" in ended.error
    assert ended.error.endswith("and none after its soft limit")


def test_a_throttled_ffmpeg_is_slow_and_left_alone(running: System) -> None:
    """For longer than it may be still it does a little, and is stopped again as soon as it has."""
    job = running.submit("film", str(running.folder), *ENDLESS_FILM, stall_after_s=5, max_retries=0)
    file = running.folder / "ffmpeg"
    wait_until(file.exists)
    ffmpeg = psutil.Process(int(file.read_text()))
    began_s = time.monotonic()
    while time.monotonic() < began_s + 6.5:
        ffmpeg.suspend()
        used = ffmpeg.io_counters(), ffmpeg.cpu_times()
        time.sleep(0.4)
        ffmpeg.resume()
        wait_until(lambda used=used: (ffmpeg.io_counters(), ffmpeg.cpu_times()) != used)  # type: ignore[misc]
    detail = running.detail(job)
    assert (detail.job.state, detail.job.stalled) == (State.RUNNING, False)
    assert Cause.STALL not in {event.cause for event in detail.history}


@pytest.mark.long
def test_a_worker_that_was_frozen_with_all_it_runs_takes_that_for_no_stall(running: System) -> None:
    """A machine that sleeps, a paused virtual machine, a frozen cgroup."""
    job, _ = start(running, "deaf_daemons", stall_after_s=7)
    worker = psutil.Process(running.processes[-1].pid)
    tree = [worker, *worker.children(recursive=True)]
    for process in tree:
        process.suspend()
    before_ms = running.detail(job).job.quiet_ms
    time.sleep(7.5)
    for process in reversed(tree):
        process.resume()
    wait_until(lambda: running.detail(job).job.quiet_ms != before_ms)
    detail = running.detail(job)
    assert not detail.job.stalled
    assert Cause.STALL not in {event.cause for event in detail.history}
    job.cancel()
    wait_until(lambda: job.state() is State.CANCELLED)


# ---------------------------------------------------------------------------------------------- headroom


def test_a_job_without_room_waits_and_says_why_and_runs_when_there_is_some(system: System) -> None:
    system.broker()
    room = os.statvfs(system.folder)
    beyond = room.f_bavail * room.f_frsize + (1 << 40)
    system.worker()
    wait_until(lambda: any(worker.room is not None for worker in system.client.workers()))
    huge = system.submit("add", 1, 1, disk_bytes=beyond)
    vast = system.submit("add", 1, 1, memory_bytes=1 << 50)
    assert system.submit("add", 2, 3, disk_bytes=1 << 20, memory_bytes=1 << 20).result(timeout_s=DEADLINE_S) == 5
    assert (huge.why().reason, vast.why().reason) == ("headroom", "headroom")
    assert f"most is left on {system.host}" in huge.why().text
    assert "1024.0 TiB of memory" in vast.why().text
    assert (huge.state(), vast.state()) == (State.READY, State.READY)


def test_needs_of_running_jobs_are_kept_for_them_while_they_write(system: System) -> None:
    system.broker()
    system.worker(ZQ_WORKER_DISK_RESERVE_MIB="0")

    def left() -> int:
        (worker,) = system.client.workers()
        return -1 if worker.room is None else worker.room.disk_bytes

    wait_until(lambda: bool(system.client.workers()) and left() >= 0)
    need = 2 << 30
    before = left()
    job = system.submit("write_bytes", str(system.folder), 64 << 20, disk_bytes=need)
    wait_until((system.folder / "started-1").exists)
    slack = 512 << 20  # others use the disk too
    wait_until(lambda: abs(before - need - left()) < slack)
    system.go()
    job.result(timeout_s=DEADLINE_S)
    wait_until(lambda: abs(before - (64 << 20) - left()) < slack)


# ---------------------------------------------------------------------------------------------- heartbeat


def test_tasks_that_hold_the_gil_and_every_core_starve_no_heartbeat(system: System) -> None:
    cores = os.cpu_count() or 1
    system.broker()
    system.start("zq.workers", "--queue", "q", "--slots", str(cores + 1), "--name", system.host)
    held = system.submit("holds_the_gil", str(system.folder), max_retries=0)
    spinning = [system.submit("spin_until", str(system.folder), str(n)) for n in range(cores)]
    wait_until(lambda: all((system.folder / f"spins-{n}").exists() for n in range(cores)))
    wait_until((system.folder / "pids-holds_the_gil").exists)
    began_s = time.monotonic()
    silences = []
    while time.monotonic() < began_s + 1.5:
        silences += [worker.silent_ms for worker in system.client.workers()]
        time.sleep(0.05)
    # A beat is sent each 200 ms; a lease is lost after 10 s. Whatever else this machine does, it is far from that.
    assert max(silences) < 5000
    assert {state for job in (held, *spinning) if (state := job.state())} == {State.RUNNING}
    held.cancel()
    wait_until(lambda: held.state() is State.CANCELLED)
    system.go()
    assert all(job.result(timeout_s=DEADLINE_S) for job in spinning)
    assert [a.outcome for job in spinning for a in system.detail(job).attempts] == [Outcome.DONE] * cores

