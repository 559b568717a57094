"""One job in one slot under the watchdog: its limits, what was measured of it, and what is done about it."""

from __future__ import annotations

from typing import Final

from zq.workers import session_io as io
from zq.workers.slots import Slot
from zq.workers.watchdog import Limits, Sample, TreeSampler, Verdict, attempt_usage, process_cpu_s, verdict

LARGE_SAMPLE_S: Final = 0.1
"""A tree that has half of the memory it may have is looked at so often: memory goes fast."""


class Watched:
    __slots__ = (
        "_cpu_zero_s", "_overrun", "_sampler", "_soft_told", "heard_s", "limits", "sample", "seq", "started_s", "token",
    )  # fmt: skip

    def __init__(self, token: int, seq: int, limits: Limits) -> None:
        self.token = token
        self.seq = seq
        self.limits = limits
        self.started_s = 0.0
        self.heard_s = 0.0
        """When the task last gave a sign of life that cannot be measured: progress."""
        self.sample: Sample | None = None
        self._cpu_zero_s = 0.0
        self._sampler: TreeSampler | None = None
        """Made with the first sample: most jobs end before."""
        self._soft_told = False
        self._overrun = False

    def start(self, slot_pid: int, now_s: float) -> None:
        self.started_s = now_s
        self._cpu_zero_s = process_cpu_s(slot_pid)

    def due_s(self, sample_s: float, sampled_s: float) -> float:
        """When to look again: after `sample_s`, or when a limit passes."""
        due_s = sampled_s + sample_s
        if not self._soft_told:
            due_s = min(due_s, max(sampled_s, self.started_s + self.limits.soft_s))
        if not self._overrun:
            due_s = min(due_s, max(sampled_s, self.started_s + self.limits.hard_s))
        if self.sample is not None and 2 * self.sample.rss_bytes > self.limits.memory_bytes > 0:
            due_s = min(due_s, sampled_s + LARGE_SAMPLE_S)
        return due_s

    def judge(self, slot: Slot, now_s: float, *, late: bool) -> list[io.Event]:
        """Measure, tell the task of limits that have passed, and say what the session is to know. `late`: this
        watchdog itself stood still, so that nothing is known of the time since it last looked.
        """
        if late:
            self.heard_s = now_s
        sampler, sample = self._measure(slot.pid, now_s)
        limits, over = self.limits, ""
        match verdict(sample, limits, now_s):
            case Verdict.SOFT:
                self._tell_soft(slot, sampler, f"over the soft limit of {limits.soft_s:g} s")
            case Verdict.STALLED:
                sampler.told_stall(now_s)
                self._tell_soft(slot, sampler, f"stalled: no sign of life for {limits.stall_s:g} s")
            case Verdict.STUCK:
                over = f"stalled: no sign of life for {now_s - sample.alive_s:.0f} s, and none after its soft limit"
            case Verdict.HARD:
                over = f"over the hard limit of {limits.hard_s:g} s"
            case Verdict.MEMORY:
                used, allowed = sample.rss_bytes >> 20, limits.memory_bytes >> 20
                over = f"over the memory limit: {sample.processes} processes with {used} MiB; {allowed} are allowed"
            case Verdict.OK:
                pass
        events: list[io.Event] = [self._sampled(sample, now_s)]
        if over and not self._overrun:
            self._overrun = True
            events.append(io.Overrun(self.token, over))
        return events

    def measured(self, slot_pid: int, now_s: float) -> io.Sampled:
        """What it has used by now."""
        _, sample = self._measure(slot_pid, now_s)
        return self._sampled(sample, now_s)

    def _measure(self, slot_pid: int, now_s: float) -> tuple[TreeSampler, Sample]:
        sampler = self._sampler
        if sampler is None:
            sampler = self._sampler = TreeSampler(slot_pid, self.started_s, self._cpu_zero_s)
        if self.heard_s:
            sampler.alive(self.heard_s)
            self.heard_s = 0.0
        self.sample = sampler.sample(now_s)
        return sampler, self.sample

    def _tell_soft(self, slot: Slot, sampler: TreeSampler, reason: str) -> None:
        """Once: a task that has been told why it should stop is not told again."""
        if not self._soft_told:
            self._soft_told = True
            slot.soft_limit(reason)
            sampler.told_soft()

    def _sampled(self, sample: Sample, now_s: float) -> io.Sampled:
        quiet_s = max(0.0, now_s - sample.alive_s)
        stalled = 0 < self.limits.stall_s <= quiet_s
        return io.Sampled(self.token, attempt_usage(None, sample), sample.rss_bytes, round(1000 * quiet_s), stalled)
