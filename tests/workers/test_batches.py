"""Tiny jobs in batches: the pace that allows them, and the session that hands them out and takes them back."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.workers.session_bench import HEARTBEAT_MS, Bench, lease, of, one
from zq.protocol import messages as m
from zq.protocol.job import Outcome
from zq.workers import session_io as io
from zq.workers.floor import RETURN_MS
from zq.workers.leases import LEASES_MAX, Phase
from zq.workers.pace import DEPTH_MAX, IDLE_MS, SHORT_MS, SLOW_MS, WORK_MS, Pace
from zq.workers.session import SLOTS_MAX

TINY_MS = 0.05


def hurry(pace: Pace, jobs: int, ran_ms: float = TINY_MS) -> None:
    """A queue with more jobs than credit, each as long as said."""
    for number in range(jobs):
        pace.ended(ran_ms, number)
        pace.dispatched(10, used_up=True, now_ms=number)


# ---------------------------------------------------------------------------------------------------- the pace


def test_the_depth_grows_only_with_quick_jobs_that_use_up_the_credit() -> None:
    pace = Pace()
    hurry(pace, 2000)
    assert pace.depth == DEPTH_MAX
    calm = Pace()
    for number in range(2000):
        calm.ended(TINY_MS, number)
        calm.dispatched(10, used_up=False, now_ms=number)
    assert calm.depth == 1
    longer = Pace()
    hurry(longer, 2000, SHORT_MS + 1)
    assert longer.depth == 1


@pytest.mark.parametrize("ran_ms", [0.1, 1.0, 4.0])
def test_the_work_in_hand_is_bounded_in_time(ran_ms: float) -> None:
    pace = Pace()
    hurry(pace, 2000, ran_ms)
    assert pace.depth * ran_ms <= WORK_MS
    assert pace.depth * ran_ms > WORK_MS / 4


def test_the_work_in_hand_is_bounded_in_bytes() -> None:
    pace = Pace()
    for number in range(2000):
        pace.ended(TINY_MS, number)
        pace.dispatched(256 << 10, used_up=True, now_ms=number)
    assert pace.depth * (256 << 10) <= 4 << 20


def test_slow_jobs_bring_the_depth_down_within_a_few() -> None:
    pace = Pace()
    hurry(pace, 2000)
    for _ in range(5):
        pace.slow()
    assert pace.depth == 1


# ---------------------------------------------------------------------------------------------------- the session


def begun(bench: Bench) -> dict[int, int]:
    """slot → token of what runs in it."""
    return {held.slot: held.token for held in bench.session.book.in_phase(Phase.RUNNING) if held.slot is not None}


def warm(slots: int = 2) -> Bench:
    """A worker whose queue has had many tiny jobs, with nothing in hand now."""
    bench = Bench(slots)
    bench.welcome()
    token = 1_000_000
    while bench.session.slots.depth("q") < 32:
        batch = range(token, token + bench.session.slots.credit("q"))
        token += len(batch)
        bench.dispatch(*(lease(number) for number in batch))
        while running := begun(bench):
            for number in running.values():
                bench.tell(io.Reported(number, Outcome.DONE, ran_ms=TINY_MS))
        bench.acked(*batch)
    assert len(bench.session.book) == 0
    return bench


def starts(effects: Sequence[io.Effect]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for start in of(io.StartJob, effects):
        found.setdefault(start.slot, []).append(start.token)
    return found


def in_phase(bench: Bench, phase: Phase) -> list[int]:
    return [held.token for held in bench.session.book.in_phase(phase)]


def take_back(bench: Bench, effects: Sequence[io.Effect], begun: Sequence[int] = ()) -> list[io.Effect]:
    """Answer every TakeBack as slots do that have begun only their first job, and those in `begun`."""
    out: list[io.Effect] = []
    for effect in of(io.TakeBack, effects):
        hand = bench.session.slots.get(effect.slot)
        assert hand is not None
        tokens = tuple(held.token for held in list(hand.leases)[1:] if held.token not in begun)
        out += bench.tell(io.TakenBack(effect.slot, tokens))
    return out


def test_tiny_jobs_are_handed_out_evenly_in_batches_and_announced() -> None:
    bench = warm()
    assert bench.session.slots.credit("q") == 64
    assert bench.session._announced == {"q": 64}
    batches = starts(bench.dispatch(*(lease(token) for token in range(1, 65))))
    assert [len(batch) for batch in batches.values()] == [32, 32]
    assert len(in_phase(bench, Phase.RUNNING)) == 2
    beat = one(m.Beat, bench.later(HEARTBEAT_MS))
    assert sorted(beat.leases) == list(range(1, 65))


def test_results_of_a_batch_travel_in_one_ack_and_the_next_job_counts_as_running() -> None:
    bench = warm(1)
    bench.dispatch(*(lease(token) for token in range(1, 6)))
    effects = bench.tell(*(io.Reported(token, Outcome.DONE, ran_ms=TINY_MS) for token in (1, 2, 3)))
    assert [result.token for result in one(m.Ack, effects).results] == [1, 2, 3]
    assert in_phase(bench, Phase.RUNNING) == [4]


def test_what_waits_behind_a_slow_job_goes_to_another_slot_in_milliseconds() -> None:
    bench = warm()
    bench.dispatch(*(lease(token) for token in range(1, 9)))
    slow, other = (bench.session.slots.get(slot) for slot in (1, 2))
    assert slow is not None
    assert other is not None
    behind = [held.token for held in slow.leases][1:]
    while other.leases:
        bench.tell(io.Reported(other.leases[0].token, Outcome.DONE, ran_ms=TINY_MS))
    assert not of(io.TakeBack, bench.later(SHORT_MS - 1))
    assert bench.session.wake_ms() == bench.now_ms + 1
    effects = bench.later(1)
    assert one(io.TakeBack, effects).slot == 1
    assert starts(take_back(bench, effects))[2][0] == behind[0]
    assert other.leases[0].phase is Phase.RUNNING
    assert not of(io.TakeBack, bench.later(0))


def test_a_slow_job_keeps_nothing_behind_it_even_if_all_slots_are_busy() -> None:
    bench = warm()
    bench.dispatch(*(lease(token) for token in range(1, 9)))
    effects = bench.later(SLOW_MS)
    assert sorted(effect.slot for effect in of(io.TakeBack, effects)) == [1, 2]
    effects = take_back(bench, effects)
    assert not of(io.StartJob, effects)
    assert len(in_phase(bench, Phase.WAITING)) == 6
    # Other workers get them soon, uncounted.
    results = one(m.Ack, bench.later(RETURN_MS)).results
    assert len(results) == 6
    assert {result.outcome for result in results} == {Outcome.HANDED_BACK}


def test_the_credit_returns_to_the_slots_when_jobs_are_slow_and_when_there_are_none() -> None:
    bench = warm()
    bench.dispatch(*(lease(token) for token in range(1, 3)))
    for _ in range(4):
        bench.later(SLOW_MS)
    assert bench.session._announced["q"] < 64
    idle = warm()
    assert one(m.Credit, idle.later(IDLE_MS)).limits == [m.QueueSlots("q", 2)]


def test_a_job_that_the_slot_had_just_begun_stays_and_runs() -> None:
    bench = warm(1)
    bench.dispatch(*(lease(token) for token in range(1, 5)))
    take_back(bench, bench.later(SLOW_MS), begun=[2])
    assert in_phase(bench, Phase.HANDED) == [2]
    bench.report(1)
    assert 2 in in_phase(bench, Phase.RUNNING)


def test_a_cancel_behind_another_job_is_done_without_ending_that_one() -> None:
    bench = warm(1)
    bench.dispatch(*(lease(token) for token in range(1, 5)))
    effects = bench.tell(m.Revoke(bench.session_id, [3], m.RevokeReason.CANCELLED))
    assert not of(io.EndSlot, effects)
    effects = take_back(bench, effects)
    [result] = one(m.Ack, effects).results
    assert (result.token, result.outcome) == (3, Outcome.CANCELLED)
    assert starts(effects) == {1: [2, 4]}


def test_a_cancel_of_a_job_that_began_meanwhile_ends_it_when_its_turn_is_known() -> None:
    bench = warm(1)
    bench.dispatch(*(lease(token) for token in range(1, 4)))
    effects = bench.tell(m.Revoke(bench.session_id, [2], m.RevokeReason.CANCELLED))
    take_back(bench, effects, begun=[2])
    effects = bench.report(1)
    assert one(io.EndSlot, effects).slot == 1
    take_back(bench, effects)
    [result] = one(m.Ack, bench.tell(io.SlotGone(1, "killed"))).results
    assert (result.token, result.outcome) == (2, Outcome.CANCELLED)


def test_a_lost_lease_behind_another_job_is_dropped_without_a_word() -> None:
    bench = warm(1)
    bench.dispatch(*(lease(token) for token in range(1, 4)))
    effects = bench.tell(m.Revoke(bench.session_id, [3], m.RevokeReason.STALE))
    effects = take_back(bench, effects)
    assert not of(m.Ack, effects)
    assert 3 not in bench.session.book
    assert starts(effects) == {1: [2]}


def test_a_slot_that_dies_costs_the_job_it_had_begun_and_no_other() -> None:
    bench = warm(1)
    bench.dispatch(*(lease(token) for token in range(1, 5)))
    effects = bench.tell(*(io.NotStarted(token) for token in (4, 3, 2)), io.SlotGone(1, "the slot died: signal 9"))
    [result] = one(m.Ack, effects).results
    assert (result.token, result.outcome) == (1, Outcome.FAILED)
    assert starts(bench.tell(io.SlotUp(2, "q"))) == {2: [2, 3, 4]}


def test_a_job_killed_for_the_sake_of_the_one_before_it_does_not_count() -> None:
    bench = warm(1)
    bench.dispatch(lease(1), lease(2))
    effects = bench.tell(io.Overrun(1, "over the memory limit"))
    assert [type(effect) for effect in effects if isinstance(effect, io.TakeBack | io.EndSlot)] == [
        io.TakeBack,
        io.EndSlot,
    ]
    take_back(bench, effects, begun=[2])
    results = one(m.Ack, bench.tell(io.SlotGone(1, "killed"))).results
    assert [(result.token, result.outcome) for result in results] == [
        (1, Outcome.FAILED),
        (2, Outcome.HANDED_BACK),
    ]


def test_a_drain_hands_back_what_has_not_begun() -> None:
    bench = warm(1)
    bench.dispatch(*(lease(token) for token in range(1, 5)))
    results = one(m.Ack, take_back(bench, bench.tell(io.DrainAsked()))).results
    assert [(result.token, result.outcome) for result in results] == [
        (token, Outcome.HANDED_BACK) for token in (2, 3, 4)
    ]
    assert in_phase(bench, Phase.RUNNING) == [1]


def test_a_slot_gets_no_more_jobs_than_its_life_allows() -> None:
    bench = warm(1)
    bench.tell(io.SlotGone(1, "ended"))
    batch = starts(bench.tell(io.SlotUp(2, "q", 3)) + bench.dispatch(*(lease(token) for token in range(1, 9))))
    assert batch == {2: [1, 2, 3]}
    bench.tell(io.Reported(1, Outcome.DONE, ran_ms=TINY_MS), io.Reported(2, Outcome.DONE, ran_ms=TINY_MS))
    effects = bench.tell(io.SlotClosing(2), io.Reported(3, Outcome.DONE, ran_ms=TINY_MS), io.SlotUp(3, "q", 3))
    assert starts(effects) == {3: [4, 5, 6]}


def test_many_slots_share_the_leases_there_may_be() -> None:
    bench = Bench(SLOTS_MAX)
    bench.welcome()
    pace = bench.session.slots.paces["q"]
    hurry(pace, 2000)
    assert bench.session.slots.credit("q") <= LEASES_MAX // 2
    few = Bench(2)
    hurry(few.session.slots.paces["q"], 2000)
    assert few.session.slots.credit("q") == 2 * DEPTH_MAX
