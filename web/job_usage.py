"""What running jobs have used, over their time: for the chart of CPU and memory on a job's page. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import msgspec

from zq.protocol.messages import JobInfo

JOBS_MAX: Final = 512
POINTS_MAX: Final = 240
"""Of one attempt; then every other one is left out, and the next ones come half as often."""


class UsagePoint(msgspec.Struct, frozen=True, kw_only=True):
    at_ms: int
    cpu_s: float
    """Since the attempt began."""
    peak_rss_bytes: int
    read_bytes: int
    write_bytes: int
    done: float
    """Of the progress that the task reported; 0 of 0 if it did not."""
    total: float


class _Attempt:
    def __init__(self, number: int) -> None:
        self.number = number
        self.points: list[UsagePoint] = []
        self.every_ms = 1_000

    def add(self, point: UsagePoint) -> None:
        if self.points and point.at_ms < self.points[-1].at_ms + self.every_ms:
            return
        self.points.append(point)
        if len(self.points) >= POINTS_MAX:
            del self.points[1:-1:2]
            self.every_ms *= 2


class JobUsage:
    """The newest attempts of the jobs last seen running: the one seen longest ago is forgotten first."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[bytes, _Attempt] = OrderedDict()

    def observe(self, job: JobInfo, at_ms: int) -> None:
        """`job` is running."""
        known = self._jobs.get(job.id)
        if known is None or known.number != job.attempt:
            known = self._jobs[job.id] = _Attempt(job.attempt)
        self._jobs.move_to_end(job.id)
        known.add(
            UsagePoint(
                at_ms=at_ms,
                cpu_s=job.usage.cpu_ms / 1000,
                peak_rss_bytes=job.usage.peak_rss_bytes,
                read_bytes=job.usage.read_bytes,
                write_bytes=job.usage.write_bytes,
                done=job.progress_done,
                total=job.progress_total,
            )
        )
        while len(self._jobs) > JOBS_MAX:
            self._jobs.popitem(last=False)

    def points(self, job_id: bytes) -> tuple[int, list[UsagePoint]]:
        """The attempt's number, 0 if nothing is known, and its points."""
        known = self._jobs.get(job_id)
        return (0, []) if known is None else (known.number, list(known.points))
