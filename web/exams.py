"""The routes for exams and students: made, listed, edited, heard of, finished."""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from zq.exams import merging, moments, names, times
from zq.exams.errors import ExamError
from zq.exams.heartbeats import StatusNews
from zq.exams.model import PAGE_ROWS_MAX, STUDENTS_PER_CALL_MAX, Exam, MergeRequest, Student
from zq.exams.status import MergeState, StudentStatus
from zq.exceptions import Refused, Unavailable
from zq.web.answers import json_response, query, whole_number
from zq.web.auth import Scope
from zq.web.bodies import read_body, read_json
from zq.web.callers import client_ip
from zq.web.exam_views import (
    ExamDetail,
    ExamList,
    ExamMade,
    ExamView,
    FinishView,
    StudentView,
    UploadToken,
    exam_view,
    student_view,
)
from zq.web.operations import Operation, Parameter
from zq.web.problems import Problem
from zq.web.segment_counts import SegmentCounts
from zq.web.services import Services, now_ms

log = logging.getLogger("zq.web")

T = TypeVar("T")

EXAM_ROWS = 50
IGNORED_BODY_BYTES_MAX = 4096
"""Heartbeats and finishes need no body; clients that send one all the same are not refused for it."""

TOKEN_AFTER_END_MS = 24 * 3600 * 1000
"""An upload token outlives its exam by so much: for segments that come late."""

Instant = int | str
"""Unix milliseconds, or ISO 8601 (local to the university if it has no offset)."""


class StudentEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    id: Annotated[str, Meta(max_length=names.STUDENT_ID_CHARS_MAX)]
    name: Annotated[str, Meta(max_length=4 * names.NAME_CHARS_MAX)] = ""


class ExamCreation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sent again with the same values, it changes nothing; new students in it are added."""

    id: Annotated[str, Meta(max_length=names.EXAM_ID_CHARS_MAX)]
    name: Annotated[str, Meta(max_length=4 * names.NAME_CHARS_MAX)]
    start: Instant
    end: Instant
    students: Annotated[list[StudentEntry], Meta(max_length=STUDENTS_PER_CALL_MAX)] = []


EXAM = {
    "id": "math-2026",
    "name": "高等数学 期末",
    "start": "2026-06-30 09:00:00",
    "end": "2026-06-30T11:00:00+08:00",
    "students": [{"id": "2026001", "name": "王小明"}],
}


class ExamTimes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is left out stays."""

    start: Instant | None = None
    end: Instant | None = None


class Login(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """With a name, a student who is not on the exam's list is put on it."""

    name: Annotated[str, Meta(max_length=4 * names.NAME_CHARS_MAX)] | None = None


class ExamRoutes:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._store = services.store
        self._counts = SegmentCounts(services.storage)

    async def create_exam(self, request: Request) -> Response:
        body = await self._body(request, ExamCreation)
        exam, created = await asyncio.to_thread(
            self._store.create_exam, body.id, body.name, body.start, body.end, now_ms=now_ms()
        )
        await tell_moments(self._services, exam)
        added = 0
        if body.students:
            pairs = [(student.id, student.name) for student in body.students]
            added = await asyncio.to_thread(self._store.ensure_students, exam.id, pairs)
        made = ExamMade(exam=exam_view(exam, self._store.zone), students_added=added)
        return json_response(made, 201 if created else 200, {"Location": f"/v1/exams/{exam.id}"})

    async def list_exams(self, request: Request) -> Response:
        limit = whole_number(request, "limit", EXAM_ROWS, 1, PAGE_ROWS_MAX)
        before = query(request, "before")
        exams = await asyncio.to_thread(self._store.list_exams, limit=limit, before_id=before)
        following = exams[-1].id if len(exams) == limit else None
        return json_response(ExamList(exams=[exam_view(exam, self._store.zone) for exam in exams], next=following))

    async def get_exam(self, request: Request) -> Response:
        limit = whole_number(request, "limit", PAGE_ROWS_MAX, 1, PAGE_ROWS_MAX)
        after = query(request, "after") or ""
        return json_response(await asyncio.to_thread(self._exam_detail, request.path_params["exam_id"], limit, after))

    def _exam_detail(self, exam_id: str, limit: int, after: str) -> ExamDetail:
        exam = self._store.get_exam(exam_id)
        students = self._store.list_students(exam_id, limit=limit, after_id=after)
        counts = self._store.count_students(exam_id)
        return ExamDetail(
            exam=exam_view(exam, self._store.zone),
            counts={status.value: count for status, count in counts.items()},
            students=[self._student_view(student) for student in students],
            next=students[-1].student_id if len(students) == limit else None,
        )

    def _student_view(self, student: Student) -> StudentView:
        segments = self._counts.count(student.exam_id, student.student_id)
        return student_view(student, self._store.zone, segments)

    async def edit_exam(self, request: Request) -> Response:
        body = await self._body(request, ExamTimes)
        exam_id = request.path_params["exam_id"]
        if body.start is None and body.end is None:
            raise Problem(422, "invalid", "nothing to change; give start, end or both")
        exam = await asyncio.to_thread(
            self._store.edit_times, exam_id, now_ms=now_ms(), start=body.start, end=body.end
        )
        await tell_moments(self._services, exam)
        return json_response(exam_view(exam, self._store.zone))

    async def get_student(self, request: Request) -> Response:
        student = await asyncio.to_thread(self._store.get_student, *student_key(request))
        return json_response(await asyncio.to_thread(self._student_view, student))

    async def login(self, request: Request) -> Response:
        body = await self._body(request, Login)
        exam_id, student_id = student_key(request)
        student = await self.enter(exam_id, student_id, body.name, client_ip(request))
        return json_response(await asyncio.to_thread(self._student_view, student))

    async def enter(self, exam_id: str, student_id: str, name: str | None, ip: str) -> Student:
        """The student begins, or comes back. Raises ExamError."""
        student = await asyncio.to_thread(
            self._store.login, exam_id, student_id, now_ms=now_ms(), ip=ip, name=name
        )
        self._services.heartbeats.learn(exam_id, student_id)
        if self._services.config.exams.presence:
            self._services.heartbeats.add(exam_id, student_id, at_ms=now_ms(), ip=ip)
        return student

    async def _tell_left(self, student: Student) -> None:
        """Whoever reads presence elsewhere sees at once that the student has finished; the store has it already."""
        key = (student.exam_id, student.student_id)
        try:
            news = [StatusNews(key, student.name, StudentStatus.LOGOUT)]
            await asyncio.to_thread(self._services.presence.tell, news)
        except ExamError as error:
            log.warning("a student's end was not told: %s", error.detail)

    async def make_token(self, request: Request) -> Response:
        exam_id, student_id = student_key(request)
        await self._ignore_body(request)
        return json_response(await self.upload_token(exam_id, student_id), 201)

    async def upload_token(self, exam_id: str, student_id: str) -> UploadToken:
        """For the student's own client. Raises ExamError."""
        student, exam = await asyncio.to_thread(self._student_and_exam, exam_id, student_id)
        expires_ms = max(exam.end_ms, now_ms()) + TOKEN_AFTER_END_MS
        token = self._services.gate.student_token(student.exam_id, student.student_id, expires_ms // 1000)
        return UploadToken(token=token, expires_at=times.show(expires_ms, self._store.zone))

    def _student_and_exam(self, exam_id: str, student_id: str) -> tuple[Student, Exam]:
        return self._store.get_student(exam_id, student_id), self._store.get_exam(exam_id)

    async def heartbeat(self, request: Request) -> Response:
        exam_id, student_id = student_key(request)
        await self._ignore_body(request)
        await self.hear(exam_id, student_id, client_ip(request))
        return Response(status_code=204)

    async def hear(self, exam_id: str, student_id: str, ip: str) -> None:
        """A sign of life: an entry in memory, written with the next batch. Raises ExamError."""
        buffer = self._services.heartbeats
        if not buffer.knows(exam_id, student_id):
            # Once a student, not once a heartbeat.
            await asyncio.to_thread(self._store.get_student, exam_id, student_id)
            buffer.learn(exam_id, student_id)
        buffer.add(exam_id, student_id, at_ms=now_ms(), ip=ip)

    async def finish(self, request: Request) -> Response:
        exam_id, student_id = student_key(request)
        await self._ignore_body(request)
        view, under_way = await self.end(exam_id, student_id, client_ip(request))
        headers = {"Location": f"/v1/jobs/{view.job}"} if under_way else {}
        return json_response(view, 202 if under_way else 200, headers)

    async def end(self, exam_id: str, student_id: str, ip: str) -> tuple[FinishView, bool]:
        """First the store says that the student is done and which job merges; then that job is submitted. Also says
        whether the merge is still to come. Raises ExamError."""
        has_segments = await asyncio.to_thread(self._services.storage.has_segments, exam_id, student_id)
        finished = await asyncio.to_thread(
            self._store.finish_student, exam_id, student_id, now_ms=now_ms(), ip=ip, has_segments=has_segments
        )
        student = finished.student
        if finished.first and self._services.config.exams.presence:
            await self._tell_left(student)
        submitted = True
        if finished.merge is not None:
            submitted = await submit(self._services, finished.merge)
            student = await asyncio.to_thread(self._store.get_student, exam_id, student_id)
        recording = student.recording
        view = FinishView(
            student=await asyncio.to_thread(self._student_view, student),
            first=finished.first,
            job=recording.job_id if recording is not None else None,
            submitted=submitted,
        )
        return view, recording is not None and recording.state in {MergeState.REQUESTED, MergeState.SUBMITTED}

    async def _body(self, request: Request, struct: type[T]) -> T:
        web = self._services.config.web
        return await read_json(request, struct, max_bytes=web.max_body_mib << 20, timeout_s=web.body_timeout_s)

    async def _ignore_body(self, request: Request) -> None:
        await read_body(
            request, max_bytes=IGNORED_BODY_BYTES_MAX, timeout_s=self._services.config.web.body_timeout_s
        )

    def operations(self) -> list[Operation]:
        json_in = (400, 408, 413, 415, 422, 503)
        student = "/v1/exams/{exam_id}/students/{student_id}"
        queue = merging.QUEUE
        rows = Annotated[int, Meta(ge=1, le=PAGE_ROWS_MAX)]
        limit = Parameter("limit", f"Rows of a page, at most {PAGE_ROWS_MAX}", type=rows)
        return [
            Operation(
                "POST", "/v1/exams", self.create_exam, "Make an exam with its students", Scope.OPERATE,
                body=ExamCreation,
                example=EXAM, answers=((201, ExamMade), (200, ExamMade)), errors=(409, *json_in),
            ),
            Operation(
                "GET", "/v1/exams", self.list_exams, "Exams, latest start first", Scope.READ,
                answers=((200, ExamList),), errors=(404, 422, 503),
                parameters=(limit, Parameter("before", "`next` of the page before")),
            ),
            Operation(
                "GET", "/v1/exams/{exam_id}", self.get_exam, "An exam with its students", Scope.READ,
                answers=((200, ExamDetail),), errors=(404, 422, 503),
                parameters=(limit, Parameter("after", "`next` of the page before")),
            ),
            Operation(
                "PATCH", "/v1/exams/{exam_id}", self.edit_exam, "Move an exam's times", Scope.OPERATE,
                body=ExamTimes,
                example={"end": "2026-06-30 11:30:00"}, answers=((200, ExamView),), errors=(404, *json_in),
            ),
            Operation(
                "GET", student, self.get_student, "A student with presence and recording", Scope.READ, own=True,
                answers=((200, StudentView),), errors=(404, 422, 503),
            ),
            Operation(
                "POST", f"{student}/login", self.login, "A student begins, or comes back", Scope.SUBMIT,
                queue=queue, body=Login,
                example={"name": "王小明"}, answers=((200, StudentView),), errors=(404, 409, *json_in),
            ),
            Operation(
                "POST", f"{student}/token", self.make_token, "A token for this student's own client alone",
                Scope.SUBMIT, queue=queue, answers=((201, UploadToken),), errors=(404, 408, 409, 413, 422, 503),
            ),
            Operation(
                "POST", f"{student}/heartbeat", self.heartbeat, "A sign of life", Scope.SUBMIT,
                queue=queue, own=True, often=True, answers=((204, None),), errors=(404, 408, 413, 422, 503),
            ),
            Operation(
                "POST", f"{student}/finish", self.finish, "A student is done: the merge is submitted", Scope.SUBMIT,
                queue=queue, own=True, answers=((202, FinishView), (200, FinishView)), errors=(404, 408, 413, 422, 503),
            ),
        ]  # fmt: skip


def student_key(request: Request) -> tuple[str, str]:
    """Raises ExamError for what cannot be ids, before they are used for anything."""
    return names.exam_id(request.path_params["exam_id"]), names.student_id(request.path_params["student_id"])


async def tell_moments(services: Services, exam: Exam) -> None:
    """A status check at the exam's start, end and merges. Without the broker the next check sees to it."""
    try:
        await services.client.submit_many(moments.requests_of(exam, services.config, now_ms()))
    except (Unavailable, Refused) as error:
        log.warning("the moments of an exam wait for the next status check: %s", error, extra={"exam": exam.id})


async def submit(services: Services, merge: MergeRequest) -> bool:
    """Whether the broker has the merge's job now. If not, the request stays on record and is no error."""
    try:
        done = await merging.submit_merge(services.client, services.store, services.config, merge)
    except (Unavailable, Refused) as error:
        log.warning("a merge waits for the next status check: %s", error, extra={"job": merge.job_id})
        return False
    if not done.accepted:
        log.warning("a merge waits for the next status check: %s", done.detail, extra={"job": merge.job_id})
    return done.accepted
