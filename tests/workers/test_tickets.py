"""A slot's tickets: what it has not begun can be taken back, whatever it is doing, and nothing is run or lost twice."""

from __future__ import annotations

import itertools
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import wait_until
from tests.workers.slot_driver import Driver, pids_in
from zq.workers import slots
from zq.workers.channel import TICKETS_MAX


@pytest.fixture
def driver() -> Iterator[Driver]:
    with Driver() as fresh:
        yield fresh


def test_what_waits_behind_a_task_that_never_comes_back_to_python_is_taken_back(driver: Driver, tmp_path: Path) -> None:
    stuck = driver.start("sleep_in_c", str(tmp_path / "pids"))
    pids_in(tmp_path / "pids")
    behind = [driver.assignment("echo", number) for number in range(300)]
    driver.slot.send(behind)
    assert driver.slot.take_back() == tuple(job.seq for job in behind)
    assert driver.slot.take_back() == ()
    assert driver.slot.assigned == (stuck,)
    driver.slot.end(0.0)
    ended = driver.until(slots.Ended)
    assert (ended.unfinished, ended.untouched) == ((stuck,), ())


def test_the_first_job_is_left_to_the_slot(driver: Driver) -> None:
    os.kill(driver.slot.pid, signal.SIGSTOP)
    jobs = [driver.assignment("echo", number) for number in range(3)]
    driver.slot.send(jobs)
    assert driver.slot.take_back() == (jobs[1].seq, jobs[2].seq)
    os.kill(driver.slot.pid, signal.SIGCONT)
    assert driver.result(jobs[0].seq).seq == jobs[0].seq
    # What was taken back is skipped, and what comes after it runs.
    assert driver.value("echo", 7) == [[7], {}]


def test_a_dead_slot_had_begun_one_job_and_the_others_certainly_not(driver: Driver, tmp_path: Path) -> None:
    first = driver.start("sleep_python", str(tmp_path / "pids"))
    pids_in(tmp_path / "pids")
    behind = [driver.assignment("echo", number) for number in range(5)]
    driver.slot.send(behind)
    os.kill(driver.slot.pid, signal.SIGKILL)
    ended = driver.until(slots.Ended)
    assert ended.unfinished == (first,)
    assert ended.untouched == tuple(job.seq for job in behind)


def test_each_job_is_either_answered_or_taken_back(driver: Driver) -> None:
    chance = random.Random(5)
    sent: list[int] = []
    taken: list[int] = []
    answered: list[int] = []

    def at_most(count: int) -> bool:
        for event in driver.keeper.receive():
            assert isinstance(event, slots.Finished)
            answered.extend(result.seq for result in event.results)
        return len(driver.slot.assigned) <= count

    for _ in range(300):
        jobs = [driver.assignment("echo", 1) for _ in range(chance.randrange(1, 20))]
        driver.slot.send(jobs)
        sent += [job.seq for job in jobs]
        for _ in range(chance.randrange(3)):
            at_most(0)
        if chance.random() < 0.5:
            taken += driver.slot.take_back()
        wait_until(lambda: at_most(400))
    wait_until(lambda: at_most(0))
    assert sorted(itertools.chain(taken, answered)) == sent
    assert answered == sorted(answered)
    assert taken


def test_a_slot_takes_so_many_jobs_and_no_more(driver: Driver) -> None:
    os.kill(driver.slot.pid, signal.SIGSTOP)
    driver.slot.send([driver.assignment("echo", 1) for _ in range(TICKETS_MAX)])
    with pytest.raises(RuntimeError, match="at most 512"):
        driver.slot.send([driver.assignment("echo", 1)])
    os.kill(driver.slot.pid, signal.SIGCONT)
    wait_until(lambda: (driver.keeper.receive(), not driver.slot.assigned)[1])
