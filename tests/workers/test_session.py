"""The worker's session without a socket or a clock: tables, credit, leases, holding results, drain."""

from __future__ import annotations

import pytest

from tests.workers.session_bench import HEARTBEAT_MS, TIMEOUT_MS, Bench, lease, of, one, spec
from zq.protocol import limits
from zq.protocol import messages as m
from zq.protocol.codec import encode
from zq.protocol.errors import Code
from zq.protocol.job import Outcome, State
from zq.workers import session_io as io
from zq.workers.leases import STEPS, HeldLease, IllegalStep, LeaseBook, Phase, Step, make_result
from zq.workers.questions import PROGRESS_MS, RESEND_MS
from zq.workers.session import DELIVERY_MS, SLOTS_MAX, Session, Settings
from zq.workers.stages import WORK_STEPS, Push, Work
from zq.workers.uplink import BACKOFF_MS_MAX, HEARD_IN, HELLO_WAIT_MS, LINK_STEPS, Link, Turn

# ---------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("step", Step)
def test_leases_follow_the_table_and_nothing_else(phase: Phase, step: Step) -> None:
    book = LeaseBook()
    held = HeldLease(lease(1), "q", spec())
    held.result = make_result(held, Outcome.DONE)
    book.add(held)
    held.phase = phase
    if (phase, step) not in STEPS:
        with pytest.raises(IllegalStep):
            book.step(held, step)
        assert held.phase is phase
        assert 1 in book
        return
    book.step(held, step)
    after = STEPS[phase, step]
    assert (1 in book) == (after is not None)
    assert after is None or held.phase is after


def test_a_result_is_dropped_only_when_acked_or_lost() -> None:
    drops = {(phase, step) for (phase, step), after in STEPS.items() if after is None}
    assert {pair for pair in drops if pair[0] is Phase.ENDED} == {
        (Phase.ENDED, Step.ACKED),
        (Phase.ENDED, Step.ABANDON),
    }


@pytest.mark.parametrize("link", Link)
@pytest.mark.parametrize("turn", Turn)
def test_the_link_follows_its_table(link: Link, turn: Turn) -> None:
    bench = Bench()
    uplink = bench.session.uplink
    uplink.link = link
    if turn is Turn.RETRY:
        uplink.greet_if_due(bench.now_ms)
    elif turn is Turn.WELCOMED:
        uplink.welcome(m.Welcome(1, 1, 1, HEARTBEAT_MS, TIMEOUT_MS), bench.now_ms)
    else:
        uplink.lose("test", bench.now_ms, 0)
    assert uplink.link is LINK_STEPS.get((link, turn), link)


def test_the_work_ends_only_over_a_drain() -> None:
    assert {before for (before, _), after in WORK_STEPS.items() if after is Work.LEFT} == {
        Work.DRAINING,
        Work.HANDING_BACK,
    }
    assert (Work.WORKING, Push.TIME_UP) not in WORK_STEPS
    assert not any(before is Work.LEFT for before, _ in WORK_STEPS)


MESSAGES: list[m.BrokerMessage] = [
    m.Welcome(1, 1, 1, 1, 1), m.Receipts(0, []), m.Dispatch(1, 1, [lease(1)]), m.Acked(1, [1], []),
    m.Resumed(1, [], [1]), m.BeatOk(1), m.Held(1, False), m.Revoke(1, [1], m.RevokeReason.STALE),
    m.Ended(0, b"j" * 16, State.DONE), m.Queues(0, []), m.Jobs(0, []), m.Workers(0, []), m.Changed(0, []),
    m.Refusal(0, Code.UNKNOWN_SESSION, ""),
]  # fmt: skip


@pytest.mark.parametrize("link", Link)
@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_does_not_fit_the_link_is_counted_and_changes_nothing(link: Link, message: m.BrokerMessage) -> None:
    bench = Bench()
    bench.session.uplink.link = link
    if link in HEARD_IN.get(type(message), ()):
        return
    assert bench.session.handle(message, bench.now_ms) == []
    assert bench.session.uplink.link is link
    assert bench.session.ignored[type(message).__name__] == 1
    assert len(bench.session.book) == 0


@pytest.mark.parametrize("message", [x for x in MESSAGES if hasattr(x, "session") and not isinstance(x, m.Welcome)])
def test_another_sessions_messages_are_ignored(message: m.BrokerMessage) -> None:
    bench = Bench()
    bench.session_id = 41
    bench.welcome()
    bench.dispatch(lease(1))
    assert bench.session.handle(message, bench.now_ms) == []
    assert bench.session.ignored[type(message).__name__] == 1
    held = bench.session.book.get(1)
    assert held is not None
    assert held.phase is Phase.RUNNING


# ---------------------------------------------------------------------------------------------------- the link


def test_the_first_words_are_hello_then_resume_then_credit() -> None:
    bench = Bench(up=False)
    effects = bench.later(0)
    assert isinstance(effects[0], io.OpenLink)
    hello = one(m.Hello, effects)
    assert (hello.role, hello.instance, hello.incarnation) == (m.Role.WORKER, "w", b"i" * 16)
    assert hello.queues == [m.QueueSlots("q", 2)]
    assert hello.tasks == ["t"]
    bench.tell(io.SlotUp(1, "q"), io.SlotUp(2, "q"))
    sent = of(m.FromPeer, bench.welcome())
    assert sent == [m.Resume(1, []), m.Credit(1, [m.QueueSlots("q", 2)])]


def test_hello_without_an_answer_is_said_again_on_a_new_connection_with_growing_pauses() -> None:
    bench = Bench()
    bench.later(0)
    waits = []
    for _ in range(8):
        started_ms = bench.now_ms
        bench.now_ms = bench.session.wake_ms()
        assert of(io.CloseLink, bench.session.turn(bench.now_ms))
        assert bench.session.uplink.link is Link.CLOSED
        bench.now_ms = bench.session.wake_ms()
        effects = bench.session.turn(bench.now_ms)
        assert one(m.Hello, effects).incarnation == b"i" * 16
        waits.append(bench.now_ms - started_ms)
    assert HELLO_WAIT_MS <= waits[0] <= HELLO_WAIT_MS + 100
    assert all(wait <= 2 * BACKOFF_MS_MAX for wait in waits)
    assert waits[-1] > 5_000


def test_silence_costs_the_link_and_nothing_else() -> None:
    bench = Bench()
    bench.welcome()
    bench.dispatch(lease(1))
    effects = []
    while bench.session.uplink.link is Link.READY:
        bench.now_ms = bench.session.wake_ms()
        effects += bench.session.turn(bench.now_ms)
    assert bench.now_ms == 1_000 + TIMEOUT_MS
    assert len(of(m.Beat, effects)) == TIMEOUT_MS // HEARTBEAT_MS
    assert not of(io.EndSlot, effects)
    assert one(m.Resume, bench.welcome()).leases == [m.LeaseClaim((1).to_bytes(16, "big"), 1, 1)]


def test_any_message_is_a_sign_of_life() -> None:
    bench = Bench()
    bench.welcome()
    for _ in range(20):
        bench.later(TIMEOUT_MS - 1)
        bench.tell(m.BeatOk(1))
    assert bench.session.uplink.link is Link.READY


def test_an_unknown_session_is_greeted_again_at_once() -> None:
    bench = Bench()
    bench.welcome()
    effects = bench.tell(m.Refusal(0, Code.UNKNOWN_SESSION, "say HELLO again"))
    assert of(io.CloseLink, effects)
    assert bench.session.wake_ms() - bench.now_ms <= 100


def test_two_workers_of_one_name_do_not_throw_each_other_out_all_the_time() -> None:
    bench = Bench()
    started_ms = bench.now_ms
    for _ in range(10):
        bench.welcome()
        bench.tell(m.Refusal(0, Code.UNKNOWN_SESSION, ""))
    assert bench.now_ms - started_ms > 10_000


def test_a_refused_hello_is_tried_again_slowly_and_told_loudly() -> None:
    bench = Bench()
    bench.later(0)
    effects = bench.tell(m.Refusal(0, Code.FORBIDDEN, "key 'x' may not serve q"))
    assert any("may not serve q" in say.text for say in of(io.Say, effects))
    assert bench.session.wake_ms() - bench.now_ms >= BACKOFF_MS_MAX // 2
    bench.now_ms = bench.session.wake_ms()
    assert of(m.Hello, bench.session.turn(bench.now_ms))


def test_a_beat_names_everything_that_is_not_acknowledged() -> None:
    bench = Bench()
    bench.welcome()
    bench.dispatch(lease(1), lease(2))
    bench.report(1)
    bench.tell(io.Sampled(2, m.Usage(cpu_ms=5)), io.Sampled(2, m.Usage(cpu_ms=3, processes=4)))
    beat = one(m.Beat, bench.later(HEARTBEAT_MS))
    usage = [m.LeaseUsage(2, m.Usage(cpu_ms=5, processes=4), HEARTBEAT_MS)]
    assert beat == m.Beat(1, 1, [1, 2], usage, [m.QueueSlots("q", 2)])


# ---------------------------------------------------------------------------------------------------- leases


def test_dispatched_jobs_start_in_free_slots() -> None:
    bench = Bench()
    bench.welcome()
    starts = of(io.StartJob, bench.dispatch(lease(1), lease(2, attempt=3)))
    assert {start.slot for start in starts} == {1, 2}
    assert [(start.token, start.attempt, start.spec) for start in starts] == [(1, 1, spec(1)), (2, 3, spec(2))]


def test_dispatches_are_numbered_repeated_ones_ignored_and_a_gap_costs_the_session() -> None:
    bench = Bench()
    bench.welcome()
    bench.dispatch(lease(1))
    assert not of(io.StartJob, bench.tell(m.Dispatch(1, 1, [lease(2)])))
    effects = bench.tell(m.Dispatch(1, 3, [lease(3)]))
    assert of(io.CloseLink, effects)
    assert not of(io.StartJob, effects)
    assert [claim.token for claim in one(m.Resume, bench.welcome()).leases] == [1]


def test_a_lease_that_is_sent_again_in_the_next_session_is_the_same_lease() -> None:
    bench = Bench()
    bench.welcome()
    bench.dispatch(lease(1))
    bench.tell(io.LinkBroken("test"))
    bench.welcome()
    assert not of(io.StartJob, bench.dispatch(lease(1)))


def test_a_lease_waits_for_the_slot_that_is_being_replaced() -> None:
    bench = Bench(1)
    bench.welcome()
    effects = bench.tell(io.SlotClosing(1))
    assert one(m.Credit, effects).limits == [m.QueueSlots("q", 0)]
    assert not of(io.StartJob, bench.dispatch(lease(1)))  # it had crossed the CREDIT
    assert one(m.Beat, bench.later(HEARTBEAT_MS)).leases == [1]
    bench.tell(io.SlotGone(1, "used up"))
    effects = bench.tell(io.SlotUp(2, "q"))
    assert one(io.StartJob, effects).slot == 2
    assert one(m.Credit, effects).limits == [m.QueueSlots("q", 1)]


def test_more_leases_than_slots_are_handed_back() -> None:
    bench = Bench(1)
    bench.welcome()
    effects = bench.dispatch(lease(1), lease(2))
    assert one(io.StartJob, effects).token == 1
    [result] = one(m.Ack, effects).results
    assert (result.token, result.outcome) == (2, Outcome.HANDED_BACK)


@pytest.mark.parametrize(
    ("bad", "outcome", "said"),
    [
        (m.Lease(b"j" * 16, 1, 9, b"\xc1nonsense"), Outcome.REJECTED, "cannot be read"),
        (lease(9, queue="other"), Outcome.FAILED, "serves q"),
    ],
)
def test_a_job_that_cannot_be_run_here_is_answered(bad: m.Lease, outcome: Outcome, said: str) -> None:
    bench = Bench()
    bench.welcome()
    effects = bench.dispatch(bad)
    [result] = one(m.Ack, effects).results
    assert result.outcome is outcome
    assert said in result.error
    assert not of(io.StartJob, effects)


def test_a_result_is_resent_until_it_is_acked() -> None:
    bench = Bench()
    bench.welcome()
    bench.dispatch(lease(1))
    first = one(m.Ack, bench.report(1))
    assert not of(m.Ack, bench.later(RESEND_MS - 1))
    assert one(m.Ack, bench.later(1)) == first
    bench.acked(1)
    assert not of(m.Ack, bench.later(RESEND_MS))
    assert len(bench.session.book) == 0


def test_results_are_kept_while_the_broker_is_away_and_sent_after_resume() -> None:
    bench = Bench()
    bench.welcome()
    bench.dispatch(lease(1), lease(2))
    bench.tell(io.LinkBroken("the broker is gone"))
    assert not of(m.Ack, bench.report(1))
    sent = of(m.FromPeer, bench.welcome())
    assert [type(message) for message in sent] == [m.Resume, m.Credit, m.Ack]
    assert [claim.token for claim in one(m.Resume, [io.Send(sent[0])]).leases] == [1, 2]  # type: ignore[arg-type]
    bench.acked(1)
    assert [held.token for held in bench.session.book.all()] == [2]


def test_results_of_one_turn_travel_together() -> None:
    bench = Bench()
    bench.welcome()
    bench.dispatch(lease(1), lease(2))
    effects = bench.tell(io.Reported(1, Outcome.DONE), io.Reported(2, Outcome.FAILED, error="e"))
    assert [result.token for result in one(m.Ack, effects).results] == [1, 2]


def test_large_results_are_split_over_frames() -> None:
    bench = Bench(8)
    bench.welcome()
    bench.dispatch(*(lease(token) for token in range(1, 9)))
    effects = bench.tell(
        *(io.Reported(token, Outcome.DONE, b"x" * limits.RESULT_BYTES_MAX) for token in range(1, 9))
    )
    acks = of(m.Ack, effects)
    assert len(acks) > 2
    assert sorted(result.token for ack in acks for result in ack.results) == list(range(1, 9))
    for ack in acks:
        encode(ack)


@pytest.mark.parametrize(
    ("size_bytes", "outcome"),
    [(limits.RESULT_BYTES_MAX, Outcome.DONE), (limits.RESULT_BYTES_MAX + 1, Outcome.REJECTED)],
)
def test_a_result_has_a_bound(size_bytes: int, outcome: Outcome) -> None:
    bench = Bench()
    bench.welcome()
    bench.dispatch(lease(1))
    [result] = one(m.Ack, bench.tell(io.Reported(1, Outcome.DONE, b"x" * size_bytes))).results
    assert result.outcome is outcome


def test_text_that_cannot_be_encoded_or_is_too_long_does_not_reach_the_wire() -> None:
    bench = Bench()
    bench.welcome()
    bench.dispatch(lease(1))
    error = "\ud800" + "字" * limits.ERROR_CHARS_MAX
    ack = one(m.Ack, bench.tell(io.Reported(1, Outcome.FAILED, error=error)))
    assert len(ack.results[0].error) == limits.ERROR_CHARS_MAX
    encode(ack)


def test_too_many_held_bytes_stop_the_credit_until_they_are_acked() -> None:
    bench = Bench(SLOTS_MAX)
    bench.welcome()
    tokens = range(1, 300)
    bench.dispatch(*(lease(token) for token in tokens))
    effects = bench.tell(*(io.Reported(token, Outcome.DONE, b"x" * limits.RESULT_BYTES_MAX) for token in tokens))
    assert one(m.Credit, effects).limits == [m.QueueSlots("q", 0)]
    assert one(m.Credit, bench.acked(*tokens)).limits == [m.QueueSlots("q", SLOTS_MAX)]
    assert bench.session.book.held_bytes == 0


def test_a_lost_lease_is_ended_and_its_result_dropped() -> None:
    bench = Bench()
    bench.welcome()
    bench.dispatch(lease(1), lease(2))
    bench.tell(io.LinkBroken("x"))
    bench.report(2)
    bench.welcome()
    effects = bench.tell(m.Resumed(bench.session_id, [], [1, 2]))
    assert one(io.EndSlot, effects).slot is not None
    assert not of(m.Ack, effects)
    assert one(m.Beat, bench.later(HEARTBEAT_MS)).leases == []
    assert not of(m.Ack, bench.tell(io.SlotGone(one(io.EndSlot, effects).slot, "killed")))
    assert len(bench.session.book) == 0


def test_the_next_attempt_of_a_job_waits_until_nothing_of_the_last_one_lives_here() -> None:
    bench = Bench(2)
    bench.welcome()
    bench.dispatch(lease(1, job=5))
    end = one(io.EndSlot, bench.tell(m.Revoke(1, [1], m.RevokeReason.STALE)))
    effects = bench.dispatch(lease(2, job=5, attempt=2))
    assert not of(io.StartJob, effects)
    assert one(io.StartJob, bench.tell(io.SlotGone(end.slot, "killed"))).attempt == 2


def test_a_cancelled_job_is_ended_and_answered_when_nothing_of_it_lives() -> None:
    bench = Bench()
    bench.welcome()
    bench.dispatch(lease(1))
    effects = bench.tell(m.Revoke(1, [1], m.RevokeReason.CANCELLED))
    slot = one(io.EndSlot, effects).slot
    assert not of(m.Ack, effects)
    assert one(m.Beat, bench.later(HEARTBEAT_MS)).leases == [1]
    [result] = one(m.Ack, bench.tell(io.SlotGone(slot, "killed"))).results
    assert result.outcome is Outcome.CANCELLED


def test_a_cancel_that_crosses_the_result_changes_nothing() -> None:
    bench = Bench()
    bench.welcome()
    bench.dispatch(lease(1))
    bench.report(1)
    assert not of(io.EndSlot, bench.tell(m.Revoke(1, [1, 77], m.RevokeReason.CANCELLED)))
    bench.tell(io.LinkBroken("x"))
    [result] = one(m.Ack, bench.welcome()).results
    assert result.outcome is Outcome.DONE


def test_a_job_that_finished_while_it_was_being_ended_is_done() -> None:
    bench = Bench()
    bench.welcome()
    bench.dispatch(lease(1))
    slot = one(io.EndSlot, bench.tell(io.Overrun(1, "over the hard limit"))).slot
    bench.tell(io.Reported(1, Outcome.DONE, b"\x01"))
    [result] = one(m.Ack, bench.tell(io.SlotGone(slot, "killed"))).results
    assert (result.outcome, result.result) == (Outcome.DONE, b"\x01")


def test_an_overrun_fails_with_its_reason_and_usage() -> None:
    bench = Bench(1)
    bench.welcome()
    bench.dispatch(lease(1))
    bench.tell(io.Sampled(1, m.Usage(cpu_ms=70)))
    effects = bench.tell(io.Overrun(1, "over the hard limit of 1800 s"))
    assert one(m.Credit, effects).limits == [m.QueueSlots("q", 0)]
    bench.tell(io.Reported(1, Outcome.FAILED, error="terminated"), io.Sampled(1, m.Usage(cpu_ms=90)))
    [result] = one(m.Ack, bench.tell(io.SlotGone(1, "the slot died"))).results
    assert (result.outcome, result.error) == (Outcome.FAILED, "over the hard limit of 1800 s")
    assert result.usage.cpu_ms == 90


def test_a_slot_that_dies_fails_its_job_and_no_other() -> None:
    bench = Bench()
    bench.welcome()
    bench.dispatch(lease(1), lease(2))
    slot = next(held.slot for held in bench.session.book.all() if held.token == 1)
    assert slot is not None
    [result] = one(m.Ack, bench.tell(io.SlotGone(slot, "the slot died: signal 9 (SIGKILL)"))).results
    assert (result.token, result.outcome) == (1, Outcome.FAILED)
    assert "SIGKILL" in result.error


def test_a_job_that_was_never_started_goes_to_another_slot() -> None:
    bench = Bench(2)
    bench.welcome()
    start = one(io.StartJob, bench.dispatch(lease(1)))
    again = one(io.StartJob, bench.tell(io.NotStarted(1)))
    assert again.slot != start.slot
    assert not of(io.StartJob, bench.tell(io.SlotGone(start.slot, "died")))


def test_a_job_without_any_other_slot_waits() -> None:
    bench = Bench(1)
    bench.welcome()
    bench.dispatch(lease(1))
    assert not of(io.StartJob, bench.tell(io.NotStarted(1), io.SlotGone(1, "died")))
    assert one(io.StartJob, bench.tell(io.SlotUp(2, "q"))).slot == 2


# ---------------------------------------------------------------------------------------------------- questions


def test_still_mine_is_asked_again_after_a_reconnect() -> None:
    bench = Bench()
    bench.welcome()
    start = one(io.StartJob, bench.dispatch(lease(1)))
    bench.tell(io.LinkBroken("x"))
    assert not of(m.Hold, bench.tell(io.HoldAsked(1)))
    hold = one(m.Hold, bench.welcome())
    assert (hold.job_id, hold.token) == ((1).to_bytes(16, "big"), 1)
    assert not of(m.Hold, bench.later(RESEND_MS - 1))
    assert one(m.Hold, bench.later(1)).request == hold.request
    assert one(io.AnswerHold, bench.tell(m.Held(hold.request, True))) == io.AnswerHold(start.slot, 1, True)
    assert not of(io.AnswerHold, bench.tell(m.Held(hold.request, True)))


def test_a_task_hears_that_its_lease_is_lost_and_may_end_by_itself() -> None:
    bench = Bench()
    bench.welcome()
    bench.dispatch(lease(1))
    hold = one(m.Hold, bench.tell(io.HoldAsked(1)))
    assert not one(io.AnswerHold, bench.tell(m.Held(hold.request, False))).held
    [result] = one(m.Ack, bench.report(1, None)).results
    assert result.outcome is Outcome.FAILED  # the broker calls it stale; it is not ours to be quiet about


def test_progress_is_the_newest_and_not_too_often() -> None:
    bench = Bench()
    bench.welcome()
    bench.dispatch(lease(1))
    first = bench.tell(io.Progressed(1, 1, 10, "a"), io.Progressed(1, 2, 10, "b" * 1000))
    [item] = one(m.Progress, first).items
    assert (item.done, len(item.message)) == (2, limits.MESSAGE_CHARS_MAX)
    assert not of(m.Progress, bench.tell(io.Progressed(1, 3, 10, "")))
    assert one(m.Progress, bench.later(PROGRESS_MS)).items[0].done == 3
    bench.tell(io.Progressed(1, 4, 10, ""))
    bench.report(1)
    assert not of(m.Progress, bench.later(PROGRESS_MS))


def test_the_last_progress_is_said_again_to_a_broker_that_has_come_back() -> None:
    bench = Bench()
    bench.welcome()
    bench.dispatch(lease(1), lease(2))
    bench.tell(io.Progressed(1, 1, 10, "a"), io.Progressed(2, 1, 10, "b"))
    bench.tell(io.Progressed(1, 7, 10, "c"))
    bench.later(PROGRESS_MS)
    bench.report(2)
    bench.tell(io.LinkBroken("the broker is gone"))
    [item] = one(m.Progress, [*bench.welcome(), *bench.later(PROGRESS_MS)]).items
    assert (item.token, item.done, item.message) == (1, 7, "c")


# ---------------------------------------------------------------------------------------------------- drain


def test_an_idle_worker_leaves_only_when_no_dispatch_can_be_under_way() -> None:
    bench = Bench()
    bench.welcome()
    effects = bench.tell(io.DrainAsked())
    assert one(m.Credit, effects).limits == [m.QueueSlots("q", 0)]
    assert of(m.Beat, effects)
    assert not of(io.Leave, effects)
    effects = bench.dispatch(lease(1))  # had crossed the CREDIT
    assert not of(io.StartJob, effects)
    assert one(m.Ack, effects).results[0].outcome is Outcome.HANDED_BACK
    assert not of(io.Leave, bench.tell(m.BeatOk(1)))
    effects = bench.acked(1)
    assert one(m.Bye, effects).session == 1
    assert one(io.Leave, effects).undelivered == 0
    assert bench.tell(m.BeatOk(1), io.SlotUp(9, "q")) == []


def test_a_drain_lets_running_jobs_finish() -> None:
    bench = Bench()
    bench.welcome()
    bench.dispatch(lease(1))
    bench.tell(io.DrainAsked())
    bench.tell(m.BeatOk(1))
    assert one(m.Ack, bench.report(1)).results[0].outcome is Outcome.DONE
    assert of(io.Leave, bench.acked(1))


@pytest.mark.parametrize("how", ["time", "asked again"])
def test_what_still_runs_is_ended_and_handed_back(how: str) -> None:
    bench = Bench()
    bench.welcome()
    start = one(io.StartJob, bench.dispatch(lease(1)))
    bench.tell(io.DrainAsked())
    bench.tell(m.BeatOk(1))
    if how == "time":
        bench.now_ms += 29_999
        bench.tell(m.BeatOk(1))
        effects = bench.later(1)
    else:
        effects = bench.tell(io.DrainAsked())
    assert one(io.EndSlot, effects).slot == start.slot
    assert not of(io.Leave, effects)
    [result] = one(m.Ack, bench.tell(io.SlotGone(start.slot, "killed"))).results
    assert result.outcome is Outcome.HANDED_BACK
    assert of(io.Leave, bench.acked(1))


def test_a_drain_without_a_broker_waits_for_it_and_then_says_what_it_could_not_deliver() -> None:
    bench = Bench()
    bench.welcome()
    bench.dispatch(lease(1))
    bench.tell(io.LinkBroken("x"))
    bench.report(1)
    effects = bench.tell(io.DrainAsked())
    leaves: list[io.Leave] = []
    while not leaves:
        bench.now_ms = max(bench.now_ms + 1, bench.session.wake_ms())
        effects = bench.session.turn(bench.now_ms)
        leaves = of(io.Leave, effects)
    assert 31_000 <= bench.now_ms <= 31_000 + 2_000 + DELIVERY_MS
    assert leaves[0].undelivered == 1
    assert any("run again" in say.text for say in of(io.Say, effects))


def test_a_drain_with_a_broker_that_never_acks_ends_all_the_same() -> None:
    bench = Bench()
    bench.welcome()
    bench.dispatch(lease(1))
    bench.report(1)
    bench.tell(io.DrainAsked(), io.DrainAsked())
    effects: list[io.Effect] = []
    for _ in range(100):
        bench.now_ms = max(bench.now_ms + 1, bench.session.wake_ms())
        effects = bench.tell(m.BeatOk(1))
        if of(io.Leave, effects):
            break
    assert one(io.Leave, effects).undelivered == 1


def test_asked_a_third_time_it_leaves_whatever_there_is() -> None:
    bench = Bench()
    bench.welcome()
    bench.dispatch(lease(1))
    assert one(io.Leave, bench.tell(io.DrainAsked(), io.DrainAsked(), io.DrainAsked())).undelivered == 1


def test_an_idle_worker_without_a_broker_leaves_at_once() -> None:
    bench = Bench()
    assert of(io.Leave, bench.tell(io.DrainAsked()))


def test_idle_it_wakes_for_its_heartbeat_only() -> None:
    bench = Bench()
    bench.welcome()
    turns = 0
    until_ms = bench.now_ms + 60_000
    while bench.now_ms < until_ms:
        bench.now_ms = bench.session.wake_ms()
        turns += 1
        if of(m.Beat, bench.session.turn(bench.now_ms)):
            bench.tell(m.BeatOk(1))
    assert turns == 60_000 // HEARTBEAT_MS


@pytest.mark.parametrize("queues", [{}, {"q": SLOTS_MAX + 1}])
def test_a_worker_has_some_slots_and_not_too_many(queues: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least one queue"):
        Session(Settings(instance="w", incarnation=b"i" * 16, queues=queues), 0)


def test_idle_in_a_large_fleet_it_beats_as_seldom_as_it_was_told_until_it_has_work() -> None:
    bench = Bench()
    bench.welcome()
    bench.later(HEARTBEAT_MS)
    bench.tell(m.BeatOk(1, 10 * HEARTBEAT_MS))
    assert of(m.Beat, bench.later(HEARTBEAT_MS))
    asked_ms = bench.now_ms
    assert bench.session.wake_ms() == asked_ms + 10 * HEARTBEAT_MS
    bench.tell(m.BeatOk(1, 10 * HEARTBEAT_MS))
    bench.later(5 * HEARTBEAT_MS)
    bench.dispatch(lease(1))
    assert bench.session.uplink.link is Link.READY, "the broker was not silent for too long"
    assert not of(m.Beat, bench.later(HEARTBEAT_MS - 1))
    assert one(m.Beat, bench.later(1)).leases == [1]
    assert bench.session.wake_ms() <= bench.now_ms + HEARTBEAT_MS


def test_idle_in_a_large_fleet_it_gives_up_a_broker_that_answers_three_beats_in_a_row_with_nothing() -> None:
    bench = Bench()
    bench.welcome()
    bench.later(HEARTBEAT_MS)
    bench.tell(m.BeatOk(1, 10 * HEARTBEAT_MS))
    heard_ms = bench.now_ms
    while bench.session.uplink.link is Link.READY:
        bench.now_ms = bench.session.wake_ms()
        bench.session.turn(bench.now_ms)
    assert bench.now_ms == heard_ms + max(TIMEOUT_MS, 30 * HEARTBEAT_MS)
