"""Broker time: milliseconds that never go backwards and stay near Unix time.

It starts at the wall clock (never before the last time in the journal) and then runs on CLOCK_BOOTTIME, so that no
jump of the wall clock, in either direction, can end a lease or hold up a delay. It is drawn towards the wall clock by
half a per cent at most, so an ordinary correction of the wall clock is followed within minutes.
"""

from __future__ import annotations

import ctypes
import time
from contextlib import suppress

_DRAW = 0.005
_PR_SET_TIMERSLACK = 29


class Clock:
    def __init__(self, not_before_ms: int) -> None:
        self._last_boot_ms = _boot_ms()
        self._now_ms = float(max(not_before_ms, time.time() * 1000))

    def seconds_until(self, time_ms: int) -> float:
        """How long it is until then; negative for the past."""
        self.now_ms()
        return (time_ms - self._now_ms) / 1000

    def now_ms(self) -> int:
        boot_ms = _boot_ms()
        elapsed_ms = max(0.0, boot_ms - self._last_boot_ms)
        self._last_boot_ms = boot_ms
        target_ms = self._now_ms + elapsed_ms
        wall_ms = time.time() * 1000
        draw_ms = elapsed_ms * _DRAW
        self._now_ms = target_ms + min(draw_ms, max(-draw_ms, wall_ms - target_ms))
        return int(self._now_ms)


def sharpen() -> None:
    """Let this thread's timed waits end within a microsecond instead of 50 (prctl(2), PR_SET_TIMERSLACK), so that what
    is due starts when it is due."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1000), 0, 0, 0)


def _boot_ms() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) * 1000
