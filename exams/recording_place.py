"""What the exam service asks of the place where recordings are kept, and what all such places have in common.

A folder is one (`storage`), a bucket the other (`bucket_recordings`); `open_recordings` opens what is configured.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Protocol

from zq.config import Config
from zq.exams import names
from zq.exams.errors import ExamError
from zq.exams.segments import Segment

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """A segment that is durably on disk."""

    name: str
    size_bytes: int
    sha256: str
    """Lower-case hexadecimal."""
    created: bool
    """False if the same bytes were there under this name before."""


class Upload(Protocol):
    """One segment on its way in. Write its chunks, then commit; without a commit nothing of it is left behind."""

    @property
    def written_bytes(self) -> int: ...

    def write(self, chunk: bytes | memoryview) -> None:
        """Raises ExamError "too_large" past the bound, "invalid" past the declared size, "unavailable" when it cannot
        be kept."""
        ...

    def commit(self) -> StoredSegment:
        """Check what was declared, and make the segment durable under its name.

        The same name again with the same bytes is fine (`created` is False); with other bytes it is ExamError
        "conflict". "invalid" if size or hash are not as declared, or nothing was written.
        """
        ...

    def abort(self) -> None:
        """Remove what was written. Harmless after a commit."""
        ...


class Video(Protocol):
    """A merged video, open for reading from any thread."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def etag(self) -> str:
        """Changes with its bytes; no quotes in it."""
        ...

    def read_at(self, length: int, offset: int) -> bytes:
        """Some of its bytes; fewer, or none, only at its end. Raises OSError."""
        ...

    def close(self) -> None: ...


class Recordings(Protocol):
    """A place for recordings. All calls block; safe to share between threads."""

    def open_segment(
        self,
        exam_id: str,
        student_id: str,
        name: str,
        *,
        size_bytes_max: int,
        size_bytes: int | None = None,
        sha256: str | None = None,
    ) -> Upload:
        """Begin to store a segment, with the size and hash that the uploader declares, if it does.

        Raises ExamError: "invalid" names or declarations, "too_large", "unavailable".
        """
        ...

    def record(self, exam_id: str, student_id: str, segment: Segment, *, created: bool) -> int:
        """Put on record what was accepted, durably; if it was not `created`, only where it is not yet.

        Since when it is on record, which a repeat does not change. Raises ExamError("unavailable").
        """
        ...

    def on_record(self, exam_id: str, student_id: str, name: str) -> Segment | None:
        """What was accepted under this name, if that can be told."""
        ...

    def has_segment(self, exam_id: str, student_id: str, name: str) -> bool: ...

    def has_segments(self, exam_id: str, student_id: str) -> bool:
        """Whether there is anything that the merge would read; True as well if that cannot be told."""
        ...

    def had_segments(self, exam_id: str, student_id: str) -> bool:
        """As `has_segments`, for many students of an exam in a row: what came in the last seconds may be missed."""
        ...

    def segment_sizes(self, exam_id: str, student_id: str) -> list[int] | None:
        """In bytes, of every segment; None if it cannot be told."""
        ...

    def change_mark(self, exam_id: str, student_id: str) -> object:
        """Cheap to ask for; another one means that segments may have come or gone. None: it cannot be told."""
        ...

    def open_video(self, exam_id: str, video: str) -> Video:
        """The merged video of this name; the caller closes it.

        Raises ExamError: "invalid", "not_found", "unavailable".
        """
        ...


def open_recordings(config: Config) -> Recordings:
    """What `exams.storage` names; cheap when it was opened before. Raises ExamError("invalid") for what cannot be."""
    if config.bucket_url:
        from zq.exams.bucket_recordings import of_config

        return of_config(config)
    from zq.exams.storage import RecordingStorage

    return RecordingStorage(config.storage_path)


class Received:
    """What has come in of an upload, counted and hashed against its bound and what was declared. Pure."""

    def __init__(self, name: str, size_bytes_max: int, size_bytes: int | None, sha256: str | None) -> None:
        """Raises ExamError: "invalid" names or declarations, "too_large"."""
        names.segment_name(name)
        if sha256 is not None and not _SHA256.fullmatch(sha256 := sha256.lower()):
            raise ExamError("invalid", "the declared sha256 is not 64 hexadecimal digits")
        if size_bytes is not None and size_bytes < 0:
            raise ExamError("invalid", f"the declared size {size_bytes} is negative")
        if size_bytes is not None and size_bytes > size_bytes_max:
            raise _too_large(name, size_bytes, size_bytes_max)
        self.name = name
        self.written_bytes = 0
        self._size_bytes_max = size_bytes_max if size_bytes is None else size_bytes
        self._declared_size_bytes = size_bytes
        self._declared_sha256 = sha256
        self._digest = hashlib.sha256()

    def take(self, chunk: bytes | memoryview) -> None:
        """Count and hash a chunk, before it is written. Raises ExamError past the declared size or the bound."""
        if self.written_bytes + len(chunk) > self._size_bytes_max:
            if self._declared_size_bytes is not None:
                raise ExamError("invalid", f"{self.name!r} is longer than the declared {self._size_bytes_max} bytes")
            raise _too_large(self.name, self.written_bytes + len(chunk), self._size_bytes_max)
        self._digest.update(chunk)
        self.written_bytes += len(chunk)

    def check(self) -> str:
        """The sha256 of all of it. Raises ExamError("invalid") if it is not what was declared, or nothing."""
        sha256 = self._digest.hexdigest()
        if self._declared_size_bytes not in (None, self.written_bytes):
            raise ExamError(
                "invalid",
                f"{self.name!r} has {self.written_bytes} bytes, {self._declared_size_bytes} declared; send it again",
            )
        if self._declared_sha256 not in (None, sha256):
            raise ExamError("invalid", f"{self.name!r} has sha256 {sha256}, not as declared; send it again")
        if self.written_bytes == 0:
            raise ExamError("invalid", f"{self.name!r} is empty; send the segment's bytes")
        return sha256


def name_taken(name: str) -> ExamError:
    return ExamError("conflict", f"{name!r} is there with other bytes; send it under another name")


def _too_large(name: str, size_bytes: int, size_bytes_max: int) -> ExamError:
    return ExamError(
        "too_large",
        f"{name!r} has {size_bytes} bytes or more, {size_bytes_max} are allowed (web.max_segment_mib); record shorter "
        "segments, or raise the bound",
    )
