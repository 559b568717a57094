"""Jobs that say what disk and memory they need go only where as much is left, and `why` tells what is missing."""

from __future__ import annotations

import pytest

import zq.protocol.messages as m
from tests.broker.harness import Harness, Worker
from zq.protocol.job import Cause, State, job_id_from
from zq.protocol.messages import Room, WhyReason

GIB = 1 << 30


@pytest.fixture
def zq() -> Harness:
    return Harness()


def worker(
    zq: Harness, name: str = "worker", *, disk: int, memory: int = GIB, shared: str = "", slots: int = 9
) -> Worker:
    made = zq.worker(name, slots=0)
    say_room(made, Room(disk, memory, shared, shared), slots)
    return made


def say_room(worker: Worker, room: Room, slots: int = 9) -> None:
    worker.hear(m.Credit(worker.session, [m.QueueSlots("q", slots)], room))


def names(worker: Worker) -> list[bytes]:
    return [lease.job_id for lease in worker.leases()]


def why(zq: Harness, name: str) -> m.Why:
    return zq.ask(m.Why, m.AskWhy(0, 1, job_id_from(name)))


def left(zq: Harness, name: str = "worker") -> m.Room | None:
    return next(w.room for w in zq.ask(m.Workers, m.AskWorkers(0, 1)).workers if w.instance == name)


def test_a_job_waits_for_a_worker_with_room_and_holds_up_nobody_else(zq: Harness) -> None:
    small = worker(zq, "small", disk=GIB)
    receipt = zq.submit_receipt("large", disk_bytes=3 * GIB, priority=9)
    assert receipt.warnings == ["it waits for room: it needs 3.0 GiB of disk; most is left on small: 1.0 GiB"]
    other = zq.submit("other")
    assert names(small) == [other]
    told = why(zq, "large")
    assert told.reason is WhyReason.HEADROOM
    assert told.text == "it needs 3.0 GiB of disk; most is left on small: 1.0 GiB"
    roomy = worker(zq, "roomy", disk=3 * GIB)
    assert names(roomy) == [job_id_from("large")]


def test_a_job_goes_when_its_worker_says_that_there_is_room_now(zq: Harness) -> None:
    one = worker(zq, disk=GIB, memory=GIB)
    zq.submit("job", memory_bytes=2 * GIB)
    assert "2.0 GiB of memory" in why(zq, "job").text
    one.hear(m.Beat(one.session, 0, [], [], [m.QueueSlots("q", 9)], Room(GIB, 2 * GIB)))
    assert names(one) == [job_id_from("job")]


def test_what_running_jobs_need_is_not_given_away_twice(zq: Harness) -> None:
    one = worker(zq, disk=10 * GIB)
    for name in "abc":
        zq.submit(name, disk_bytes=4 * GIB)
    assert names(one) == [job_id_from("a"), job_id_from("b")]
    assert left(zq) == Room(2 * GIB, GIB)
    assert why(zq, "c").reason is WhyReason.HEADROOM
    # "a" has used what it needs, and its file stays: the worker says so before its result.
    say_room(one, Room(6 * GIB, GIB))
    one.ack(one.leases()[0])
    assert names(one)[2:] == []
    assert left(zq) == Room(2 * GIB, GIB)
    say_room(one, Room(8 * GIB, GIB))
    assert names(one)[2:] == [job_id_from("c")]


def test_workers_that_share_a_disk_do_not_count_it_twice(zq: Harness) -> None:
    first, second = (worker(zq, name, disk=5 * GIB, shared="sda", slots=1) for name in ("1", "2"))
    apart = worker(zq, "3", disk=5 * GIB, shared="sdb", slots=0)
    for name in "ab":
        zq.submit(name, disk_bytes=3 * GIB)
    assert len(names(first) + names(second)) == 1
    say_room(apart, Room(5 * GIB, GIB, "sdb", "sdb"), slots=1)
    assert len(names(apart)) == 1


def test_a_claimed_lease_still_needs_its_room_also_after_a_restart_of_the_broker(zq: Harness) -> None:
    one = worker(zq, disk=5 * GIB, shared="sda")
    zq.submit("a", disk_bytes=4 * GIB)
    lease = one.lease()
    zq.restart()
    back = zq.worker(name="worker", slots=0, claims=[m.LeaseClaim(lease.job_id, lease.attempt, lease.token)], inc=0)
    say_room(back, Room(5 * GIB, GIB, "sda", "sda"))
    assert left(zq) == Room(GIB, GIB, "sda", "sda")
    zq.submit("b", disk_bytes=2 * GIB)
    assert zq.state(job_id_from("b")) is State.READY
    back.ack(lease)
    assert zq.state(job_id_from("b")) is State.RUNNING


def test_room_is_free_again_when_the_worker_is_lost(zq: Harness) -> None:
    one = worker(zq, disk=5 * GIB, shared="sda")
    zq.submit("a", disk_bytes=4 * GIB, max_retries=0)
    one.hear(m.Bye(one.session))
    zq.round()
    again = worker(zq, disk=5 * GIB, shared="sda")
    zq.submit("b", disk_bytes=5 * GIB)
    assert names(again)[-1:] == [job_id_from("b")]


def test_a_worker_that_never_says_what_it_has_gets_any_job(zq: Harness) -> None:
    old = zq.worker()
    zq.submit("a", disk_bytes=1 << 50)
    assert names(old) == [job_id_from("a")]
    assert left(zq) is None


def test_needs_are_known_again_after_a_restart(zq: Harness) -> None:
    zq.submit("large", disk_bytes=3 * GIB)
    zq.submit("small", disk_bytes=1 * GIB)
    zq.restart()
    one = worker(zq, disk=2 * GIB)
    assert names(one) == [job_id_from("small")]
    assert [job.disk_bytes for job in zq.ask(m.Jobs, m.AskJobs(0, 1, "q", State.READY)).jobs] == [3 * GIB]


def test_neither_room_alone_is_missing_but_both_together(zq: Harness) -> None:
    worker(zq, "disk", disk=5 * GIB, memory=1)
    worker(zq, "memory", disk=1, memory=5 * GIB)
    zq.submit("a", disk_bytes=GIB, memory_bytes=GIB)
    assert why(zq, "a").text == "it needs 1.0 GiB of disk and 1.0 GiB of memory, and no worker has both left"


def test_a_stall_is_one_event_and_is_seen_until_the_job_moves_again(zq: Harness) -> None:
    one = zq.worker()
    job = zq.submit("a")
    lease = one.lease()

    def beat(quiet_ms: int, *, stalled: bool) -> m.JobInfo:
        usage = m.LeaseUsage(lease.token, m.Usage(), 1000, quiet_ms, stalled)
        one.hear(m.Beat(one.session, 1, [lease.token], [usage]))
        return zq.ask(m.JobDetail, m.AskJob(0, 1, job)).job

    assert not beat(3000, stalled=False).stalled
    assert [beat(61_000 + n, stalled=True).quiet_ms for n in range(3)] == [61_000, 61_001, 61_002]
    assert [w.stalled for w in zq.ask(m.Workers, m.AskWorkers(0, 1)).workers] == [1]
    assert why(zq, "a").text == "it runs on worker, attempt 1; it has stalled: no sign of life for 61 s"
    assert not beat(0, stalled=False).stalled
    history = zq.ask(m.JobDetail, m.AskJob(0, 1, job)).history
    assert [event.cause for event in history] == [Cause.ACCEPT, Cause.DISPATCH, Cause.STALL]
    assert (history[-1].detail, history[-1].state) == ("no sign of life for 61 s", State.RUNNING)
    one.ack(lease)
    assert zq.state(job) is State.DONE


def test_an_unknown_token_in_a_beat_changes_nothing(zq: Harness) -> None:
    one = zq.worker()
    before = zq.core.book.last_event
    one.hear(m.Beat(one.session, 0, [], [m.LeaseUsage(77, m.Usage(), 0, 0, stalled=True)]))
    assert zq.core.book.last_event == before

