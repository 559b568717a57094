"""The upload of a segment under a name of the client's."""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
from typing import Annotated

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from zq.exams import names
from zq.exams.merging import QUEUE
from zq.exams.segments import SEQ_MAX, TS_MS_MAX
from zq.web.answers import json_response
from zq.web.auth import Scope
from zq.web.bodies import chunks, declared_bytes
from zq.web.callers import client_ip
from zq.web.exam_views import SegmentView
from zq.web.exams import student_key
from zq.web.intake import BYTES_PER_S_MIN, Declared, Intake
from zq.web.operations import Operation, Parameter
from zq.web.problems import invalid
from zq.web.services import Services

_Seq = Annotated[int, Meta(ge=0, le=SEQ_MAX)]
_TsMs = Annotated[int, Meta(ge=0, le=TS_MS_MAX)]
_Sha256 = Annotated[str, Meta(pattern="^[0-9a-fA-F]{64}$")]


class UploadRoutes:
    def __init__(self, services: Services) -> None:
        self._web = services.config.web
        self._intake = Intake(services)

    async def put_segment(self, request: Request) -> Response:
        exam_id, student_id = student_key(request)
        name = names.segment_name(request.path_params["name"])
        bound_bytes = self._web.max_segment_mib << 20
        declared = read_declared(request, bound_bytes)
        parts = chunks(
            request, max_bytes=bound_bytes, timeout_s=self._web.body_timeout_s, bytes_per_s_min=BYTES_PER_S_MIN
        )
        stored = await self._intake.take(exam_id, student_id, name, declared, parts, client_ip(request))
        return json_response(stored, 201 if stored.created else 200)

    def operations(self) -> list[Operation]:
        headers = (
            Parameter("X-Zq-Sequence", "Number of the segment in its recording, from 0 or 1", "header", _Seq),
            Parameter("X-Zq-Timestamp-Ms", "When the segment ended, Unix milliseconds of the client", "header", _TsMs),
            Parameter("X-Zq-Sha256", "SHA-256 of the bytes in hexadecimal; other bytes are refused", "header", _Sha256),
            Parameter("Content-Digest", "The same as sha-256=:base64: (RFC 9530); Digest is read too", "header"),
        )
        return [
            Operation(
                "PUT", "/v1/exams/{exam_id}/students/{student_id}/segments/{name:anything}", self.put_segment,
                "Upload a segment; the same bytes again are fine", Scope.SUBMIT, queue=QUEUE, own=True, often=True,
                body=bytes, answers=((201, SegmentView), (200, SegmentView)), parameters=headers,
                errors=(400, 404, 408, 409, 413, 422, 503),
            )
        ]  # fmt: skip


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
_SHA_256 = re.compile(r"(?:^|[,\s])sha-256\s*=", re.IGNORECASE)
_DIGEST = re.compile(r"(?:^|[,\s])sha-256=:?([A-Za-z0-9+/]{43}=):?(?:[,;\s]|$)", re.IGNORECASE)


def _sha256(request: Request) -> str | None:
    text = request.headers.get("x-zq-sha256")
    if text is not None:
        if not _HEX.fullmatch(text.lower()):
            raise invalid("#/header/x-zq-sha256", "X-Zq-Sha256 is not 64 hexadecimal digits")
        return text.lower()
    for header in ("content-digest", "digest"):
        text = request.headers.get(header, "")[:1000]
        if found := _DIGEST.search(text):
            with contextlib.suppress(binascii.Error):
                return base64.b64decode(found[1], validate=True).hex()
        if _SHA_256.search(text):
            # Whoever sends it counts on its being checked.
            raise invalid(f"#/header/{header}", f"{header} has a sha-256 that is none; write sha-256=:BASE64:")
    # Digests of other kinds are not ours to check.
    return None
