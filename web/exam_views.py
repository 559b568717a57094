"""Exams, students and recordings as the API answers them. Times are in the university's zone, with its offset."""

from __future__ import annotations

from urllib.parse import quote
from zoneinfo import ZoneInfo

from zq.exams import times
from zq.exams.model import Exam, Recording, Student
from zq.web.views import View


class RecordingView(View, frozen=True):
    """The fate of a student's video."""

    state: str
    """requested, submitted, done or failed."""
    job_id: str
    requested_at: str
    finished_at: str | None
    video: str | None
    """Where to get it; the last complete video, also while a new merge is under way."""
    segments: int
    """How many are in the video."""
    size_bytes: int
    duration_s: float
    error: str


class StudentView(View, frozen=True):
    id: str
    name: str
    status: str
    """pending, online, offline or logout."""
    last_active_at: str | None
    segments: int | None
    """Uploaded and not yet cleaned up after a merge; null where it was not counted."""
    recording: RecordingView | None


class ExamView(View, frozen=True):
    id: str
    name: str
    status: str
    start: str
    end: str
    created_at: str


class ExamMade(View, frozen=True):
    exam: ExamView
    students_added: int


class ExamList(View, frozen=True):
    exams: list[ExamView]
    next: str | None
    """`before` of the next page; null when there is none."""


class ExamDetail(View, frozen=True):
    exam: ExamView
    counts: dict[str, int]
    """Students by status."""
    students: list[StudentView]
    next: str | None
    """`after` of the next page of students; null when there is none."""


class UploadToken(View, frozen=True):
    """Opens heartbeat, segments, finish and status of one student, and nothing else."""

    token: str
    expires_at: str


class FinishView(View, frozen=True):
    student: StudentView
    first: bool
    """False: had finished before, and nothing was changed."""
    job: str | None
    """Id of the job that merges the recording; null if there is nothing to merge."""
    submitted: bool
    """False: the broker could not take the job just now. It is on record, and is submitted by the next check."""


class SegmentView(View, frozen=True):
    name: str
    size_bytes: int
    sha256: str
    created: bool
    """False: the same bytes were here under this name before."""


def exam_view(exam: Exam, zone: ZoneInfo) -> ExamView:
    return ExamView(
        id=exam.id,
        name=exam.name,
        status=exam.status,
        start=times.show(exam.start_ms, zone),
        end=times.show(exam.end_ms, zone),
        created_at=times.show(exam.created_ms, zone),
    )


def student_view(student: Student, zone: ZoneInfo, segments: int | None) -> StudentView:
    return StudentView(
        id=student.student_id,
        name=student.name,
        status=student.status,
        last_active_at=times.show(student.last_active_ms, zone) if student.last_active_ms is not None else None,
        segments=segments,
        recording=recording_view(student, student.recording, zone) if student.recording is not None else None,
    )


def recording_view(student: Student, recording: Recording, zone: ZoneInfo) -> RecordingView:
    return RecordingView(
        state=recording.state,
        job_id=recording.job_id,
        requested_at=times.show(recording.requested_ms, zone),
        finished_at=times.show(recording.finished_ms, zone) if recording.finished_ms is not None else None,
        video=recording_url(student) if recording.video is not None else None,
        segments=recording.segments,
        size_bytes=recording.size_bytes,
        duration_s=recording.duration_ms / 1000,
        error=recording.error,
    )


def recording_url(student: Student) -> str:
    return f"/v1/exams/{quote(student.exam_id)}/students/{quote(student.student_id)}/recording"
