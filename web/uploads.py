"""The upload of a segment: streamed to disk while it is hashed, on record before it is answered."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from zq.exams import names
from zq.exams.merging import QUEUE
from zq.exams.model import Student
from zq.exams.segment_index import read_index, record_segment
from zq.exams.segments import SEQ_MAX, TS_MS_MAX, MergeRefused, Segment
from zq.exams.status import MergeState, StudentStatus
from zq.exams.storage import SegmentWriter
from zq.web.answers import json_response
from zq.web.auth import Scope
from zq.web.bodies import chunks, declared_bytes
from zq.web.callers import client_ip
from zq.web.exam_views import SegmentView
from zq.web.exams import student_key, submit
from zq.web.operations import Operation, Parameter
from zq.web.problems import Problem, invalid
from zq.web.services import Services, now_ms

log = logging.getLogger("zq.web")

WRITE_BYTES = 256 << 10
"""Gathered before a thread is asked to write: fewer hand-overs, and still little memory for each upload."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Declared:
    """What the uploader says of a segment in headers; None for what it does not say."""

    seq: int | None
    ts_ms: int | None
    size_bytes: int | None
    sha256: str | None


class UploadRoutes:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def put_segment(self, request: Request) -> Response:
        exam_id, student_id = student_key(request)
        name = names.segment_name(request.path_params["name"])
        declared = read_declared(request, self._services.config.web.max_segment_mib << 20)
        student = await asyncio.to_thread(self._services.store.get_student, exam_id, student_id)
        stored = await self._store(request, student, name, declared)
        self._services.heartbeats.learn(exam_id, student_id)
        self._services.heartbeats.add(exam_id, student_id, at_ms=now_ms(), ip=client_ip(request))
        if stored.created and student.status is StudentStatus.LOGOUT:
            # It came after the finish: what has been merged without it, or is being merged, is not complete.
            merge = await asyncio.to_thread(
                self._services.store.request_merge, exam_id, student_id, now_ms=now_ms()
            )
            await submit(self._services, merge)
        return json_response(stored, 201 if stored.created else 200)

    async def _store(self, request: Request, student: Student, name: str, declared: Declared) -> SegmentView:
        web = self._services.config.web
        bound_bytes = web.max_segment_mib << 20
        merged = await asyncio.to_thread(self._merged_segment, student, name)
        digest = hashlib.sha256()
        writer = await asyncio.to_thread(
            self._services.storage.open_segment,
            student.exam_id,
            student.student_id,
            name,
            size_bytes_max=bound_bytes,
            size_bytes=declared.size_bytes,
            sha256=declared.sha256,
        )
        try:
            waiting = bytearray()
            async for part in chunks(request, max_bytes=bound_bytes, timeout_s=web.body_timeout_s):
                waiting += part
                if merged is not None:
                    digest.update(part)
                if len(waiting) >= WRITE_BYTES:
                    await in_thread(writer.write, bytes(waiting))
                    waiting.clear()
            await in_thread(writer.write, bytes(waiting))
            if merged is not None and merged.sha256 == digest.hexdigest():
                # Its answer was lost, and meanwhile it was merged and cleaned up.
                return SegmentView(name=name, size_bytes=writer.written_bytes, sha256=merged.sha256, created=False)
            return await in_thread(_commit, writer, name, declared)
        finally:
            await in_thread(writer.abort)

    def _merged_segment(self, student: Student, name: str) -> Segment | None:
        """What is on record of a segment that is in the finished video and no longer on disk."""
        if student.recording is None or student.recording.state is not MergeState.DONE:
            return None
        folder = self._services.storage.student_folder(student.exam_id, student.student_id)
        if (folder / name).exists():
            return None
        with contextlib.suppress(OSError, MergeRefused):
            return read_index(folder).get(name)
        return None

    def operations(self) -> list[Operation]:
        headers = (
            Parameter("X-Zq-Sequence", "Number of the segment in its recording, from 0 or 1", "header", int),
            Parameter("X-Zq-Timestamp-Ms", "When the segment ended, Unix milliseconds of the client", "header", int),
            Parameter("X-Zq-Sha256", "SHA-256 of the bytes in hexadecimal; other bytes are refused", "header"),
            Parameter("Content-Digest", "The same as sha-256=:base64: (RFC 9530); Digest is read too", "header"),
        )
        return [
            Operation(
                "PUT", "/v1/exams/{exam_id}/students/{student_id}/segments/{name:anything}", self.put_segment,
                "Upload a segment; the same bytes again are fine", Scope.SUBMIT, queue=QUEUE, own=True, body=bytes,
                answers=((201, SegmentView), (200, SegmentView)), parameters=headers,
                errors=(400, 404, 408, 409, 413, 422, 503),
            )
        ]  # fmt: skip


def _commit(writer: SegmentWriter, name: str, declared: Declared) -> SegmentView:
    stored = writer.commit()
    segment = Segment(name, declared.seq, declared.ts_ms, stored.size_bytes, stored.sha256, now_ms())
    if stored.created or not _on_record(stored.folder, segment):
        try:
            record_segment(stored.folder, segment)
        except OSError as error:
            detail = f"the segment cannot be put on record ({error.strerror}); send it again later"
            raise Problem(503, "unavailable", detail, retry_after_s=5) from error
    return SegmentView(name=name, size_bytes=stored.size_bytes, sha256=stored.sha256, created=stored.created)


def _on_record(folder: Path, segment: Segment) -> bool:
    """Whether these bytes are on record under this name: repeats of an upload must not make the list grow."""
    try:
        known = read_index(folder).get(segment.name)
    except (OSError, MergeRefused):
        return False
    return known is not None and known.sha256 == segment.sha256


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As asyncio.to_thread, but never leaves while the work still runs: it may use a descriptor that is closed next."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


def read_declared(request: Request, max_bytes: int) -> Declared:
    """Raises Problem for a header that does not say what it should."""
    return Declared(
        seq=_number(request, "x-zq-sequence", SEQ_MAX),
        ts_ms=_number(request, "x-zq-timestamp-ms", TS_MS_MAX),
        size_bytes=declared_bytes(request, max_bytes),
        sha256=_sha256(request),
    )


def _number(request: Request, header: str, most: int) -> int | None:
    text = request.headers.get(header)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and int(text) <= most):
        raise invalid(f"#/header/{header}", f"{header} is {text!r:.40}; give a whole number from 0 to {most}")
    return int(text)


_HEX = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"(?:^|[,\s])sha-256=:?([A-Za-z0-9+/]{43}=):?(?:[,\s]|$)", re.IGNORECASE)


def _sha256(request: Request) -> str | None:
    text = request.headers.get("x-zq-sha256")
    if text is not None:
        if not _HEX.fullmatch(text.lower()):
            raise invalid("#/header/x-zq-sha256", "X-Zq-Sha256 is not 64 hexadecimal digits")
        return text.lower()
    for header in ("content-digest", "digest"):
        text = request.headers.get(header)
        if text is not None and (found := _DIGEST.search(text[:1000])):
            with contextlib.suppress(binascii.Error):
                return base64.b64decode(found[1], validate=True).hex()
    # Digests of other kinds are not ours to check.
    return None
