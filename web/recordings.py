"""The download of a merged video: whole, or the one range that a player asks for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from zq.exams.errors import ExamError
from zq.exams.model import Student
from zq.exams.recording_place import Video
from zq.web import auth
from zq.web.exams import student_key
from zq.web.intake import in_thread
from zq.web.operations import Operation, Parameter
from zq.web.problems import Problem
from zq.web.ranges import NotSatisfiable, Span, wanted
from zq.web.services import Services

READ_BYTES = 256 << 10
NOT_READY_RETRY_AFTER_S = 5.0

MEDIA_TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".mov": "video/quicktime",
    ".avi": "video/x-msvideo",
}


class RecordingRoutes:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def get_recording(self, request: Request) -> Response:
        student = await asyncio.to_thread(self._services.store.get_student, *student_key(request))
        video = _video_of(student)
        file = await asyncio.to_thread(self._services.storage.open_video, student.exam_id, video)
        try:
            return _answer(request, file, video)
        except BaseException:
            file.close()
            raise

    def operations(self) -> list[Operation]:
        return [
            Operation(
                "GET", "/v1/exams/{exam_id}/students/{student_id}/recording", self.get_recording,
                "The merged video", auth.Scope.READ, answers=((200, None), (206, None), (304, None)),
                media_type="video/*", errors=(404, 409, 416, 422, 503),
                parameters=(Parameter("Range", "One range: bytes=FIRST-LAST, bytes=FIRST-, bytes=-LAST", "header"),),
            )
        ]  # fmt: skip


def _video_of(student: Student) -> str:
    """The video's name. Raises: ExamError if none is under way, Problem 409 if it is not ready."""
    recording = student.recording
    if recording is None:
        raise ExamError("not_found", "there is no recording of this student: no merge was asked for")
    if recording.video is None:
        why = f": {recording.error}" if recording.error else ""
        raise Problem(
            409,
            "not-ready",
            f"the merge is {recording.state} (job {recording.job_id}){why}"[:1000],
            retry_after_s=NOT_READY_RETRY_AFTER_S,
        )
    return recording.video


def _answer(request: Request, file: Video, video: str) -> Response:
    size_bytes = file.size_bytes
    etag = f'"{file.etag}"'
    extension = os.path.splitext(video)[1].lower()
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": etag,
        "Cache-Control": "private, no-cache",
        "Content-Type": MEDIA_TYPES.get(extension, "application/octet-stream"),
        "Content-Disposition": f"inline; filename=\"recording{extension}\"; filename*=UTF-8''{quote(video, safe='')}",
    }
    if request.headers.get("if-none-match") == etag:
        file.close()
        return Response(status_code=304, headers=headers)
    try:
        # A range of another version of the file than the client has would not fit its other parts.
        same = request.headers.get("if-range") in (None, etag)
        span = wanted(request.headers.get("range"), size_bytes) if same else None
    except NotSatisfiable:
        raise Problem(
            416,
            "range",
            f"the range begins behind the end; the recording has {size_bytes} bytes",
            headers={"Content-Range": f"bytes */{size_bytes}", "Accept-Ranges": "bytes"},
        ) from None
    if span is None:
        return FileAnswer(file, Span(0, size_bytes - 1), 200, headers)
    headers["Content-Range"] = f"bytes {span.first}-{span.last}/{size_bytes}"
    return FileAnswer(file, span, 206, headers)


class FileAnswer(Response):
    """Part of an open file, read in a thread as fast as the client takes it; closes the file."""

    def __init__(self, file: Video, span: Span, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(status_code=status, headers={**headers, "Content-Length": str(span.size_bytes)})
        self._file = file
        self._span = span

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_disconnect(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            at, end = self._span.first, self._span.last + 1
            while scope["method"] != "HEAD" and at < end and not gone.done():
                part = await in_thread(self._file.read_at, min(READ_BYTES, end - at), at)
                if not part:
                    # Shorter than it was: the client sees a cut connection, not a wrong film.
                    raise OSError("the recording was cut while it was sent")
                at += len(part)
                await send({"type": "http.response.body", "body": part, "more_body": True})
            if not gone.done():
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            gone.cancel()
            self._file.close()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
