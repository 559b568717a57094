"""The status check: one pass over the exams that are live or have just changed.

What it reads is reached by indexes from the exams that are pending or active; exams that are over cost nothing. All
it decides is written in one transaction, with the rows it rests on locked, so that two checks at once write each
transition once: the second one finds it done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, bindparam, or_, select, update

from zq.exams import recordings
from zq.exams.database import chunks
from zq.exams.heartbeats import Presence, StudentKey
from zq.exams.model import MergeRequest
from zq.exams.presence import SqlPresence, read_listening
from zq.exams.status import (
    Action,
    Event,
    ExamStatus,
    Listening,
    Seen,
    StudentStatus,
    exam_status,
    judge,
    step,
)
from zq.exams.store import ExamStore
from zq.exams.tables import exam_students, exams, history

CHECKER_IP = "system"
EARLY_LOGIN_MS = 24 * 3600 * 1000
"""Students of exams that start within a day are watched too: they may be logged in already."""
RESUBMIT_AFTER_MS = 10_000
"""Whoever asked for a merge has this long to submit it before the check hands it out again."""


@dataclass(frozen=True, slots=True)
class StatusReport:
    """What one check found and wrote."""

    started: tuple[str, ...]
    completed: tuple[str, ...]
    live: int
    """Active exams after the check."""
    online: int
    """Students who are online after the check, in active exams and in those that start within a day."""
    went_offline: tuple[StudentKey, ...]
    came_online: tuple[StudentKey, ...]
    closed: tuple[StudentKey, ...]
    """Closed because their exam is over."""
    merges: tuple[MergeRequest, ...]
    """To be submitted now, then confirmed with `ExamStore.merge_submitted`: those of the closed, and those that
    somebody asked for earlier and nobody has confirmed."""


def check(
    store: ExamStore,
    now_ms: int,
    offline_after_s: float,
    *,
    has_segments: Callable[[str, str], bool],
    presence: Presence | None = None,
) -> StatusReport:
    """Bring exams and students to what the clock and their signs of life say. Repeating it is harmless.

    `has_segments(exam_id, student_id)` says whether a student who is closed has anything to merge. Without a
    `presence`, signs of life are those in the store. Raises ExamError("unavailable"), with nothing changed.
    """
    offline_after_ms = int(offline_after_s * 1000)
    presence = presence or SqlPresence(store.database)
    with store.database.write() as connection:
        # Locks in one order everywhere: listening, exams, students, recordings.
        heard = read_listening(connection) or Listening(0, now_ms)
        started, completed = _move_exams(connection, now_ms)
        closed = _close_students(connection, completed, now_ms)
        asked = [row for row in closed if has_segments(row.exam_id, row.student_id)]
        merges = recordings.request(connection, asked, now_ms)
        merges += recordings.open_requests(connection, now_ms - RESUBMIT_AFTER_MS)
        live = _live_exams(connection, now_ms)
        students = _roster(connection, sorted(live))
        offline, back, online = _judge_students(connection, students, presence, heard, now_ms, offline_after_ms)
    return StatusReport(
        started=tuple(started),
        completed=tuple(completed),
        live=sum(status == ExamStatus.ACTIVE for status in live.values()),
        online=online,
        went_offline=tuple(offline),
        came_online=tuple(back),
        closed=tuple((row.exam_id, row.student_id) for row in closed),
        merges=tuple({merge.job_id: merge for merge in merges}.values()),
    )


def _move_exams(connection: Connection, now_ms: int) -> tuple[list[str], list[str]]:
    """Exams whose status the clock has changed: (now active, now completed)."""
    due = or_(
        and_(exams.c.status == ExamStatus.PENDING, exams.c.start_time <= now_ms),
        and_(exams.c.status == ExamStatus.ACTIVE, exams.c.end_time <= now_ms),
    )
    rows = connection.execute(select(exams).where(due).order_by(exams.c.id).with_for_update()).all()
    moved: dict[ExamStatus, list[str]] = {status: [] for status in ExamStatus}
    for row in rows:
        moved[exam_status(row.start_time, row.end_time, now_ms)].append(row.id)
    for status, exam_ids in moved.items():
        for part in chunks(exam_ids):
            connection.execute(update(exams).where(exams.c.id.in_(part)).values(status=status))
    return moved[ExamStatus.ACTIVE], moved[ExamStatus.COMPLETED]


def _close_students(connection: Connection, exam_ids: Sequence[str], now_ms: int) -> list[Any]:
    """Everybody who was in an exam that is over has finished it. Returns their rows."""
    closed: list[Any] = []
    for part in chunks(exam_ids):
        closed += connection.execute(
            select(exam_students)
            .where(
                exam_students.c.exam_id.in_(part),
                exam_students.c.status.in_((StudentStatus.ONLINE, StudentStatus.OFFLINE)),
            )
            .order_by(exam_students.c.exam_id, exam_students.c.student_id)
            .with_for_update()
        )
    _write(connection, [(row.id, *_closed(row.status), None) for row in closed], now_ms)
    return closed


def _closed(status: str) -> tuple[StudentStatus, Action]:
    after, action = step(StudentStatus(status), Event.EXAM_OVER)
    assert action is not None
    return after, action


def _live_exams(connection: Connection, now_ms: int) -> dict[str, str]:
    soon = and_(exams.c.status == ExamStatus.PENDING, exams.c.start_time <= now_ms + EARLY_LOGIN_MS)
    active = exams.c.status == ExamStatus.ACTIVE
    return {row.id: row.status for row in connection.execute(select(exams).where(or_(active, soon)))}


def _roster(connection: Connection, exam_ids: Sequence[str]) -> list[Any]:
    students: list[Any] = []
    columns = (
        exam_students.c.id,
        exam_students.c.exam_id,
        exam_students.c.student_id,
        exam_students.c.status,
        exam_students.c.last_active,
    )
    for part in chunks(exam_ids):
        students += connection.execute(
            select(*columns)
            .where(exam_students.c.exam_id.in_(part), exam_students.c.status != StudentStatus.LOGOUT)
            .order_by(exam_students.c.exam_id, exam_students.c.student_id)
            .with_for_update()
        )
    return students


def _judge_students(
    connection: Connection,
    students: Sequence[Any],
    presence: Presence,
    heard: Listening,
    now_ms: int,
    offline_after_ms: int,
) -> tuple[list[StudentKey], list[StudentKey], int]:
    """Write who went offline and who is back; returns both, and how many are online now."""
    elsewhere = presence.activity(sorted({row.exam_id for row in students}))
    seen = []
    for row in students:
        known = [at for at in (row.last_active, elsewhere.get((row.exam_id, row.student_id))) if at is not None]
        last_active_ms = max(known) if known else None
        seen.append(Seen(row.id, StudentStatus(row.status), last_active_ms, row.last_active))
    changes = judge(seen, heard, now_ms, offline_after_ms)
    active_ms = {student.row_id: student.last_active_ms for student in seen}
    _write(connection, [(c.row_id, c.after, c.action, active_ms[c.row_id]) for c in changes], now_ms)
    keys = {row.id: (row.exam_id, row.student_id) for row in students}
    offline = [keys[c.row_id] for c in changes if c.after is StudentStatus.OFFLINE]
    back = [keys[c.row_id] for c in changes if c.after is StudentStatus.ONLINE]
    online = sum(student.status is StudentStatus.ONLINE for student in seen) - len(offline) + len(back)
    return offline, back, online


def _write(
    connection: Connection, changes: Sequence[tuple[int, StudentStatus, Action, int | None]], now_ms: int
) -> None:
    """Set each row's status (and last activity, where one is given), with a history row each."""
    if not changes:
        return
    connection.execute(
        update(exam_students).where(exam_students.c.id == bindparam("row")).values(status=bindparam("after")),
        [{"row": row_id, "after": after} for row_id, after, _action, _active_ms in changes],
    )
    active = [{"row": row_id, "at": at_ms} for row_id, _after, _action, at_ms in changes if at_ms is not None]
    if active:
        connection.execute(
            update(exam_students).where(exam_students.c.id == bindparam("row")).values(last_active=bindparam("at")),
            active,
        )
    connection.execute(
        history.insert(),
        [
            {"student_exam_id": row_id, "action": action, "timestamp": now_ms, "ip": CHECKER_IP}
            for row_id, _after, action, _active_ms in changes
        ],
    )
