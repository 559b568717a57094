"""What the exam store hands out: plain, immutable values. Times are Unix milliseconds."""

from __future__ import annotations

from dataclasses import dataclass

from zq.exams.status import Action, ExamStatus, MergeState, StudentStatus

PAGE_ROWS_MAX = 1_000
STUDENTS_PER_CALL_MAX = 5_000


@dataclass(frozen=True, slots=True)
class Exam:
    id: str
    name: str
    start_ms: int
    end_ms: int
    status: ExamStatus
    """As of the last check, not of this moment."""
    created_ms: int


@dataclass(frozen=True, slots=True)
class Recording:
    """The fate of a student's video."""

    state: MergeState
    job_id: str
    requested_ms: int
    finished_ms: int | None
    video: str | None
    """File name in the exam's folder of recordings; the last complete video, also while a new merge is under way."""
    segments: int
    size_bytes: int
    duration_ms: int
    error: str


@dataclass(frozen=True, slots=True)
class Student:
    exam_id: str
    student_id: str
    name: str
    status: StudentStatus
    last_active_ms: int | None
    recording: Recording | None


@dataclass(frozen=True, slots=True)
class HistoryRow:
    action: Action
    at_ms: int
    ip: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    exam_id: str
    student_id: str
    at_ms: int
    ip: str


@dataclass(frozen=True, slots=True)
class MergeRequest:
    """A merge that must be submitted with exactly this id, key and arguments: then any number of submits is one job."""

    exam_id: str
    student_id: str
    student_name: str
    job_id: str

    @property
    def key(self) -> str:
        """At most one live merge of a student."""
        return merge_key(self.exam_id, self.student_id)

    @property
    def kwargs(self) -> dict[str, str]:
        return {"exam_id": self.exam_id, "student_id": self.student_id, "student_name": self.student_name}


@dataclass(frozen=True, slots=True)
class SubmittedMerge:
    """A merge that the broker has taken, and whose end the store has not heard of."""

    exam_id: str
    student_id: str
    job_id: str
    place: tuple[int, int]
    """Where it stands among them: where the next page goes on."""


def merge_key(exam_id: str, student_id: str) -> str:
    """The key of a student's merge job. Ids have no ':' in them, so two students never share one."""
    return f"merge:{exam_id}:{student_id}"


@dataclass(frozen=True, slots=True)
class Finished:
    student: Student
    first: bool
    """False for a repeated call: nothing was changed."""
    merge: MergeRequest | None
    """The job to submit now; None if there is nothing to merge, or the broker has the job already."""
