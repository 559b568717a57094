"""Reading what clients send: bounded in size, in time, in depth, and checked against a type.

`decode` is pure and is fuzzed; `read_body` and `chunks` are the only code that takes bytes from a connection.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import math
import re
from collections.abc import AsyncIterator, Iterable
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from zq.web.problems import FieldError, Problem

DEPTH_MAX = 32
DECODED_AT_ONCE_BYTES = 64 << 10
"""A larger body is decoded in a thread: the worst megabyte takes most of a second, which the others need not wait."""

T = TypeVar("T")


async def read_json(request: Request, struct: type[T], *, max_bytes: int, timeout_s: float) -> T:
    """The body as `struct`. Raises Problem: 400, 408, 413, 415, 422; ClientDisconnect."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Problem(415, "not-json", "send the body as JSON, with Content-Type: application/json")
    data = await read_body(request, max_bytes=max_bytes, timeout_s=timeout_s)
    if len(data) > DECODED_AT_ONCE_BYTES:
        return await asyncio.to_thread(decode, data, struct)
    return decode(data, struct)


async def read_body(request: Request, *, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body in memory. Raises Problem: 400, 408, 413; ClientDisconnect."""
    parts = [part async for part in chunks(request, max_bytes=max_bytes, timeout_s=timeout_s)]
    return b"".join(parts)


def declared_bytes(request: Request, max_bytes: int) -> int | None:
    """Content-Length, or None if there is none. Raises Problem 413 before a byte of the body has been read."""
    text = request.headers.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise Problem(400, "malformed", f"Content-Length {text!r:.40} is not a number of bytes")
    size_bytes = int(text)
    if size_bytes > max_bytes:
        raise too_large(max_bytes)
    return size_bytes


def too_large(max_bytes: int) -> Problem:
    return Problem(413, "too-large", f"the body is larger than {max_bytes} bytes, the bound set for it here")


async def chunks(
    request: Request, *, max_bytes: int, timeout_s: float, bytes_per_s_min: float = math.inf
) -> AsyncIterator[bytes]:
    """The body as it comes. The deadline is absolute: a trickle does not extend it, unless it brings more than
    `bytes_per_s_min` (a slow line must be able to send a large body).

    Raises Problem: 408 when the time is over, 413 as soon as there is more than `max_bytes`, 400 for fewer bytes than
    declared; ClientDisconnect.
    """
    declared = declared_bytes(request, max_bytes)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    size_bytes = 0
    more = True
    while more:
        try:
            async with asyncio.timeout_at(deadline + size_bytes / bytes_per_s_min):
                message = await request.receive()
        except TimeoutError:
            slow = f"the body did not arrive within {timeout_s:g} s"
            if size_bytes and bytes_per_s_min < math.inf:
                slow = f"the body came at less than {bytes_per_s_min:g} bytes/s for {timeout_s:g} s"
            raise Problem(408, "too-slow", slow) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        size_bytes += len(part)
        if size_bytes > max_bytes:
            raise too_large(max_bytes)
        if part:
            yield part
    if declared is not None and size_bytes != declared:
        raise Problem(400, "malformed", f"the body has {size_bytes} bytes, Content-Length said {declared}")


def decode(data: bytes, struct: type[T]) -> T:
    """JSON as `struct`. Raises Problem: 400 for what is no JSON (NaN, an object with a key twice, too deep a nest),
    422 with `errors` for JSON of the wrong form; an unknown field is told its nearest known one."""
    _refuse_oddities(data)
    try:
        return msgspec.json.decode(data, type=struct)
    except msgspec.ValidationError as error:
        raise _explained(error, struct) from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Problem(400, "malformed", f"the body is not JSON: {error}"[:300]) from None


class _Oddity(Exception):
    pass


def _refuse_oddities(data: bytes) -> None:
    """What msgspec takes and we do not: a key twice (which one would count?) and deep nests."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
    except _Oddity as oddity:
        raise Problem(400, "malformed", str(oddity)) from None
    except (ValueError, RecursionError) as error:
        # Behind the semicolon is what a programmer of Python could do about a number of 5000 digits.
        said = str(error).partition(";")[0]
        raise Problem(400, "malformed", f"the body is not JSON: {said}"[:300]) from None
    level: list[Any] = [value]
    for _depth in range(DEPTH_MAX):
        level = [inner for item in level if isinstance(item, (dict, list)) for inner in _members(item)]
        if not level:
            return
    raise Problem(400, "malformed", f"the body is nested deeper than {DEPTH_MAX} levels")


def _members(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Oddity(f"the body has the key {twice!r:.80} twice in one object")
    return found


def _refuse_constant(name: str) -> Any:
    raise _Oddity(f"the body has {name}, which is not JSON")


_UNKNOWN = re.compile(r"unknown field `(?P<name>.*)`", re.DOTALL)


def _explained(error: msgspec.ValidationError, struct: type) -> Problem:
    what, _, place = str(error).partition(" - at `")
    path = place.removesuffix("`")
    pointer = _pointer(path)
    if found := _UNKNOWN.search(what):
        name = found["name"]
        what = f"unknown field '{name:.80}'" + _nearest(name, _fields_at(struct, path))
        pointer += f"/{name:.80}"
    return Problem(
        422, "invalid", f"the body is not as it should be: {what}"[:600], errors=[FieldError(pointer, what[:500])]
    )


def _pointer(path: str) -> str:
    """msgspec's `$.a[0].b` as `#/a/0/b`."""
    return "#" + re.sub(r"\[([^\]]*)\]", r"/\1", path.removeprefix("$")).replace(".", "/")


def _fields_at(struct: type, path: str) -> list[str]:
    """The names a struct knows at a path; our bodies nest structs in lists and fields only."""
    here: Any = msgspec.inspect.type_info(struct)
    for name in re.findall(r"\.([A-Za-z_]+)|\[", path):
        here = _step(here, name)
    if isinstance(here, msgspec.inspect.StructType):
        return [field.encode_name for field in here.fields]
    return []


def _step(info: Any, name: str) -> Any:
    if isinstance(info, msgspec.inspect.UnionType):
        info = next((t for t in info.types if not isinstance(t, msgspec.inspect.NoneType)), info)
    if isinstance(info, msgspec.inspect.StructType):
        return next((field.type for field in info.fields if field.encode_name == name), None)
    return getattr(info, "item_type", None)


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else (f"; known here: {', '.join(known)}" if known else "")
