"""Cells, units and foreign text: nothing that comes from outside may move the cursor or break a column."""

from __future__ import annotations

from datetime import UTC

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from zq.client.arguments import ARGUMENTS_CHARS_MAX, arguments_of, one_line
from zq.monitor import cells, units
from zq.monitor.detail import wrapped
from zq.monitor.drawing import ASCII, UTF8, Column, Span, Style, fitting, row, spread, to_text, width
from zq.monitor.views import share
from zq.protocol.job import JobSpec, encode_spec


@given(st.text(), st.integers(0, 30), st.booleans(), st.booleans())
def test_fit_is_exact_for_any_text(text: str, wide: int, right: bool, keep_end: bool) -> None:
    fitted = cells.fit(cells.clean(text), wide, right=right, keep_end=keep_end)
    assert cells.width(fitted) == wide


@given(st.text())
def test_clean_text_has_nothing_a_terminal_obeys(text: str) -> None:
    assert cells.clean(text).isprintable()
    assert cells.clean(text, ascii_only=True).isascii()
    assert cells.width(cells.clean(text, ascii_only=True)) == cells.width(cells.clean(text))


@given(st.text(st.characters(codec="gb2312"), max_size=40))
def test_our_widths_are_those_of_the_terminal_library(text: str) -> None:
    cleaned = cells.clean(text)
    assert cells.width(cleaned) == cell_len(cleaned)


@pytest.mark.parametrize(
    ("text", "wide"),
    [("张伟", 4), ("abc", 3), ("é", 1), ("e\u0301", 1), ("한국", 4), ("ｱ", 1), ("，", 2), ("👍🏽", 2), ("क\u093e", 1)],
)
def test_widths(text: str, wide: int) -> None:
    assert cells.width(cells.clean(text)) == wide


def test_what_is_dangerous_is_replaced() -> None:
    assert cells.clean("a\x1b[31mb\u202ec\nd\u0301\x07") == "a?[31mb?c d\u0301?".replace("d\u0301", "d\u0301")
    assert cells.clean("\u0301a") == "?a"


def test_cut_shows_where_something_is_missing() -> None:
    assert cells.cut("欧阳娜娜", 5) == "欧阳…"
    assert cells.cut("欧阳娜娜", 4) == "欧…"  # half a character is none
    assert cells.cut("zq.workers.merge", 6, keep_end=True) == "…merge"
    assert cells.fit("欧阳娜娜", 4) == "欧… "


@given(st.binary(max_size=400))
def test_foreign_arguments_give_a_short_text(data: bytes) -> None:
    assert len(one_line(data)) <= ARGUMENTS_CHARS_MAX
    arguments_of(data)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.lists(_VALUES), st.dictionaries(st.text(), _VALUES))
def test_any_arguments_give_a_short_text(positional: list[object], named: dict[str, object]) -> None:
    assert len(one_line(msgspec.msgpack.encode([positional, named]))) <= ARGUMENTS_CHARS_MAX


def test_arguments_read_like_a_call() -> None:
    data = msgspec.msgpack.encode([[49, "a b"], {"student": "张伟", "parts": [1, 2], "all": list(range(9))}])
    assert one_line(data) == "49 'a b' student=张伟 parts=[1, 2] all=[9 items]"
    assert one_line(b"\xc1") == "(arguments not readable)"
    assert one_line(b"\x91" * 5000) == "(arguments not readable)"


def test_a_specification_that_cannot_be_read_says_so() -> None:
    assert arguments_of(encode_spec(JobSpec(bytes(16), "t", "q"))) == ""
    assert "not readable" in arguments_of(b"junk")


@given(st.text(max_size=200), st.integers(1, 40))
def test_wrapped_loses_nothing(text: str, wide: int) -> None:
    cleaned = cells.clean(text)
    pieces = wrapped(cleaned, wide)
    assert "".join(pieces) == cleaned
    assert all(cells.width(piece) <= max(2, wide) for piece in pieces)


@given(st.floats(0, 1e9, allow_nan=False))
def test_durations_fit_their_column(seconds: float) -> None:
    assert len(units.duration(seconds)) <= 8
    assert len(units.duration(seconds)) <= 6 or seconds > 86_400 * 999


@given(st.integers(0, 10**11), st.floats(0, 1e8), st.integers(0, 1 << 50))
def test_numbers_fit_their_columns(number: int, per_s: float, size_bytes: int) -> None:
    assert len(units.count(number)) <= 6
    assert len(units.rate(per_s)) <= 6
    assert len(units.size(size_bytes)) <= 10


def test_units() -> None:
    assert [units.count(n) for n in (99_999, 100_000, 999_949_999, 999_950_000)] == ["99999", "100k", "999.9M", "1.0G"]
    assert [units.duration(s) for s in (0, 9.94, 9.96, 59.9, 60, 3599, 3600, 86_400, 90_000)] == [
        "0.0s", "9.9s", "9s", "59s", "1m00", "59m59", "1h00", "1d00", "1d01",
    ]  # fmt: skip
    assert [units.size(b) for b in (0, 999, 1000, 1 << 20, 150 << 20, 3 << 40)] == [
        "0 B", "999 B", "1.0 KiB", "1.0 MiB", "150 MiB", "3.0 TiB",
    ]  # fmt: skip
    assert units.rate(None) == "-"
    assert units.moment(0, UTC) == "-"
    assert units.moment(1 << 62, UTC) == "-"


COLUMNS: tuple[Column[str], ...] = (
    Column("NAME", 10, lambda r, signs: Span(r), right=False, grow=1),
    Column("A", 6, lambda r, signs: Span("1"), keep=2),
    Column("B", 6, lambda r, signs: Span("2", Style.BAD), keep=1),
)


@given(st.integers(1, 200), st.text(max_size=30))
def test_a_row_is_exactly_as_wide_as_its_table(wide: int, name: str) -> None:
    sized = fitting(COLUMNS, wide)
    assert width(row(name, sized, UTF8)) == max(wide, 10)
    assert width(row(name, sized, ASCII)) == max(wide, 10)


def test_the_least_column_goes_first() -> None:
    assert [c.title for c, _ in fitting(COLUMNS, 24)] == ["NAME", "A", "B"]
    assert [c.title for c, _ in fitting(COLUMNS, 23)] == ["NAME", "A"]
    assert [c.title for c, _ in fitting(COLUMNS, 5)] == ["NAME"]


@given(st.text(), st.text(), st.integers(1, 60))
def test_two_sides_fill_the_line(left: str, right: str, wide: int) -> None:
    line = spread((Span(cells.clean(left)),), (Span(cells.clean(right)),), wide, UTF8)
    assert width(line) == wide


@given(st.integers(0, 60), st.lists(st.integers(1, 300), min_size=3, max_size=3), st.integers(0, 2))
def test_shares_use_the_room_and_no_more(room: int, wants: list[int], favourite: int) -> None:
    given_rows = share(room, wants, favourite)
    assert all(0 < got <= want for got, want in zip(given_rows, wants, strict=True))
    assert sum(given_rows) == min(sum(wants), max(room, 3))


def test_the_pane_with_the_keyboard_gets_the_rest() -> None:
    assert share(30, [100, 2, 100], 2) == [10, 2, 18]
    assert share(30, [100, 2, 100], 0) == [18, 2, 10]


def test_no_codes_without_colour() -> None:
    line = (Span("x", Style.BAD), Span(" y  "))
    assert to_text([line], colour=False) == "x y\n"
    assert to_text([line], colour=True) == "\x1b[1;31mx\x1b[0m y\n"
