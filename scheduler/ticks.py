"""Which ticks of a schedule are due: arithmetic on milliseconds, no clock, no socket.

A schedule ticks on a grid that is aligned to the Unix epoch, so every scheduler in the world names the same nominal
times, whenever it was started. The job of a tick has an id made of (schedule, nominal time): two schedulers, or one
that was restarted, make one job. A schedule has at most one tick waiting to be submitted, its newest, so nothing piles
up while the broker is away.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from zq.protocol.job import job_id_from

GRACE_MS = 1_000
"""A tick at most this late was not missed; the scheduler wakes a little after the nominal time, never before."""


class Misfire(enum.StrEnum):
    """What becomes of ticks that nobody was there to submit."""

    SKIP = "skip"
    """They are left out; the next one comes at its time."""
    ONCE = "once"
    """The newest of them is made up for, at once; the others are left out."""


@dataclass(frozen=True)
class Schedule:
    name: str
    task: str
    queue: str
    interval_ms: int
    expires_ms: int
    """A tick is given up this long after its nominal time, and its job expires this long after the broker took it."""
    misfire: Misfire = Misfire.ONCE
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.interval_ms < 1 or self.expires_ms < 1:
            raise ValueError(f"schedule {self.name!r}: the interval and the expiry must be at least one millisecond")


@dataclass(frozen=True)
class Tick:
    schedule: Schedule
    nominal_ms: int

    @property
    def job_id(self) -> bytes:
        return job_id_from("tick", self.schedule.name, str(self.nominal_ms))

    @property
    def dead_at_ms(self) -> int:
        """From this time on submitting it is useless."""
        return self.nominal_ms + self.schedule.expires_ms


def nominal_at(interval_ms: int, now_ms: int) -> int:
    """The newest nominal time that is not after `now_ms`."""
    return now_ms - now_ms % interval_ms


def due(schedule: Schedule, last_ms: int | None, now_ms: int) -> int | None:
    """The nominal time to submit now, or None. `last_ms` is the newest one dealt with; None right after the start."""
    nominal = nominal_at(schedule.interval_ms, now_ms)
    if last_ms is not None and nominal <= last_ms:
        return None
    late_ms = now_ms - nominal
    if schedule.misfire is Misfire.SKIP and late_ms > GRACE_MS:
        return None
    return nominal if late_ms < schedule.expires_ms else None


class SteadyClock:
    """Wall time that never goes back.

    When the wall clock is set forward this follows; when it is set back this goes on from where it was, at the pace
    of the monotonic clock: no nominal time comes twice, and the ticks do not stop until the wall has caught up.
    """

    def __init__(self, wall_ms: int, monotonic_ms: int) -> None:
        self._now_ms = wall_ms
        self._read_at_ms = monotonic_ms

    def read(self, wall_ms: int, monotonic_ms: int) -> int:
        steady = self._now_ms + max(0, monotonic_ms - self._read_at_ms)
        self._now_ms = max(wall_ms, steady)
        self._read_at_ms = monotonic_ms
        return self._now_ms


class Ticker:
    """All schedules and their waiting ticks. Ask `ready`, submit, and say how it went with `settled` or `put_off`."""

    def __init__(self, schedules: Iterable[Schedule]) -> None:
        self.schedules = {schedule.name: schedule for schedule in schedules}
        self._last_ms: dict[str, int | None] = dict.fromkeys(self.schedules)
        self._waiting: dict[str, Tick] = {}
        self._not_before_ms: dict[str, int] = {}

    def ready(self, now_ms: int) -> list[Tick]:
        """The ticks to submit now, oldest first. One that was not settled comes again until it is of no use."""
        for name, schedule in self.schedules.items():
            nominal = due(schedule, self._last_ms[name], now_ms)
            if nominal is not None:
                self._waiting[name] = Tick(schedule, nominal)
                self._not_before_ms.pop(name, None)
            # Also where nothing is due: a skipped tick is dealt with.
            self._last_ms[name] = max(self._last_ms[name] or 0, nominal_at(schedule.interval_ms, now_ms))
            if name in self._waiting and now_ms >= self._waiting[name].dead_at_ms:
                self._forget(name)
        ticks = [tick for name, tick in self._waiting.items() if now_ms >= self._not_before_ms.get(name, 0)]
        return sorted(ticks, key=lambda tick: tick.nominal_ms)

    def settled(self, tick: Tick) -> None:
        """The broker has it, or will never take it."""
        if self._waiting.get(tick.schedule.name) == tick:
            self._forget(tick.schedule.name)

    def put_off(self, tick: Tick, until_ms: int) -> None:
        """It could not be submitted: offer it again from `until_ms` on."""
        if self._waiting.get(tick.schedule.name) == tick:
            self._not_before_ms[tick.schedule.name] = until_ms

    def next_wake_ms(self, now_ms: int) -> int | None:
        """When `ready` may next have something new; None when there are no schedules."""
        wakes = [nominal_at(s.interval_ms, now_ms) + s.interval_ms for s in self.schedules.values()]
        wakes += [max(now_ms, self._not_before_ms.get(name, 0)) for name in self._waiting]
        return min(wakes, default=None)

    def _forget(self, name: str) -> None:
        self._waiting.pop(name, None)
        self._not_before_ms.pop(name, None)
