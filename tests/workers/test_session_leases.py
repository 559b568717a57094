"""What the worker's session does with leases, results and the questions of tasks, without a socket or a clock."""

from __future__ import annotations

import pytest

from tests.workers.session_bench import HEARTBEAT_MS, Bench, lease, of, one, spec
from zq.protocol import limits
from zq.protocol import messages as m
from zq.protocol.codec import encode
from zq.protocol.job import Outcome
from zq.workers import session_io as io
from zq.workers.questions import PROGRESS_MS, RESEND_MS
from zq.workers.session import SLOTS_MAX


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
