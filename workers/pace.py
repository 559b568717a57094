"""How many jobs of a queue a slot is given at once: one, and more only while jobs are tiny. Pure.

The work in hand of a slot is to last for about WORK_MS, so that it never waits for the broker's next commit; a job
that turns out slow costs its followers at most SLOW_MS, for then they are taken back.
"""

from __future__ import annotations

from typing import Final

DEPTH_MAX: Final = 512
"""Jobs in one slot; so many tickets fit into the smallest pipe (see `slots`)."""
WORK_MS: Final = 60.0
SHORT_MS: Final = 5
"""Only jobs that are as quick as this make the depth grow. A longer one shares its followers with an idle slot."""
SLOW_MS: Final = 20
"""A job that runs for so long loses the jobs behind it to other slots."""
WORK_BYTES: Final = 4 << 20
"""Arguments that one slot has in hand, about."""
BUSY_MS: Final = 50
"""Leases that come so soon after the last end were waited for."""
IDLE_MS: Final = 100
"""A queue without jobs for so long begins again with one job a slot."""


class Pace:
    """What is known about the recent jobs of one queue."""

    def __init__(self, depth_max: int = DEPTH_MAX) -> None:
        self._depth_max = depth_max
        self.depth = 1
        """Jobs that one slot may have: a power of two, so that it does not change with every job."""
        self.most = depth_max
        """What the quick jobs' time and size allow; more than twice as many in one slot are taken back."""
        self._window = 1
        self._mean_ms = 0.0
        self._bytes = 1
        self._ended_ms: int | None = None
        self._hungry = False

    def dispatched(self, argument_bytes: int, *, used_up: bool, now_ms: int) -> None:
        """Leases have come. `used_up`: they use most of the credit, so that more of it would bring more."""
        self._bytes = max(argument_bytes, 1, self._bytes * 7 // 8)
        self._hungry = used_up and self._ended_ms is not None and now_ms - self._ended_ms <= BUSY_MS

    def ended(self, ran_ms: float, now_ms: int) -> None:
        """An attempt has run for so long. Slow ones are no part of the mean: they are taken back from, each time."""
        self._ended_ms = now_ms
        if ran_ms >= SLOW_MS:
            return
        self._mean_ms += (ran_ms - self._mean_ms) / 32
        self.most = max(1, min(self._depth_max, int(WORK_MS / max(self._mean_ms, 0.001)), WORK_BYTES // self._bytes))
        if self._window > self.most:
            self._window = self.most
        elif self._hungry and ran_ms <= SHORT_MS and self._window < self.most:
            self._window += 1
        else:
            return
        self.depth = 1 << (self._window.bit_length() - 1)

    def slow(self) -> None:
        """A job has turned out slow. A few of these, and it is one job a slot again."""
        self._window = max(1, self._window // 4)
        self.depth = 1 << (self._window.bit_length() - 1)

    def begin_again(self) -> None:
        self._window = self.depth = 1

    def idle(self, now_ms: int) -> bool:
        """Whether the depth is to be given up, with no job of the queue here."""
        return self.depth > 1 and self._ended_ms is not None and now_ms >= self._ended_ms + IDLE_MS

    def idle_ms(self) -> int | None:
        """When `idle` may come true; None while there is nothing to give up."""
        return self._ended_ms + IDLE_MS if self.depth > 1 and self._ended_ms is not None else None
