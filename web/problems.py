"""What is answered with no, as RFC 9457 `application/problem+json`: one class, and one table from codes to statuses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus

import msgspec
from starlette.responses import Response

from zq.exams.errors import ExamError, ExamErrorCode
from zq.exceptions import Refused
from zq.protocol.errors import Code

CONTENT_TYPE = "application/problem+json"
BROKER_RETRY_AFTER_S = 2.0
STORE_RETRY_AFTER_S = 1.0


class FieldError(msgspec.Struct, frozen=True):
    """What is wrong with one place of a body."""

    pointer: str
    """JSON pointer (RFC 6901) as a fragment, `#/kwargs/path`; `#` is the whole body."""
    detail: str


class ProblemBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """Every error's body. `type` is stable and names the kind; `detail` says what to do."""

    type: str
    title: str
    status: int
    detail: str = ""
    errors: Sequence[FieldError] = ()


class Problem(Exception):
    """Raised anywhere below a route; becomes the answer. `kind` is the last word of the answer's `type`."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{status} {kind}: {detail}")
        self.status = status
        self.kind = kind
        self.detail = detail
        self.errors = errors
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            # Whole seconds (RFC 9110), never 0: that would invite a storm.
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))

    def as_body(self) -> ProblemBody:
        return ProblemBody(
            type=f"urn:zq:problem:{self.kind}",
            title=HTTPStatus(self.status).phrase,
            status=self.status,
            detail=self.detail,
            errors=self.errors,
        )

    def body(self) -> bytes:
        return _encoder.encode(self.as_body())

    def response(self) -> Response:
        return Response(self.body(), self.status, {"Cache-Control": "no-store", **self.headers}, CONTENT_TYPE)


_encoder = msgspec.json.Encoder()

CODE_STATUS: dict[Code, int] = {
    Code.MALFORMED: 502,
    Code.UNEXPECTED: 502,
    Code.VERSION: 502,
    Code.UNKNOWN_SESSION: 503,
    Code.FORBIDDEN: 403,
    Code.INVALID: 422,
    Code.CONFLICT: 409,
    Code.NOT_FOUND: 404,
    Code.TOO_LARGE: 413,
    Code.NOT_ALLOWED: 409,
    Code.QUEUE_FULL: 429,
    Code.DISK_LOW: 503,
    Code.BUSY: 503,
    Code.STOPPING: 503,
}
"""The broker's refusals as HTTP statuses. 502: the broker did not understand this server, no fault of the caller."""

EXAM_STATUS: dict[ExamErrorCode, int] = {
    "invalid": 422,
    "not_found": 404,
    "conflict": 409,
    "too_large": 413,
    "unavailable": 503,
}


def refused(error: Refused) -> Problem:
    """The broker said no."""
    try:
        status = CODE_STATUS[Code(error.code)]
    except ValueError:
        status = 502
    wait_s = error.retry_after_s
    if wait_s is None and status in {429, 503}:
        wait_s = BROKER_RETRY_AFTER_S
    return Problem(status, _kebab(error.code), error.message, retry_after_s=wait_s)


def from_code(code: Code, detail: str) -> Problem:
    return refused(Refused(code, detail))


def broker_away(detail: str) -> Problem:
    """Nothing was asked of the broker, or the question changes nothing: just try again."""
    return Problem(503, "broker-away", detail, retry_after_s=BROKER_RETRY_AFTER_S)


def outcome_unknown(detail: str) -> Problem:
    """The broker may have done it."""
    return Problem(504, "unknown", detail, retry_after_s=BROKER_RETRY_AFTER_S)


def exam_refused(error: ExamError) -> Problem:
    status = EXAM_STATUS[error.code]
    return Problem(
        status, _kebab(error.code), error.detail, retry_after_s=STORE_RETRY_AFTER_S if status == 503 else None
    )


def invalid(pointer: str, detail: str) -> Problem:
    """One field, parameter or header is wrong."""
    return Problem(422, "invalid", detail, errors=[FieldError(pointer, detail)])


def _kebab(code: str) -> str:
    return str(code).replace("_", "-")
