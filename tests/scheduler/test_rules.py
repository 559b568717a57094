"""When cron expressions and single moments come true, also where clocks change."""

from __future__ import annotations

import zoneinfo
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zq.scheduler.rules import Cron, Interval, Once

BERLIN, SHANGHAI = zoneinfo.ZoneInfo("Europe/Berlin"), zoneinfo.ZoneInfo("Asia/Shanghai")
FORWARD = ("2026-03-29T00:00+01:00", "2026-03-29T04:30+02:00")
BACK = ("2026-10-25T00:00+02:00", "2026-10-25T04:30+01:00")


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def times(cron: Cron, span: tuple[str, str]) -> list[str]:
    found, at_ms = [], cron.following(ms(span[0]) - 1)
    while at_ms is not None and at_ms < ms(span[1]):
        found.append(datetime.fromtimestamp(at_ms / 1000, cron.zone).strftime("%H:%M%z"))
        at_ms = cron.following(at_ms)
    return found


@pytest.mark.parametrize(
    ("expression", "span", "expected"),
    [
        # A fixed time that is skipped comes right after the gap; one that exists twice comes once.
        ("30 2 * * *", FORWARD, ["03:00+0200"]),
        ("30 2 * * *", BACK, ["02:30+0200"]),
        ("0 3 * * *", FORWARD, ["03:00+0200"]),
        ("0 3 * * *", BACK, ["03:00+0100"]),
        # Every hour, every half hour: as the clock goes.
        ("0 * * * *", FORWARD, ["00:00+0100", "01:00+0100", "03:00+0200", "04:00+0200"]),
        ("0 * * * *", BACK, ["00:00+0200", "01:00+0200", "02:00+0200", "02:00+0100", "03:00+0100", "04:00+0100"]),
        ("*/30 2 * * *", FORWARD, []),
        ("*/30 2 * * *", BACK, ["02:00+0200", "02:30+0200", "02:00+0100", "02:30+0100"]),
    ],
)
def test_where_clocks_change(expression: str, span: tuple[str, str], expected: list[str]) -> None:
    assert times(Cron(expression, BERLIN), span) == expected


def test_the_zone_is_that_of_the_schedule() -> None:
    assert Cron("0 3 * * 1-5", SHANGHAI).following(ms("2026-06-26T03:00+08:00")) == ms("2026-06-29T03:00+08:00")


@pytest.mark.parametrize("expression", ["", "* * * *", "61 * * * *", "0 0 30 2 *", "@daily", "a b c d e"])
def test_what_is_no_expression_or_never_comes(expression: str) -> None:
    with pytest.raises(ValueError, match="cron expression"):
        Cron(expression, BERLIN)


EXPRESSIONS = ["30 2 * * *", "0 * * * *", "*/7 * * * *", "15 2,3 * * *", "*/20 * * * * *", "0 12 1 * *", "0 0 29 2 *"]


@settings(deadline=None)
@given(
    st.sampled_from(EXPRESSIONS),
    st.sampled_from([BERLIN, SHANGHAI]),
    st.one_of(
        st.integers(0, 4_000_000_000_000),
        st.integers(ms(FORWARD[0]), ms(FORWARD[1])),
        st.integers(ms(BACK[0]), ms(BACK[1])),
    ),
)
def test_newest_and_following_name_the_same_moments(expression: str, zone: zoneinfo.ZoneInfo, now_ms: int) -> None:
    cron = Cron(expression, zone)
    following = cron.following(now_ms)
    assert following is not None
    assert following > now_ms
    assert cron.newest(following) == following
    newest = cron.newest(now_ms)
    if newest is not None:
        assert newest <= now_ms
        assert cron.following(newest) == following


def test_one_moment() -> None:
    once = Once(5_000)
    assert (once.newest(4_999), once.newest(5_000), once.newest(9_000)) == (None, 5_000, 5_000)
    assert (once.following(4_999), once.following(5_000)) == (5_000, None)


def test_what_counts_as_done_of_a_schedule_that_is_new() -> None:
    """An interval begins at once; a time of day is not made up for."""
    assert Interval(30_000).first_seen(5) is None
    assert Once(5).first_seen(7) is None
    assert Cron("0 3 * * *", SHANGHAI).first_seen(5) == 5
