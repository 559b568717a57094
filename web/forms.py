"""Forms as clients send them: JSON, urlencoded, or multipart with a file in it. Bounded in size, number and time.

The file of a multipart body may come before the fields that say whose it is: it waits in memory, beyond a bound in a
file without a name in the folder of the recordings, and is gone with its request.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import parse_qsl

import msgspec
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header
from starlette.requests import Request

from zq.web.bodies import chunks, decode, read_body, too_large
from zq.web.intake import BYTES_PER_S_MIN, in_thread
from zq.web.problems import Problem, invalid

FIELDS_MAX: Final = 32
FIELD_BYTES_MAX: Final = 8 << 10
FORM_BYTES_MAX: Final = 64 << 10
"""A form without a file, and what a form with one may have beside it."""
IN_MEMORY_BYTES: Final = 256 << 10
"""Of a file, where its reader does not say otherwise."""
READ_BYTES: Final = 512 << 10

_KINDS = "application/json, application/x-www-form-urlencoded or multipart/form-data"


class Spool:
    """The bytes of a file until it is known where they go. Close it."""

    def __init__(self, folder: Path, memory_bytes: int = IN_MEMORY_BYTES) -> None:
        """In memory it keeps up to `memory_bytes`."""
        self._folder = folder
        self._memory_bytes = memory_bytes
        self._waiting = bytearray()
        self._file: BinaryIO | None = None
        self.size_bytes = 0

    async def write(self, part: bytes) -> None:
        self._waiting += part
        self.size_bytes += len(part)
        if len(self._waiting) >= self._memory_bytes:
            await in_thread(self._write)

    def _write(self) -> None:
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 (closed by close)
            rest = memoryview(bytes(self._waiting))
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError as error:
            detail = f"the recording cannot be stored now ({error.strerror}); send it again later"
            raise Problem(503, "unavailable", detail, retry_after_s=5) from error
        self._waiting.clear()

    async def parts(self) -> AsyncIterator[bytes]:
        """All that was written."""
        if self._file is not None:
            at = 0
            while part := await in_thread(_read_at, self._file, at):
                at += len(part)
                yield part
        if self._waiting:
            yield bytes(self._waiting)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _read_at(file: BinaryIO, at: int) -> bytes:
    file.seek(at)
    return file.read(READ_BYTES)


@dataclass
class Form:
    """The fields, and the file if there is one. Of a name that is there twice the last counts."""

    fields: dict[str, str] = field(default_factory=dict)
    file_field: str = ""
    file_name: str = ""
    file: Spool | None = None

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


async def read_form(request: Request, *, timeout_s: float) -> dict[str, str]:
    """The fields of a form without a file; of the query for an empty body. Raises Problem: 400, 408, 413, 415, 422."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind == "multipart/form-data":
        form = await read_upload(request, Path(), max_file_bytes=0, timeout_s=timeout_s)
        return form.fields
    data = await read_body(request, max_bytes=FORM_BYTES_MAX, timeout_s=timeout_s)
    if not data:
        return _pairs(request.url.query)
    if kind == "application/x-www-form-urlencoded":
        try:
            return _pairs(data.decode(options.get("charset", "utf-8")))
        except (UnicodeDecodeError, LookupError):
            raise Problem(400, "malformed", "the form is not UTF-8") from None
    # Old clients send JSON under any name, or none.
    if kind not in ("application/json", "text/plain", ""):
        raise Problem(415, "not-a-form", f"send {_KINDS}")
    return texts(decode(data, dict[str, Any]))


def texts(found: Mapping[str, Any]) -> dict[str, str]:
    """The values as text: exams have numbers for ids in some clients. null is as good as not there."""
    fields: dict[str, str] = {}
    for name, value in found.items():
        if value is None:
            continue
        if not isinstance(value, (str, int, float, bool)):
            raise invalid(f"#/{name:.80}", f"{name:.80} is neither text nor a number")
        fields[name] = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return fields


def _pairs(text: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="strict"))
    except (ValueError, UnicodeDecodeError):
        raise Problem(400, "malformed", f"this is not a form in UTF-8 of at most {FIELDS_MAX} fields") from None


async def read_upload(
    request: Request, folder: Path, *, max_file_bytes: int, timeout_s: float, memory_bytes: int = IN_MEMORY_BYTES
) -> Form:
    """A multipart form with at most one file of `max_file_bytes`; beyond `memory_bytes` it is kept in a file without a
    name in `folder` meanwhile. Close the form.

    Raises Problem: 400, 408, 413, 415, 422, 503; ClientDisconnect.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != "multipart/form-data" or not options.get("boundary"):
        raise Problem(415, "not-a-form", "send the file as multipart/form-data, with a boundary")
    try:
        parser = PushMultipartParser(
            options["boundary"], max_segment_count=FIELDS_MAX, max_header_size=FIELD_BYTES_MAX, strict=True
        )
    except MultipartError as error:
        raise _malformed(error) from None
    reader = _Reader(folder, max_file_bytes, memory_bytes)
    parts = chunks(
        request,
        max_bytes=max_file_bytes + FORM_BYTES_MAX,
        timeout_s=timeout_s,
        bytes_per_s_min=BYTES_PER_S_MIN,
    )
    try:
        async for part in parts:
            for event in parser.parse(part):
                await reader.take(event)
        parser.close()
    except MultipartError as error:
        reader.form.close()
        raise _malformed(error) from None
    except BaseException:
        reader.form.close()
        raise
    return reader.form


def _malformed(error: MultipartError) -> Problem:
    return Problem(400, "malformed", f"the body is not multipart/form-data: {error}"[:300])


class _Reader:
    def __init__(self, folder: Path, max_file_bytes: int, memory_bytes: int) -> None:
        self.form = Form()
        self._memory_bytes = memory_bytes
        self._folder = folder
        self._max_file_bytes = max_file_bytes
        self._here: MultipartSegment | None = None
        self._value = bytearray()
        self._fields_bytes = 0

    async def take(self, event: MultipartSegment | bytes | bytearray | None) -> None:
        if isinstance(event, MultipartSegment):
            self._here = event
            self._value.clear()
            if self._is_file:
                self._begin_file(event)
        elif event is not None:
            await self._more(bytes(event))
        else:
            self._end()

    @property
    def _is_file(self) -> bool:
        return self._here is not None and self._here.filename is not None

    def _begin_file(self, segment: MultipartSegment) -> None:
        if self.form.file is not None:
            raise invalid(f"#/{segment.name:.80}", "the form has more than one file; send one")
        if not self._max_file_bytes:
            raise invalid(f"#/{segment.name:.80}", "this form has no file")
        self.form.file = Spool(self._folder, self._memory_bytes)
        self.form.file_field, self.form.file_name = segment.name or "", segment.filename or ""

    async def _more(self, part: bytes) -> None:
        if self._is_file and self.form.file is not None:
            if self.form.file.size_bytes + len(part) > self._max_file_bytes:
                raise too_large(self._max_file_bytes)
            await self.form.file.write(part)
            return
        self._fields_bytes += len(part)
        if len(self._value) + len(part) > FIELD_BYTES_MAX or self._fields_bytes > FORM_BYTES_MAX:
            raise Problem(413, "too-large", f"a field of the form has more than {FIELD_BYTES_MAX} bytes")
        self._value += part

    def _end(self) -> None:
        if self._here is not None and not self._is_file:
            try:
                self.form.fields[self._here.name or ""] = self._value.decode("utf-8")
            except UnicodeDecodeError:
                raise Problem(400, "malformed", f"the field {self._here.name!r:.80} is not UTF-8") from None
        self._here = None
