"""When a schedule is due: an interval, a cron expression, or one moment. Pure arithmetic on Unix milliseconds.

A rule names the same moments whoever asks and whenever: two schedulers, or one that was restarted, agree.
"""

from __future__ import annotations

import zoneinfo
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from cronsim import CronSim, CronSimError

_HOUR_MS = 3_600_000
_WINDOWS_MS = (_HOUR_MS, 24 * _HOUR_MS, 32 * 24 * _HOUR_MS, 366 * 24 * _HOUR_MS, 9 * 366 * 24 * _HOUR_MS)
"""How far back a cron expression's newest moment is looked for. Eight years may pass between two 29ths of February."""


class Rule(Protocol):
    def newest(self, now_ms: int) -> int | None:
        """The newest moment that is not after `now_ms`."""
        ...

    def following(self, after_ms: int) -> int | None:
        """The first moment after `after_ms`; None if there is none any more."""
        ...

    def first_seen(self, now_ms: int) -> int | None:
        """What to take as done when nothing is known: None makes the newest moment due."""
        ...


@dataclass(frozen=True)
class Interval:
    """A grid from the Unix epoch on."""

    every_ms: int

    def newest(self, now_ms: int) -> int:
        return now_ms - now_ms % self.every_ms

    def following(self, after_ms: int) -> int:
        return self.newest(after_ms) + self.every_ms

    def first_seen(self, now_ms: int) -> int | None:
        return None


@dataclass(frozen=True)
class Cron:
    """Five fields (six: seconds first) in a zone. Raises ValueError for an expression that is none.

    Where clocks change, as Debian's cron does: a fixed time that is skipped comes right after the gap, one that exists
    twice comes once, at its first pass. Expressions with `*` for minute or hour follow the clock as it goes: nothing
    for times that do not exist, and both passes of those that exist twice.
    """

    expression: str
    zone: zoneinfo.ZoneInfo

    def __post_init__(self) -> None:
        try:
            if self.following(0) is None:
                raise ValueError(f"cron expression {self.expression!r} never comes true")
        except CronSimError as error:
            raise ValueError(f"cron expression {self.expression!r}: {error}") from None

    def following(self, after_ms: int) -> int | None:
        moments = CronSim(self.expression, datetime.fromtimestamp(after_ms // 1000, self.zone))
        for moment in moments:
            # In the second pass of an hour the first candidates are of the first one, and over.
            at_ms = int(moment.timestamp()) * 1000
            if at_ms > after_ms:
                return at_ms
        return None

    def newest(self, now_ms: int) -> int | None:
        for window_ms in _WINDOWS_MS:
            found: int | None = None
            at_ms = self.following(max(0, now_ms - window_ms))
            while at_ms is not None and at_ms <= now_ms:
                found, at_ms = at_ms, self.following(at_ms)
            if found is not None:
                return found
        return None

    def first_seen(self, now_ms: int) -> int | None:
        """A job for three at night is not made up for because somebody has just written it into the file."""
        return now_ms


@dataclass(frozen=True)
class Once:
    at_ms: int

    def newest(self, now_ms: int) -> int | None:
        return self.at_ms if self.at_ms <= now_ms else None

    def following(self, after_ms: int) -> int | None:
        return self.at_ms if self.at_ms > after_ms else None

    def first_seen(self, now_ms: int) -> int | None:
        return None
