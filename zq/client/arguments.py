"""A job's arguments on one line. They are foreign bytes: whatever they hold, the answer is a short text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from zq.protocol.job import JobSpec, decode_spec

ARGUMENTS_CHARS_MAX = 300
_VALUE_CHARS_MAX = 60
_ITEMS_MAX = 12


def arguments_of(spec_bytes: bytes) -> str:
    """Of a job's specification, for a list of jobs."""
    spec = spec_of(spec_bytes)
    return "(specification not readable)" if spec is None else one_line(spec.arguments)


def spec_of(spec_bytes: bytes) -> JobSpec | None:
    """None where it cannot be read."""
    try:
        return decode_spec(spec_bytes)
    except ValueError:
        return None


def one_line(arguments: bytes) -> str:
    """`49 student='张伟'`: positional arguments, then those with a name, cut to ARGUMENTS_CHARS_MAX."""
    try:
        decoded = msgspec.msgpack.decode(arguments)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return "(arguments not readable)"
    if not isinstance(decoded, list) or len(decoded) != 2:
        return "(arguments not readable)"
    positional, named = decoded
    if not isinstance(positional, list) or not isinstance(named, Mapping):
        return "(arguments not readable)"
    parts = [_value(value) for value in positional[:_ITEMS_MAX]]
    parts += [f"{str(name)[:_VALUE_CHARS_MAX]}={_value(value)}" for name, value in list(named.items())[:_ITEMS_MAX]]
    text = " ".join(parts)
    return text if len(text) <= ARGUMENTS_CHARS_MAX else text[: ARGUMENTS_CHARS_MAX - 1] + "…"


def _value(value: Any) -> str:
    """Never the whole of a large value: only its first characters or its number of items."""
    if isinstance(value, str):
        text = value if len(value) <= _VALUE_CHARS_MAX else value[: _VALUE_CHARS_MAX - 1] + "…"
        return repr(text) if not text or any(c.isspace() for c in text) else text
    if isinstance(value, bytes):
        return f"({len(value)} bytes)"
    if isinstance(value, list):
        return f"[{len(value)} items]" if len(value) > 3 else f"[{', '.join(_flat(v) for v in value)}]"
    if isinstance(value, Mapping):
        return f"{{{len(value)} keys}}"
    return str(value)[:_VALUE_CHARS_MAX]


def _flat(value: Any) -> str:
    return "…" if isinstance(value, list | Mapping) else _value(value)
