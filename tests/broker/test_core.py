"""The broker's rules, one at a time. The simulator mixes them."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

import zq.protocol.messages as m
from tests.broker.harness import Harness, one
from zq.broker.retry import backoff_ms
from zq.broker.window import Window
from zq.protocol.errors import Code
from zq.protocol.job import JobSpec, Outcome, State, encode_spec, job_id_from
from zq.protocol.messages import ReceiptStatus, Role


@pytest.fixture
def zq() -> Harness:
    return Harness()


# ---------------------------------------------------------------------------------------------- submit


def test_the_same_job_again_is_the_same_answer_and_another_body_a_conflict(zq: Harness) -> None:
    assert zq.submit_receipt("a").status is ReceiptStatus.ACCEPTED
    assert zq.submit_receipt("a").status is ReceiptStatus.DUPLICATE
    zq.restart()
    assert zq.submit_receipt("a").status is ReceiptStatus.DUPLICATE
    assert zq.submit_receipt("a", priority=9).code is Code.CONFLICT
    assert zq.journal.counts()["q"].accepted == 1


def test_the_same_id_twice_in_one_message_is_one_job(zq: Harness) -> None:
    session = zq.client()
    data = encode_spec(JobSpec(job_id_from("a"), "t", "q"))
    receipts = one(zq.say("client", m.Submit(session, 1, [data, data])), m.Receipts).receipts
    assert [receipt.status for receipt in receipts] == [ReceiptStatus.ACCEPTED, ReceiptStatus.DUPLICATE]


def test_one_live_job_has_a_key_and_the_answer_names_it(zq: Harness) -> None:
    worker = zq.worker()
    first = zq.submit("a", key="merge:1")
    taken = zq.submit_receipt("b", key="merge:1")
    assert (taken.status, taken.job_id) == (ReceiptStatus.KEY_TAKEN, first)
    worker.ack(worker.lease())
    assert zq.submit_receipt("c", key="merge:1").status is ReceiptStatus.ACCEPTED


def test_one_bad_job_does_not_spoil_the_others_in_the_message(zq: Harness) -> None:
    session = zq.client()
    good = encode_spec(JobSpec(job_id_from("good"), "t", "q"))
    receipts = one(zq.say("client", m.Submit(session, 1, [b"nonsense", good])), m.Receipts).receipts
    assert [receipt.code for receipt in receipts] == [Code.INVALID, None]
    assert zq.state(job_id_from("good")) is State.READY


def test_a_submit_to_a_queue_nobody_serves_warns(zq: Harness) -> None:
    assert "no worker serves queue 'q'" in zq.submit_receipt("a").warnings[0]
    zq.worker()
    assert zq.submit_receipt("b").warnings == []


def test_while_the_disk_is_low_submits_are_refused_and_acknowledgements_go_on(zq: Harness) -> None:
    worker = zq.worker()
    zq.submit("a")
    zq.core.submits.closed = Code.DISK_LOW
    refused = zq.submit_receipt("b")
    assert refused.code is Code.DISK_LOW
    assert refused.retry_after_ms > 0
    assert zq.submit_receipt("a").status is ReceiptStatus.DUPLICATE
    assert worker.ack(worker.lease()).accepted


# ---------------------------------------------------------------------------------------------- dispatch


def test_higher_priority_first_then_the_order_of_acceptance(zq: Harness) -> None:
    for name, priority in [("a", 5), ("b", 9), ("c", 5), ("d", 0)]:
        zq.submit(name, priority=priority)
    worker = zq.worker(slots=4)
    assert [lease.job_id for lease in worker.leases()] == [job_id_from(name) for name in "bacd"]


def test_no_more_leases_than_credit_and_the_next_when_one_ends(zq: Harness) -> None:
    worker = zq.worker(slots=2)
    for name in "abc":
        zq.submit(name)
    assert len(worker.leases()) == 2
    worker.ack(worker.leases()[0])
    assert len(worker.leases()) == 3
    worker.hear(m.Credit(worker.session, [m.QueueSlots("q", 0)]))
    worker.ack(worker.leases()[1])
    zq.submit("d")
    assert len(worker.leases()) == 3


def test_workers_take_turns(zq: Harness) -> None:
    workers = [zq.worker(f"w{n}", slots=3) for n in range(3)]
    for n in range(6):
        zq.submit(str(n))
    assert [len(worker.leases()) for worker in workers] == [2, 2, 2]


def test_a_worker_that_joins_is_given_nothing_before_its_resume(zq: Harness) -> None:
    zq.submit("a")
    hello = m.Hello(1, 1, Role.WORKER, "w", bytes(16), [m.QueueSlots("q", 1)])
    session = one(zq.say("w", hello), m.Welcome).session
    refusal = one(zq.say("w", m.Credit(session, [m.QueueSlots("q", 1)])), m.Refusal)
    assert refusal.code is Code.UNKNOWN_SESSION, "it must begin anew: a RESUME that was lost would leave it deaf"
    assert zq.state(job_id_from("a")) is State.READY


def test_a_backlog_larger_than_the_window_keeps_its_order(zq: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Window, "SIZE", 4)
    names = [str(n) for n in range(50)]
    session = zq.client()
    for name in names:
        zq.submit(name, session)
    assert len(zq.core.queues.get("q").lanes) <= 8
    worker = zq.worker()
    for _ in names:
        worker.ack(worker.lease())
        zq.round()
    assert [lease.job_id for lease in worker.leases()] == [job_id_from(name) for name in names]


def test_cancelling_all_that_is_in_memory_loses_nothing_of_the_backlog(
    zq: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Window, "SIZE", 4)
    session = zq.client()
    jobs = [zq.submit(str(n), session) for n in range(30)]
    zq.say("client", m.Cancel(session, 1, jobs[:10]))
    worker = zq.worker(slots=30)
    for _ in range(5):
        zq.round()
    assert len(worker.leases()) == 20


# ---------------------------------------------------------------------------------------------- how attempts end


def test_a_job_that_always_fails_runs_four_times_and_is_dead_with_its_error(zq: Harness) -> None:
    worker = zq.worker()
    job = zq.submit("a")
    for number in range(1, 5):
        assert worker.lease().attempt == number
        worker.ack(worker.lease(), Outcome.FAILED, error=f"failure {number}")
        while zq.state(job) is State.SCHEDULED:
            zq.round(later_ms=1000)
            worker.beat(seen=number)
    assert zq.state(job) is State.DEAD
    assert zq.row(job).error == "failure 4"
    assert [a.error for a in zq.journal.attempts(job)] == [f"failure {n}" for n in range(1, 5)]
    assert len(worker.leases()) == 4


def test_a_failed_job_waits_longer_each_time_and_not_like_its_neighbours(zq: Harness) -> None:
    worker = zq.worker()
    job = zq.submit("a", backoff_ms=1000)
    worker.ack(worker.lease(), Outcome.FAILED)
    row = zq.row(job)
    assert row.state is State.SCHEDULED
    assert 900 <= row.due_ms - zq.now_ms <= 1100
    assert [round(backoff_ms(replace(row, attempt=n)), -3) for n in (2, 3)] == [2000, 4000]
    assert backoff_ms(replace(row, attempt=40, backoff_ms=60_000)) <= 3_600_000 * 1.1
    spread = {backoff_ms(replace(row, id=job_id_from(str(n)))) for n in range(50)}
    assert len(spread) > 25


def test_a_rejected_job_is_dead_at_once_and_a_retry_after_is_obeyed(zq: Harness) -> None:
    worker = zq.worker(slots=2)
    a, b = zq.submit("a"), zq.submit("b")
    worker.ack(worker.leases()[0], Outcome.REJECTED, error="no such file")
    worker.ack(worker.leases()[1], Outcome.FAILED, retry_after_ms=7000)
    assert (zq.state(a), zq.row(a).error) == (State.DEAD, "no such file")
    assert zq.row(b).due_ms == zq.now_ms + 7000


def test_a_handed_back_attempt_does_not_count(zq: Harness) -> None:
    worker = zq.worker()
    job = zq.submit("a", max_retries=0)
    for _ in range(3):
        worker.ack(worker.lease(), Outcome.HANDED_BACK)
    worker.ack(worker.lease(), Outcome.FAILED)
    assert zq.state(job) is State.DEAD
    assert [a.outcome for a in zq.journal.attempts(job)] == [Outcome.HANDED_BACK] * 3 + [Outcome.FAILED]


def test_a_stale_workers_ack_changes_nothing(zq: Harness) -> None:
    """I5, and the interleaving of a rescuer that overwrote a job which had completed meanwhile (River #1302)."""
    frozen = zq.worker("frozen")
    job = zq.submit("a")
    old = frozen.lease()
    zq.round(later_ms=4_000)  # it falls silent; another worker gets the job
    other = zq.worker("other")
    zq.round(later_ms=1_000)
    assert other.lease().attempt == 2
    late = m.Ack(frozen.session, [m.Result(job, old.attempt, old.token, Outcome.FAILED)])
    assert one(zq.say("frozen", late), m.Refusal).code is Code.UNKNOWN_SESSION
    again = zq.worker("frozen", claims=[m.LeaseClaim(job, old.attempt, old.token)], inc=1)
    assert again.resumed is not None
    assert again.resumed.lost == [old.token]
    assert again.ack(old, Outcome.FAILED).stale == [old.token]
    assert other.ack(other.lease(), result=b"\x01").accepted
    assert again.ack(old, Outcome.FAILED).stale == [old.token]
    assert zq.state(job) is State.DONE


def test_an_ack_with_the_token_of_another_workers_lease_is_stale(zq: Harness) -> None:
    first, second = zq.worker("first"), zq.worker("second")
    job = zq.submit("a")
    lease = (first.leases() + second.leases())[0]
    thief = second if first.leases() else first
    assert thief.ack(lease).stale == [lease.token]
    assert zq.state(job) is State.RUNNING


# ---------------------------------------------------------------------------------------------- time


def test_a_delayed_job_becomes_ready_when_it_is_due_also_after_a_restart(zq: Harness) -> None:
    job = zq.submit("a", delay_ms=5000)
    assert zq.state(job) is State.SCHEDULED
    assert zq.core.wake_ms() - zq.now_ms <= 5000
    zq.restart()
    zq.round(later_ms=4999)
    assert zq.state(job) is State.SCHEDULED
    zq.round(later_ms=1)
    assert zq.state(job) is State.READY


def test_a_job_that_is_not_started_in_time_expires_and_a_started_one_does_not(zq: Harness) -> None:
    late, in_time = zq.submit("late", expires_ms=1000), zq.submit("in time", expires_ms=500, priority=9)
    worker = zq.worker()
    zq.round(later_ms=1000)
    worker.beat(worker.lease().token)
    assert (zq.state(late), zq.state(in_time)) == (State.EXPIRED, State.RUNNING)
    worker.ack(worker.lease(), Outcome.FAILED, retry_after_ms=0)
    zq.round()
    assert zq.state(in_time) is State.RUNNING


def test_ended_jobs_are_forgotten_after_their_retention_and_still_counted(zq: Harness) -> None:
    worker = zq.worker()
    job = zq.submit("a")
    worker.ack(worker.lease())
    for _ in range(99):
        zq.round(later_ms=1000)
    assert zq.journal.row(job) is not None
    zq.round(later_ms=2000)
    assert zq.journal.row(job) is None
    counts = zq.journal.counts()["q"]
    assert (counts.accepted, counts.by_state[State.DONE]) == (1, 1)


# ---------------------------------------------------------------------------------------------- cancel, retry, wait


def change(zq: Harness, message: m.PeerMessage) -> m.Change:
    return one(zq.say("client", message), m.Changed).changes[0]


def test_a_waiting_job_is_cancelled_at_once(zq: Harness) -> None:
    ready, scheduled = zq.submit("a"), zq.submit("b", delay_ms=9000)
    session = zq.client()
    for job in (ready, scheduled):
        assert change(zq, m.Cancel(session, 1, [job])).state is State.CANCELLED
        assert zq.state(job) is State.CANCELLED
    assert change(zq, m.Cancel(session, 1, [bytes(16)])).code is Code.NOT_FOUND
    worker = zq.worker()
    assert worker.leases() == []


def test_a_running_job_is_cancelled_by_its_worker_or_finishes_first(zq: Harness) -> None:
    worker = zq.worker(slots=2)
    a, b = zq.submit("a"), zq.submit("b")
    session = zq.client()
    zq.say("client", m.Cancel(session, 1, [a, b]))
    revoked = [t for name, x in zq.out if name == "worker" and isinstance(x, m.Revoke) for t in x.tokens]
    assert revoked == [lease.token for lease in worker.leases()]
    assert not one(worker.hear(m.Hold(worker.session, 5, a, worker.leases()[0].token)), m.Held).held
    worker.ack(worker.leases()[0], Outcome.CANCELLED)
    worker.ack(worker.leases()[1], Outcome.DONE)
    assert (zq.state(a), zq.state(b)) == (State.CANCELLED, State.DONE)


def test_a_cancelled_job_whose_worker_is_lost_is_cancelled_and_asked_again_after_a_resume(zq: Harness) -> None:
    worker = zq.worker("w")
    job = zq.submit("a")
    zq.say("client", m.Cancel(zq.client(), 1, [job]))
    zq.restart()
    zq.worker("w", claims=[m.LeaseClaim(job, 1, worker.lease().token)])
    assert any(isinstance(x, m.Revoke) for _, x in zq.out[-4:])
    zq.round(later_ms=4500)
    zq.round(later_ms=1)
    assert zq.state(job) is State.CANCELLED


def test_a_dead_job_can_be_retried_by_an_operator_and_a_done_one_cannot(zq: Harness) -> None:
    worker = zq.worker()
    job = zq.submit("a", max_retries=0)
    worker.ack(worker.lease(), Outcome.FAILED)
    session = zq.client()
    assert change(zq, m.RetryEnded(session, 1, [job])).code is None
    assert worker.lease().attempt == 2
    worker.ack(worker.lease())
    assert zq.state(job) is State.DONE
    assert change(zq, m.RetryEnded(session, 1, [job])).code is Code.NOT_ALLOWED


def test_who_waits_for_a_job_hears_of_its_end_once(zq: Harness) -> None:
    worker = zq.worker()
    job = zq.submit("a")
    session = zq.client()
    assert zq.say("client", m.Wait(session, 7, job, 60_000)) == []
    worker.ack(worker.lease(), result=b"\x07")
    ended = [x for name, x in zq.out if name == "client" and isinstance(x, m.Ended)]
    assert ended == [m.Ended(7, job, State.DONE, b"\x07", True, "")]
    assert one(zq.say("client", m.Wait(session, 8, job, 60_000)), m.Ended).result == b"\x07"
    zq.round(later_ms=50_001)
    assert zq.journal.result(job) is None, "and its bytes are gone from the disk"
    session = zq.client()
    assert not one(zq.say("client", m.Wait(session, 8, job, 60_000)), m.Ended).result_kept
    assert one(zq.say("client", m.Wait(session, 9, bytes(16), 60_000)), m.Refusal).code is Code.NOT_FOUND


# ---------------------------------------------------------------------------------------------- looking


def test_jobs_are_listed_page_by_page_in_every_state(zq: Harness) -> None:
    session = zq.client()
    jobs = [zq.submit(str(n), session, queue="a" if n < 5 else "b") for n in range(8)]
    found: list[bytes] = []
    after = b""
    while True:
        page = one(zq.say("client", m.AskJobs(session, 1, "", State.READY, after, 3)), m.Jobs)
        found += [job.id for job in page.jobs]
        after = page.next
        if not after:
            break
    assert found == jobs
    bad = one(zq.say("client", m.AskJobs(session, 1, "", State.READY, b"xyz", 3)), m.Refusal)
    assert bad.code is Code.INVALID


def test_ended_jobs_are_listed_newest_first(zq: Harness) -> None:
    worker = zq.worker()
    jobs = [zq.submit(str(n)) for n in range(3)]
    for _ in jobs:
        worker.ack(worker.lease())
        zq.round(later_ms=10)
    session = zq.client()
    page = one(zq.say("client", m.AskJobs(session, 1, "q", State.DONE)), m.Jobs)
    assert [job.id for job in page.jobs] == jobs[::-1]


def test_a_queue_tells_its_counts_consumers_and_free_slots(zq: Harness) -> None:
    worker = zq.worker(slots=3)
    zq.submit("a")
    session = zq.client()
    info = one(zq.say("client", m.AskQueues(session, 1)), m.Queues).queues[0]
    assert (info.name, info.running, info.accepted, info.consumers, info.slots, info.free) == ("q", 1, 1, 1, 3, 2)
    worker.hear(m.Bye(worker.session))
    info = one(zq.say("client", m.AskQueues(session, 1)), m.Queues).queues[0]
    assert (info.ready, info.consumers, info.slots) == (1, 0, 0)


def test_credit_for_tiny_jobs_is_not_told_as_slots(zq: Harness) -> None:
    worker = zq.worker(slots=3)
    worker.hear(m.Credit(worker.session, [m.QueueSlots("q", 17)]))
    for n in range(5):
        zq.submit(str(n))
    session = zq.client()
    info = one(zq.say("client", m.AskQueues(session, 1)), m.Queues).queues[0]
    assert (info.running, info.slots, info.free) == (5, 3, 0)
    told = one(zq.say("client", m.AskWorkers(session, 2)), m.Workers).workers[0]
    assert [(entry.queue, entry.slots) for entry in told.queues] == [("q", 3)]
    worker.hear(m.Credit(worker.session, [m.QueueSlots("q", 0)]))
    info = one(zq.say("client", m.AskQueues(session, 3)), m.Queues).queues[0]
    assert (info.slots, info.free) == (0, 0)


def test_a_running_jobs_progress_and_use_are_shown(zq: Harness) -> None:
    worker = zq.worker()
    job = zq.submit("a")
    lease = worker.lease()
    worker.hear(m.Progress(worker.session, [m.JobProgress(job, lease.token, 3, 10, "合并")]))
    usage = m.LeaseUsage(lease.token, m.Usage(cpu_ms=1500, peak_rss_bytes=1 << 20), 900)
    worker.hear(m.Beat(worker.session, 1, [lease.token], [usage]))
    detail = one(zq.say("client", m.AskJob(zq.client(), 1, job)), m.JobDetail)
    assert (detail.job.progress_done, detail.job.progress_total, detail.job.progress_message) == (3, 10, "合并")
    assert detail.job.usage.cpu_ms == 1500
    assert detail.attempts[-1].outcome is None
