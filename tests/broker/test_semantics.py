"""What queues, keys and tags do to the order and number of jobs that run, why a job waits, and what is told of it."""

from __future__ import annotations

import pytest

import zq.protocol.messages as m
from tests.broker.harness import Harness, Worker, one
from zq.broker import concurrency, retention
from zq.broker.core import Settings
from zq.broker.lanes import AGEING_MS
from zq.protocol import codec
from zq.protocol.errors import Code
from zq.protocol.job import Cause, JobSpec, KeyPolicy, Outcome, State, encode_spec, job_id_from
from zq.protocol.messages import ReceiptStatus, WhyReason


@pytest.fixture
def zq() -> Harness:
    return Harness()


def names(worker: Worker) -> list[bytes]:
    return [lease.job_id for lease in worker.leases()]


def ids(text: str) -> list[bytes]:
    return [job_id_from(name) for name in text]


def set_queue(zq: Harness, **settings: object) -> m.QueueInfo:
    return zq.ask(m.QueueSet, m.SetQueue(0, 1, "q", **settings)).queue  # type: ignore[arg-type]


def pages(zq: Harness) -> list[m.Jobs]:
    """All ready jobs of all queues, one to a page."""
    found = [zq.ask(m.Jobs, m.AskJobs(0, 1, "", State.READY, limit=1))]
    while found[-1].next:
        found.append(zq.ask(m.Jobs, m.AskJobs(0, 1, "", State.READY, found[-1].next, 1)))
    return found


def why(zq: Harness, job_id: bytes) -> m.Why:
    return zq.ask(m.Why, m.AskWhy(0, 1, job_id))


# ---------------------------------------------------------------------------------------------- queue settings


def test_a_paused_queue_takes_jobs_and_dispatches_none_also_after_a_restart(zq: Harness) -> None:
    assert set_queue(zq, paused=True).paused
    zq.restart()
    worker = zq.worker()
    job = zq.submit("a")
    assert (names(worker), why(zq, job).reason) == ([], WhyReason.PAUSED)
    set_queue(zq, paused=False)
    zq.round()
    assert names(worker) == [job]


def test_a_queue_runs_no_more_than_its_bound_on_all_workers(zq: Harness) -> None:
    set_queue(zq, running_max=2)
    workers = [zq.worker(f"w{n}", slots=2) for n in range(2)]
    for name in "abc":
        zq.submit(name)
    assert sum(len(worker.leases()) for worker in workers) == 2
    assert why(zq, job_id_from("c")).reason is WhyReason.RUNNING_MAX
    busy = next(worker for worker in workers if worker.leases())
    busy.ack(busy.lease())
    assert zq.state(job_id_from("c")) is State.RUNNING


def test_a_rate_limit_spreads_dispatches_evenly_and_wakes_by_itself(zq: Harness) -> None:
    set_queue(zq, rate_per_s=10.0)
    worker = zq.worker(slots=100)
    session = zq.client()
    for number in range(40):
        zq.submit(str(number), session)
    assert len(worker.leases()) <= 2
    waiting = why(zq, job_id_from("39"))
    assert (waiting.reason, 0 < waiting.wait_ms <= 200) == (WhyReason.RATE, True)
    begun_ms = zq.now_ms
    while zq.now_ms < begun_ms + 2000:
        zq.round(later_ms=max(1, zq.core.wake_ms() - zq.now_ms))
        worker.beat(*[lease.token for lease in worker.leases()], seen=0)
    assert 19 <= len(worker.leases()) <= 23


def test_a_queue_that_is_full_refuses_with_a_time_to_come_again(zq: Harness) -> None:
    set_queue(zq, length_max=2)
    zq.submit("a")
    zq.submit("b", delay_ms=1000)
    refused = zq.submit_receipt("c")
    assert (refused.code, refused.retry_after_ms > 0) == (Code.QUEUE_FULL, True)
    worker = zq.worker()
    worker.ack(worker.lease())
    assert zq.submit_receipt("c").status is ReceiptStatus.ACCEPTED


@pytest.mark.parametrize("rate_per_s", [1e-12, 1e-300, 5e-324])
def test_a_rate_of_next_to_nothing_holds_a_queue_for_a_year(zq: Harness, rate_per_s: float) -> None:
    set_queue(zq, rate_per_s=rate_per_s)
    worker = zq.worker(slots=2)
    zq.submit("a")
    zq.submit("b")
    assert names(worker) == ids("a")
    assert zq.core.wake_ms() <= zq.now_ms + 1000
    why = zq.ask(m.Why, m.AskWhy(0, 1, job_id_from("b")))
    assert why.reason is WhyReason.RATE
    assert codec.decode_from_broker(codec.encode(why)) == why


# ---------------------------------------------------------------------------------------------- order


def test_waiting_makes_up_for_priority(zq: Harness) -> None:
    low = zq.submit("low", priority=3)
    zq.round(later_ms=AGEING_MS + 1)
    zq.submit("a little higher", priority=4)
    high = zq.submit("much higher", priority=9)
    worker = zq.worker()
    worker.ack(worker.lease())
    assert names(worker) == [high, low]


# ---------------------------------------------------------------------------------------------- tags


def test_a_job_goes_only_to_a_worker_with_its_tags_and_holds_up_nobody_else(zq: Harness) -> None:
    plain = zq.worker("plain", slots=2)
    receipt = zq.submit_receipt("needs both", tags=("gpu", "disk=a"), priority=9)
    assert "has the tags disk=a, gpu" in receipt.warnings[0]
    other = zq.submit("other")
    assert names(plain) == [other]
    assert why(zq, job_id_from("needs both")).reason is WhyReason.TAGS
    zq.worker("half", tags=("gpu",))
    assert zq.state(job_id_from("needs both")) is State.READY
    whole = zq.worker("whole", tags=("disk=a", "gpu", "more"))
    assert names(whole) == [job_id_from("needs both")]


def test_lanes_are_found_again_after_a_restart(zq: Harness) -> None:
    for number in range(3):
        zq.submit(str(number), tags=(f"machine={number}",))
    zq.submit("any")
    zq.restart()
    worker = zq.worker(slots=9, tags=("machine=1",))
    assert sorted(names(worker)) == sorted([job_id_from("1"), job_id_from("any")])


def test_thousands_of_tag_sets_that_no_worker_has_hold_nobody_up(zq: Harness) -> None:
    """They are not looked at again for each dispatch, are there when a worker comes, and are forgotten in the end."""

    def submit(name: str, count: int, *tags: str) -> None:
        specs = [
            JobSpec(job_id_from(f"{name}{n}"), "t", "q", tags=tuple(f"{tag}{n}" for tag in tags)) for n in range(count)
        ]
        zq.say("client", m.Submit(zq.client(), 1, [encode_spec(spec) for spec in specs]))

    plain = zq.worker("plain", slots=100)
    submit("tagged", 2000, "t")
    lanes = zq.core.queues.get("q").lanes
    assert not lanes.open()
    submit("plain", 50)
    assert len(plain.leases()) == 50
    able = zq.worker("able", slots=100, tags=("t7", "t1999"))
    assert {lease.job_id for lease in able.leases()} == {job_id_from("tagged7"), job_id_from("tagged1999")}
    assert {lane.tags for lane in lanes.open()} == {frozenset(), frozenset({"t7"}), frozenset({"t1999"})}
    for number in range(5):
        submit(f"passing{number}-", 1000, "u", f"v{number}-")
        ids = [job_id_from(f"passing{number}-{n}") for n in range(1000)]
        zq.say("client", m.Cancel(zq.client(), 1, ids))
    assert lanes.count < 5000, "lanes in which nobody stands are forgotten"


def test_a_lane_that_was_forgotten_begins_anew(zq: Harness) -> None:
    """Its last job goes to a worker in the very round in which others come: the journal still shows it as ready."""
    worker = zq.worker(slots=1, tags=("a", "b"))
    lanes = zq.core.queues.get("q").lanes
    zq.submit("first", tags=("a",))
    zq.submit("second", tags=("a",))
    client = zq.client()
    lanes.sweep_at = 0
    later = [JobSpec(job_id_from(name), "t", "q", tags=tags) for name, tags in (("other", ("b",)), ("third", ("a",)))]
    result = m.Result(worker.lease().job_id, 1, worker.lease().token, Outcome.DONE)
    zq.core.receive(b"worker", None, m.Ack(worker.session, [result]), zq.now_ms)
    zq.core.advance(zq.now_ms)  # "second" is dispatched, and not committed
    zq.core.receive(b"client", None, m.Submit(client, 1, [encode_spec(spec) for spec in later]), zq.now_ms)
    zq.round()
    assert lanes.count == 2
    for _ in range(2):
        worker.ack(worker.lease())
    assert names(worker) == [job_id_from(name) for name in ("first", "second", "other", "third")]


# ---------------------------------------------------------------------------------------------- concurrency keys


def test_a_parked_job_is_let_in_also_when_the_broker_dies_just_after_there_was_room(zq: Harness) -> None:
    worker = zq.worker()
    zq.submit("a", concurrency_key="licence")
    lease = worker.lease()
    client = zq.client()
    # One round: "b" is parked behind "a", then "a" ends. The next round would let "b" in, but there is none.
    spec = JobSpec(job_id_from("b"), "t", "q", concurrency_key="licence")
    done = m.Result(lease.job_id, lease.attempt, lease.token, Outcome.DONE)
    zq.core.receive(b"client", None, m.Submit(client, 1, [encode_spec(spec)]), zq.now_ms)
    zq.core.receive(b"worker", None, m.Ack(worker.session, [done]), zq.now_ms)
    zq.round()
    assert not zq.row(spec.id).admitted
    zq.restart()
    assert zq.worker("again").lease().job_id == spec.id


def test_a_concurrency_key_bounds_what_runs_at_once_and_holds_up_nobody_else(zq: Harness) -> None:
    worker = zq.worker(slots=9)
    for name in "abcd":
        zq.submit(name, concurrency_key="disk", concurrency_limit=2)
    zq.submit("e")
    assert names(worker) == ids("abe")
    held = why(zq, job_id_from("c"))
    assert (held.reason, sorted(held.holders)) == (WhyReason.CONCURRENCY, sorted(ids("ab")))
    listed = [job.id for page in pages(zq) for job in page.jobs]
    assert sorted(listed) == sorted(ids("cd")), "parked jobs are listed as ready too"
    worker.ack(worker.leases()[1])
    assert names(worker) == ids("abec")
    zq.restart()
    claims = [m.LeaseClaim(x.job_id, x.attempt, x.token) for x in worker.leases() if x.job_id != job_id_from("b")]
    again = zq.worker(slots=9, claims=claims)
    assert zq.state(job_id_from("d")) is State.READY
    again.ack(worker.leases()[0])
    assert zq.state(job_id_from("d")) is State.RUNNING


@pytest.mark.parametrize("how", ["failed", "cancelled", "expired", "lost", "handed back"])
def test_however_a_job_leaves_its_key_is_free_for_the_next(zq: Harness, how: str) -> None:
    worker = zq.worker("w")
    first = zq.submit("first", concurrency_key="k", expires_ms=1000 if how == "expired" else 0)
    if how == "expired":
        worker.ack(worker.lease(), Outcome.HANDED_BACK)
        worker.hear(m.Credit(worker.session, [m.QueueSlots("q", 0)]))
    second = zq.submit("second", concurrency_key="k")
    if how == "failed":
        worker.ack(worker.lease(), Outcome.FAILED)
    elif how == "cancelled":
        zq.ask(m.Changed, m.Cancel(0, 1, [first]))
        worker.ack(worker.lease(), Outcome.CANCELLED)
    elif how == "lost":
        worker = zq.worker("w", inc=1)
    elif how == "handed back":
        worker.ack(worker.lease(), Outcome.HANDED_BACK)
        assert names(worker) == [first, first], "it keeps its place"
        worker.ack(worker.lease())
    else:
        worker.ack(worker.lease(), Outcome.HANDED_BACK)
        zq.round(later_ms=1000)
        worker.hear(m.Credit(worker.session, [m.QueueSlots("q", 1)]))
    zq.round()
    if how == "lost":
        worker.ack(worker.lease())
    assert second in [lease.job_id for lease in worker.leases()]


def test_a_job_parked_in_the_round_in_which_its_key_becomes_free_is_let_in(zq: Harness) -> None:
    from zq.protocol.job import JobSpec, encode_spec

    worker = zq.worker()
    zq.submit("a", concurrency_key="k")
    session = zq.client()
    spec = JobSpec(job_id_from("b"), "t", "q", concurrency_key="k")
    lease = worker.lease()
    zq.core.receive(b"client", None, m.Submit(session, 1, [encode_spec(spec)]), zq.now_ms)
    done = m.Result(lease.job_id, lease.attempt, lease.token, Outcome.DONE)
    zq.core.receive(b"worker", None, m.Ack(worker.session, [done]), zq.now_ms)
    zq.round()
    assert zq.core.wake_ms() <= zq.now_ms
    zq.round()
    assert names(worker) == ids("ab")


def test_after_a_restart_keys_are_looked_at_a_few_in_each_round(zq: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker died between the commit that made room and the one that would have let somebody in."""
    monkeypatch.setattr(concurrency, "KEYS_PER_ROUND", 2)
    worker = zq.worker(slots=9)
    for number in range(7):
        zq.submit(f"first-{number}", concurrency_key=f"k{number}")
        zq.submit(f"second-{number}", concurrency_key=f"k{number}")
    with monkeypatch.context() as dies:
        dies.setattr(concurrency.Concurrency, "let_in", lambda self: iter(()))
        for lease in worker.leases():
            worker.ack(lease)
    assert len(worker.leases()) == 7
    zq.restart()
    let_in: list[int] = []
    while not let_in or zq.core.wake_ms() <= zq.now_ms:
        zq.round()
        let_in.append(sum(zq.row(job_id_from(f"second-{number}")).admitted for number in range(7)))
    assert let_in == [2, 4, 6, 7]
    assert len(zq.worker("another", slots=9).leases()) == 7


# ---------------------------------------------------------------------------------------------- key policies


def test_replace_cancels_the_job_that_waits_and_not_one_that_runs(zq: Harness) -> None:
    old = zq.submit("old", key="k", delay_ms=5000)
    assert zq.submit_receipt("new", key="k", key_policy=KeyPolicy.REPLACE).status is ReceiptStatus.ACCEPTED
    assert (zq.state(old), zq.state(job_id_from("new"))) == (State.CANCELLED, State.READY)
    assert "replaced by job" in zq.row(old).error
    zq.worker()
    taken = zq.submit_receipt("newer", key="k", key_policy=KeyPolicy.REPLACE)
    assert (taken.status, taken.job_id) == (ReceiptStatus.KEY_TAKEN, job_id_from("new"))


def test_reschedule_moves_the_job_that_waits(zq: Harness) -> None:
    job = zq.submit("job", key="k", delay_ms=5000)
    moved = zq.submit_receipt("again", key="k", key_policy=KeyPolicy.RESCHEDULE, delay_ms=60_000)
    assert (moved.status, moved.job_id) == (ReceiptStatus.KEY_TAKEN, job)
    assert zq.row(job).due_ms == zq.now_ms + 60_000
    zq.submit_receipt("now", key="k", key_policy=KeyPolicy.RESCHEDULE)
    assert zq.state(job) is State.READY
    assert zq.journal.counts()["q"].accepted == 1


# ---------------------------------------------------------------------------------------------- why


def test_every_other_reason_is_named_and_gone_when_it_is_removed(zq: Harness) -> None:
    job = zq.submit("job", delay_ms=3000)
    assert (why(zq, job).reason, why(zq, job).wait_ms) == (WhyReason.NOT_DUE, 3000)
    zq.round(later_ms=3000)
    assert why(zq, job).reason is WhyReason.NO_CONSUMER
    worker = zq.worker()
    assert "runs on worker" in why(zq, job).text
    second = zq.submit("second")
    held = why(zq, second)
    assert (held.reason, held.holders) == (WhyReason.NO_CREDIT, [job])
    assert "for 0 s on worker" in held.text
    worker.ack(worker.lease())
    assert why(zq, job).text == "it is done"
    assert why(zq, second).reason is WhyReason.NOT_WAITING
    assert zq.ask(m.Refusal, m.AskWhy(0, 1, bytes(16))).code is Code.NOT_FOUND


# ---------------------------------------------------------------------------------------------- events


def test_events_are_numbered_without_a_gap_over_restarts_and_can_be_read_on_from_any(zq: Harness) -> None:
    worker = zq.worker()
    job = zq.submit("a")
    worker.ack(worker.lease(), Outcome.FAILED, error="no disk")
    zq.restart()
    zq.submit("b", queue="other")
    events = zq.ask(m.Events, m.AskEvents(0, 1, 0)).events
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    causes = [event.cause for event in events if event.job_id == job]
    assert causes == [Cause.ACCEPT, Cause.DISPATCH, Cause.FAIL]
    assert events[2].detail == "no disk"
    rest = zq.ask(m.Events, m.AskEvents(0, 1, 3))
    assert [event.queue for event in rest.events] == ["other"]
    assert zq.ask(m.Events, m.AskEvents(0, 1, 0, "other")).events == rest.events
    assert zq.ask(m.Events, m.AskEvents(0, 1, rest.last)).events == []


def test_a_number_that_is_still_to_come_is_answered_with_the_newest_and_a_gap(zq: Harness) -> None:
    zq.submit("events")
    newest = zq.ask(m.Events, m.AskEvents(0, 1, 0)).last
    answer = zq.ask(m.Events, m.AskEvents(0, 1, (1 << 63) - 1, wait_ms=5000))
    assert (answer.events, answer.last, answer.gap) == ([], newest, True)


def test_who_waits_for_events_hears_of_them_when_they_are_on_disk(zq: Harness) -> None:
    session = zq.client("reader")
    assert zq.say("reader", m.AskEvents(session, 9, 0, wait_ms=5000)) == []
    job = zq.submit("a")
    heard = one([x for name, x in zq.out if name == "reader" and isinstance(x, m.Events)], m.Events)
    assert (heard.request, [event.job_id for event in heard.events]) == (9, [job])
    zq.out.clear()
    assert zq.say("reader", m.AskEvents(session, 10, heard.last, wait_ms=500)) == []
    zq.round(later_ms=500)
    assert one([x for name, x in zq.out if name == "reader"], m.Events).events == []


def test_a_reader_that_is_too_far_behind_is_told_of_the_gap(zq: Harness) -> None:
    for number in range(10):
        zq.submit(str(number))
    zq.journal.forget_events(4, 100)
    answer = zq.ask(m.Events, m.AskEvents(0, 1, 2))
    assert (answer.gap, len(answer.events)) == (True, 4)


def test_a_jobs_history_tells_every_step_and_who_asked(zq: Harness) -> None:
    worker = zq.worker()
    job = zq.submit("a", max_retries=0)
    worker.ack(worker.lease(), Outcome.FAILED, error="first")
    zq.ask(m.Changed, m.RetryEnded(0, 1, [job]))
    zq.restart()
    zq.worker("w2", name="worker", claims=[m.LeaseClaim(job, 2, worker.lease().token)])
    zq.ask(m.Changed, m.Cancel(0, 1, [job]))
    history = zq.ask(m.JobDetail, m.AskJob(0, 1, job)).history
    assert [event.cause for event in history] == [
        Cause.ACCEPT, Cause.DISPATCH, Cause.EXHAUST, Cause.OPERATOR_RETRY, Cause.DISPATCH, Cause.CANCEL_ASKED,
    ]  # fmt: skip
    assert history[3].detail == "asked by asker"
    assert [event.at_ms for event in history] == sorted(event.at_ms for event in history)


# ---------------------------------------------------------------------------------------------- dropping


def test_an_ended_job_can_be_dropped_and_still_counts_and_a_live_one_cannot(zq: Harness) -> None:
    worker = zq.worker()
    dead, live = zq.submit("dead"), zq.submit("live")
    worker.ack(worker.leases()[0], Outcome.REJECTED)
    changes = zq.ask(m.Changed, m.Drop(0, 1, [dead, live])).changes
    assert [change.code for change in changes] == [None, Code.NOT_ALLOWED]
    assert zq.journal.row(dead) is None
    assert zq.journal.counts()["q"].balanced()
    assert zq.journal.counts()["q"].by_state[State.DEAD] == 1


def test_specs_come_with_a_page_when_asked_for(zq: Harness) -> None:
    zq.submit("a")
    page = zq.ask(m.Jobs, m.AskJobs(0, 1, "q", State.READY, with_specs=True))
    assert [len(page.specs), len(page.jobs)] == [1, 1]
    assert zq.ask(m.Jobs, m.AskJobs(0, 1, "q", State.READY)).specs == []


def test_a_queue_that_nobody_serves_is_an_event_within_five_seconds_and_so_is_its_end(zq: Harness) -> None:
    zq.submit("a")
    for _ in range(25):
        zq.round(later_ms=200)
    zq.worker()
    zq.round(later_ms=200)
    events = [e for e in zq.ask(m.Events, m.AskEvents(0, 1, 0)).events if e.job_id == bytes(16)]
    assert [(event.cause, event.queue) for event in events] == [(Cause.QUEUE_UNSERVED, "q"), (Cause.QUEUE_SERVED, "q")]
    assert events[0].detail == "1 jobs wait"
    set_queue(zq, paused=True)
    assert zq.ask(m.Events, m.AskEvents(0, 1, events[-1].number)).events[-1].detail == "paused True, by asker"


def test_the_last_progress_is_kept_with_the_attempt(zq: Harness) -> None:
    worker = zq.worker()
    job = zq.submit("a")
    worker.hear(m.Progress(worker.session, [m.JobProgress(job, worker.lease().token, 3, 10, "合并")]))
    worker.ack(worker.lease())
    zq.restart()
    attempt = zq.ask(m.JobDetail, m.AskJob(0, 1, job)).attempts[0]
    assert (attempt.progress_done, attempt.progress_total, attempt.progress_message) == (3, 10, "合并")


def test_no_more_ended_jobs_are_kept_than_the_bound_and_the_oldest_go_first() -> None:
    zq = Harness(Settings(retention_jobs=3))
    worker = zq.worker()
    for name in "abcde":
        zq.submit(name)
        worker.ack(worker.lease())
        zq.round(later_ms=10)
    zq.submit("waits")
    for _ in range(3):
        zq.round(later_ms=1000)
    assert [zq.journal.row(job_id) is not None for job_id in ids("abcde")] == [False, False, True, True, True]
    assert zq.journal.counts()["q"].balanced()


def test_when_more_is_due_to_be_forgotten_than_one_turn_takes_the_next_turn_comes_soon() -> None:
    zq = Harness(Settings(retention_jobs=100, session_timeout_ms=4000))
    ids = [zq.submit(f"job {n}") for n in range(1000)]
    session = zq.client()
    for first in range(0, 1000, 200):
        zq.say("client", m.Cancel(session, 1, ids[first : first + 200]))
        zq.round(later_ms=1)
    zq.round(later_ms=1000)
    turns = 0
    while zq.journal.totals().rows > 100:
        zq.round(later_ms=zq.core.wake_ms() - zq.now_ms)
        turns += 1
    assert turns * retention.AGAIN_MS < 500
    assert not [job_id for job_id in ids[:800] if zq.journal.row(job_id) is not None], "the oldest go first"
    assert zq.core.wake_ms() > zq.now_ms + retention.AGAIN_MS
