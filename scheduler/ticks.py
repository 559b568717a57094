"""Which ticks of a schedule are due: arithmetic on milliseconds, no clock, no socket.

A tick is a nominal time of its schedule's rule. Its job has an id made of (schedule, nominal time): two schedulers, or
one that was restarted, make one job. A schedule has at most one tick waiting to be submitted, its newest (with misfire
`all`: its newest `misfire_max`), so nothing piles up while the broker is away.
"""

from __future__ import annotations

import enum
import zlib
import zoneinfo
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from zq.protocol.job import job_id_from
from zq.scheduler.rules import Cron, Interval, Once, Rule
from zq.schedules import Plan

GRACE_MS = 1_000
"""A tick at most this late was not missed; the scheduler wakes a little after its time, never before."""
EXPIRES_ALL_MS = 24 * 3_600_000
"""With misfire `all`, for how long a tick is made up for if nothing else is said."""
COUNTED_MAX = 10_000
"""Missed ticks are counted up to here at once."""


class Misfire(enum.StrEnum):
    """What becomes of ticks that nobody was there to submit."""

    SKIP = "skip"
    """They are left out; the next one comes at its time."""
    ONCE = "once"
    """The newest of them is made up for, at once; the others are left out."""
    ALL = "all"
    """All are made up for, in their order: the newest `misfire_max` of them."""


@dataclass(frozen=True)
class Schedule:
    name: str
    task: str
    queue: str
    rule: Rule
    expires_ms: int | None = None
    """A tick is given up this long after its nominal time, and its job expires this long after the broker took it;
    None: when the next tick comes."""
    misfire: Misfire = Misfire.ONCE
    misfire_max: int = 100
    jitter_ms: int = 0
    """Each tick comes up to so much later, always the same time for the same tick."""
    key: str = ""
    """Of the jobs, where a tick is to be left out while the last one's job is there."""
    text: str = ""
    """The rule, for people."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        too_short = isinstance(self.rule, Interval) and self.rule.every_ms < 1
        if too_short or (self.expires_ms is not None and self.expires_ms < 1) or self.jitter_ms < 0:
            raise ValueError(f"schedule {self.name!r}: the interval and the expiry must be at least one millisecond")

    def expiry_ms(self, nominal_ms: int) -> int:
        if self.expires_ms is not None:
            return self.expires_ms
        following = self.rule.following(nominal_ms)
        if self.misfire is Misfire.ALL or following is None:
            return EXPIRES_ALL_MS
        return following - nominal_ms

    def due_at_ms(self, nominal_ms: int) -> int:
        """With its jitter, which never reaches the next tick."""
        if not self.jitter_ms:
            return nominal_ms
        following = self.rule.following(nominal_ms)
        room_ms = self.jitter_ms if following is None else min(self.jitter_ms, following - nominal_ms)
        return nominal_ms + zlib.crc32(f"{self.name} {nominal_ms}".encode()) % room_ms


def schedule_of(plan: Plan) -> Schedule:
    """Raises ValueError for a rule that cannot be."""
    rule: Rule
    if plan.cron:
        rule = Cron(plan.cron, zoneinfo.ZoneInfo(plan.zone))
    elif plan.at_ms:
        rule = Once(plan.at_ms)
    else:
        rule = Interval(plan.every_ms)
    return Schedule(
        name=plan.name,
        task=plan.task,
        queue=plan.queue,
        rule=rule,
        expires_ms=plan.expires_ms,
        misfire=Misfire(plan.misfire),
        misfire_max=plan.misfire_max,
        jitter_ms=plan.jitter_ms,
        key=plan.key,
        text=plan.rule,
        args=plan.args,
        kwargs=dict(plan.kwargs),
    )


@dataclass(frozen=True)
class Tick:
    schedule: Schedule
    nominal_ms: int

    @property
    def job_id(self) -> bytes:
        return job_id_from("tick", self.schedule.name, str(self.nominal_ms))

    @property
    def due_at_ms(self) -> int:
        return self.schedule.due_at_ms(self.nominal_ms)

    @property
    def dead_at_ms(self) -> int:
        """From this time on submitting it is useless."""
        return max(self.nominal_ms + self.schedule.expiry_ms(self.nominal_ms), self.due_at_ms + 1)


@dataclass(frozen=True)
class Due:
    """What has come due since the last look."""

    ticks: tuple[Tick, ...] = ()
    missed: int = 0
    done_ms: int | None = None
    """Up to here all are dealt with."""


def newest_due(schedule: Schedule, now_ms: int) -> int | None:
    """The newest nominal time whose moment, with its jitter, has come."""
    nominal = schedule.rule.newest(now_ms)
    while nominal is not None and schedule.due_at_ms(nominal) > now_ms:
        nominal = schedule.rule.newest(nominal - 1)
    return nominal


def due(schedule: Schedule, done_ms: int | None, now_ms: int) -> Due:
    """What to submit now. `done_ms` is the newest nominal time dealt with; None when nothing is known of any."""
    newest = newest_due(schedule, now_ms)
    if newest is None or (done_ms is not None and newest <= done_ms):
        return Due(done_ms=done_ms)
    passed = [newest] if done_ms is None else _between(schedule, done_ms, newest)
    if schedule.misfire is Misfire.ALL:
        chosen = passed[-schedule.misfire_max :]
    elif schedule.misfire is Misfire.SKIP and now_ms - schedule.due_at_ms(newest) > GRACE_MS:
        chosen = []
    else:
        chosen = [newest]
    ticks = tuple(tick for tick in (Tick(schedule, nominal) for nominal in chosen) if now_ms < tick.dead_at_ms)
    # Of a schedule that was never seen before nothing was missed.
    missed = 0 if done_ms is None else len(passed) - len(ticks)
    return Due(ticks, missed, newest)


def _between(schedule: Schedule, after_ms: int, newest_ms: int) -> list[int]:
    """Nominal times behind `after_ms`, the newest one included: the newest COUNTED_MAX if there are more."""
    rule = schedule.rule
    if isinstance(rule, Interval):
        first = max(rule.following(after_ms), newest_ms - (COUNTED_MAX - 1) * rule.every_ms)
        return list(range(first, newest_ms + 1, rule.every_ms))
    found: list[int] = []
    nominal = rule.following(after_ms)
    while nominal is not None and nominal <= newest_ms and len(found) < COUNTED_MAX:
        found.append(nominal)
        nominal = rule.following(nominal)
    return found if found and found[-1] == newest_ms else [*found[1:], newest_ms]


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


@dataclass
class _Course:
    """Where a schedule stands."""

    done_ms: int | None = None
    waiting: dict[int, Tick] = field(default_factory=dict)
    not_before_ms: dict[int, int] = field(default_factory=dict)
    missed: int = 0
    """Since they were last taken."""

    def forget(self, nominal_ms: int) -> None:
        self.waiting.pop(nominal_ms, None)
        self.not_before_ms.pop(nominal_ms, None)


class Ticker:
    """All schedules and their waiting ticks. Ask `ready`, submit, and say how it went with `settled` or `put_off`."""

    def __init__(self, schedules: Iterable[Schedule]) -> None:
        self.schedules = {schedule.name: schedule for schedule in schedules}
        self._courses = {name: _Course() for name in self.schedules}

    def done_ms(self, name: str) -> int | None:
        return self._courses[name].done_ms

    def oldest_waiting_ms(self, name: str) -> int | None:
        return min(self._courses[name].waiting, default=None)

    def first_seen(self, name: str, now_ms: int) -> None:
        """Nobody has ever submitted a tick of it."""
        course = self._courses[name]
        if course.done_ms is None:
            course.done_ms = self.schedules[name].rule.first_seen(now_ms)

    def adopt(self, name: str, done_ms: int) -> None:
        """Up to here its ticks are dealt with, whoever did it."""
        course = self._courses[name]
        course.done_ms = max(course.done_ms or 0, done_ms)
        for nominal_ms in [nominal for nominal in course.waiting if nominal <= done_ms]:
            course.forget(nominal_ms)

    def take_missed(self, name: str) -> int:
        """How many ticks were missed since the last time this was asked."""
        course = self._courses[name]
        missed, course.missed = course.missed, 0
        return missed

    def ready(self, now_ms: int, paused: Collection[str] = ()) -> list[Tick]:
        """The ticks to submit now, oldest first. One that was not settled comes again until it is of no use.

        The ticks of those that are paused pass without being missed.
        """
        for name, schedule in self.schedules.items():
            course = self._courses[name]
            found = due(schedule, course.done_ms, now_ms)
            if name in paused:
                course.done_ms = found.done_ms
                course.waiting.clear()
                course.not_before_ms.clear()
                continue
            self._take(schedule, course, found, now_ms)
        ticks = [
            tick
            for course in self._courses.values()
            for nominal, tick in course.waiting.items()
            if now_ms >= course.not_before_ms.get(nominal, 0)
        ]
        return sorted(ticks, key=lambda tick: tick.nominal_ms)

    @staticmethod
    def _take(schedule: Schedule, course: _Course, found: Due, now_ms: int) -> None:
        course.done_ms = found.done_ms
        course.missed += found.missed
        course.waiting.update({tick.nominal_ms: tick for tick in found.ticks})
        kept = schedule.misfire_max if schedule.misfire is Misfire.ALL else 1
        given_up = [n for n, tick in course.waiting.items() if now_ms >= tick.dead_at_ms]
        given_up += [n for n in sorted(course.waiting)[:-kept] if n not in given_up]
        for nominal in given_up:
            course.forget(nominal)
        course.missed += len(given_up)

    def settled(self, tick: Tick) -> None:
        """The broker has it, or will never take it."""
        self._courses[tick.schedule.name].forget(tick.nominal_ms)

    def put_off(self, tick: Tick, until_ms: int) -> None:
        """It could not be submitted: offer it again from `until_ms` on."""
        course = self._courses[tick.schedule.name]
        if tick.nominal_ms in course.waiting:
            course.not_before_ms[tick.nominal_ms] = until_ms

    def following_ms(self, name: str, now_ms: int) -> int | None:
        """When its next tick is due, after those that are dealt with; None for never."""
        schedule, course = self.schedules[name], self._courses[name]
        if course.done_ms is None:
            nominal = schedule.rule.newest(now_ms) or schedule.rule.following(now_ms)
        else:
            nominal = schedule.rule.following(course.done_ms)
        return None if nominal is None else schedule.due_at_ms(nominal)

    def next_wake_ms(self, now_ms: int) -> int | None:
        """When `ready` may next have something new; None when nothing comes any more."""
        wakes = [due_ms for name in self.schedules if (due_ms := self.following_ms(name, now_ms)) is not None]
        for course in self._courses.values():
            wakes += [max(now_ms, course.not_before_ms.get(nominal, 0)) for nominal in course.waiting]
        return min(wakes, default=None)
