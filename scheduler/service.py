"""The scheduler: submits the ticks that are due, and sleeps.

It keeps nothing on disk and needs no leader: a tick's id follows from its schedule and its nominal time, so whatever
restarts, however many schedulers run, the broker makes one job of it. While the broker is away the newest tick of
each schedule is offered again, with the same id, until it would have expired.
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

from zq.client.requests import JobRequest
from zq.config import Config
from zq.exceptions import Unavailable
from zq.protocol.errors import RETRYABLE, Code
from zq.protocol.messages import Receipt, ReceiptStatus
from zq.scheduler.ticks import Misfire, Schedule, SteadyClock, Tick, Ticker

EXAM_STATUS = "exam-status"
"""The built-in schedule; one of this name in zq.toml takes its place."""
ANSWER_S = 2.0
"""How long one submit waits for the broker: also how long a stop may take."""
_AGAIN_MS = 1_000
"""After a submit that was not answered, or was refused for now."""
_SLEEP_MS_MAX = 60_000
"""So that a wall clock that was set forward is noticed."""

log = logging.getLogger("zq.scheduler")


def schedules_of(config: Config) -> list[Schedule]:
    """The schedules of zq.toml and the built-in status check of the exams."""
    every_ms = _ms(config.exams.status_every_s)
    found = {
        EXAM_STATUS: Schedule(EXAM_STATUS, "zq.workers.status.check_exams", "status_check", every_ms, every_ms),
    }
    for name, section in config.schedules.items():
        found[name] = Schedule(
            name=name,
            task=section.task,
            queue=section.queue,
            interval_ms=_ms(section.every_s),
            expires_ms=_ms(section.expires_s if section.expires_s is not None else section.every_s),
            misfire=Misfire(section.misfire),
            args=section.args,
            kwargs=section.kwargs,
        )
    return list(found.values())


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def request_of(tick: Tick) -> JobRequest:
    """The job of a tick: the same bytes from every scheduler. It is not retried, for the next tick does the same."""
    schedule = tick.schedule
    return JobRequest(
        task=schedule.task,
        queue=schedule.queue,
        args=schedule.args,
        kwargs=schedule.kwargs,
        id=tick.job_id,
        expires_s=schedule.expires_ms / 1000,
        max_retries=0,
    )


class Submitter(Protocol):
    """What the service needs of a client."""

    def submit_many(self, requests: Sequence[JobRequest]) -> list[Receipt]: ...


@dataclass(frozen=True)
class Clock:
    """Where the time comes from, in milliseconds."""

    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    monotonic_ms: Callable[[], int] = lambda: time.monotonic_ns() // 1_000_000


class Service:
    """One scheduler. `step` does what is due now; `run` goes on doing it."""

    def __init__(self, client: Submitter, schedules: Sequence[Schedule], clock: Clock | None = None) -> None:
        self._client = client
        self._ticker = Ticker(schedules)
        self._clock = clock or Clock()
        self._steady = SteadyClock(self._clock.wall_ms(), self._clock.monotonic_ms())
        self._trouble = ""

    def step(self) -> int:
        """Submit what is due; returns for how many milliseconds there is nothing to do."""
        now_ms = self._now_ms()
        ticks = self._ticker.ready(now_ms)
        if ticks:
            self._submit(ticks, now_ms)
            now_ms = self._now_ms()
        wake_ms = self._ticker.next_wake_ms(now_ms)
        return _SLEEP_MS_MAX if wake_ms is None else max(0, min(wake_ms - now_ms, _SLEEP_MS_MAX))

    def _now_ms(self) -> int:
        return self._steady.read(self._clock.wall_ms(), self._clock.monotonic_ms())

    def _submit(self, ticks: list[Tick], now_ms: int) -> None:
        try:
            receipts = self._client.submit_many([request_of(tick) for tick in ticks])
        except Unavailable as error:
            self._say_trouble(f"the broker does not answer, ticks wait: {error}")
            for tick in ticks:
                self._ticker.put_off(tick, now_ms + _AGAIN_MS)
            return
        for tick, receipt in zip(ticks, receipts, strict=True):
            self._settle(tick, receipt, now_ms)

    def _settle(self, tick: Tick, receipt: Receipt, now_ms: int) -> None:
        name = tick.schedule.name
        if receipt.status is not ReceiptStatus.REFUSED or receipt.code is Code.CONFLICT:
            # A conflict: this tick was submitted already, under other settings; it is there, and once is enough.
            self._say_trouble("")
            log.debug("tick %s %d: %s", name, tick.nominal_ms, receipt.code or receipt.status)
            self._ticker.settled(tick)
        elif receipt.code in RETRYABLE:
            self._say_trouble(f"the broker takes no tick of {name} for now: {receipt.code}: {receipt.detail}")
            self._ticker.put_off(tick, now_ms + max(_AGAIN_MS, receipt.retry_after_ms))
        else:
            self._say_trouble(f"the broker refuses schedule {name}: {receipt.code}: {receipt.detail}")
            self._ticker.settled(tick)

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
