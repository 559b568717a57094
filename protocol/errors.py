"""What can be answered with no: one code each, stable on the wire, in HTTP and in exceptions.

A code a caller can act on is listed here; anything else is a defect. `RETRYABLE` says for which of them the same
request, sent again later, may succeed.
"""

from __future__ import annotations

from enum import StrEnum


class Code(StrEnum):
    MALFORMED = "malformed"
    """The bytes are no message of this protocol."""
    UNEXPECTED = "unexpected"
    """A message that this peer may not send now, or not in this role."""
    VERSION = "version"
    """No protocol version in common."""
    UNKNOWN_SESSION = "unknown_session"
    """The session has ended or never was: say HELLO again, then resend with the same ids."""
    FORBIDDEN = "forbidden"
    """The key's role or queues do not allow it."""
    INVALID = "invalid"
    """A field is out of its range."""
    CONFLICT = "conflict"
    """The job id was used for another job."""
    NOT_FOUND = "not_found"
    TOO_LARGE = "too_large"
    NOT_ALLOWED = "not_allowed"
    """The job's state does not allow the change."""
    QUEUE_FULL = "queue_full"
    DISK_LOW = "disk_low"
    BUSY = "busy"
    """A bound of the broker is reached."""
    STOPPING = "stopping"
    """The broker is shutting down."""


RETRYABLE = frozenset({Code.QUEUE_FULL, Code.DISK_LOW, Code.BUSY, Code.STOPPING, Code.UNKNOWN_SESSION})


class WireError(Exception):
    """The peer's bytes or message are wrong. The only error that decoding raises."""

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
