"""Lines of styled text, and tables that fit a width. Knows cells and columns, nothing of jobs.

A line is a tuple of spans; a style is a name, and only who prints the line knows what it looks like.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from zq.monitor import cells


class Style(Enum):
    """What a piece of text means. The value is its SGR code (ECMA-48), in the terminal's own sixteen colours."""

    PLAIN = ""
    STRONG = "1"
    QUIET = "2"
    GOOD = "32"
    BUSY = "36"
    WARN = "33"
    BAD = "1;31"
    HEAD = "1;36"
    """The head of a pane."""
    HERE = "7"
    """The head of the pane that has the keyboard, and the selected row."""
    ALARM = "1;37;41"


@dataclass(frozen=True, slots=True)
class Span:
    text: str
    style: Style = Style.PLAIN


Line = tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Signs:
    """The characters that drawing needs."""

    full: str = "█"
    empty: str = "░"
    more: str = "…"
    pointer: str = "▸"
    alarm: str = "▲"
    dash: str = "–"
    up: str = "▲"
    down: str = "▼"
    ascii_only: bool = False

    def clean(self, text: str) -> str:
        return cells.clean(text, ascii_only=self.ascii_only)


UTF8 = Signs()
ASCII = Signs(
    full="#", empty=".", more="~", pointer=">", alarm="!", dash="-", up="^", down="v", ascii_only=True
)  # fmt: skip


def width(line: Line) -> int:
    return sum(cells.width(span.text) for span in line)


def text_of(line: Line) -> str:
    return "".join(span.text for span in line)


def clip(line: Line, width_cells: int, signs: Signs) -> Line:
    """At most `width_cells` cells of a line."""
    out: list[Span] = []
    left = width_cells
    for span in line:
        if left <= 0:
            break
        text = cells.cut(span.text, left, mark=signs.more)
        out.append(Span(text, span.style))
        left -= cells.width(span.text)
    return tuple(out)


def spread(left: Line, right: Line, width_cells: int, signs: Signs) -> Line:
    """One line with a part at each side; where both do not fit, the left one is cut."""
    right = clip(right, width_cells, signs)
    room = width_cells - width(right)
    left = clip(left, max(0, room - 1), signs)
    return (*left, Span(" " * (room - width(left))), *right)


def bar(share: float, size_cells: int, signs: Signs) -> str:
    full = max(0, min(size_cells, round(share * size_cells)))
    return signs.full * full + signs.empty * (size_cells - full)


R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Column(Generic[R]):
    """One column of a table: `cell` gives a row's text and what it means."""

    title: str
    cells_min: int
    cell: Callable[[R, Signs], Span]
    right: bool = True
    grow: int = 0
    """Its share of the room that is left; 0 keeps it at `cells_min`."""
    keep: int = 9
    """Columns with a small number go first where there is no room; 9 never goes."""
    keep_end: bool = False
    """Of a text that is too long, the end is the telling part."""


def fitting(columns: Sequence[Column[R]], width_cells: int) -> list[tuple[Column[R], int]]:
    """The columns that have room, each with its width; together with one blank between them exactly the width.

    Only columns that may not go are left when even they do not fit; their line is cut.
    """
    kept = list(columns)
    while sum(c.cells_min + 1 for c in kept) - 1 > width_cells:
        least = min(kept, key=lambda c: c.keep)
        if least.keep == 9:
            break
        kept.remove(least)
    spare = max(0, width_cells - (sum(c.cells_min + 1 for c in kept) - 1))
    shares = sum(c.grow for c in kept)
    sized: list[tuple[Column[R], int]] = []
    for column in kept:
        extra = spare * column.grow // shares if shares else 0
        spare -= extra
        shares -= column.grow
        sized.append((column, column.cells_min + extra))
    return sized


def head(sized: Sequence[tuple[Column[R], int]], sorted_by: str, falling: bool, signs: Signs) -> str:
    """The titles over their columns; the one that rows are sorted by has an arrow."""
    parts = []
    for column, cells_wide in sized:
        title = column.title
        if title == sorted_by and cells.width(title) < cells_wide:
            title += signs.down if falling else signs.up
        parts.append(cells.fit(title, cells_wide, right=column.right, mark=signs.more))
    return " ".join(parts)


def row(record: R, sized: Sequence[tuple[Column[R], int]], signs: Signs) -> Line:
    spans: list[Span] = []
    for column, cells_wide in sized:
        span = column.cell(record, signs)
        text = signs.clean(span.text)
        fitted = cells.fit(text, cells_wide, right=column.right, mark=signs.more, keep_end=column.keep_end)
        if spans:
            spans.append(Span(" "))
        spans.append(Span(fitted, span.style))
    return tuple(spans)


def to_text(lines: Sequence[Line], *, colour: bool) -> str:
    """For a plain stream: lines without trailing blanks, with SGR codes or without."""
    out: list[str] = []
    for line in lines:
        if not colour:
            out.append(text_of(line).rstrip())
            continue
        parts = [f"\x1b[{s.style.value}m{s.text}\x1b[0m" if s.style.value else s.text for s in line]
        out.append("".join(parts).rstrip())
    return "".join(line + "\n" for line in out)
