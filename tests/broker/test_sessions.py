"""How workers come and go with what they hold, and what a peer may say and reach."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

import zq.protocol.messages as m
from tests.broker.harness import Harness, one
from zq.broker.core import Settings
from zq.broker.sessions import Identity
from zq.protocol import limits
from zq.protocol.errors import Code
from zq.protocol.job import JobSpec, KeyPolicy, Outcome, State, encode_spec, job_id_from
from zq.protocol.messages import ReceiptStatus, Role


@pytest.fixture
def zq() -> Harness:
    return Harness()


# ---------------------------------------------------------------------------------------------- workers come and go


def test_a_silent_worker_loses_its_job_and_it_goes_elsewhere_at_once(zq: Harness) -> None:
    first = zq.worker("first")
    job = zq.submit("a")
    second = zq.worker("second")
    zq.round(later_ms=3000)
    second.beat(seen=0)
    zq.round(later_ms=1300)
    assert second.lease().job_id == job
    assert first.leases()[0].token < second.lease().token


def test_a_worker_started_again_under_its_name_frees_its_jobs_at_once(zq: Harness) -> None:
    """kill -9: nobody waits for a timeout."""
    zq.worker("w", name="merge-1", inc=1)
    job = zq.submit("a")
    again = zq.worker("w2", name="merge-1", inc=2)
    assert again.lease().job_id == job
    assert again.lease().attempt == 2


def test_a_broker_restart_reruns_nothing_that_its_worker_still_has(zq: Harness) -> None:
    worker = zq.worker("w")
    job = zq.submit("a")
    lease = worker.lease()
    zq.restart()
    zq.round(later_ms=5000)
    assert one(zq.say("w", m.Beat(worker.session, 1, [lease.token])), m.Refusal).code is Code.UNKNOWN_SESSION
    again = zq.worker("w", claims=[m.LeaseClaim(job, 1, lease.token)])
    assert again.resumed is not None
    assert again.resumed.held == [lease.token]
    assert again.ack(lease).accepted == [lease.token]
    assert zq.row(job).attempt == 1


def test_after_a_broker_restart_a_job_whose_worker_does_not_come_back_runs_again(zq: Harness) -> None:
    zq.worker("w")
    job = zq.submit("a")
    zq.restart()
    other = zq.worker("other")
    for _ in range(4):
        zq.round(later_ms=1000)
        other.beat(seen=0)
    assert other.leases() == []
    zq.round(later_ms=2001)
    assert other.lease().job_id == job


def test_idle_workers_of_a_large_fleet_may_be_silent_for_longer_and_busy_ones_not() -> None:
    """Two beats a second for all: each of four idle workers beats every two seconds and is missed after six."""
    settings = Settings(heartbeat_ms=500, session_timeout_ms=3000, resume_grace_ms=6000, idle_beats_per_s=2)
    zq = Harness(settings)
    workers = [zq.worker(f"w{n}") for n in range(4)]
    for worker in workers:
        assert one(worker.hear(m.Beat(worker.session, 0, [], [], [m.QueueSlots("q", 1)])), m.BeatOk).idle_ms == 2000
    for _ in range(2):
        zq.round(later_ms=2800)
    job = zq.submit("a")
    assert zq.state(job) is State.RUNNING, "none of them counts as silent"
    busy = zq.row(job).worker
    zq.round(later_ms=2900)
    assert zq.row(job).attempt == 1, "its silence counts from the dispatch"
    assert list(zq.core.sessions.workers) == [busy], "the idle ones have missed three beats"
    zq.round(later_ms=300)
    assert not zq.core.sessions.workers
    assert zq.state(job) is not State.RUNNING


def test_a_dispatch_that_never_arrived_is_found_by_the_heartbeat(zq: Harness) -> None:
    worker = zq.worker()
    job = zq.submit("a")
    worker.beat(seen=0)
    assert zq.row(job).attempt == 1, "it may still be on its way"
    worker.beat(seen=1)
    assert zq.row(job).attempt == 2, "it was seen, and is not there"


def test_a_heartbeat_repeats_the_credit(zq: Harness) -> None:
    hello = m.Hello(1, 1, Role.WORKER, "w", bytes(16), [m.QueueSlots("q", 1)])
    session = one(zq.say("w", hello), m.Welcome).session
    zq.say("w", m.Resume(session, []))  # and the CREDIT that follows is lost
    job = zq.submit("a")
    zq.say("w", m.Beat(session, 0, [], [], [m.QueueSlots("q", 1)]))
    assert zq.state(job) is State.RUNNING


def test_what_a_worker_has_and_was_not_given_is_revoked(zq: Harness) -> None:
    worker = zq.worker()
    revoke = one(worker.beat(12345, seen=0), m.Revoke)
    assert (revoke.tokens, revoke.reason) == ([12345], m.RevokeReason.STALE)


def test_a_peer_that_cannot_be_reached_loses_its_session_but_may_claim_its_leases(zq: Harness) -> None:
    worker = zq.worker("w")
    job = zq.submit("a")
    zq.core.unreachable(b"w")
    zq.submit("b")
    assert zq.state(job_id_from("b")) is State.READY
    again = zq.worker("w", claims=[m.LeaseClaim(job, 1, worker.leases()[0].token)])
    assert again.resumed is not None
    assert len(again.resumed.held) == 1


def test_a_broker_that_stood_still_blames_nobody(zq: Harness) -> None:
    zq.worker("w")
    job = zq.submit("a")
    zq.round(later_ms=3_600_000)
    assert zq.row(job).attempt == 1
    zq.round(later_ms=4_500)
    assert zq.row(job).state is State.READY, "but from then on silence counts"


def test_poison_jobs_end_dead_after_exactly_their_dispatches_over_restarts(zq: Harness) -> None:
    job = zq.submit("poison", max_retries=3)
    for number in range(1, 5):
        worker = zq.worker(f"w{number}", name="victim", inc=number)
        assert worker.lease().attempt == number
        if number % 2:
            zq.restart()
    zq.worker("last", name="victim", inc=9)
    assert zq.state(job) is State.DEAD
    assert "came back without it" in zq.row(job).error
    assert [a.outcome for a in zq.journal.attempts(job)] == [Outcome.LOST] * 4


def test_queues_that_were_only_served_go_with_their_worker(zq: Harness) -> None:
    for number in range(limits.QUEUES_MAX + 2):
        zq.worker(queue=f"passing-{number}")
    assert list(zq.core.queues.by_name) == [f"passing-{limits.QUEUES_MAX + 1}"]
    zq.submit("a", queue="q")
    zq.worker(queue="q")
    zq.ask(m.QueueSet, m.SetQueue(0, 1, "set", paused=True))
    zq.worker(queue="set")
    zq.worker(queue="other")
    assert sorted(zq.core.queues.by_name) == ["other", "q", "set"]
    zq.restart()
    zq.ask(m.QueueSet, m.SetQueue(0, 1, "set", paused=False))
    zq.worker(queue="set")
    zq.worker(queue="other")
    assert not zq.ask(m.Queues, m.AskQueues(0, 1)).queues[-1].paused


def test_more_queues_than_there_may_be_are_not_served(zq: Harness) -> None:
    per_worker = limits.QUEUES_PER_WORKER_MAX
    for number in range(limits.QUEUES_MAX // per_worker):
        session = one(zq.say(f"w{number}", hello(f"w{number}", f"n{number}-", per_worker)), m.Welcome).session
        zq.say(f"w{number}", m.Resume(session, []))
        credit = [m.QueueSlots(f"n{number}-{n}", 1) for n in range(per_worker)]
        zq.say(f"w{number}", m.Credit(session, credit))
    assert len(zq.core.queues.by_name) == limits.QUEUES_MAX
    assert one(zq.say("late", hello("late", "more-", 1)), m.Refusal).code is Code.BUSY
    one(zq.say("also", hello("also", "n0-", 1)), m.Welcome)


def hello(instance: str, prefix: str, queues: int) -> m.Hello:
    return m.Hello(1, 1, Role.WORKER, instance, bytes(16), [m.QueueSlots(f"{prefix}{n}", 1) for n in range(queues)])


# ---------------------------------------------------------------------------------------------- rights


@pytest.mark.parametrize(
    ("role", "message", "allowed"),
    [
        (Role.MONITOR, m.AskQueues(0, 1), True),
        (Role.MONITOR, m.Submit(0, 1, []), False),
        (Role.MONITOR, m.Cancel(0, 1, []), False),
        (Role.SUBMITTER, m.Submit(0, 1, []), True),
        (Role.SUBMITTER, m.Ack(0, []), False),
        (Role.SCHEDULER, m.Submit(0, 1, []), True),
        (Role.SCHEDULER, m.Cancel(0, 1, []), False),
        (Role.TASK, m.Submit(0, 1, []), True),
        (Role.TASK, m.AskJob(0, 1, bytes(16)), True),
        (Role.TASK, m.Cancel(0, 1, []), False),
        (Role.TASK, m.AskQueues(0, 1), False),
        (Role.TASK, m.Ack(0, []), False),
        (Role.ADMIN, m.Cancel(0, 1, []), True),
        (Role.ADMIN, m.Beat(0, 0, []), False),
    ],
)
def test_a_role_may_say_just_what_the_table_allows(
    zq: Harness, role: Role, message: m.PeerMessage, allowed: bool
) -> None:
    session = zq.client("peer", role)
    answers = zq.say("peer", replace(message, session=session))
    forbidden = any(isinstance(x, m.Refusal) and x.code is Code.FORBIDDEN for x in answers)
    assert forbidden is not allowed


def test_a_key_may_be_and_use_just_what_it_stands_for(zq: Harness) -> None:
    zq.identities["peer"] = Identity("cam", Role.SUBMITTER, ("thumb*",))
    hello = m.Hello(1, 1, Role.WORKER, "w", bytes(16), [m.QueueSlots("thumbs", 1)])
    assert one(zq.say("peer", hello), m.Refusal).code is Code.FORBIDDEN
    zq.identities["worker"] = Identity("w", Role.WORKER, ("thumb*",))
    wrong_queue = m.Hello(1, 1, Role.WORKER, "w", bytes(16), [m.QueueSlots("q", 1)])
    assert "may not serve q" in one(zq.say("worker", wrong_queue), m.Refusal).detail


@pytest.mark.parametrize("policy", [KeyPolicy.REPLACE, KeyPolicy.RESCHEDULE])
def test_a_key_policy_reaches_no_queue_that_the_submitter_may_not_use(zq: Harness, policy: KeyPolicy) -> None:
    others = zq.submit("others", queue="q", key="k")
    zq.identities["client"] = Identity("cam", Role.SUBMITTER, ("thumbs",))
    session = zq.client("client", Role.SUBMITTER)
    receipt = zq.submit_receipt("mine", session, queue="thumbs", key="k", key_policy=policy, delay_ms=1000)
    assert (receipt.status, receipt.job_id) == (ReceiptStatus.KEY_TAKEN, others)
    assert zq.state(others) is State.READY


def test_a_task_with_its_workers_key_reaches_the_queues_of_that_key_alone(zq: Harness) -> None:
    zq.identities["task"] = Identity("w", Role.WORKER, ("q",))
    task = zq.client("task", Role.TASK)
    boss = zq.client("boss")
    known = [bytes(16), bytes(15) + b"x"]
    mine, other = (
        encode_spec(JobSpec(job_id, "t", queue, b"")) for job_id, queue in zip(known, ("q", "other"), strict=True)
    )
    zq.say("boss", m.Submit(boss, 1, [other]))
    foreign = encode_spec(JobSpec(bytes(15) + b"y", "t", "other", b""))
    first, second = one(zq.say("task", m.Submit(task, 1, [mine, foreign])), m.Receipts).receipts
    assert (first.status, second.code) == (ReceiptStatus.ACCEPTED, Code.FORBIDDEN)
    assert one(zq.say("task", m.AskJob(task, 2, known[0])), m.JobDetail).job.id == known[0]
    assert one(zq.say("task", m.AskJob(task, 3, known[1])), m.Refusal).code is Code.NOT_FOUND
    assert one(zq.say("boss", m.AskJob(boss, 4, known[1])), m.JobDetail).job.id == known[1]
    zq.identities["other"] = Identity("s", Role.SUBMITTER)
    assert one(zq.say("other", m.Hello(1, 1, Role.TASK, "t", bytes(16))), m.Refusal).code is Code.FORBIDDEN


def test_a_session_belongs_to_its_connection(zq: Harness) -> None:
    session = zq.client("one")
    assert one(zq.say("other", m.AskQueues(session, 1)), m.Refusal).code is Code.UNKNOWN_SESSION


def test_a_peer_of_another_version_is_told_so(zq: Harness) -> None:
    refusal = one(zq.say("p", m.Hello(2, 3, Role.ADMIN, "p", bytes(16))), m.Refusal)
    assert refusal.code is Code.VERSION


def test_a_name_with_blanks_is_refused(zq: Harness) -> None:
    refusal = one(zq.say("p", m.Hello(1, 1, Role.ADMIN, "two words", bytes(16))), m.Refusal)
    assert refusal.code is Code.INVALID
