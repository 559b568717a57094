from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zq.exams import times
from zq.exams.errors import ExamError

SHANGHAI = times.zone("Asia/Shanghai")
BERLIN = times.zone("Europe/Berlin")
NINE_MS = int(datetime(2026, 6, 30, 1, 0, tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    "value",
    [
        "2026-06-30 09:00:00",
        "2026-06-30T09:00",
        " 2026-06-30T09:00:00.000 ",
        "2026-06-30T01:00:00Z",
        "2026-06-30T03:00:00+02:00",
        datetime(2026, 6, 30, 9, 0),  # noqa: DTZ001  naive on purpose
        datetime(2026, 6, 30, 1, 0, tzinfo=UTC),
        datetime(2026, 6, 30, 9, 0, tzinfo=timezone(timedelta(hours=8))),
        NINE_MS,
    ],
)
def test_one_moment_however_it_is_written(value: times.Instant) -> None:
    assert times.to_ms(value, SHANGHAI) == NINE_MS


def test_shown_in_the_zone() -> None:
    assert times.show(NINE_MS, SHANGHAI) == "2026-06-30T09:00:00+08:00"
    assert times.show(NINE_MS + 7, SHANGHAI) == "2026-06-30T09:00:00.007+08:00"
    assert times.stamp(NINE_MS, SHANGHAI) == "20260630_090000"


def test_a_local_time_that_the_clock_skips_is_refused() -> None:
    with pytest.raises(ExamError, match="does not exist in Europe/Berlin"):
        times.to_ms("2026-03-29 02:30:00", BERLIN)
    assert times.to_ms("2026-03-29 03:00:00", BERLIN) == times.to_ms("2026-03-29T01:00:00Z", BERLIN)


def test_a_local_time_that_comes_twice_needs_its_offset() -> None:
    with pytest.raises(ExamError, match="exists twice"):
        times.to_ms("2026-10-25 02:30:00", BERLIN)
    assert (
        times.to_ms("2026-10-25T02:30:00+01:00", BERLIN) - times.to_ms("2026-10-25T02:30:00+02:00", BERLIN) == 3_600_000
    )


@pytest.mark.parametrize(
    "value",
    ["", "tomorrow", "2026-13-01", "9" * 1000, True, 1.5, None, [], -1, 10**18, "0001-01-01", "9999-12-31T23:59:59"],
)
def test_nonsense_is_refused(value: object) -> None:
    with pytest.raises(ExamError) as refused:
        times.to_ms(value, SHANGHAI)
    assert refused.value.code == "invalid"


def test_an_unknown_zone_is_refused() -> None:
    for name in ("Mars/Olympus", "", "../../etc/passwd", "Asia/shanghai\0"):
        with pytest.raises(ExamError, match="no time zone"):
            times.zone(name)


@given(st.one_of(st.text(max_size=50), st.integers(), st.floats(), st.binary(), st.none(), st.datetimes()))
def test_any_input_is_a_moment_or_refused(value: object) -> None:
    try:
        ms = times.to_ms(value, BERLIN)
    except ExamError:
        return
    assert 0 <= ms <= times.EPOCH_MS_MAX


@given(st.integers(0, times.EPOCH_MS_MAX))
def test_what_is_shown_reads_back(ms: int) -> None:
    for zone in (SHANGHAI, BERLIN):
        assert times.to_ms(times.show(ms, zone), zone) == ms
