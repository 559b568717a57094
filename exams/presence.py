"""Presence in the exam store: what heartbeats change, and since when the service has been able to hear them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from zq.exams.database import Database, chunks
from zq.exams.heartbeats import Recorded, StatusNews, StudentKey
from zq.exams.model import Heartbeat
from zq.exams.status import Action, Event, ExamStatus, Listening, StudentStatus, listened, step
from zq.exams.tables import exam_students, exams, history, listening

HEARTBEATS = "heartbeats"
"""The listener that is zq's own web service."""
ELSEWHERE = "elsewhere"
"""An application beside zq that hears heartbeats and writes them where zq reads them."""


class SqlPresence:
    """Presence in the exam store: `exam_students.last_active`. A heartbeat brings an offline student back at once."""

    others_write = False

    def __init__(self, database: Database) -> None:
        self._database = database

    def activity(self, exam_ids: Sequence[str]) -> Mapping[StudentKey, int]:
        """Nothing: the store has it all."""
        return {}

    def tell(self, news: Sequence[StatusNews]) -> None:
        """Nothing: the store has it already."""

    def record(self, beats: Sequence[Heartbeat], now_ms: int, *, after_gap: bool) -> Recorded:
        """In one transaction. Heartbeats of an exam that is over, or of a student who has finished, change nothing."""
        by_exam: dict[str, dict[str, Heartbeat]] = defaultdict(dict)
        for beat in beats:
            by_exam[beat.exam_id][beat.student_id] = beat
        with self._database.write() as connection:
            mark_listening(connection, now_ms, after_gap=after_gap)
            over = _lock_exams(connection, sorted(by_exam))
            unknown = [(exam_id, s) for exam_id, of_exam in by_exam.items() if exam_id not in over for s in of_exam]
            rows = []
            for exam_id in sorted(over):
                rows_of_exam = _lock_students(connection, exam_id, sorted(by_exam[exam_id]))
                present = {row.student_id for row in rows_of_exam}
                unknown += [(exam_id, s) for s in by_exam[exam_id] if s not in present]
                # A foreign column may take 'a' for 'A'.
                rows += [] if over[exam_id] else [row for row in rows_of_exam if row.student_id in by_exam[exam_id]]
            written, came_online = _write(connection, rows, by_exam, now_ms)
        return Recorded(written, tuple(came_online), tuple(unknown))


def read_listening(connection: Connection, listener: str = HEARTBEATS) -> Listening | None:
    """The window of listening, locked against a flush until the transaction ends; None if nobody ever listened."""
    row = connection.execute(
        select(listening.c.since_ms, listening.c.until_ms).where(listening.c.name == listener).with_for_update()
    ).one_or_none()
    return None if row is None else Listening(row.since_ms, row.until_ms)


def mark_listening(connection: Connection, now_ms: int, *, after_gap: bool) -> None:
    """The service hears heartbeats at this moment."""
    before = read_listening(connection)
    write_listening(connection, listened(before, now_ms, after_gap=after_gap), new=before is None)


def write_listening(connection: Connection, window: Listening, *, new: bool, listener: str = HEARTBEATS) -> None:
    values = {"since_ms": window.since_ms, "until_ms": window.until_ms}
    if new:
        connection.execute(listening.insert().values(name=listener, **values))
    else:
        connection.execute(update(listening).where(listening.c.name == listener).values(**values))


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
