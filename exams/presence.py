"""Heartbeats: gathered in memory, written in batches, so that none costs a round trip to the database.

The process that hears heartbeats owns one HeartbeatBuffer and calls `flush` about once a second, heartbeats or not:
each flush also says that the service was listening, and silence is counted only while it was.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Connection, bindparam, select, update

from zq.exams import names
from zq.exams.database import Database, chunks
from zq.exams.errors import ExamError
from zq.exams.model import Heartbeat
from zq.exams.status import Action, Event, ExamStatus, Listening, StudentStatus, listened, step
from zq.exams.tables import exam_students, exams, history, listening

PENDING_HEARTBEATS_MAX = 50_000
KNOWN_STUDENTS_MAX = 100_000
GAP_MS = 5_000
"""A pause between flushes that is longer than this is an outage of the service, not of its students."""
MARK_MS = 4_000
"""How often an idle buffer writes that it is listening; less than GAP_MS."""

_LISTENER = "heartbeats"

StudentKey = tuple[str, str]
"""(exam id, student id)"""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of a batch of heartbeats."""

    written: int
    came_online: tuple[StudentKey, ...]
    unknown: tuple[StudentKey, ...]
    """No such exam, or no such student in it."""


class Presence(Protocol):
    """Where signs of life are kept."""

    def record(self, beats: Sequence[Heartbeat], now_ms: int, *, after_gap: bool) -> Recorded:
        """Write a batch (one a student) all or nothing, and that the service is listening at `now_ms`."""
        ...

    def activity(self, exam_ids: Sequence[str]) -> Mapping[StudentKey, int]:
        """Last activity that the exam store does not know of itself, Unix milliseconds."""
        ...


class SqlPresence:
    """Presence in the exam store: `exam_students.last_active`. A heartbeat brings an offline student back at once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def activity(self, exam_ids: Sequence[str]) -> Mapping[StudentKey, int]:
        """Nothing: the store has it all."""
        return {}

    def record(self, beats: Sequence[Heartbeat], now_ms: int, *, after_gap: bool) -> Recorded:
        """In one transaction. Heartbeats of an exam that is over, or of a student who has finished, change nothing."""
        by_exam: dict[str, dict[str, Heartbeat]] = defaultdict(dict)
        for beat in beats:
            by_exam[beat.exam_id][beat.student_id] = beat
        with self._database.write() as connection:
            _mark(connection, now_ms, after_gap=after_gap)
            over = _lock_exams(connection, sorted(by_exam))
            unknown = [(exam_id, s) for exam_id, of_exam in by_exam.items() if exam_id not in over for s in of_exam]
            rows = []
            for exam_id in sorted(over):
                rows_of_exam = _lock_students(connection, exam_id, sorted(by_exam[exam_id]))
                present = {row.student_id for row in rows_of_exam}
                unknown += [(exam_id, s) for s in by_exam[exam_id] if s not in present]
                rows += [] if over[exam_id] else rows_of_exam
            written, came_online = _write(connection, rows, by_exam, now_ms)
        return Recorded(written, tuple(came_online), tuple(unknown))


def read_listening(connection: Connection) -> Listening | None:
    """The window of listening, locked against a flush until the transaction ends; None if nobody ever listened."""
    row = connection.execute(
        select(listening.c.since_ms, listening.c.until_ms).where(listening.c.name == _LISTENER).with_for_update()
    ).one_or_none()
    return None if row is None else Listening(row.since_ms, row.until_ms)


def _mark(connection: Connection, now_ms: int, *, after_gap: bool) -> None:
    before = read_listening(connection)
    window = listened(before, now_ms, after_gap=after_gap)
    values = {"since_ms": window.since_ms, "until_ms": window.until_ms}
    if before is None:
        connection.execute(listening.insert().values(name=_LISTENER, **values))
    else:
        connection.execute(update(listening).where(listening.c.name == _LISTENER).values(**values))


def _lock_exams(connection: Connection, exam_ids: Sequence[str]) -> dict[str, bool]:
    """Which of them exist, and whether they are over; none of them is completed by a check meanwhile."""
    found: dict[str, bool] = {}
    for part in chunks(exam_ids):
        statement = select(exams.c.id, exams.c.status).where(exams.c.id.in_(part)).order_by(exams.c.id)
        rows = connection.execute(statement.with_for_update(read=True))
        found.update((exam_id, status == ExamStatus.COMPLETED) for exam_id, status in rows)
    return found


def _lock_students(connection: Connection, exam_id: str, student_ids: Sequence[str]) -> list[Any]:
    rows: list[Any] = []
    for part in chunks(student_ids):
        rows += connection.execute(
            select(exam_students)
            .where(exam_students.c.exam_id == exam_id, exam_students.c.student_id.in_(part))
            .order_by(exam_students.c.student_id)
            .with_for_update()
        )
    return rows


def _write(
    connection: Connection, rows: Sequence[Any], by_exam: Mapping[str, Mapping[str, Heartbeat]], now_ms: int
) -> tuple[int, list[StudentKey]]:
    changes, actions, came_online = [], [], []
    for row in rows:
        beat = by_exam[row.exam_id][row.student_id]
        status, action = step(StudentStatus(row.status), Event.SEEN)
        # A last activity after now was written before the clock was put back: it must not hide this heartbeat.
        newer = row.last_active is None or row.last_active < beat.at_ms or row.last_active > now_ms
        if status is StudentStatus.LOGOUT or not newer:
            continue
        changes.append({"row": row.id, "after": status, "at": beat.at_ms})
        if action is not None:
            actions.append(
                {"student_exam_id": row.id, "action": Action(action), "timestamp": beat.at_ms, "ip": beat.ip}
            )
            came_online.append((row.exam_id, row.student_id))
    if changes:
        connection.execute(
            update(exam_students)
            .where(exam_students.c.id == bindparam("row"))
            .values(status=bindparam("after"), last_active=bindparam("at")),
            changes,
        )
    if actions:
        connection.execute(history.insert(), actions)
    return len(changes), came_online


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
