"""Text as terminal cells: how wide it is, how to cut and pad it, and how to make foreign text harmless.

A Chinese character takes two cells, a combining mark none. Names, errors and progress messages come from outside:
whatever could move the cursor, change colours or reverse the line is replaced before it is shown.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

_DROPPED = frozenset({*range(0xFE00, 0xFE10), *range(0x1F3FB, 0x1F400)})
"""Variation selectors and skin tones: terminals disagree on the width of what they change."""
_JAMO = range(0x1160, 0x1200)
"""Hangul vowels and finals that did not compose with a letter before them: nobody agrees on their width either."""


@lru_cache(maxsize=8192)
def char_width(char: str) -> int:
    """Cells of one printable character: 0, 1 or 2."""
    if char.isascii():
        return 1
    if unicodedata.category(char) in ("Mn", "Mc", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def width(text: str) -> int:
    """Cells of a text that `clean` has gone over."""
    return len(text) if text.isascii() else sum(map(char_width, text))


def clean(text: str, *, ascii_only: bool = False) -> str:
    """`text` on one line, with everything a terminal could obey replaced by '?'.

    With `ascii_only` each cell of a character that is not ASCII becomes a '?', so that columns still stand.
    """
    if text.isascii() and text.isprintable():
        return text
    out: list[str] = []
    for char in unicodedata.normalize("NFC", text):
        if char in "\t\n\r":
            out.append(" ")
        elif ord(char) in _DROPPED:
            continue
        elif not char.isprintable() or ord(char) in _JAMO:
            out.append("?")
        elif char_width(char) == 0 and not out:
            out.append("?")  # a mark with nothing to stand on would join the column before
        elif ascii_only and not char.isascii():
            out.append("?" * char_width(char))
        else:
            out.append(char)
    return "".join(out)


def cut(text: str, cells: int, *, mark: str = "…", keep_end: bool = False) -> str:
    """At most `cells` cells of `text`; what is missing is shown by `mark`, at the side that was cut."""
    if width(text) <= cells:
        return text
    room = cells - len(mark)
    if room < 0:
        return ""
    if keep_end:
        return mark + _take(text[::-1], room)[::-1]
    return _take(text, room) + mark


def _take(text: str, cells: int) -> str:
    used = 0
    for index, char in enumerate(text):
        used += char_width(char)
        if used > cells:
            return text[:index]
    return text


def fit(text: str, cells: int, *, right: bool = False, mark: str = "…", keep_end: bool = False) -> str:
    """Exactly `cells` cells: cut, or padded with blanks."""
    text = cut(text, cells, mark=mark, keep_end=keep_end)
    blanks = " " * (cells - width(text))
    return blanks + text if right else text + blanks
