"""Heartbeats: gathered in memory, written in batches, so that none costs a round trip to the database.

The process that hears heartbeats owns one HeartbeatBuffer and calls `flush` about once a second, heartbeats or not:
each flush also says that the service was listening, and silence is counted only while it was. Where they are written
is a Presence: see `presence`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from zq.exams import names
from zq.exams.errors import ExamError
from zq.exams.model import Heartbeat
from zq.exams.status import StudentStatus

PENDING_HEARTBEATS_MAX = 50_000
KNOWN_STUDENTS_MAX = 100_000
GAP_MS = 5_000
"""A pause between flushes that is longer than this is an outage of the service, not of its students."""
MARK_MS = 4_000
"""How often an idle buffer writes that it is listening; less than GAP_MS."""

StudentKey = tuple[str, str]
"""(exam id, student id)"""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of a batch of heartbeats."""

    written: int
    came_online: tuple[StudentKey, ...]
    unknown: tuple[StudentKey, ...]
    """No such exam, or no such student in it."""


class StatusNews(NamedTuple):
    """What the status check has written of a student."""

    student: StudentKey
    name: str
    status: StudentStatus


class Presence(Protocol):
    """Where signs of life are kept. All of it raises ExamError("unavailable")."""

    @property
    def others_write(self) -> bool:
        """Whether an application beside zq may hear heartbeats, and leave them here."""
        ...

    def record(self, beats: Sequence[Heartbeat], now_ms: int, *, after_gap: bool) -> Recorded:
        """Write a batch (one a student) all or nothing, and that the service is listening at `now_ms`."""
        ...

    def activity(self, exam_ids: Sequence[str]) -> Mapping[StudentKey, int]:
        """Last activity that the exam store does not know of itself, Unix milliseconds."""
        ...

    def tell(self, news: Sequence[StatusNews]) -> None:
        """The store has it already."""
        ...


class HeartbeatBuffer:
    """The newest heartbeat of each student since the last flush. Safe to use from several threads.

    A crash loses what was not flushed, about a second; the restart counts as a gap, so nobody goes offline for it.
    """

    def __init__(self, presence: Presence) -> None:
        self._presence = presence
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._pending: dict[StudentKey, Heartbeat] = {}
        self._known: dict[StudentKey, None] = {}
        self._flushed_ms: int | None = None
        self._marked_ms = 0

    def __len__(self) -> int:
        """Heartbeats that are not written yet."""
        return len(self._pending)

    def knows(self, exam_id: str, student_id: str) -> bool:
        """Whether this student is known to be in the store, without asking it. If not: ask it once, and `learn`."""
        return (exam_id, student_id) in self._known

    def learn(self, exam_id: str, student_id: str) -> None:
        """The store has this student. At most KNOWN_STUDENTS_MAX are remembered, the latest ones."""
        with self._lock:
            self._known[exam_id, student_id] = None
            if len(self._known) > KNOWN_STUDENTS_MAX:
                del self._known[next(iter(self._known))]

    def add(self, exam_id: str, student_id: str, *, at_ms: int, ip: str) -> None:
        """Keep a heartbeat for the next flush: a dictionary entry, no I/O. Heartbeats of unknown students are dropped.

        Raises ExamError: "invalid", or "unavailable" if PENDING_HEARTBEATS_MAX students wait for a flush.
        """
        key = (names.exam_id(exam_id), names.student_id(student_id))
        beat = Heartbeat(exam_id, student_id, at_ms, names.client_ip(ip))
        with self._lock:
            before = self._pending.get(key)
            if before is None and len(self._pending) >= PENDING_HEARTBEATS_MAX:
                raise ExamError("unavailable", "too many heartbeats wait for the exam database; try again")
            if before is None or before.at_ms <= at_ms:
                self._pending[key] = beat

    def flush(self, now_ms: int) -> Recorded | None:
        """Write what has gathered, in one transaction; None if there was nothing to write.

        Call it at least every second, and once more at the end. After an error (ExamError "unavailable") everything
        is kept for the next flush.
        """
        with self._flushing:
            last_ms = self._flushed_ms
            after_gap = last_ms is None or not -GAP_MS <= now_ms - last_ms <= GAP_MS
            with self._lock:
                taken, self._pending = self._pending, {}
            if not taken and not after_gap and 0 <= now_ms - self._marked_ms < MARK_MS:
                self._flushed_ms = now_ms
                return None
            try:
                recorded = self._presence.record(list(taken.values()), now_ms, after_gap=after_gap)
            except BaseException:
                self._give_back(taken)
                raise
            self._flushed_ms = self._marked_ms = now_ms
            with self._lock:
                for key in recorded.unknown:
                    self._known.pop(key, None)
            return recorded

    def _give_back(self, taken: dict[StudentKey, Heartbeat]) -> None:
        with self._lock:
            newer, self._pending = self._pending, taken
            for key, beat in newer.items():
                before = self._pending.get(key)
                if before is None or before.at_ms <= beat.at_ms:
                    self._pending[key] = beat
