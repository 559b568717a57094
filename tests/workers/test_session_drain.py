"""How the worker's session drains, without a socket or a clock."""

from __future__ import annotations

import pytest

from tests.workers.session_bench import Bench, lease, of, one
from zq.protocol import messages as m
from zq.protocol.job import Outcome
from zq.workers import session_io as io
from zq.workers.session import DELIVERY_MS


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
