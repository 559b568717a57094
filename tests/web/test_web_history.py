"""What the charts show: samples, and the hours before a server's start, computed from the journal's events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.web.conftest import Api
from zq.protocol.job import Cause, State
from zq.protocol.messages import EventInfo
from zq.web.history import ALL, KEPT_MS, POINTS_MAX, QUEUES_MAX, STEP_MS, History, Row, rewound

NOW_MS = 1_700_000_000_000 // STEP_MS * STEP_MS


def filled(steps: int, per_step: int = 5) -> History:
    """`per_step` jobs come and end in queue q in each step until NOW_MS."""
    history = History()
    for step in range(steps):
        count = per_step * step
        rows: dict[str, Row] = {"q": (count, count, 0, 3, 2, 1), "other": (0, 0, 0, 1, 0, 0)}
        history.add(NOW_MS - (steps - 1 - step) * STEP_MS, rows)
    return history


def test_rates_and_levels_of_a_queue_and_of_all() -> None:
    found = filled(100).series("q", NOW_MS, 900_000)
    assert (found.step_s, len(found.at_ms), found.at_ms[-1]) == (10.0, 90, NOW_MS)
    assert set(found.done_per_s) == {0.5}
    assert (found.ready[-1], found.running[-1], found.scheduled[-1]) == (3, 2, 1)
    assert filled(100).series(ALL, NOW_MS, 900_000).ready[-1] == 4
    assert set(filled(100).series("unknown", NOW_MS, 900_000).ready) == {None}


def test_a_long_span_has_fewer_points_and_the_same_rates() -> None:
    found = filled(2161).series("q", NOW_MS, KEPT_MS)
    assert len(found.at_ms) <= POINTS_MAX
    assert {rate for rate in found.done_per_s if rate is not None} == {0.5}


def test_what_is_not_known_is_null_and_no_line_is_drawn_over_it() -> None:
    history = filled(30)
    series = history.series("q", NOW_MS + 20 * STEP_MS, 900_000)
    assert series.done_per_s[-20:] == [None] * 20
    assert series.begins_at_ms == NOW_MS - 29 * STEP_MS
    assert series.done_per_s[0] is None
    # The broker was away for a while, and is back.
    history.add(NOW_MS + 20 * STEP_MS, {"q": (1000, 1000, 0, 0, 0, 0)})
    series = history.series("q", NOW_MS + 20 * STEP_MS, 900_000)
    assert (series.done_per_s[-1], series.ready[-1]) == (None, 0)


def test_a_count_that_falls_is_no_negative_rate() -> None:
    history = History()
    history.add(NOW_MS - STEP_MS, {"q": (10, 0, 10, 0, 0, 0)})
    history.add(NOW_MS, {"q": (10, 0, 2, 8, 0, 0)})
    assert history.series("q", NOW_MS, 60_000).failed_per_s[-1] == 0


def test_it_is_bounded_in_time_and_in_queues_and_survives_a_clock_put_back() -> None:
    history = filled(3000)
    assert history.begins_at_ms == NOW_MS - KEPT_MS
    history.add(NOW_MS + STEP_MS, {f"q{n}": (n, n, 0, 0, 0, 0) for n in range(QUEUES_MAX + 10)})
    assert history.series("q0", NOW_MS + STEP_MS, 60_000).ready[-1] is None
    assert history.series(ALL, NOW_MS + STEP_MS, 60_000).ready[-1] == 0
    history.add(NOW_MS - 10 * STEP_MS, {"q": (7, 7, 0, 0, 0, 0)})
    assert history.series("q", NOW_MS, 60_000).at_ms[-1] == NOW_MS


def test_live_rates_are_over_the_window() -> None:
    now: dict[str, Row] = {"q": (500, 500, 0, 0, 0, 0), "new": (1, 0, 0, 1, 0, 0)}
    rates = filled(100).rates(now, NOW_MS, 20_000)
    assert rates["q"] == pytest.approx((0.75, 0.75, 0))  # 485 two samples ago
    assert "new" not in rates
    assert History().rates(now, NOW_MS, 20_000) == {}


STEPS = {
    None: [(Cause.ACCEPT, State.READY), (Cause.ACCEPT, State.SCHEDULED)],
    State.SCHEDULED: [(Cause.DUE, State.READY), (Cause.CANCEL, State.CANCELLED)],
    State.READY: [(Cause.DISPATCH, State.RUNNING), (Cause.EXPIRE, State.EXPIRED)],
    State.RUNNING: [(Cause.FINISH, State.DONE), (Cause.FAIL, State.SCHEDULED), (Cause.EXHAUST, State.DEAD)],
    State.DEAD: [(Cause.OPERATOR_RETRY, State.READY)],
    State.CANCELLED: [], State.EXPIRED: [], State.DONE: [],
}  # fmt: skip


@given(st.data())
def test_rewinding_the_events_gives_the_counts_that_were(data: st.DataObject) -> None:
    """A little broker counts as it goes; going back over its events must find the same."""
    jobs: dict[int, State | None] = dict.fromkeys(range(6))
    events: list[EventInfo] = []
    counted: list[tuple[int, Row]] = []
    at_ms = NOW_MS
    for number in range(data.draw(st.integers(1, 40))):
        one = data.draw(st.integers(0, 5))
        if not STEPS[jobs[one]]:
            continue
        cause, jobs[one] = data.draw(st.sampled_from(STEPS[jobs[one]]))
        at_ms += data.draw(st.integers(1, 12_000))
        state = jobs[one]
        assert state is not None
        events.append(EventInfo(number, at_ms, bytes([one]) * 16, "q", "t", cause, state, 0, "", ""))
        counted.append((at_ms, row_of(jobs)))
    if not events:
        return
    now_ms = at_ms + 1
    for sample_ms, rows in rewound(events, {"q": row_of(jobs)}, now_ms, events[0].at_ms):
        assert rows["q"] == [row for at, row in counted if at <= sample_ms][-1]


def row_of(jobs: dict[int, State | None]) -> Row:
    states = [state for state in jobs.values() if state is not None]

    def count(*wanted: State) -> int:
        return sum(state in wanted for state in states)

    return (
        len(states), count(State.DONE), count(State.DEAD, State.EXPIRED), count(State.READY), count(State.RUNNING),
        count(State.SCHEDULED),
    )  # fmt: skip


def test_a_server_that_has_just_started_knows_what_was_before(api: Api) -> None:
    """The broker of the tests has had jobs before this server was there."""
    api("POST", "/v1/jobs", json={"task": "t", "queue": "before"})
    series = api("GET", "/page/chart?span_s=900&queue=before").json()
    assert len(series["at_ms"]) == 90
    assert series["queue"] == "before"
    assert api("GET", "/page/chart?span_s=5").status_code == 422
