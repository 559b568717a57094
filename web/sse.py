"""Server-sent events as bytes (HTML standard, 9.2). Pure."""

from __future__ import annotations

import msgspec

CONTENT_TYPE = "text/event-stream"
_encode = msgspec.json.encode


def start(retry_ms: int) -> bytes:
    """How long a reader waits before it connects again."""
    return b"retry: %d\n\n" % retry_ms


def event(data: msgspec.Struct, *, number: int | None = None, kind: str = "") -> bytes:
    """One event. `number` is where a reader resumes; JSON has no line breaks, so `data` is one line."""
    head = b"" if number is None else b"id: %d\n" % number
    if kind:
        head += f"event: {kind}\n".encode()
    return head + b"data: " + _encode(data) + b"\n\n"


def beat(number: int | None) -> bytes:
    """A comment that keeps the connection alive. With a number it also moves the place to resume: no event is made of
    a block without data."""
    return b": beat\n\n" if number is None else b": beat\nid: %d\n\n" % number


def resume_number(last_event_id: str | None) -> int | None:
    """The number a reader was at. Raises ValueError for what was never an `id:` of ours."""
    if not last_event_id:
        return None
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) <= 18):
        raise ValueError(f"{last_event_id!r:.40} is not the number of an event")
    return int(last_event_id)
