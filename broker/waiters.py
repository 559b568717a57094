"""Who waits for the end of which job. Bounded, in memory only: a waiter that is lost asks again."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from zq.broker.sessions import Session
from zq.protocol import limits

_STALE_MAX = 1024
"""So many entries beyond those who wait may stand in the order of times."""


@dataclass(eq=False, slots=True)
class Waiter:
    session: Session
    request: int
    job_id: bytes
    until_ms: int


class Waiters:
    def __init__(self) -> None:
        self._by_job: dict[bytes, dict[tuple[int, int], Waiter]] = {}
        """By job, then by session and request: a question that is asked again is no further waiter."""
        self._by_session: dict[int, dict[tuple[bytes, int], Waiter]] = {}
        self._by_time: list[tuple[int, int, Waiter]] = []
        """Also those who wait no more, until their time comes or they are too many."""
        self._serial = 0
        self.count = 0

    def add(self, waiter: Waiter) -> bool:
        """False when a bound is reached."""
        session_id = waiter.session.id
        waiting = self._by_job.get(waiter.job_id, {})
        earlier = waiting.get((session_id, waiter.request))
        if earlier is not None:
            self._take_away(earlier)
        elif self.count >= limits.WAITERS_MAX or len(waiting) >= limits.WAITERS_PER_JOB_MAX:
            return False
        self._by_job.setdefault(waiter.job_id, {})[session_id, waiter.request] = waiter
        self._by_session.setdefault(session_id, {})[waiter.job_id, waiter.request] = waiter
        self.count += 1
        self._serial += 1
        heapq.heappush(self._by_time, (waiter.until_ms, self._serial, waiter))
        if len(self._by_time) > 2 * self.count + _STALE_MAX:
            self._by_time = [entry for entry in self._by_time if self._waits(entry[2])]
            heapq.heapify(self._by_time)
        return True

    def ended(self, job_id: bytes) -> list[Waiter]:
        """Take away, and return, those who wait for this job."""
        waiting = list(self._by_job.get(job_id, {}).values())
        for waiter in waiting:
            self._take_away(waiter)
        return waiting

    def left(self, session: Session) -> None:
        """Nobody is there any more to be told."""
        for waiter in list(self._by_session.get(session.id, {}).values()):
            self._take_away(waiter)

    def expire(self, now_ms: int) -> None:
        while self._by_time and self._by_time[0][0] <= now_ms:
            waiter = heapq.heappop(self._by_time)[2]
            if self._waits(waiter):
                self._take_away(waiter)

    def _waits(self, waiter: Waiter) -> bool:
        return self._by_job.get(waiter.job_id, {}).get((waiter.session.id, waiter.request)) is waiter

    def _take_away(self, waiter: Waiter) -> None:
        session_id = waiter.session.id
        by_job, by_session = self._by_job[waiter.job_id], self._by_session[session_id]
        del by_job[session_id, waiter.request], by_session[waiter.job_id, waiter.request]
        if not by_job:
            del self._by_job[waiter.job_id]
        if not by_session:
            del self._by_session[session_id]
        self.count -= 1

    def __len__(self) -> int:
        """Entries in memory."""
        return len(self._by_time)
