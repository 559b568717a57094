"""Seeded runs of the simulator; `make test-long` runs many more. A seed that fails once is added to FAILED_BEFORE."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from tests.simulation.faults import ALL_FAULTS, RUIN, Faults
from tests.simulation.world import World
from zq.broker.window import Window
from zq.protocol.job import State

FAILED_BEFORE: list[int] = []
MILLION_EVENTS = int(os.environ.get("ZQ_SIMULATION_EVENTS", "5000000"))
SEEDS = int(os.environ.get("ZQ_SIMULATION_SEEDS", "32"))


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that most of what waits is on disk only, as with a large backlog."""
    monkeypatch.setattr(Window, "SIZE", 2)


def play(world: World, limit_ms: int = 120_000) -> None:
    """A minute of faults, then healing: everything must come to its end, and every promise must have been kept."""
    world.run(lambda: False, 60_000)
    world.heal()
    assert world.run(world.all_ended, limit_ms), "I7: after the faults, jobs or credit were stuck"
    world.checker.finish(world.journal)


@pytest.mark.parametrize("seed", [*FAILED_BEFORE, *range(SEEDS)])
def test_every_promise_holds_under_every_fault(seed: int) -> None:
    play(World(seed, ALL_FAULTS))


@pytest.mark.parametrize("seed", range(SEEDS // 8))
def test_what_must_never_happen_does_not_under_any_number_of_faults(seed: int) -> None:
    """Nothing heals, and nothing needs to get done."""
    ruin(World(seed, RUIN))


def ruin(world: World) -> None:
    world.run(lambda: False, 120_000)
    world.checker.finish(world.journal)


@pytest.mark.parametrize("seed", range(SEEDS // 8))
def test_every_promise_holds_when_tiny_jobs_go_out_in_batches(seed: int) -> None:
    faults = replace(ALL_FAULTS, delay_max_ms=10, slow_commit=0.01, attempt_is_long=0.02, slot_dies=0.01)
    world = World(seed, faults, jobs=600, burst=40)
    play(world)
    assert world.deepest >= 4, "no slot had several jobs: the test would prove nothing"


@pytest.mark.parametrize("seed", range(SEEDS // 4))
def test_a_broker_restart_reruns_nothing(seed: int) -> None:
    """I6: only the broker dies, again and again; jobs longer than its absence run exactly once."""
    faults = Faults(broker_dies_every_ms=4000, broker_dies_in_round=0.002, attempt_is_long=0.5)
    world = World(seed, faults, jobs=30)
    play(world)
    reruns = [job_id for job_id, starts in world.checker.starts.items() if len(starts) != 1]
    assert not reruns


@pytest.mark.parametrize("seed", range(SEEDS // 4))
def test_without_faults_every_job_runs_once_and_is_done(seed: int) -> None:
    world = World(seed, Faults())
    play(world)
    states = {world.checker.ended[job_id] for job_id in world.checker.receipts}
    assert states <= {State.DONE, State.EXPIRED, State.CANCELLED}, "cancelled: replaced by a newer one with its key"
    assert all(len(starts) == 1 for starts in world.checker.starts.values())


@pytest.mark.parametrize("seed", range(SEEDS // 4))
def test_poison_jobs_end_dead_after_their_dispatches(seed: int) -> None:
    """I4: every attempt kills its slot, and brokers and workers die too."""
    world = World(seed, replace(ALL_FAULTS, slot_dies=1.0, cancel=0.0), jobs=20)
    world.run(lambda: False, 60_000)
    world.faults = Faults(slot_dies=1.0)
    assert world.run(world.all_ended, 200_000)
    world.checker.finish(world.journal)
    assert State.DONE not in world.checker.ended.values()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_million_events_and_more() -> None:
    """Over as many seeds as it takes; from where the everyday sample ends."""
    events, seed = 0, SEEDS
    while events < MILLION_EVENTS:
        for faults, go in ((ALL_FAULTS, play), (RUIN, ruin)):
            world = World(seed, faults)
            try:
                go(world)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, {go.__name__}: {error}") from error
            events += world.events
        seed += 1


def test_the_same_seed_is_the_same_run() -> None:
    def history(seed: int) -> list[tuple[str, int, int]]:
        world = World(seed, ALL_FAULTS)
        world.run(lambda: False, 60_000)
        return world.checker.dispatched

    assert history(5) == history(5)
    assert history(5) != history(6)
