"""The one error of the exam service: what was wrong with a request, and what to do about it."""

from __future__ import annotations

from typing import Literal

from zq.exceptions import ZqError

ExamErrorCode = Literal["invalid", "not_found", "conflict", "too_large", "unavailable"]
"""invalid: the input is wrong, a retry is useless · not_found: no such exam, student or file · conflict: it exists
with other contents, or the state does not allow it · too_large: over a bound · unavailable: the database or the disk
cannot be used now; a retry of the same call is safe."""


class ExamError(ZqError):
    """A refused call. `code` is for programs, `detail` for people: it says what to do."""

    def __init__(self, code: ExamErrorCode, detail: str) -> None:
        super().__init__(detail)
        self.code: ExamErrorCode = code
        self.detail = detail
