"""A slot that runs several async tasks at once: to the session it is as many slots, its lanes, each with one job.

One process has one fate. A task that passes its hard limit or is cancelled is ended alone, by a cancellation; if it
does not heed that, the process is ended and the tasks beside it are handed back, which costs them no attempt. If the
process dies by itself, or grows beyond the memory it may have, nobody knows whose doing it was: every task in it has
failed an attempt.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from zq.config import WorkerSection
from zq.protocol.messages import Usage
from zq.workers import session_io as io
from zq.workers import slots
from zq.workers.channel import Assignment, AttemptResult
from zq.workers.reports import reported
from zq.workers.slots import Slot, SlotState
from zq.workers.watchdog import FROZEN_S, Limits, TreeSampler

HEED_S: Final = 1.0
"""Beyond kill_grace_s: how long a task that is cancelled may take to end."""
_logger = logging.getLogger("zq.workers")


class _Run:
    """One attempt in a lane."""

    __slots__ = (
        "end_by_s", "limits", "number", "overrun", "seq", "soft_told", "stall_told_s", "started_s", "token", "why",
    )  # fmt: skip

    def __init__(self, number: int, token: int, seq: int, limits: Limits, now_s: float) -> None:
        self.number = number
        self.token = token
        self.seq = seq
        self.limits = limits
        self.started_s = now_s
        self.soft_told = False
        self.overrun = False
        self.stall_told_s: float | None = None
        self.end_by_s: float | None = None
        """It was cancelled, and has to end until then."""
        self.why = ""


class Lanes:
    def __init__(
        self, slot: Slot, queue: str, section: WorkerSection, now_s: float, next_number: Callable[[], int]
    ) -> None:
        """`next_number` gives numbers that are never used again."""
        self.slot = slot
        self.queue = queue
        self.asked_s = now_s
        self.opened = False
        self.replaced = False
        """It takes no more jobs, and the slot in its place has been asked for."""
        self.planned = False
        self._section = section
        self._next_number = next_number
        self._numbers: set[int] = set()
        self._by_seq: dict[int, _Run] = {}
        self._by_number: dict[int, _Run] = {}
        self._sampler: TreeSampler | None = None
        self._sample_s = now_s

    @property
    def numbers(self) -> Sequence[int]:
        return tuple(self._numbers)

    @property
    def busy(self) -> bool:
        return bool(self._by_seq)

    def open(self) -> list[io.Event]:
        self.opened = True
        return [self._up() for _ in range(self.slot.concurrency)]

    def _up(self) -> io.Event:
        number = self._next_number()
        self._numbers.add(number)
        return io.SlotUp(number, self.queue)

    # ------------------------------------------------------------------------------------------ jobs

    def start(self, number: int, token: int, assignment: Assignment, limits: Limits, now_s: float) -> bool:
        """Hand the job over; False if the slot does not take it."""
        try:
            self.slot.send([assignment])
        except RuntimeError as error:
            _logger.warning("a job could not be handed over: %s", error)
            self.slot.end(0.0, str(error))
            return False
        run = _Run(number, token, assignment.seq, limits, now_s)
        self._by_seq[run.seq] = self._by_number[number] = run
        return True

    def token_of(self, seq: int) -> int | None:
        run = self._by_seq.get(seq)
        return run.token if run is not None else None

    def answer_hold(self, number: int, token: int, held: bool) -> None:
        run = self._by_number.get(number)
        if run is not None and run.token == token:
            self.slot.answer_still_mine(run.seq, held)

    def end(self, number: int, why: str, now_s: float) -> None:
        """Cancel what runs in the lane; the lane is gone when it has ended."""
        run = self._by_number.get(number)
        if run is not None and run.end_by_s is None:
            run.why = why
            run.end_by_s = now_s + self._section.kill_grace_s + HEED_S
            self.slot.end_attempt(run.seq)

    def finished(self, results: Sequence[AttemptResult]) -> list[io.Event]:
        events: list[io.Event] = []
        for result in results:
            run = self._by_seq.pop(result.seq, None)
            if run is None:
                continue
            del self._by_number[run.number]
            events.append(reported(run.token, result, None))
            if run.end_by_s is not None:
                self._numbers.discard(run.number)
                events.append(io.SlotGone(run.number, run.why))
                if not self.replaced:
                    events.append(self._up())
        return events

    def close(self) -> list[io.Event]:
        """Take no more jobs; to be retired when it is no longer `busy`."""
        self.replaced = self.planned = True
        return [io.SlotClosing(number) for number in self._numbers]

    # ------------------------------------------------------------------------------------------ limits

    def look(self, now_s: float) -> list[io.Event]:
        events: list[io.Event] = []
        if self.slot.state is not SlotState.OPEN:
            return events
        for run in self._by_seq.values():
            running_s = now_s - run.started_s
            if run.end_by_s is not None and now_s >= run.end_by_s:
                self.planned = True
                self.slot.end(0.0, "a task in it did not end when it was cancelled")
                break
            if running_s >= run.limits.hard_s and not run.overrun:
                run.overrun = True
                events.append(io.Overrun(run.token, f"over the hard limit of {run.limits.hard_s:g} s"))
            elif running_s >= run.limits.soft_s:
                self._tell_soft(run, f"over the soft limit of {run.limits.soft_s:g} s")
        if self._by_seq and now_s >= self._sample_s:
            late_s = now_s - self._sample_s
            self._sample_s = now_s + self._section.sample_s
            if any(run.limits.memory_bytes or run.limits.stall_s for run in self._by_seq.values()):
                if self._sampler is None:
                    self._sampler = TreeSampler(self.slot.pid, now_s)
                if late_s > FROZEN_S:
                    self._sampler.alive(now_s)
                sample = self._sampler.sample(now_s)
                events += self._weigh(sample.rss_bytes)
                events += self._look_for_life(sample.alive_s, now_s)
        return events

    def _tell_soft(self, run: _Run, reason: str) -> None:
        if not run.soft_told:
            run.soft_told = True
            self.slot.soft_limit(reason, run.seq)

    def _look_for_life(self, alive_s: float, now_s: float) -> list[io.Event]:
        """What any of the tasks does is a sign of life of all: a process has one account. So none has stalled before
        all are still.
        """
        events: list[io.Event] = []
        for run in self._by_seq.values():
            if not run.limits.stall_s or run.overrun or run.end_by_s is not None:
                continue
            quiet_s = now_s - max(alive_s, run.started_s)
            stalled = quiet_s >= run.limits.stall_s
            events.append(io.Sampled(run.token, Usage(), quiet_ms=round(1000 * quiet_s), stalled=stalled))
            if not stalled:
                run.stall_told_s = None
            elif run.stall_told_s is None:
                run.stall_told_s = now_s
                self._tell_soft(run, f"stalled: no sign of life for {run.limits.stall_s:g} s")
            elif now_s - run.stall_told_s >= run.limits.stall_s:
                run.overrun = True
                events.append(io.Overrun(run.token, f"stalled: no sign of life for {quiet_s:.0f} s"))
        return events

    def _weigh(self, used_bytes: int) -> list[io.Event]:
        bounds = [run.limits.memory_bytes for run in self._by_seq.values() if run.limits.memory_bytes]
        if not bounds:
            return []
        if used_bytes <= min(bounds):
            return []
        used, allowed = used_bytes >> 20, min(bounds) >> 20
        error = f"over the memory limit: {used} MiB with {len(self._by_seq)} tasks in one slot; {allowed} are allowed"
        fresh = [run for run in self._by_seq.values() if not run.overrun]
        for run in fresh:
            run.overrun = True
        if fresh:
            self.planned = True
            self.slot.end(self._section.kill_grace_s, error)
        return [io.Overrun(run.token, error) for run in fresh]

    def wake_s(self) -> float:
        if self.slot.state is not SlotState.OPEN:
            return float("inf")
        times = [self._sample_s] if self._by_seq else []
        for run in self._by_seq.values():
            if run.end_by_s is not None:
                times.append(run.end_by_s)
            elif not run.soft_told:
                times.append(run.started_s + min(run.limits.soft_s, run.limits.hard_s))
            elif not run.overrun:
                times.append(run.started_s + run.limits.hard_s)
        return min(times, default=float("inf"))

    # ------------------------------------------------------------------------------------------ the end

    def ended(self, event: slots.Ended) -> list[io.Event]:
        """All lanes are gone with the process. Whoever was beside the one that had to be ended is innocent."""
        begun = [run for run in self._by_seq.values() if run.seq not in event.untouched]
        guilty = any(run.end_by_s is not None for run in begun)
        innocent = {run.number for run in begun if self.planned and guilty and run.end_by_s is None}
        events: list[io.Event] = []
        for seq in event.untouched:
            if (run := self._by_seq.get(seq)) is not None:
                events.append(io.NotStarted(run.token))
        events += [io.SlotGone(n, f"the {event.reason}", innocent=n in innocent) for n in sorted(self._numbers)]
        self._by_seq.clear()
        self._by_number.clear()
        self._numbers.clear()
        return events
