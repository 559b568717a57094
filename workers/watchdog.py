"""The watchdog: what each slot's process tree uses, and whether its job may go on.

`verdict` decides and is pure. `TreeSampler` measures with psutil, for one slot, about once a second while it works; an
idle slot needs no samples. A tree costs a few reads of /proc for each of its processes, nothing for others.

CPU time and bytes are the kernel's sums: a process's own, and those of the children it has reaped, so whatever ended
between two samples is not lost. (Only where a program ignores SIGCHLD does the kernel forget its children's.)
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from zq.protocol.messages import Usage
from zq.workers.channel import SlotUsage
from zq.workers.process import ProcessKey, key_of, living_below, peak_rss_bytes

if TYPE_CHECKING:
    import psutil


FROZEN_S: Final = 5.0
"""A watchdog that comes so late stood still itself, maybe with its whole machine: what it did not see is no stall."""


class Verdict(Enum):
    """What is to be done with a running attempt."""

    OK = auto()
    SOFT = auto()
    """The soft limit has passed: tell the task, once."""
    STALLED = auto()
    """No sign of life for as long as its task allows: tell the task, once."""
    STUCK = auto()
    """It was told that it has stalled, and gave no sign of life for as long again: end the tree."""
    HARD = auto()
    """The hard limit has passed: end the tree."""
    MEMORY = auto()
    """The tree is larger than it may be: end it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one attempt."""

    soft_s: float
    hard_s: float
    memory_bytes: int = 0
    """Of the whole tree, resident; 0 means no limit."""
    stall_s: float = 0.0
    """Without a sign of life; 0 means no limit."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What an attempt's process tree has used so far, and how large it is now."""

    started_s: float
    """On the clock that `verdict` is given."""
    soft_told: bool = False
    stall_told_s: float | None = None
    """When it was told that it has stalled, if it was and has given no sign of life since."""
    alive_s: float = 0.0
    """Its last sign of life: CPU time used, bytes moved, a process begun or ended, progress reported."""
    cpu_s: float = 0.0
    rss_bytes: int = 0
    """The sum over the tree; memory shared by two processes counts twice."""
    peak_rss_bytes: int = 0
    read_bytes: int = 0
    """From storage; the page cache does not count."""
    written_bytes: int = 0
    moved_bytes: int = 0
    """Through any read or write, pipes and caches included: a sign of life, with `cpu_s`."""
    processes: int = 0
    """Alive now, the slot itself included."""
    processes_seen: int = 0


def verdict(sample: Sample, limits: Limits, now_s: float) -> Verdict:
    """Memory before time, for it harms others; the hard limit before the soft one; a stall, which says more, first."""
    if limits.memory_bytes and sample.rss_bytes > limits.memory_bytes:
        return Verdict.MEMORY
    running_s = now_s - sample.started_s
    if running_s >= limits.hard_s:
        return Verdict.HARD
    if limits.stall_s and sample.stall_told_s is not None and now_s - sample.stall_told_s >= limits.stall_s:
        return Verdict.STUCK
    if limits.stall_s and sample.stall_told_s is None and now_s - sample.alive_s >= limits.stall_s:
        return Verdict.STALLED
    if running_s >= limits.soft_s and not sample.soft_told:
        return Verdict.SOFT
    return Verdict.OK


@dataclass(frozen=True, slots=True)
class Counters:
    """Of one process: its own and those of the children it has reaped."""

    cpu_s: float
    rss_bytes: int
    read_bytes: int
    written_bytes: int
    moved_bytes: int
    peak_rss_bytes: int = 0
    """The most it was itself since it began; 0 if that is not known, or not all of it was in this attempt."""


class Ledger:
    """Sums the counters of a tree over one attempt. Pure: it is told what was measured."""

    def __init__(self, started_s: float) -> None:
        self._started_s = started_s
        self._base: Counters | None = None
        self._seen: set[ProcessKey] = set()
        self._trace: object = None
        self._best = Sample(started_s, alive_s=started_s)

    def told_soft(self) -> None:
        """The task was told of its soft limit: once is enough."""
        self._best = replace(self._best, soft_told=True)

    def told_stall(self, now_s: float) -> None:
        self._best = replace(self._best, stall_told_s=now_s)

    def alive(self, now_s: float) -> None:
        """The attempt gave a sign of life that no counter shows."""
        self._best = replace(self._best, alive_s=max(self._best.alive_s, now_s), stall_told_s=None)

    def enter(self, measured: Iterable[tuple[ProcessKey, Counters]], now_s: float = 0.0) -> Sample:
        """Add one measurement of the whole tree. The first one is the attempt's zero, but for memory."""
        measured = list(measured)
        # Any change is one: also that a process has gone, which takes its counters out of the sums.
        trace = {(key, round(counters.cpu_s, 2), counters.moved_bytes) for key, counters in measured}
        if trace != self._trace:
            self._trace = trace
            self.alive(now_s)
        cpu_s, rss_bytes, read_bytes, written_bytes, moved_bytes, processes = 0.0, 0, 0, 0, 0, 0
        peak_rss_bytes = max((counters.peak_rss_bytes for _, counters in measured), default=0)
        for key, counters in measured:
            self._seen.add(key)
            processes += 1
            cpu_s += counters.cpu_s
            rss_bytes += counters.rss_bytes
            read_bytes += counters.read_bytes
            written_bytes += counters.written_bytes
            moved_bytes += counters.moved_bytes
        if self._base is None:
            self._base = Counters(cpu_s, 0, read_bytes, written_bytes, moved_bytes)
        base, best = self._base, self._best
        # Between a process's end and its reaping its counters are in no sum: hence max, never back.
        self._best = Sample(
            started_s=self._started_s,
            soft_told=best.soft_told,
            stall_told_s=best.stall_told_s,
            alive_s=best.alive_s,
            cpu_s=max(best.cpu_s, cpu_s - base.cpu_s),
            rss_bytes=rss_bytes,
            peak_rss_bytes=max(best.peak_rss_bytes, rss_bytes, peak_rss_bytes),
            read_bytes=max(best.read_bytes, read_bytes - base.read_bytes),
            written_bytes=max(best.written_bytes, written_bytes - base.written_bytes),
            moved_bytes=max(best.moved_bytes, moved_bytes - base.moved_bytes),
            processes=processes,
            processes_seen=len(self._seen),
        )
        return self._best


class TreeSampler:
    """Measures one slot's tree during one attempt. Made when the job is handed over, that moment is the zero.

    It may be made later, for most jobs end before their first sample: `cpu_zero_s`, of `process_cpu_s`, is then the CPU
    time that the slot's own process had used before. What else it had used and moved until now is not seen.
    """

    def __init__(self, slot_pid: int, started_s: float, cpu_zero_s: float | None = None) -> None:
        self._slot_pid = slot_pid
        self._ledger = Ledger(started_s)
        self._known: dict[ProcessKey, psutil.Process] = {}
        if cpu_zero_s is not None and (slot := key_of(slot_pid)) is not None:
            own = _open(slot)
            counters = _measure(own) if own is not None else None
            if counters is not None:
                late_s = process_cpu_s(slot_pid) - cpu_zero_s
                self._ledger.enter([(slot, replace(counters, cpu_s=counters.cpu_s - late_s))], started_s)
        self.sample(started_s)

    def told_soft(self) -> None:
        self._ledger.told_soft()

    def told_stall(self, now_s: float) -> None:
        self._ledger.told_stall(now_s)

    def alive(self, now_s: float) -> None:
        self._ledger.alive(now_s)

    def sample(self, now_s: float = 0.0) -> Sample:
        """Measure now, which is `now_s` on the clock of `started_s`. A process that ends meanwhile is left out; a tree
        that has ended measures as nothing.
        """
        slot = key_of(self._slot_pid)
        keys = [] if slot is None else [slot, *living_below(self._slot_pid)]
        self._known = {key: process for key in keys if (process := self._known.get(key) or _open(key)) is not None}
        measured = ((key, _measure(process, began_here=key != slot)) for key, process in self._known.items())
        return self._ledger.enter([(key, counters) for key, counters in measured if counters is not None], now_s)


def process_cpu_s(pid: int) -> float:
    """CPU time of one process, without its children's, for a microsecond: by its clock; see clock_getcpuclockid(3).

    0 for a process that has ended.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def _open(key: ProcessKey) -> psutil.Process | None:
    import psutil  # a megabyte: not before a job lasts long enough to be measured

    try:
        return psutil.Process(key.pid)
    except psutil.Error:
        return None


def _measure(process: psutil.Process, *, began_here: bool = False) -> Counters | None:
    """`began_here`: in this attempt, so that its peak is the attempt's. (The slot gives an account of its own peak.)"""
    import psutil

    try:
        with process.oneshot():
            cpu = process.cpu_times()
            rss_bytes = process.memory_info().rss
    except psutil.Error:
        return None
    try:
        io = process.io_counters()
    except (psutil.Error, OSError):  # a set-uid program's are not ours to read
        io = None
    return Counters(
        cpu_s=cpu.user + cpu.system + cpu.children_user + cpu.children_system,
        rss_bytes=rss_bytes,
        read_bytes=io.read_bytes if io else 0,
        written_bytes=io.write_bytes if io else 0,
        moved_bytes=io.read_chars + io.write_chars if io else 0,
        peak_rss_bytes=peak_rss_bytes(process.pid) if began_here else 0,
    )


def attempt_usage(reported: SlotUsage | None, sample: Sample | None) -> Usage:
    """What an attempt has used in all, for its result: the slot's exact account, if it lived to give one, and what
    only the samples of its tree can tell.
    """
    slot = reported or SlotUsage()
    if sample is None:
        return Usage(round(1000 * slot.cpu_s), slot.peak_rss_bytes, slot.read_bytes, slot.written_bytes, 1)
    tree = sample
    return Usage(
        cpu_ms=round(1000 * max(slot.cpu_s, tree.cpu_s)),
        peak_rss_bytes=max(slot.peak_rss_bytes, tree.peak_rss_bytes),
        read_bytes=max(slot.read_bytes, tree.read_bytes),
        write_bytes=max(slot.written_bytes, tree.written_bytes),
        processes=max(1, tree.processes_seen),
    )
