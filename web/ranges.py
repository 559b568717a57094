"""Range requests (RFC 9110, section 14), the arithmetic alone: one range of one file.

A request for several ranges is answered with the whole file, which the RFC allows: what players ask for is one range,
and the parsers of several have been a way to make servers work for hours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

HEADER_CHARS_MAX = 100
_RANGE = re.compile(r"bytes=\s*([0-9]{0,19})-([0-9]{0,19})\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `first` to `last`, both included."""

    first: int
    last: int

    @property
    def size_bytes(self) -> int:
        return self.last - self.first + 1


class NotSatisfiable(Exception):
    """The range begins behind the end of the file: 416."""


def wanted(header: str | None, size_bytes: int) -> Span | None:
    """The span asked for, cut to the file; None for the whole file (no range, several, or none that we read).

    Raises NotSatisfiable.
    """
    if header is None or len(header) > HEADER_CHARS_MAX:
        return None
    found = _RANGE.fullmatch(header)
    if found is None:
        return None
    first, last = found.groups()
    if first == "" and last == "":
        return None
    if first == "":
        suffix_bytes = int(last)
        if suffix_bytes == 0 or size_bytes == 0:
            raise NotSatisfiable
        return Span(max(0, size_bytes - suffix_bytes), size_bytes - 1)
    start = int(first)
    if last != "" and int(last) < start:
        return None
    if start >= size_bytes:
        raise NotSatisfiable
    return Span(start, min(int(last), size_bytes - 1) if last != "" else size_bytes - 1)
