"""Broker time under a wall clock that jumps."""

from __future__ import annotations

import pytest

from zq.broker import clock


class Times:
    """The two clocks of a machine, moved by hand."""

    def __init__(self) -> None:
        self.boot_ms = 5_000.0
        self.wall_s = 1_700_000_000.0

    def pass_s(self, seconds: float) -> None:
        self.boot_ms += seconds * 1000
        self.wall_s += seconds

    def time(self) -> float:
        return self.wall_s


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    made = Times()
    monkeypatch.setattr(clock, "_boot_ms", lambda: made.boot_ms)
    monkeypatch.setattr(clock, "time", made)
    return made


@pytest.mark.parametrize("jump_s", [-3600.0, 3600.0])
def test_a_jump_of_the_wall_clock_moves_no_deadline(times: Times, jump_s: float) -> None:
    mine = clock.Clock(0)
    begun_ms = mine.now_ms()
    times.wall_s += jump_s
    for _ in range(60):
        times.pass_s(1)
        mine.now_ms()
    assert abs(mine.now_ms() - begun_ms - 60_000) <= 60_000 * 0.006


def test_it_never_goes_backwards_and_follows_a_small_correction(times: Times) -> None:
    mine = clock.Clock(0)
    times.wall_s -= 2
    last_ms = mine.now_ms()
    for _ in range(500):
        times.pass_s(1)
        assert mine.now_ms() >= last_ms
        last_ms = mine.now_ms()
    assert abs(last_ms - times.wall_s * 1000) < 5


def test_it_starts_behind_nothing_that_was_committed(times: Times) -> None:
    later_ms = int(times.wall_s * 1000) + 60_000
    assert clock.Clock(later_ms).now_ms() >= later_ms


def test_a_machine_that_slept_has_slept_for_the_broker_too(times: Times) -> None:
    mine = clock.Clock(0)
    begun_ms = mine.now_ms()
    times.pass_s(8 * 3600)
    assert abs(mine.now_ms() - begun_ms - 8 * 3_600_000) < 200_000
