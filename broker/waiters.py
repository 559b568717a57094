"""Who waits for the end of which job. Bounded, in memory only: a waiter that is lost asks again."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from zq.broker.sessions import Session
from zq.protocol import limits


@dataclass(eq=False, slots=True)
class Waiter:
    session: Session
    request: int
    job_id: bytes
    until_ms: int


class Waiters:
    def __init__(self) -> None:
        self._by_job: dict[bytes, list[Waiter]] = {}
        self._by_time: list[tuple[int, int, Waiter]] = []
        self._count = 0
        self._serial = 0

    def add(self, waiter: Waiter) -> bool:
        """False when a bound is reached."""
        waiting = self._by_job.setdefault(waiter.job_id, [])
        if self._count >= limits.WAITERS_MAX or len(waiting) >= limits.WAITERS_PER_JOB_MAX:
            if not waiting:
                del self._by_job[waiter.job_id]
            return False
        waiting.append(waiter)
        self._count += 1
        self._serial += 1
        heapq.heappush(self._by_time, (waiter.until_ms, self._serial, waiter))
        return True

    def ended(self, job_id: bytes) -> list[Waiter]:
        """Take away, and return, those who wait for this job and are still connected."""
        waiting = self._by_job.pop(job_id, ())
        self._count -= len(waiting)
        return [waiter for waiter in waiting if not waiter.session.ended]

    def expire(self, now_ms: int) -> None:
        while self._by_time and self._by_time[0][0] <= now_ms:
            _, _, waiter = heapq.heappop(self._by_time)
            waiting = self._by_job.get(waiter.job_id)
            if waiting is not None and waiter in waiting:
                waiting.remove(waiter)
                self._count -= 1
                if not waiting:
                    del self._by_job[waiter.job_id]
