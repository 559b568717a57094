"""Rules of the tick arithmetic, on made-up times."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zq.scheduler.rules import Interval
from zq.scheduler.ticks import COUNTED_MAX, GRACE_MS, Misfire, Schedule, SteadyClock, Tick, Ticker, due, newest_due

EVERY_30_S = 30_000
DAY_2025 = 1_763_800_000_000


def schedule(
    misfire: Misfire = Misfire.ONCE, *, interval_ms: int = EVERY_30_S, expires_ms: int | None = None, **options: Any
) -> Schedule:
    return Schedule("check", "t", "q", Interval(interval_ms), expires_ms, misfire, **options)


def nominals(ticks: list[Tick]) -> list[int]:
    return [tick.nominal_ms for tick in ticks]


@given(st.integers(1, 10**9), st.integers(0, 1 << 50))
def test_the_grid_is_aligned_to_the_epoch(interval_ms: int, now_ms: int) -> None:
    nominal = Interval(interval_ms).newest(now_ms)
    assert nominal % interval_ms == 0
    assert nominal <= now_ms < nominal + interval_ms


def test_two_schedulers_name_the_same_jobs() -> None:
    one, two = Ticker([schedule()]), Ticker([schedule()])
    early = one.ready(DAY_2025 + 20_001)
    late = two.ready(DAY_2025 + 29_999)
    assert [tick.job_id for tick in early] == [tick.job_id for tick in late]
    assert len(early) == 1


def due_nominals(schedule: Schedule, done_ms: int | None, now_ms: int) -> list[int]:
    return nominals(list(due(schedule, done_ms, now_ms).ticks))


def test_the_id_differs_by_schedule_and_by_time() -> None:
    other = Schedule("other", "t", "q", Interval(EVERY_30_S))
    ids = {Tick(s, n).job_id for s in (schedule(), other) for n in (0, EVERY_30_S)}
    assert len(ids) == 4


def test_once_makes_up_for_the_newest_missed_tick_only() -> None:
    ticker = Ticker([schedule()])
    first = ticker.ready(0)
    assert nominals(first) == [0]
    ticker.settled(first[0])
    # Ten minutes asleep: twenty ticks went by.
    assert nominals(ticker.ready(600_000 + 7_000)) == [600_000]


def test_skip_leaves_missed_ticks_out_and_takes_the_next() -> None:
    ticker = Ticker([schedule(Misfire.SKIP)])
    assert ticker.ready(600_000 + GRACE_MS + 1) == []
    assert nominals(ticker.ready(630_000 + GRACE_MS)) == [630_000]


def test_a_tick_is_due_once() -> None:
    assert due_nominals(schedule(), None, 30_500) == [30_000]
    assert due_nominals(schedule(), 30_000, 30_500) == []
    assert due_nominals(schedule(), 30_000, 59_999) == []
    assert due_nominals(schedule(), 30_000, 60_000) == [60_000]


def test_a_tick_that_would_have_expired_is_not_due() -> None:
    short = schedule(expires_ms=5_000)
    assert due_nominals(short, None, 34_999) == [30_000]
    assert due_nominals(short, None, 35_000) == []


def test_an_unsettled_tick_comes_again_with_the_same_id_until_it_would_have_expired() -> None:
    ticker = Ticker([schedule(expires_ms=10_000)])
    first = ticker.ready(30_000)
    ticker.put_off(first[0], 32_000)
    assert ticker.ready(31_999) == []
    assert ticker.next_wake_ms(31_999) == 32_000
    assert ticker.ready(32_000) == first
    ticker.put_off(first[0], 39_000)
    assert ticker.ready(40_000) == []
    assert ticker.next_wake_ms(40_000) == 60_000


def test_a_newer_tick_takes_the_place_of_a_waiting_one() -> None:
    ticker = Ticker([schedule(expires_ms=3_600_000)])
    ticker.put_off(ticker.ready(0)[0], 1 << 50)
    # An hour without the broker and an expiry of an hour: still one tick, not a hundred and twenty.
    assert nominals(ticker.ready(3_599_999)) == [3_570_000]


def test_what_is_said_of_an_old_tick_does_not_touch_a_newer_one() -> None:
    ticker = Ticker([schedule()])
    old = ticker.ready(0)[0]
    new = ticker.ready(30_000)[0]
    ticker.settled(old)
    ticker.put_off(old, 1 << 50)
    assert ticker.ready(30_001) == [new]


def test_no_schedules_no_wake() -> None:
    assert Ticker([]).ready(5) == []
    assert Ticker([]).next_wake_ms(5) is None


def test_the_clock_follows_a_jump_forward_and_never_goes_back() -> None:
    clock = SteadyClock(1_000_000, 0)
    assert clock.read(1_000_500, 500) == 1_000_500
    assert clock.read(5_000_000, 600) == 5_000_000
    # Set back by more than an hour: on from where it was, at the monotonic pace.
    assert clock.read(1_000_700, 700) == 5_000_100
    assert clock.read(1_001_700, 1_700) == 5_001_100


@given(st.lists(st.tuples(st.integers(-(10**7), 10**7), st.integers(0, 10**5)), max_size=60))
def test_no_nominal_time_comes_twice_or_backwards_whatever_the_wall_clock_does(steps: list[tuple[int, int]]) -> None:
    wall = DAY_2025
    monotonic = 0
    clock = SteadyClock(wall, monotonic)
    ticker = Ticker([schedule()])
    seen: list[int] = []
    for jump, passed in steps:
        monotonic += passed
        wall += passed + jump
        for tick in ticker.ready(clock.read(wall, monotonic)):
            seen.append(tick.nominal_ms)
            ticker.settled(tick)
    assert seen == sorted(set(seen))


@given(st.integers(1, 10**6), st.lists(st.integers(0, 10**6), max_size=50))
def test_waking_when_told_misses_nothing(interval_ms: int, lates: list[int]) -> None:
    ticker = Ticker([schedule(interval_ms=interval_ms)])
    now = 0
    count = 0
    for late in lates:
        for tick in ticker.ready(now):
            count += 1
            ticker.settled(tick)
        wake = ticker.next_wake_ms(now)
        assert wake is not None
        assert now < wake <= now + interval_ms
        now = wake + late % interval_ms
    assert count == len(lates)


@pytest.mark.parametrize(("interval_ms", "expires_ms"), [(0, 1), (1, 0), (-1, 1)])
def test_a_schedule_of_no_length_is_refused(interval_ms: int, expires_ms: int) -> None:
    with pytest.raises(ValueError, match="at least one millisecond"):
        Schedule("s", "t", "q", Interval(interval_ms), expires_ms)


# ---------------------------------------------------------------------------------------------- what was missed


@pytest.mark.parametrize(
    ("misfire", "chosen", "missed"),
    [
        (Misfire.SKIP, [], 20),
        (Misfire.ONCE, [600_000], 19),
        (Misfire.ALL, [540_000, 570_000, 600_000], 17),
    ],
)
def test_twenty_missed_ticks(misfire: Misfire, chosen: list[int], missed: int) -> None:
    found = due(schedule(misfire, misfire_max=3), 0, 607_000)
    assert (nominals(list(found.ticks)), found.missed, found.done_ms) == (chosen, missed, 600_000)


def test_all_are_made_up_for_in_their_order_and_only_as_long_as_they_are_of_use() -> None:
    old = schedule(Misfire.ALL, misfire_max=1000, expires_ms=100_000)
    found = due(old, 0, 607_000)
    assert nominals(list(found.ticks)) == [510_000, 540_000, 570_000, 600_000]
    assert found.missed == 16


def test_of_a_schedule_that_is_new_nothing_was_missed() -> None:
    assert due(schedule(), None, DAY_2025).missed == 0


def test_what_is_given_up_while_it_waits_was_missed() -> None:
    ticker = Ticker([schedule()])
    (tick,) = ticker.ready(0)
    ticker.put_off(tick, 1 << 50)
    assert nominals(ticker.ready(30_000)) == [30_000]
    assert (ticker.take_missed("check"), ticker.take_missed("check")) == (1, 0)


def test_a_year_of_missed_ticks_is_counted_without_looking_at_each() -> None:
    found = due(schedule(Misfire.ALL, interval_ms=1), 0, 365 * 86_400_000)
    assert (len(found.ticks), found.missed) == (100, COUNTED_MAX - 100)


@settings(deadline=None)
@given(
    st.sampled_from(Misfire),
    st.integers(1, 50),
    st.lists(st.integers(0, 400), min_size=1, max_size=20),
)
def test_every_tick_becomes_a_job_or_is_counted_as_missed(misfire: Misfire, most: int, sleeps: list[int]) -> None:
    ticker = Ticker([schedule(misfire, interval_ms=10, misfire_max=most)])
    ticker.adopt("check", 0)
    now_ms, jobs, missed = 0, 0, 0
    for sleep_ms in sleeps:
        now_ms += sleep_ms
        for tick in ticker.ready(now_ms):
            ticker.settled(tick)
            jobs += 1
        missed += ticker.take_missed("check")
    assert jobs + missed == now_ms // 10


# ---------------------------------------------------------------------------------------------- others, pauses, jitter


def test_what_another_scheduler_has_dealt_with_is_not_done_again() -> None:
    ticker = Ticker([schedule()])
    ticker.put_off(ticker.ready(30_000)[0], 0)
    ticker.adopt("check", 60_000)
    assert ticker.ready(60_001) == []
    assert ticker.take_missed("check") == 0
    ticker.adopt("check", 30_000)
    assert ticker.done_ms("check") == 60_000


def test_ticks_of_a_pause_pass_without_being_missed() -> None:
    ticker = Ticker([schedule()])
    ticker.adopt("check", 0)
    assert ticker.ready(300_000, paused=["check"]) == []
    assert nominals(ticker.ready(330_000)) == [330_000]
    assert ticker.take_missed("check") == 0


@settings(deadline=None)
@given(st.integers(1, 10**6), st.integers(1, 10**7), st.integers(0, 1 << 50))
def test_jitter_is_the_same_everywhere_and_never_reaches_the_next_tick(
    interval_ms: int, jitter_ms: int, now_ms: int
) -> None:
    one, two = (schedule(interval_ms=interval_ms, jitter_ms=jitter_ms) for _ in range(2))
    nominal = one.rule.newest(now_ms)
    assert nominal is not None
    assert one.due_at_ms(nominal) == two.due_at_ms(nominal)
    assert nominal <= one.due_at_ms(nominal) < nominal + min(interval_ms, jitter_ms)
    newest = newest_due(one, now_ms)
    assert newest is not None
    assert one.due_at_ms(newest) <= now_ms or newest < 0
    assert newest in (nominal, nominal - interval_ms)


def test_jitter_spreads() -> None:
    one = schedule(jitter_ms=10_000)
    late = {one.due_at_ms(n * EVERY_30_S) - n * EVERY_30_S for n in range(100)}
    assert len(late) > 80
    assert max(late) - min(late) > 5_000


def test_with_jitter_it_wakes_when_the_tick_is_due() -> None:
    one = schedule(jitter_ms=10_000)
    ticker = Ticker([one])
    ticker.adopt("check", 0)
    due_ms = one.due_at_ms(EVERY_30_S)
    assert ticker.next_wake_ms(1) == due_ms
    assert ticker.ready(due_ms - 1) == []
    assert nominals(ticker.ready(due_ms)) == [EVERY_30_S]
