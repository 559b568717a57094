"""The calls of exam clients that were there before zq, under the names and in the forms that they use.

    POST /api/login             student_id, exam_id, student_name
    POST /api/heartbeat         student_id, exam_id
    POST /api/screen_recording  multipart: video, student_id, exam_id, timestamp, sequence, fps, quality
    POST /api/logout            student_id, exam_id

Each does what its namesake below /v1/exams does. Such a client sends no token: `web.exam_client_networks` says from
where that is accepted.
"""

from __future__ import annotations

import logging
import os
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from zq.exams import merging, names, times
from zq.exams.errors import ExamError
from zq.exams.segments import SEQ_MAX
from zq.web import views
from zq.web.answers import json_response
from zq.web.auth import Scope
from zq.web.callers import caller_of, client_ip
from zq.web.exam_views import SegmentView
from zq.web.exams import ExamRoutes
from zq.web.forms import Form, read_form, read_upload
from zq.web.intake import Declared, Intake, gather_bytes
from zq.web.operations import Operation
from zq.web.problems import Problem, invalid
from zq.web.services import Services, now_ms

log = logging.getLogger("zq.web")

NAME_FIELDS: Final = ("student_name", "name", "username")
SAME_NAME_MAX: Final = 9
"""Different segments that a client calls the same: same second, same number."""


class ClientAnswer(views.View, frozen=True, kw_only=True):
    """What these clients are told when it is done; a refusal is a problem as everywhere, with its status."""

    success: bool = True
    status: str = "success"
    message: str = ""


class ClientLogin(ClientAnswer, frozen=True, kw_only=True):
    exam_id: str
    student_id: str
    student_name: str
    student_status: str
    token: str
    """An upload token, for clients that can send one."""


class ClientUpload(ClientAnswer, frozen=True, kw_only=True):
    filename: str
    size: int
    sha256: str
    created: bool


class ClientLogout(ClientAnswer, frozen=True, kw_only=True):
    job: str | None
    """Id of the job that merges the recording; null if there is nothing to merge."""


class ClientStudent(views.View, frozen=True, kw_only=True):
    """Also urlencoded, or multipart; numbers are as good as text."""

    student_id: str | int
    exam_id: str | int


class ClientEntry(ClientStudent, frozen=True, kw_only=True):
    student_name: str | None = None
    """At login: a student who is not on the exam's list is put on it. `name` and `username` are read too."""


class ClientRecording(views.View, frozen=True, kw_only=True):
    """`timestamp` (ISO 8601) is when the segment ended; `sequence` its number; fps and quality are not looked at."""

    student_id: str
    exam_id: str
    video: str
    timestamp: str | None = None
    sequence: str | None = None
    fps: str | None = None
    quality: str | None = None


CLIENT: Final = {"student_id": "2026001", "exam_id": "math-2026", "student_name": "王小明"}
RECORDING: Final = {
    "student_id": "2026001", "exam_id": "math-2026", "video": "@screen.mp4", "timestamp": "2026-06-30T09:01:00",
    "sequence": "1", "fps": "2", "quality": "high",
}  # fmt: skip


class ExamClientRoutes:
    def __init__(self, services: Services, exams: ExamRoutes) -> None:
        self._services = services
        self._exams = exams
        self._intake = Intake(services)

    async def client_login(self, request: Request) -> Response:
        fields = await self._fields(request)
        exam_id, student_id = _student(request, fields)
        name = next((fields[field] for field in NAME_FIELDS if fields.get(field)), None)
        student = await self._exams.enter(exam_id, student_id, name, client_ip(request))
        made = await self._exams.upload_token(exam_id, student_id)
        return json_response(
            ClientLogin(
                message="logged in",
                exam_id=exam_id,
                student_id=student_id,
                student_name=student.name,
                student_status=student.status,
                token=made.token,
            )
        )

    async def client_heartbeat(self, request: Request) -> Response:
        exam_id, student_id = _student(request, await self._fields(request))
        await self._exams.hear(exam_id, student_id, client_ip(request))
        return json_response(ClientAnswer(message="heard"))

    async def client_logout(self, request: Request) -> Response:
        exam_id, student_id = _student(request, await self._fields(request))
        view, _ = await self._exams.end(exam_id, student_id, client_ip(request))
        return json_response(ClientLogout(message="logged out", job=view.job))

    async def client_recording(self, request: Request) -> Response:
        web = self._services.config.web
        self._services.uploads += 1
        try:
            form = await read_upload(
                request,
                self._services.config.storage_path,
                max_file_bytes=web.max_segment_mib << 20,
                timeout_s=web.body_timeout_s,
                memory_bytes=gather_bytes(self._services.uploads),
            )
            try:
                stored = await self._keep(request, form)
            finally:
                form.close()
        finally:
            self._services.uploads -= 1
        return json_response(
            ClientUpload(
                message="stored", filename=stored.name, size=stored.size_bytes, sha256=stored.sha256,
                created=stored.created,
            )
        )  # fmt: skip

    async def _keep(self, request: Request, form: Form) -> SegmentView:
        exam_id, student_id = _student(request, form.fields)
        if form.file is None:
            raise invalid("#/video", "the file is missing; send it in the field 'video'")
        extension = os.path.splitext(form.file_name)[1].lower()
        names.segment_name(f"segment{extension}")
        seq, ended_ms = self._place(form.fields)
        declared = Declared(seq, ended_ms, form.file.size_bytes, None)
        stamp = times.stamp(ended_ms, self._services.store.zone)
        number = "" if seq is None else f"_seq_{seq:04}"
        for again in range(1, SAME_NAME_MAX + 1):
            mark = "" if again == 1 else f"-{again}"
            name = f"{student_id}{mark}_{stamp}{number}{extension}"
            try:
                return await self._intake.take(
                    exam_id, student_id, name, declared, form.file.parts(), client_ip(request)
                )
            except ExamError as error:
                # The name is ours, so that it is taken is no fault of the client, and its bytes are kept beside.
                if error.code != "conflict" or again == SAME_NAME_MAX:
                    raise
                log.warning("two different segments would be %s; kept under another name", name)
        raise AssertionError("not reached")

    def _place(self, fields: dict[str, str]) -> tuple[int | None, int]:
        """Number and end of the segment; the time of its arrival for a client that does not say."""
        text = fields.get("sequence", "").strip()
        if text and not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= SEQ_MAX):
            raise invalid("#/sequence", f"sequence is {text!r:.40}; give a whole number")
        said = fields.get("timestamp", "").strip()
        ended_ms = times.to_ms(said, self._services.store.zone, "timestamp") if said else now_ms()
        return int(text) if text else None, ended_ms

    async def _fields(self, request: Request) -> dict[str, str]:
        return await read_form(request, timeout_s=self._services.config.web.body_timeout_s)

    def operations(self) -> list[Operation]:
        found = []
        for path, handler, summary, body, answer in (
            ("login", self.client_login, "As …/login, in the form of older exam clients", ClientEntry, ClientLogin),
            ("heartbeat", self.client_heartbeat, "As …/heartbeat", ClientStudent, ClientAnswer),
            ("logout", self.client_logout, "As …/finish", ClientStudent, ClientLogout),
            ("screen_recording", self.client_recording, "As …/segments", ClientRecording, ClientUpload),
        ):
            upload = body is ClientRecording
            found.append(
                Operation(
                    "POST", f"/api/{path}", handler, summary, Scope.SUBMIT, queue=merging.QUEUE, own=True,
                    tokenless=True, often=True, body=body, example=RECORDING if upload else CLIENT,
                    answers=((200, answer),),
                    body_types=("multipart/form-data",) if upload else
                    ("application/json", "application/x-www-form-urlencoded", "multipart/form-data"),
                    errors=(400, 404, 408, 409, 413, 415, 422, 503),
                )
            )  # fmt: skip
        return found


def _student(request: Request, fields: dict[str, str]) -> tuple[str, str]:
    """(exam id, student id). Raises Problem and ExamError, also for an upload token of another student."""
    for name in ("exam_id", "student_id"):
        if not fields.get(name, "").strip():
            raise invalid(f"#/{name}", f"{name} is missing")
    key = names.exam_id(fields["exam_id"].strip()), names.student_id(fields["student_id"].strip())
    whose = caller_of(request).student
    if whose is not None and whose != key:
        raise Problem(403, "forbidden", "this upload token is another student's")
    return key
