"""The exam store: exams, their students, and what has become of their recordings.

Every method is one transaction: when it returns, its effect is on disk; when it raises, nothing was changed. All of
them may be called from several threads and processes at once. They block; an asynchronous caller uses a thread.
All raise ExamError: "invalid" for bad input, "not_found", "conflict", and "unavailable" when the database is away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, Select, func, select, tuple_, update
from sqlalchemy import exc as sql_errors

from zq.exams import names, recordings, times
from zq.exams.database import Database, chunks
from zq.exams.errors import ExamError
from zq.exams.model import (
    PAGE_ROWS_MAX,
    STUDENTS_PER_CALL_MAX,
    Exam,
    Finished,
    HistoryRow,
    MergeRequest,
    Student,
    SubmittedMerge,
)
from zq.exams.shape import is_numeric_id
from zq.exams.status import Action, Event, ExamStatus, MergeState, StudentStatus, exam_status, step
from zq.exams.tables import UNTOUCHED, exam_students, exams, history
from zq.exams.tables import recordings as recordings_table

STUDENTS_PER_EXAM_MAX = 20_000
EXAM_MS_MAX = 31 * 24 * 3600 * 1000
"""No exam is longer than a month; a longer one is a mistyped date."""

_Result = TypeVar("_Result")


class ExamStore:
    """Opens the database at `url` (creating what is missing). `zone` is the IANA name in which local times are read.

    At most POOL_CONNECTIONS database connections are open. Make a new store after a fork.
    """

    def __init__(self, url: str, zone: str) -> None:
        self.zone = times.zone(zone)
        self.database = Database(url, self.zone)

    def close(self) -> None:
        self.database.close()

    # Exams

    def create_exam(
        self, exam_id: str, name: str, start: times.Instant, end: times.Instant, *, now_ms: int
    ) -> tuple[Exam, bool]:
        """The exam, and whether this call made it. Repeating it with other values is a conflict."""
        names.exam_id(exam_id)
        name = names.exam_name(name)
        start_ms, end_ms = self._period(start, end)
        self._require_makes_exams(exam_id)
        status = exam_status(start_ms, end_ms, now_ms)
        values = {"id": exam_id, "name": name, "start_time": start_ms, "end_time": end_ms}
        try:
            with self.database.write() as connection:
                before = _find_exam(connection, exam_id)
                if before is None:
                    connection.execute(exams.insert().values(status=status, created_at=now_ms, **values))
                    return Exam(exam_id, name, start_ms, end_ms, status, now_ms), True
        except sql_errors.IntegrityError:  # another process has made it just now
            before = self.get_exam(exam_id)
        if (before.name, before.start_ms, before.end_ms) != (name, start_ms, end_ms):
            raise ExamError(
                "conflict",
                f"exam {exam_id!r} exists with another name or other times; edit its times, or take another id",
            )
        return before, False

    def get_exam(self, exam_id: str) -> Exam:
        names.exam_id(exam_id)
        with self.database.read() as connection:
            return _require_exam(connection, exam_id)

    def list_exams(self, *, limit: int = 100, before_id: str | None = None) -> list[Exam]:
        """Latest start first. `before_id` is the last exam of the page before."""
        statement = _select_exams().order_by(exams.c.start_time.desc(), exams.c.id.desc()).limit(_page(limit))
        with self.database.read() as connection:
            if before_id is not None:
                last = _require_exam(connection, names.exam_id(before_id))
                statement = statement.where(tuple_(exams.c.start_time, exams.c.id) < tuple_(last.start_ms, last.id))
            return [_exam(row) for row in connection.execute(statement)]

    def live_exams(self) -> list[Exam]:
        """The active exams, earliest start first; at most PAGE_ROWS_MAX."""
        statement = _select_exams().where(exams.c.status == ExamStatus.ACTIVE)
        with self.database.read() as connection:
            rows = connection.execute(statement.order_by(exams.c.start_time).limit(PAGE_ROWS_MAX))
            return [_exam(row) for row in rows]

    def coming_exams(self, before_ms: int) -> list[Exam]:
        """Those that are active, and those that start before this time; the nearest PAGE_ROWS_MAX of them."""
        statement = _select_exams().where(
            exams.c.status.in_((ExamStatus.ACTIVE, ExamStatus.PENDING)), exams.c.start_time < before_ms
        )
        with self.database.read() as connection:
            rows = connection.execute(statement.order_by(exams.c.start_time).limit(PAGE_ROWS_MAX))
            return [_exam(row) for row in rows]

    def edit_times(
        self, exam_id: str, *, now_ms: int, start: times.Instant | None = None, end: times.Instant | None = None
    ) -> Exam:
        """Move the start, the end, or both. An exam that was over and now is not lives again.

        An exam whose new end has passed is closed, with its students, by the next check.
        """
        names.exam_id(exam_id)
        with self.database.write() as connection:
            before = _require_exam(connection, exam_id, lock=True)
            start_ms, end_ms = self._period(
                before.start_ms if start is None else start, before.end_ms if end is None else end
            )
            status = exam_status(start_ms, end_ms, now_ms)
            if status is ExamStatus.COMPLETED:
                # Only the check completes an exam: it closes the students in the same transaction.
                status = before.status
            connection.execute(
                update(exams).where(exams.c.id == exam_id).values(start_time=start_ms, end_time=end_ms, status=status)
            )
        return Exam(exam_id, before.name, start_ms, end_ms, status, before.created_ms)

    def _require_makes_exams(self, exam_id: str) -> None:
        """In a database that another application made, exams may need what zq does not know."""
        shape = self.database.shape
        if shape.required:
            columns = ", ".join(shape.required)
            raise ExamError("invalid", f"make exams in the application that owns this database; it needs {columns}")
        if shape.numeric_ids and not is_numeric_id(exam_id):
            raise ExamError("invalid", f"{exam_id!r} cannot be an exam id here; this database has whole numbers")

    def _period(self, start: times.Instant, end: times.Instant) -> tuple[int, int]:
        start_ms = times.to_ms(start, self.zone, "start time")
        end_ms = times.to_ms(end, self.zone, "end time")
        if end_ms <= start_ms:
            raise ExamError("invalid", "the exam ends before it starts; give an end time after the start time")
        if end_ms - start_ms > EXAM_MS_MAX:
            raise ExamError("invalid", "the exam lasts more than 31 days; check its dates")
        return start_ms, end_ms

    # Students

    def ensure_students(self, exam_id: str, students: Iterable[tuple[str, str]]) -> int:
        """Put (student id, name) pairs on the exam's list; returns how many are new.

        A student who is on it already stays as he is, but for a changed name (an empty name changes nothing).
        At most STUDENTS_PER_CALL_MAX a call and STUDENTS_PER_EXAM_MAX an exam.
        """
        names.exam_id(exam_id)
        wanted = {names.student_id(student_id): names.person_name(name) for student_id, name in students}
        if len(wanted) > STUDENTS_PER_CALL_MAX:
            raise ExamError("too_large", f"{len(wanted)} students in one call; send at most {STUDENTS_PER_CALL_MAX}")

        def add(connection: Connection) -> int:
            _require_exam(connection, exam_id)
            return _ensure_students(connection, exam_id, wanted)

        return self._write_once_more(add)

    def get_student(self, exam_id: str, student_id: str) -> Student:
        names.exam_id(exam_id)
        names.student_id(student_id)
        with self.database.read() as connection:
            return _student(_require_student(connection, exam_id, student_id))

    def list_students(self, exam_id: str, *, limit: int = PAGE_ROWS_MAX, after_id: str = "") -> list[Student]:
        """By student id, with presence and merge state. `after_id` is the last student of the page before."""
        names.exam_id(exam_id)
        if after_id:
            names.student_id(after_id)
        statement = (
            _select_students()
            .where(exam_students.c.exam_id == exam_id, exam_students.c.student_id > after_id)
            .order_by(exam_students.c.student_id)
            .limit(_page(limit))
        )
        with self.database.read() as connection:
            _require_exam(connection, exam_id)
            return [_student(row) for row in connection.execute(statement)]

    def count_students(self, exam_id: str) -> dict[StudentStatus, int]:
        """How many students of the exam are in each status."""
        names.exam_id(exam_id)
        statement = select(exam_students.c.status, func.count()).where(exam_students.c.exam_id == exam_id)
        with self.database.read() as connection:
            _require_exam(connection, exam_id)
            found = {row[0]: int(row[1]) for row in connection.execute(statement.group_by(exam_students.c.status))}
        return {status: found.get(status, 0) for status in StudentStatus}

    def list_history(self, exam_id: str, student_id: str, *, limit: int = PAGE_ROWS_MAX) -> list[HistoryRow]:
        """What happened to the student, latest first."""
        names.exam_id(exam_id)
        names.student_id(student_id)
        with self.database.read() as connection:
            row = _require_student(connection, exam_id, student_id)
            rows = connection.execute(
                select(history.c.action, history.c.timestamp, history.c.ip)
                .where(history.c.student_exam_id == row.id)
                .order_by(history.c.id.desc())
                .limit(_page(limit))
            )
            return [HistoryRow(Action(action), at_ms, ip) for action, at_ms, ip in rows]

    def login(self, exam_id: str, student_id: str, *, now_ms: int, ip: str, name: str | None = None) -> Student:
        """The student is here, also before the start and again after a finish. With a `name`, one who is not on the
        list is put on it; without, that is "not_found". Raises "conflict" once the exam's end has passed.
        """
        names.exam_id(exam_id)
        names.student_id(student_id)
        ip = names.client_ip(ip)
        wanted = {} if name is None else {student_id: names.person_name(name)}

        def enter(connection: Connection) -> Student:
            exam = _require_exam(connection, exam_id, share=True)
            if now_ms >= exam.end_ms:
                ended = times.show(exam.end_ms, self.zone)
                raise ExamError("conflict", f"exam {exam_id!r} ended at {ended}; move its end to let students in again")
            if wanted:
                _ensure_students(connection, exam_id, wanted)
            row = _require_student(connection, exam_id, student_id, lock=True)
            status, action = step(StudentStatus(row.status), Event.LOGIN)
            _set_student(connection, row.id, status, action, now_ms, ip)
            return replace(_student(row), status=status, last_active_ms=now_ms)

        return self._write_once_more(enter)

    def finish_student(self, exam_id: str, student_id: str, *, now_ms: int, ip: str, has_segments: bool) -> Finished:
        """The student is done. Repeating the call changes nothing; it still names a merge that is not yet submitted.

        `has_segments` says whether there is anything to merge. Submit `Finished.merge`, then call `merge_submitted`.
        """
        names.exam_id(exam_id)
        names.student_id(student_id)
        ip = names.client_ip(ip)
        with self.database.write() as connection:
            row = _require_student(connection, exam_id, student_id, lock=True)
            status, action = step(StudentStatus(row.status), Event.FINISH)
            merge: MergeRequest | None = None
            if action is not None:
                _set_student(connection, row.id, status, action, now_ms, ip)
            still_open = row.recording_state == MergeState.REQUESTED
            if still_open or (has_segments and (action is not None or row.recording_state is None)):
                (merge,) = recordings.request(connection, [row], now_ms)
            after = _student(_require_student(connection, exam_id, student_id))
            return Finished(after, action is not None, merge)

    # Merges

    def request_merge(self, exam_id: str, student_id: str, *, now_ms: int) -> MergeRequest:
        """Ask for a new, complete merge: for a segment that came after the finish, or after a failure."""
        with self.database.write() as connection:
            row = self._lock_student(connection, exam_id, student_id)
            (merge,) = recordings.request(connection, [row], now_ms)
            return merge

    def merge_submitted(self, exam_id: str, student_id: str, job_id: str, actual_job_id: str | None = None) -> bool:
        """The broker has the job of a request. `actual_job_id` is the live job it named instead, if it did.

        False, and nothing changed, if the merge has ended already or another request has replaced this one.
        """
        with self.database.write() as connection:
            row = self._lock_student(connection, exam_id, student_id)
            return recordings.submitted(connection, row.id, _job_id(job_id), _job_id(actual_job_id or job_id))

    def merge_succeeded(
        self,
        exam_id: str,
        student_id: str,
        job_id: str,
        *,
        now_ms: int,
        video: str,
        segments: int,
        size_bytes: int,
        duration_ms: int,
    ) -> MergeState:
        """A verified video is there. `video` is its name in the exam's folder of recordings. Returns the state now."""
        outcome = recordings.check_outcome(video, segments, size_bytes, duration_ms)
        with self.database.write() as connection:
            row = self._lock_student(connection, exam_id, student_id)
            return recordings.succeeded(connection, row.id, _job_id(job_id), now_ms, outcome)

    def merge_failed(self, exam_id: str, student_id: str, job_id: str, *, now_ms: int, error: str) -> MergeState:
        """The merge could not be made, for this reason (its last ERROR_CHARS_MAX characters are kept).

        Ignored unless `job_id` is the student's present merge. A later success of the same job corrects it.
        """
        with self.database.write() as connection:
            row = self._lock_student(connection, exam_id, student_id)
            return recordings.failed(connection, row.id, _job_id(job_id), now_ms, recordings.check_error(error))

    def submitted_merges(self, not_after_ms: int, after: tuple[int, int], limit: int) -> list[SubmittedMerge]:
        """Merges that the broker has, requested by `not_after_ms`, oldest first. `after` is the last one's place of the
        page before, (0, 0) for the first."""
        with self.database.read() as connection:
            return recordings.submitted_merges(connection, not_after_ms, after, _page(limit))

    def merge_lost(self, exam_id: str, student_id: str, job_id: str, *, now_ms: int) -> MergeRequest | None:
        """The broker does not know this job: ask for a new merge. None if the recording does not wait for it."""
        with self.database.write() as connection:
            row = self._lock_student(connection, exam_id, student_id)
            if not recordings.waits_for(connection, row.id, _job_id(job_id)):
                return None
            (merge,) = recordings.request(connection, [row], now_ms)
            return merge

    def _write_once_more(self, work: Callable[[Connection], _Result]) -> _Result:
        """Again if another process has inserted the same row just now: then it is there to be found."""
        try:
            with self.database.write() as connection:
                return work(connection)
        except sql_errors.IntegrityError:
            with self.database.write() as connection:
                return work(connection)

    def _lock_student(self, connection: Connection, exam_id: str, student_id: str) -> Row[Any]:
        return _require_student(connection, names.exam_id(exam_id), names.student_id(student_id), lock=True)


def _page(limit: int) -> int:
    if not 1 <= limit <= PAGE_ROWS_MAX:
        raise ExamError("invalid", f"limit is {limit}; give 1 to {PAGE_ROWS_MAX}, and ask for the next page")
    return limit


def _job_id(text: str) -> str:
    if not 1 <= len(text) <= 36:
        raise ExamError("invalid", f"{text!r:.80} is not a job id")
    return text


def _select_exams() -> Select[Any]:
    return select(exams)


def _exam(row: Any) -> Exam:
    return Exam(row.id, row.name or "", row.start_time, row.end_time, ExamStatus(row.status), row.created_at or 0)


def _find_exam(connection: Connection, exam_id: str, *, lock: bool = False, share: bool = False) -> Exam | None:
    statement = _select_exams().where(exams.c.id == exam_id)
    if lock or share:
        statement = statement.with_for_update(read=share)
    row = connection.execute(statement).one_or_none()
    return None if row is None else _exam(row)


def _require_exam(connection: Connection, exam_id: str, *, lock: bool = False, share: bool = False) -> Exam:
    exam = _find_exam(connection, exam_id, lock=lock, share=share)
    if exam is None:
        raise ExamError("not_found", f"no exam {exam_id!r}; create it first")
    return exam


def _select_students() -> Select[Any]:
    return select(exam_students, *recordings.joined_columns()).join_from(exam_students, recordings_table, isouter=True)


def _student(row: Any) -> Student:
    return Student(
        row.exam_id,
        row.student_id,
        row.student_name or "",
        StudentStatus(row.status),
        row.last_active,
        recordings.from_joined(row),
    )


def _require_student(connection: Connection, exam_id: str, student_id: str, *, lock: bool = False) -> Row[Any]:
    this = (exam_students.c.exam_id == exam_id, exam_students.c.student_id == student_id)
    if lock:
        connection.execute(select(exam_students.c.id).where(*this).with_for_update())
    row = connection.execute(_select_students().where(*this)).one_or_none()
    if row is None or row.student_id != student_id:  # a foreign column may take 'a' for 'A'
        _require_exam(connection, exam_id)
        raise ExamError("not_found", f"no student {student_id!r} in exam {exam_id!r}; add him to the exam, or log in")
    return row


def _ensure_students(connection: Connection, exam_id: str, wanted: dict[str, str]) -> int:
    present: dict[str, str] = {}
    columns = (exam_students.c.student_id, exam_students.c.student_name)
    for part in chunks(sorted(wanted)):
        rows = connection.execute(
            select(*columns).where(exam_students.c.exam_id == exam_id, exam_students.c.student_id.in_(part))
        )
        present.update((student_id, name) for student_id, name in rows)
    missing: Sequence[str] = [student_id for student_id in wanted if student_id not in present]
    if missing:
        counted = connection.execute(select(func.count()).where(exam_students.c.exam_id == exam_id)).scalar_one()
        if counted + len(missing) > STUDENTS_PER_EXAM_MAX:
            raise ExamError("too_large", f"more than {STUDENTS_PER_EXAM_MAX} students in exam {exam_id!r}")
        connection.execute(
            exam_students.insert(),
            [
                {"exam_id": exam_id, "student_id": s, "student_name": wanted[s], "status": StudentStatus.PENDING}
                for s in missing
            ],
        )
    for student_id, name in present.items():
        if wanted[student_id] not in ("", name):
            connection.execute(
                update(exam_students)
                .where(exam_students.c.exam_id == exam_id, exam_students.c.student_id == student_id)
                .values(student_name=wanted[student_id], **UNTOUCHED)
            )
    return len(missing)


def _set_student(
    connection: Connection, row_id: int, status: StudentStatus, action: Action | None, now_ms: int, ip: str
) -> None:
    connection.execute(
        update(exam_students).where(exam_students.c.id == row_id).values(status=status, last_active=now_ms)
    )
    if action is not None:
        connection.execute(history.insert().values(student_exam_id=row_id, action=action, timestamp=now_ms, ip=ip))
