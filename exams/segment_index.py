"""The list of accepted segments in a student's folder: `.zq-segments.jsonl`.

What an upload said of a segment (number, time, size, sha256) is not in the file's name, and no later check finds a
missing, swapped or flipped byte without it. So the web records it before it answers, and the merge reads it.

Format: one JSON object a line, `{"v":1,"name":…,"seq":…,"ts_ms":…,"size_bytes":…,"sha256":…,"mtime_ms":…}`, each
written in one append that begins with a newline: a line torn by a crash ends there, and its upload was never
answered, so it is skipped. The last record of a name counts. A file without a record is taken by its name alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Any

from zq.exams.segments import (
    MEDIA_SUFFIXES,
    SEGMENTS_MAX,
    SEQ_MAX,
    TS_MS_MAX,
    MergeRefused,
    Segment,
    check_name,
    parse_name,
    with_known,
)

INDEX_NAME = ".zq-segments.jsonl"
INDEX_BYTES_MAX = 64 * 1024 * 1024
LINE_BYTES_MAX = 4096
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FIELDS = frozenset({"v", "name", "seq", "ts_ms", "size_bytes", "sha256", "mtime_ms"})


def record_segment(folder: Path, segment: Segment) -> None:
    """Append `segment` to the folder's list. Durable when this returns: file and folder are synced.

    Safe from several processes at once. Raises ValueError for a segment that may not be stored, OSError for a disk
    that does not take it; then the upload must not be answered with success.
    """
    line = _line(segment)
    path = folder / INDEX_NAME
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        fresh = os.fstat(handle).st_size == 0
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)
    if fresh:
        sync_folder(folder)


def write_index(folder: Path, segments: Iterable[Segment]) -> None:
    """The list of a folder that is made anew and needs not outlive its process: not synced."""
    (folder / INDEX_NAME).write_bytes(b"".join(map(_line, segments)))


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _line(segment: Segment) -> bytes:
    record = {
        "v": 1,
        "name": check_name(segment.name),
        "seq": segment.seq,
        "ts_ms": segment.ts_ms,
        "size_bytes": segment.size_bytes,
        "sha256": segment.sha256,
        "mtime_ms": segment.mtime_ms,
    }
    _parse(record)
    return b"\n" + json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"


def read_index(folder: Path) -> dict[str, Segment]:
    """The accepted segments by name; empty if nothing was recorded. Raises MergeRefused (bad_index), OSError."""
    try:
        handle = os.open(folder / INDEX_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    with open(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_size > INDEX_BYTES_MAX:
            raise MergeRefused("bad_index", f"{INDEX_NAME} is not a file of at most {INDEX_BYTES_MAX} bytes")
        return parse_index(file.read(INDEX_BYTES_MAX))


def parse_index(text: bytes) -> dict[str, Segment]:
    """Pure reader of the format. Torn lines are skipped; a whole line that says nonsense is MergeRefused."""
    found: dict[str, Segment] = {}
    for line in text.split(b"\n"):
        if not line or len(line) > LINE_BYTES_MAX:
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        try:
            segment = _parse(record)
        except ValueError as error:
            raise MergeRefused("bad_index", f"{INDEX_NAME}: {error}") from None
        found[segment.name] = segment
        if len(found) > SEGMENTS_MAX:
            raise MergeRefused("bad_index", f"{INDEX_NAME}: more than {SEGMENTS_MAX} segments")
    return found


def _parse(record: object) -> Segment:
    if not isinstance(record, dict) or record.get("v") != 1 or not isinstance(record.get("name"), str):
        raise ValueError("a record is not an object with v 1 and a name")
    if unknown := set(record) - _FIELDS:
        raise ValueError(f"a record has unknown keys: {', '.join(sorted(unknown))[:200]}")
    sha256 = record.get("sha256")
    if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        raise ValueError("sha256 is not 64 lower-case hexadecimal digits")
    return Segment(
        name=check_name(record["name"]),
        seq=_whole(record, "seq", SEQ_MAX),
        ts_ms=_whole(record, "ts_ms", TS_MS_MAX),
        size_bytes=_whole(record, "size_bytes", 2**63 - 1),
        sha256=sha256,
        mtime_ms=_whole(record, "mtime_ms", TS_MS_MAX) or 0,
    )


def _whole(record: Mapping[str, Any], key: str, highest: int) -> int | None:
    value = record.get(key)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= highest:
        raise ValueError(f"{key} is not a whole number from 0 to {highest}")
    return value


def list_segments(folder: Path, zone: tzinfo = UTC) -> list[Segment]:
    """Every segment in `folder`, by name, with what its record or else its name says of it.

    Files whose name begins with a dot (uploads under way, this index) are not segments, nor are files that were never
    recorded and have no suffix of MEDIA_SUFFIXES; they are left alone. Raises MergeRefused (bad_index,
    missing_segment, bad_segment for what is not a regular file), and OSError (FileNotFoundError: no such folder).
    """
    index = read_index(folder)
    segments: list[Segment] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            record = index.pop(entry.name, None)
            if record is None and not _is_media(entry.name):
                continue
            if not entry.is_file(follow_symlinks=False):
                raise MergeRefused("bad_segment", "not a regular file; links and folders are not read", entry.name)
            if len(segments) >= SEGMENTS_MAX:
                raise MergeRefused("bad_segment", f"more than {SEGMENTS_MAX} segments in one folder")
            segments.append(with_known(_found(entry, zone), record))
    if index:
        raise MissingSegments(sorted(index.values(), key=lambda s: s.name), segments)
    return sorted(segments, key=lambda s: s.name)


class MissingSegments(MergeRefused):
    """Accepted segments are not on disk: `missing`. They may have been merged and cleaned up: ask the manifest."""

    def __init__(self, missing: list[Segment], present: list[Segment]) -> None:
        names = ", ".join(repr(s.name) for s in missing[:5])
        super().__init__("missing_segment", f"{len(missing)} accepted segments are not on disk: {names}")
        self.missing = missing
        self.present = present


def _is_media(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in MEDIA_SUFFIXES


def _found(entry: os.DirEntry[str], zone: tzinfo) -> Segment:
    try:
        name = check_name(entry.name)
    except ValueError as error:
        raise MergeRefused("bad_segment", str(error), ascii(entry.name)) from None
    parsed = parse_name(name, zone)
    mtime_ms = entry.stat(follow_symlinks=False).st_mtime_ns // 1_000_000
    return Segment(name=name, seq=parsed.seq, ts_ms=parsed.ts_ms, mtime_ms=max(0, mtime_ms))
