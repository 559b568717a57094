from __future__ import annotations

import pytest

import zq.protocol.messages as m
from tests.broker.harness import Harness, one
from zq.protocol import limits
from zq.protocol.errors import Code

DAY_MS = 86_400_000


@pytest.fixture
def zq() -> Harness:
    return Harness()


def wait(session: int, request: int, job_id: bytes, timeout_ms: int = DAY_MS) -> m.Wait:
    return m.Wait(session, request, job_id, timeout_ms)


def test_who_asks_again_waits_once_and_is_told_once(zq: Harness) -> None:
    job_id = zq.submit("a")
    session = zq.client("asker")
    for _ in range(2 * limits.WAITERS_PER_JOB_MAX):
        assert zq.say("asker", wait(session, 7, job_id)) == []
    assert zq.core.waiters.count == 1
    worker = zq.worker()
    worker.ack(worker.lease())
    assert [x for name, x in zq.out if name == "asker" and isinstance(x, m.Ended)] == [zq_ended(zq, job_id)]


def zq_ended(zq: Harness, job_id: bytes) -> m.Ended:
    """What an asker is told who asks when it is over."""
    return one(zq.say("later", wait(zq.client("later"), 7, job_id)), m.Ended)


def test_who_has_gone_does_not_wait(zq: Harness) -> None:
    """A terminal that is closed and opened again, as often as one likes, takes nobody's place."""
    job_id = zq.submit("a")
    for number in range(limits.WAITERS_PER_JOB_MAX + 1):
        assert zq.say("asker", wait(zq.client("asker"), number, job_id)) == []
    assert zq.core.waiters.count == 1


def test_the_bound_for_one_job_is_kept_and_one_past_it_is_told(zq: Harness) -> None:
    job_id = zq.submit("a")
    session = zq.client("asker")
    for number in range(limits.WAITERS_PER_JOB_MAX):
        assert zq.say("asker", wait(session, number, job_id)) == []
    assert one(zq.say("asker", wait(session, 999, job_id)), m.Refusal).code is Code.BUSY
    assert zq.say("asker", wait(session, 0, job_id)) == [], "one that waits already"
    zq.round(later_ms=DAY_MS)
    zq.client("asker")
    assert zq.core.waiters.count == 0


def test_results_that_were_waited_for_leave_nothing_behind(zq: Harness) -> None:
    """A client that waits for as long as it takes, job after job."""
    worker = zq.worker()
    session = zq.client("asker")
    for number in range(3000):
        job_id = zq.submit(f"{number}")
        zq.say("asker", wait(session, number, job_id, limits.DURATION_MS_MAX))
        worker.ack(worker.lease())
        zq.out.clear()
    assert zq.core.waiters.count == 0
    assert len(zq.core.waiters) < 2000
