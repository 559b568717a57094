"""The merge of each student's recording, as the store sees it: asked for, submitted, done, failed.

A request is written with the id of its job before the job is submitted. Whoever crashes in between leaves a request
that the next check hands out again, and the broker knows a job that it already has by its id: one request, one job.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, select, tuple_, update

from zq.exams import names
from zq.exams.database import chunks
from zq.exams.errors import ExamError
from zq.exams.model import MergeRequest, Recording, SubmittedMerge
from zq.exams.status import MERGE_TRANSITIONS, MergeEvent, MergeState
from zq.exams.tables import exam_students, recordings
from zq.protocol.job import format_id, job_id_from

ERROR_CHARS_MAX = 2000
REQUESTS_PER_CHECK_MAX = 10_000

_columns = [column.label(f"recording_{column.name}") for column in recordings.c]


def joined_columns() -> list[Any]:
    """The columns for `from_joined`, for a statement that joins `recordings`."""
    return _columns


def from_joined(row: Any) -> Recording | None:
    if row.recording_state is None:
        return None
    return Recording(
        state=MergeState(row.recording_state),
        job_id=row.recording_job_id,
        requested_ms=row.recording_requested_at,
        finished_ms=row.recording_finished_at,
        video=row.recording_video,
        segments=row.recording_segments,
        size_bytes=row.recording_size_bytes,
        duration_ms=row.recording_duration_ms,
        error=row.recording_error,
    )


def request(connection: Connection, students: Sequence[Any], now_ms: int) -> list[MergeRequest]:
    """Ask for a merge of each of these locked rows of exam_students; a request that is still open stays as it is."""
    before = _states(connection, [student.id for student in students])
    requests: list[MergeRequest] = []
    new: list[dict[str, Any]] = []
    again: list[dict[str, Any]] = []
    for student in students:
        state, job_id = before.get(student.id, (None, ""))
        if state is not MergeState.REQUESTED:
            parts = (student.exam_id, student.student_id, str(now_ms), job_id)
            job_id = format_id(job_id_from("merge", *parts))
            after = MERGE_TRANSITIONS[state, MergeEvent.REQUEST]
            (new if state is None else again).append({"row": student.id, "after": after, "job": job_id})
        requests.append(MergeRequest(student.exam_id, student.student_id, student.student_name, job_id))
    values = {"state": bindparam("after"), "job_id": bindparam("job"), "requested_at": now_ms, "error": ""}
    if new:
        statement = recordings.insert().values(
            student_exam_id=bindparam("row"), segments=0, size_bytes=0, duration_ms=0, **values
        )
        connection.execute(statement, new)
    if again:
        # The video of an earlier merge stays on show until the new one is there.
        connection.execute(
            update(recordings).where(recordings.c.student_exam_id == bindparam("row")).values(**values), again
        )
    return requests


def submitted(connection: Connection, row_id: int, job_id: str, actual_job_id: str) -> bool:
    """The broker has the job; False if this request is not the open one any more."""
    state, present = _state(connection, row_id)
    after = MERGE_TRANSITIONS.get((state, MergeEvent.SUBMIT))
    if after is None or present != job_id:
        return False
    _update(connection, row_id, state=after, job_id=actual_job_id)
    return True


def succeeded(connection: Connection, row_id: int, job_id: str, now_ms: int, outcome: dict[str, Any]) -> MergeState:
    """A verified video counts whoever made it. A newer request that has not been served yet stays open."""
    state, present = _state(connection, row_id)
    after = MERGE_TRANSITIONS[state, MergeEvent.SUCCEED]
    if state is None:
        _insert(connection, row_id, state=after, job_id=job_id, requested_at=now_ms, finished_at=now_ms, **outcome)
    elif state is MergeState.REQUESTED and present != job_id:
        _update(connection, row_id, finished_at=now_ms, **outcome)
        return state
    else:
        _update(connection, row_id, state=after, job_id=job_id, finished_at=now_ms, error="", **outcome)
    return after


def failed(connection: Connection, row_id: int, job_id: str, now_ms: int, error: str) -> MergeState:
    """A failure counts only if it is the present job's: another job's failure says nothing about this one."""
    state, present = _state(connection, row_id)
    after = MERGE_TRANSITIONS.get((state, MergeEvent.FAIL))
    if state is None:
        values = {"state": MergeState.FAILED, "segments": 0, "size_bytes": 0, "duration_ms": 0}
        _insert(connection, row_id, job_id=job_id, requested_at=now_ms, finished_at=now_ms, error=error, **values)
        return MergeState.FAILED
    if after is None or present != job_id:
        return state
    _update(connection, row_id, state=after, finished_at=now_ms, error=error)
    return after


def _insert(connection: Connection, row_id: int, **values: Any) -> None:
    connection.execute(recordings.insert().values(**{"error": ""} | values, student_exam_id=row_id))


def _update(connection: Connection, row_id: int, **values: Any) -> None:
    connection.execute(update(recordings).where(recordings.c.student_exam_id == row_id).values(**values))


def _state(connection: Connection, row_id: int) -> tuple[MergeState | None, str]:
    return _states(connection, [row_id]).get(row_id, (None, ""))


def _states(connection: Connection, row_ids: Sequence[int]) -> dict[int, tuple[MergeState | None, str]]:
    """State and job of those that have a row, locked."""
    found: dict[int, tuple[MergeState | None, str]] = {}
    for part in chunks(row_ids):
        rows = connection.execute(
            select(recordings.c.student_exam_id, recordings.c.state, recordings.c.job_id)
            .where(recordings.c.student_exam_id.in_(part))
            .order_by(recordings.c.student_exam_id)
            .with_for_update()
        )
        found.update((row_id, (MergeState(state), job_id)) for row_id, state, job_id in rows)
    return found


def open_requests(connection: Connection, not_after_ms: int) -> list[MergeRequest]:
    """Requests made by `not_after_ms` of which nobody has said that the broker has them, oldest first."""
    rows = connection.execute(
        select(exam_students.c.exam_id, exam_students.c.student_id, exam_students.c.student_name, recordings.c.job_id)
        .join_from(recordings, exam_students)
        .where(recordings.c.state == MergeState.REQUESTED, recordings.c.requested_at <= not_after_ms)
        .order_by(recordings.c.requested_at, recordings.c.student_exam_id)
        .limit(REQUESTS_PER_CHECK_MAX)
    )
    return [MergeRequest(*row) for row in rows]


def submitted_merges(
    connection: Connection, not_after_ms: int, after: tuple[int, int], limit: int
) -> list[SubmittedMerge]:
    """Merges requested by `not_after_ms` that the broker has and that have not ended, oldest first, from a place on."""
    place = (recordings.c.requested_at, recordings.c.student_exam_id)
    rows = connection.execute(
        select(exam_students.c.exam_id, exam_students.c.student_id, recordings.c.job_id, *place)
        .join_from(recordings, exam_students)
        .where(
            recordings.c.state == MergeState.SUBMITTED,
            recordings.c.requested_at <= not_after_ms,
            tuple_(*place) > tuple_(*after),
        )
        .order_by(*place)
        .limit(limit)
    )
    return [SubmittedMerge(*row[:3], (row[3], row[4])) for row in rows]


def waits_for(connection: Connection, row_id: int, job_id: str) -> bool:
    """Whether the recording is submitted, as this very job."""
    return _state(connection, row_id) == (MergeState.SUBMITTED, job_id)


def check_outcome(video: str, segments: int, size_bytes: int, duration_ms: int) -> dict[str, Any]:
    """The columns of a success. Raises ExamError("invalid") for what cannot be one."""
    names.file_name(video, "video name")
    if min(segments, size_bytes) < 1 or duration_ms < 0:
        raise ExamError("invalid", f"a video of {segments} segments, {size_bytes} bytes, {duration_ms} ms is none")
    return {"video": video, "segments": segments, "size_bytes": size_bytes, "duration_ms": duration_ms}


def check_error(error: str) -> str:
    """The end of the text (where FFmpeg says why), bounded, without what a database would refuse."""
    text = error.strip()[-ERROR_CHARS_MAX:]
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text) or "no reason was given"
