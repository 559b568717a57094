"""The scheduler: submits the ticks that are due, and sleeps.

It keeps nothing on disk and needs no leader: a tick's id follows from its schedule and its nominal time, so whatever
restarts, however many schedulers run, the broker makes one job of it. How far a schedule has come, and whether an
operator has paused it, is in registers of the broker, which are read when something is due: so a scheduler knows what
others have done meanwhile, and what was missed while there was none. While the broker is away nothing is lost but
time: which ticks are made up for then is the schedule's misfire policy.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

import msgspec

from zq import schedules as shared
from zq.client.requests import JobRequest
from zq.config import Config, ConfigError
from zq.exceptions import Refused, Unavailable
from zq.protocol.errors import RETRYABLE, Code
from zq.protocol.messages import Receipt, ReceiptStatus, Register, RegisterSet
from zq.scheduler.rules import Interval
from zq.scheduler.ticks import Schedule, SteadyClock, Tick, Ticker, schedule_of
from zq.schedules import Known, Order, Progress

ANSWER_S = 2.0
"""How long one question waits for the broker: also how long a stop may take."""
_AGAIN_MS = 1_000
"""After a submit that was not answered, or was refused for now."""
_SLEEP_MS_MAX = 60_000
"""So that a wall clock that was set forward is noticed."""
_AHEAD_MS_MAX = 300_000
"""A register that is further ahead of the clock than this was written by one that was wrong."""

log = logging.getLogger("zq.scheduler")


def schedules_of(config: Config) -> list[Schedule]:
    """The schedules of zq.toml and the built-in status check of the exams. Raises ConfigError."""
    found = []
    for plan in shared.plans_of(config):
        try:
            found.append(schedule_of(plan))
        except ValueError as error:
            raise ConfigError(f"schedules.{plan.name}: {error}") from None
    return found


def request_of(tick: Tick) -> JobRequest:
    """The job of a tick: the same bytes from every scheduler. It is not retried, for the next tick does the same."""
    schedule = tick.schedule
    return JobRequest(
        task=schedule.task,
        queue=schedule.queue,
        args=schedule.args,
        kwargs=schedule.kwargs,
        id=tick.job_id,
        expires_s=schedule.expiry_ms(tick.nominal_ms) / 1000,
        max_retries=0,
        key=schedule.key,
    )


class Broker(Protocol):
    """What the service needs of a client. All of it raises Unavailable."""

    def submit_many(self, requests: Sequence[JobRequest]) -> list[Receipt]: ...
    def registers(self, prefix: str = "") -> list[Register]: ...
    def set_registers(self, registers: Sequence[Register]) -> list[RegisterSet]: ...


@dataclass(frozen=True)
class Clock:
    """Where the time comes from, in milliseconds."""

    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    monotonic_ms: Callable[[], int] = lambda: time.monotonic_ns() // 1_000_000


class Service:
    """One scheduler. `step` does what is due now; `run` goes on doing it."""

    def __init__(self, client: Broker, schedules: Sequence[Schedule], clock: Clock | None = None) -> None:
        self._client = client
        self._ticker = Ticker(schedules)
        self._clock = clock or Clock()
        self._steady = SteadyClock(self._clock.wall_ms(), self._clock.monotonic_ms())
        self._known: dict[str, Known] = {}
        self._changed: dict[str, Progress] = {}
        """To be written."""
        self._met = False
        """Whether the registers have been read once."""
        self._trouble = ""
        self._refused = False
        """Whether the broker has said that it keeps no registers of ours."""

    def step(self) -> int:
        """Do what is due; returns for how many milliseconds there is nothing to do."""
        now_ms = self._now_ms()
        wake_ms = self._ticker.next_wake_ms(now_ms)
        if self._ticker.schedules and (not self._met or (wake_ms is not None and wake_ms <= now_ms)):
            try:
                self._turn(now_ms)
            except Unavailable as error:
                self._say_trouble(f"the broker does not answer, ticks wait: {error}")
                return _AGAIN_MS
            now_ms = self._now_ms()
            wake_ms = self._ticker.next_wake_ms(now_ms)
        return _SLEEP_MS_MAX if wake_ms is None else max(0, min(wake_ms - now_ms, _SLEEP_MS_MAX))

    def _now_ms(self) -> int:
        return self._steady.read(self._clock.wall_ms(), self._clock.monotonic_ms())

    def _turn(self, now_ms: int) -> None:
        self._learn(now_ms)
        ticks = self._ticker.ready(now_ms, [name for name in self._ticker.schedules if self._order(name).paused])
        if ticks:
            self._submit(ticks, now_ms)
        self._write(now_ms)

    def _learn(self, now_ms: int) -> None:
        """What other schedulers have done, and what operators have ordered."""
        self._known = shared.read(self._client.registers(shared.PREFIX))
        self._changed.clear()
        for name in self._ticker.schedules:
            progress, order = self._progress(name), self._order(name)
            if progress.done_ms > now_ms + _AHEAD_MS_MAX:
                log.warning("schedule %s was last at %d, which is to come: it begins anew", name, progress.done_ms)
                progress = Progress()
            if progress.done_ms:
                self._ticker.adopt(name, progress.done_ms)
            else:
                self._ticker.first_seen(name, now_ms)
            passed_ms = self._ticker.schedules[name].rule.newest(order.at_ms) if order.at_ms else None
            if not order.paused and passed_ms is not None:
                # What would have come during the pause was not missed.
                self._ticker.adopt(name, passed_ms)
        self._met = True

    def _progress(self, name: str) -> Progress:
        return self._known.get(name, Known()).progress or Progress()

    def _order(self, name: str) -> Order:
        return self._known.get(name, Known()).order

    def _submit(self, ticks: list[Tick], now_ms: int) -> None:
        try:
            receipts = self._client.submit_many([request_of(tick) for tick in ticks])
        except Unavailable:
            for tick in ticks:
                self._ticker.put_off(tick, now_ms + _AGAIN_MS)
            raise
        heard_ms = self._now_ms()
        for tick, receipt in zip(ticks, receipts, strict=True):
            self._settle(tick, receipt, heard_ms)

    def _settle(self, tick: Tick, receipt: Receipt, now_ms: int) -> None:
        name = tick.schedule.name
        if receipt.status is ReceiptStatus.REFUSED and receipt.code in RETRYABLE:
            self._say_trouble(f"the broker takes no tick of {name} for now: {receipt.code}: {receipt.detail}")
            self._ticker.put_off(tick, now_ms + max(_AGAIN_MS, receipt.retry_after_ms))
            return
        self._ticker.settled(tick)
        before = self._changed.get(name) or self._progress(name)
        if receipt.status is ReceiptStatus.KEY_TAKEN:
            self._say_trouble("")
            log.info("schedule %s: the job of an earlier tick is still there, this one is left out", name)
            self._changed[name] = msgspec.structs.replace(before, overlapped=before.overlapped + 1)
        elif receipt.status is not ReceiptStatus.REFUSED or receipt.code is Code.CONFLICT:
            # A conflict: this tick was submitted already, under other settings; it is there, and once is enough.
            self._say_trouble("")
            log.debug("tick %s %d: %s", name, tick.nominal_ms, receipt.code or receipt.status)
            # A new interval begins at once, in the middle of its grid: its first tick has nothing to be late for.
            new = before.ticks == 0 and isinstance(tick.schedule.rule, Interval)
            if tick.nominal_ms > before.last_ms:
                self._changed[name] = msgspec.structs.replace(
                    before,
                    last_ms=tick.nominal_ms,
                    late_ms=0 if new else max(0, now_ms - tick.due_at_ms),
                    job_id=tick.job_id,
                    ticks=before.ticks + 1,
                )
        else:
            self._say_trouble(f"the broker refuses schedule {name}: {receipt.code}: {receipt.detail}")

    def _write(self, now_ms: int) -> None:
        """Tell the others. What one of them has written meanwhile stays: it says the same."""
        registers = []
        for name, schedule in self._ticker.schedules.items():
            before = self._progress(name)
            after = self._after(name, schedule, self._changed.get(name) or before, now_ms)
            if after != before and not (self._order(name).paused and before.task):
                registers.append(shared.progress_register(name, self._known.get(name, Known()), after))
        if not registers:
            return
        try:
            self._client.set_registers(registers)
        except Refused as error:
            if not self._refused:
                log.warning("the broker does not keep how far the schedules have come, ticks go on: %s", error)
            self._refused = True

    def _after(self, name: str, schedule: Schedule, progress: Progress, now_ms: int) -> Progress:
        return msgspec.structs.replace(
            progress,
            task=schedule.task[: shared.TASK_CHARS_MAX],
            queue=schedule.queue,
            rule=schedule.text,
            next_ms=self._ticker.following_ms(name, now_ms) or 0,
            done_ms=self._done_ms(name),
            missed=progress.missed + self._ticker.take_missed(name),
        )

    def _done_ms(self, name: str) -> int:
        """Not beyond a tick that still waits to be submitted: a scheduler that ends now has not dealt with it."""
        done_ms = self._ticker.done_ms(name) or 0
        waiting_ms = self._ticker.oldest_waiting_ms(name)
        return done_ms if waiting_ms is None else min(done_ms, waiting_ms - 1)

    def _say_trouble(self, trouble: str) -> None:
        """Log when it begins, changes and ends: not at every tick."""
        if trouble == self._trouble:
            return
        if trouble:
            log.warning("%s", trouble)
        else:
            log.info("the broker takes ticks again")
        self._trouble = trouble

    def run(self, stopping: Stopping) -> None:
        """Until it is requested to stop."""
        while not stopping.requested:
            stopping.wait(self.step())


class Stopping:
    """SIGTERM and SIGINT as something a sleep wakes up for. For the main thread; `close` undoes it."""

    def __init__(self) -> None:
        self.requested = False
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._request) for number in (signal.SIGTERM, signal.SIGINT)}

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True

    def wait(self, ms: int) -> None:
        """Returns after `ms` milliseconds, or at a signal."""
        if not self.requested:
            select.select([self._read], [], [], ms / 1000)

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._read)
        os.close(self._write)
