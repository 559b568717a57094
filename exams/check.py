"""The status check: one pass over the exams that are live or have just changed.

What it reads is reached by indexes from the exams that are pending or active; exams that are over cost nothing. All
it decides is written in one transaction, with the rows it rests on locked, so that two checks at once write each
transition once: the second one finds it done.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, literal, or_, select, update

from zq.exams import recordings
from zq.exams.database import chunks
from zq.exams.errors import ExamError
from zq.exams.heartbeats import Presence, StatusNews, StudentKey
from zq.exams.model import MergeRequest
from zq.exams.presence import ELSEWHERE, SqlPresence, read_listening, write_listening
from zq.exams.status import (
    Action,
    Change,
    Event,
    ExamStatus,
    Listening,
    Seen,
    StudentStatus,
    exam_status,
    heard_elsewhere,
    judge,
    step,
)
from zq.exams.store import ExamStore
from zq.exams.tables import UNTOUCHED, exam_students, exams, history
from zq.exams.tables import recordings as recordings_table

CHECKER_IP = "system"
EARLY_LOGIN_MS = 24 * 3600 * 1000
"""Students of exams that start within a day are watched too: they may be logged in already."""
LOOK_BACK_MS = 2 * 3600 * 1000
LOOK_FAR_BACK_MS = 7 * 24 * 3600 * 1000
"""How long after an exam's end its students are looked through for segments that nobody has asked to merge."""
RESUBMIT_AFTER_MS = 10_000
"""Whoever asked for a merge has this long to submit it before the check hands it out again."""


_PRESENT = (StudentStatus.ONLINE, StudentStatus.OFFLINE)
_STUDENT_COLUMNS = (
    exam_students.c.id,
    exam_students.c.exam_id,
    exam_students.c.student_id,
    exam_students.c.student_name,
    exam_students.c.status,
    exam_students.c.last_active,
)


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
    presence_known: bool
    """False while signs of life cannot be read: then nobody's status was judged."""
    news: tuple[StatusNews, ...]
    """For `Presence.tell`."""


def check(
    store: ExamStore,
    now_ms: int,
    offline_after_s: float,
    *,
    has_segments: Callable[[str, str], bool],
    presence: Presence | None = None,
    look_back_ms: int = LOOK_BACK_MS,
) -> StatusReport:
    """Bring exams and students to what the clock and their signs of life say. Repeating it is harmless.

    `has_segments(exam_id, student_id)` says whether a student has anything to merge. Without a `presence`, signs of
    life are those in the store; while it cannot be read nobody's status is judged. Of exams that ended in the last
    `look_back_ms`, whoever has segments and was never asked about gets a merge. Raises ExamError("unavailable"), with
    nothing changed.
    """
    presence = presence or SqlPresence(store.database)
    signs = _signs_of_life(store, presence, now_ms)
    # Looked up before anything is locked: the segments may be on another machine.
    left = {key for key in _leavers(store, now_ms, now_ms - look_back_ms) if has_segments(*key)}
    with store.database.write() as connection:
        # Locks in one order everywhere: listening, exams, students, recordings.
        heard = _heard(connection, presence, signs, now_ms)
        started, completed = _move_exams(connection, now_ms)
        closed = _close_students(connection, completed, now_ms)
        forgotten = _forgotten(connection, left.difference(_keys(closed)))
        asked = [row for row in closed if (row.exam_id, row.student_id) in left]
        merges = recordings.request(connection, [*asked, *forgotten], now_ms)
        merges += recordings.open_requests(connection, now_ms - RESUBMIT_AFTER_MS)
        live = _live_exams(connection, now_ms)
        students = _roster(connection, sorted(live))
        seen = _seen(students, signs or {})
        changes = judge(seen, heard, now_ms, int(offline_after_s * 1000)) if signs is not None else []
        _write_changes(connection, changes, seen, now_ms)
    by_id = {row.id: row for row in students}
    offline = [by_id[change.row_id] for change in changes if change.after is StudentStatus.OFFLINE]
    back = [by_id[change.row_id] for change in changes if change.after is StudentStatus.ONLINE]
    before = sum(one.status is StudentStatus.ONLINE for one in seen)
    return StatusReport(
        started=tuple(started),
        completed=tuple(completed),
        live=sum(status == ExamStatus.ACTIVE for status in live.values()),
        online=before - sum(change.before is StudentStatus.ONLINE for change in changes) + len(back),
        went_offline=_keys(offline),
        came_online=_keys(back),
        closed=_keys(closed),
        merges=tuple({merge.job_id: merge for merge in merges}.values()),
        presence_known=signs is not None,
        news=(
            *_news(offline, StudentStatus.OFFLINE),
            *_news(back, StudentStatus.ONLINE),
            *_news(closed, StudentStatus.LOGOUT),
        ),
    )


def _keys(rows: Sequence[Any]) -> tuple[StudentKey, ...]:
    return tuple((row.exam_id, row.student_id) for row in rows)


def _news(rows: Sequence[Any], status: StudentStatus) -> Iterator[StatusNews]:
    return (StatusNews((row.exam_id, row.student_id), row.student_name or "", status) for row in rows)


def _signs_of_life(store: ExamStore, presence: Presence, now_ms: int) -> Mapping[StudentKey, int] | None:
    """Asked before anything is locked; None when they cannot be had, which must not hold up what the clock says."""
    with store.database.read() as connection:
        live = sorted(_live_exams(connection, now_ms))
    try:
        return presence.activity(live)
    except ExamError:
        return None


def _heard(
    connection: Connection, presence: Presence, signs: Mapping[StudentKey, int] | None, now_ms: int
) -> Listening:
    """In which time somebody was there to hear the students: this service, or the one that writes the signs."""
    own = read_listening(connection)
    if not presence.others_write:
        # A store that no service of ours has ever written to is kept by another one, all the time.
        return own or Listening(0, now_ms)
    before = read_listening(connection, ELSEWHERE)
    elsewhere = heard_elsewhere(before, signs.values() if signs else (), now_ms)
    if elsewhere is not None and elsewhere != before:
        write_listening(connection, elsewhere, new=before is None, listener=ELSEWHERE)
    known = [window for window in (own, elsewhere) if window is not None]
    return max(known, key=lambda window: window.until_ms, default=Listening(now_ms, now_ms))


def _move_exams(connection: Connection, now_ms: int) -> tuple[list[str], list[str]]:
    """Exams whose status the clock has changed: (now active, now completed)."""
    due = or_(
        and_(exams.c.status == ExamStatus.PENDING, exams.c.start_time <= now_ms),
        and_(exams.c.status == ExamStatus.ACTIVE, exams.c.end_time <= now_ms),
        # Moved by an application beside zq, which does not tell.
        and_(exams.c.status == ExamStatus.ACTIVE, exams.c.start_time > now_ms),
        and_(exams.c.status == ExamStatus.COMPLETED, exams.c.end_time > now_ms),
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
                exam_students.c.status.in_(_PRESENT),
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


_NO_RECORDING = (
    ~select(recordings_table.c.state).where(recordings_table.c.student_exam_id == exam_students.c.id).exists()
)


def _leavers(store: ExamStore, now_ms: int, since_ms: int) -> list[StudentKey]:
    """Who may have to be merged now: the students of exams that end, and of those that have ended lately whoever has
    no recording of any state, because he was never online or finished before his first segment came."""
    ends = and_(exams.c.status.in_((ExamStatus.ACTIVE, ExamStatus.PENDING)), exams.c.end_time <= now_ms)
    ended = and_(exams.c.status == ExamStatus.COMPLETED, exams.c.end_time > since_ms, exams.c.end_time <= now_ms)
    with store.database.read() as connection:
        rows = connection.execute(
            select(exam_students.c.exam_id, exam_students.c.student_id)
            .join_from(exam_students, exams)
            .where(or_(ends, ended), or_(exam_students.c.status.in_(_PRESENT), _NO_RECORDING))
            .order_by(exam_students.c.exam_id, exam_students.c.student_id)
        )
        return [(exam_id, student_id) for exam_id, student_id in rows]


def _forgotten(connection: Connection, keys: Collection[StudentKey]) -> list[Any]:
    """Those of them who still have no recording, and whose exam is over."""
    by_exam: dict[str, list[str]] = defaultdict(list)
    for exam_id, student_id in sorted(keys):
        by_exam[exam_id].append(student_id)
    found: list[Any] = []
    for exam_id, student_ids in by_exam.items():
        for part in chunks(student_ids):
            found += connection.execute(
                select(*_STUDENT_COLUMNS)
                .join_from(exam_students, exams)
                .where(
                    exam_students.c.exam_id == exam_id,
                    exam_students.c.student_id.in_(part),
                    exams.c.status == ExamStatus.COMPLETED,
                    _NO_RECORDING,
                )
                .order_by(exam_students.c.student_id)
                .with_for_update(of=exam_students)
            )
    return found


def _roster(connection: Connection, exam_ids: Sequence[str]) -> list[Any]:
    students: list[Any] = []
    for part in chunks(exam_ids):
        students += connection.execute(
            select(*_STUDENT_COLUMNS)
            .where(exam_students.c.exam_id.in_(part), exam_students.c.status != StudentStatus.LOGOUT)
            .order_by(exam_students.c.exam_id, exam_students.c.student_id)
            .with_for_update()
        )
    return students


def _seen(students: Sequence[Any], signs: Mapping[StudentKey, int]) -> list[Seen]:
    found = []
    for row in students:
        known = [at for at in (row.last_active, signs.get((row.exam_id, row.student_id))) if at is not None]
        found.append(Seen(row.id, StudentStatus(row.status), max(known, default=None), row.last_active))
    return found


def _write_changes(connection: Connection, changes: Sequence[Change], seen: Sequence[Seen], now_ms: int) -> None:
    active_ms = {student.row_id: student.last_active_ms for student in seen}
    _write(connection, [(c.row_id, c.after, c.action, active_ms[c.row_id]) for c in changes], now_ms)


def _write(
    connection: Connection, changes: Sequence[tuple[int, StudentStatus, Action, int | None]], now_ms: int
) -> None:
    """Set each row's status (and last activity, where one is given), with a history row each."""
    if not changes:
        return
    by_change: dict[tuple[StudentStatus, Action], list[int]] = defaultdict(list)
    for row_id, after, action, _active_ms in changes:
        by_change[after, action].append(row_id)
    # Statements for many rows: a whole exam ends at once, and some drivers send rows one by one.
    for (after, action), row_ids in by_change.items():
        for part in chunks(row_ids):
            these = exam_students.c.id.in_(part)
            connection.execute(update(exam_students).where(these).values(status=after, **UNTOUCHED))
            connection.execute(history.insert().from_select(*_history_of(these, action, now_ms)))
    active = [{"row": row_id, "at": at_ms} for row_id, _after, _action, at_ms in changes if at_ms is not None]
    if active:
        connection.execute(
            update(exam_students).where(exam_students.c.id == bindparam("row")).values(last_active=bindparam("at")),
            active,
        )


def _history_of(students: ColumnElement[bool], action: Action, now_ms: int) -> tuple[list[str], Select[Any]]:
    """(columns, rows) of the history, one row for each of these students."""
    values = {history.c.action: action, history.c.timestamp: now_ms, history.c.ip: CHECKER_IP}
    columns = [literal(value, column.type) for column, value in values.items()]
    rows = select(exam_students.c.id, *columns).where(students).order_by(exam_students.c.id)
    return ["student_exam_id", *(column.name for column in values)], rows
