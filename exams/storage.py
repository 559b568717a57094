"""Recordings in a folder.

    {root}/{exam_id}/recordings/{student_id}/    segments, and the list of what was accepted (`segment_index`)
    {root}/{exam_id}/recordings/                 merged videos

Every step below the root is taken from an open folder and follows no link, so no name and no link planted in the tree
leads out of it. The root itself may be a link or a mount: it is the operator's. All calls block.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self
from zoneinfo import ZoneInfo

from zq.exams import names, times
from zq.exams.errors import ExamError
from zq.exams.recording_place import Received, StoredSegment, name_taken
from zq.exams.segment_index import read_index, record_segment
from zq.exams.segments import MEDIA_SUFFIXES, MergeRefused, Segment

_log = logging.getLogger("zq.exams")

RECORDINGS = "recordings"
UPLOAD_ABANDONED_S = 3600.0
"""No upload takes this long; what is older was left by a crash."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without blocking: a FIFO must not hold the caller until its type is known.
_REGULAR = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_UPLOAD = re.compile(r"\.upload-[0-9a-f]{16}\.part")
_HASH_CHUNK_BYTES = 1 << 20
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class RecordingStorage:
    """The recordings below one root folder. Holds nothing open; safe to share between threads and processes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def exam_folder(self, exam_id: str) -> Path:
        """Where the exam's merged videos are; it may not exist yet."""
        return self.root / names.exam_id(exam_id) / RECORDINGS

    def student_folder(self, exam_id: str, student_id: str) -> Path:
        """Where the student's segments are; it may not exist yet."""
        return self.exam_folder(exam_id) / names.student_id(student_id)

    def open_segment(
        self,
        exam_id: str,
        student_id: str,
        name: str,
        *,
        size_bytes_max: int,
        size_bytes: int | None = None,
        sha256: str | None = None,
    ) -> SegmentWriter:
        """Begin to store a segment, with the size and hash that the uploader declares, if it does.

        Raises ExamError: "invalid" names or declarations, "too_large", "unavailable" when the disk does not take it.
        """
        received = Received(name, size_bytes_max, size_bytes, sha256)
        self.student_folder(exam_id, student_id)
        with disk_errors():
            folder = self._open_folder((exam_id, RECORDINGS, student_id), create=True)
        return SegmentWriter(folder, received)

    def record(self, exam_id: str, student_id: str, segment: Segment, *, created: bool) -> int:
        """See `Recordings`."""
        known = None if created else self.on_record(exam_id, student_id, segment.name)
        if known is not None and known.sha256 == segment.sha256:
            return known.mtime_ms  # repeats of an upload must not make the list grow
        try:
            record_segment(self.student_folder(exam_id, student_id), segment)
        except OSError as error:
            detail = f"the segment cannot be put on record ({error.strerror}); send it again later"
            raise ExamError("unavailable", detail) from error
        return segment.mtime_ms

    def on_record(self, exam_id: str, student_id: str, name: str) -> Segment | None:
        """What was accepted under this name, if that can be told."""
        with suppress(OSError, MergeRefused):
            return read_index(self.student_folder(exam_id, student_id)).get(name)
        return None

    def has_segment(self, exam_id: str, student_id: str, name: str) -> bool:
        return (self.student_folder(exam_id, student_id) / names.segment_name(name)).exists()

    def segment_sizes(self, exam_id: str, student_id: str) -> list[int] | None:
        """In bytes, of every segment; None if the folder cannot be read."""
        try:
            folder = self._open_folder((names.exam_id(exam_id), RECORDINGS, names.student_id(student_id)), create=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError:
            return None
        try:
            with os.scandir(folder) as entries:
                return [entry.stat(follow_symlinks=False).st_size for entry in entries if _is_segment(entry.name)]
        except OSError:
            return None
        finally:
            os.close(folder)

    def change_mark(self, exam_id: str, student_id: str) -> object:
        """The folder's time of change; it moves when a name comes or goes."""
        try:
            return os.stat(self.student_folder(exam_id, student_id), follow_symlinks=False).st_mtime_ns
        except OSError:
            return None

    def has_segments(self, exam_id: str, student_id: str) -> bool:
        """Whether the student's folder holds anything that the merge would read.

        True as well for a folder that cannot be read: then the merge is to say why, and nobody is passed over.
        """
        names.exam_id(exam_id)
        names.student_id(student_id)
        try:
            folder = self._open_folder((exam_id, RECORDINGS, student_id), create=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            _log.warning("the folder of student %s in exam %s cannot be read: %s", student_id, exam_id, error)
            return True
        try:
            with os.scandir(folder) as entries:
                return any(_is_segment(entry.name) for entry in entries)
        finally:
            os.close(folder)

    def had_segments(self, exam_id: str, student_id: str) -> bool:
        """See `Recordings`. A folder can be asked at any time."""
        return self.has_segments(exam_id, student_id)

    def open_video(self, exam_id: str, video: str) -> FolderVideo:
        """The merged video of this name, open for reading; the caller closes it.

        Raises ExamError: "invalid" for a name with a path in it, "not_found" for no such file or no regular one.
        """
        names.exam_id(exam_id)
        names.file_name(video, "video name")
        try:
            folder = self._open_folder((exam_id, RECORDINGS), create=False)
            try:
                handle = os.open(video, _REGULAR, dir_fd=folder)
            finally:
                os.close(folder)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ENOTDIR}:
                raise ExamError("unavailable", f"the video {video!r} cannot be read: {error.strerror}") from error
            raise ExamError("not_found", f"no video {video!r} in exam {exam_id!r}") from None
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise ExamError("not_found", f"no video {video!r} in exam {exam_id!r}")
        return FolderVideo(os.fdopen(handle, "rb"))

    def sweep_uploads(self, exam_id: str, student_id: str, *, older_than_s: float = UPLOAD_ABANDONED_S) -> int:
        """Remove what uploads left behind that a crash ended, and return how many files those were."""
        names.exam_id(exam_id)
        names.student_id(student_id)
        try:
            folder = self._open_folder((exam_id, RECORDINGS, student_id), create=False)
        except FileNotFoundError:
            return 0
        oldest_s = time.time() - older_than_s
        removed = 0
        try:
            with os.scandir(folder) as entries:
                left = [e.name for e in entries if _UPLOAD.fullmatch(e.name) and e.stat().st_mtime < oldest_s]
            for name in left:
                os.unlink(name, dir_fd=folder)
                removed += 1
        finally:
            os.close(folder)
        return removed

    def _open_folder(self, parts: tuple[str, ...], *, create: bool) -> int:
        """A descriptor of the folder at `parts` below the root; what is missing is made, durably, if `create`."""
        if create:
            self.root.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in parts:
            try:
                inner = _step(handle, part, create=create)
            finally:
                os.close(handle)
            handle = inner
        return handle


def video_name(student_id: str, student_name: str, at_ms: int, zone: ZoneInfo, extension: str) -> str:
    """`{student_id}_{student_name}_{YYYYmmdd_HHMMSS}{extension}`, safe and short whatever the name."""
    stamp = times.stamp(at_ms, zone)
    return f"{names.student_id(student_id)}_{names.in_file_name(student_name)}_{stamp}{extension}"


def _step(folder: int, part: str, *, create: bool) -> int:
    try:
        return os.open(part, _FOLDER, dir_fd=folder)
    except FileNotFoundError:
        if not create:
            raise
    try:
        os.mkdir(part, 0o700, dir_fd=folder)
    except FileExistsError:
        pass
    else:
        os.fsync(folder)
    return os.open(part, _FOLDER, dir_fd=folder)


def _remove(name: str, folder: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _is_segment(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in MEDIA_SUFFIXES


class FolderVideo:
    """A merged video on disk, open."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        status = os.fstat(file.fileno())
        self.size_bytes = status.st_size
        self.etag = f"{status.st_mtime_ns:x}-{status.st_size:x}"

    def read_at(self, length: int, offset: int) -> bytes:
        return os.pread(self._file.fileno(), length, offset)

    def close(self) -> None:
        self._file.close()


class SegmentWriter:
    """An upload into a folder. Leaving the `with` block without a commit leaves nothing behind.

    The file appears under its name whole, checked and durable, or not at all.
    """

    def __init__(self, folder: int, received: Received) -> None:
        self._received = received
        self._name = received.name
        self._open = ExitStack()
        self._folder = folder
        self._open.callback(os.close, folder)
        self._part = f".upload-{secrets.token_hex(8)}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with disk_errors():
                self._file = os.open(self._part, flags, 0o600, dir_fd=folder)
        except BaseException:
            self._open.close()
            raise
        self._open.callback(_remove, self._part, folder)
        self._open.callback(os.close, self._file)

    @property
    def written_bytes(self) -> int:
        return self._received.written_bytes

    def write(self, chunk: bytes | memoryview) -> None:
        """Raises ExamError "too_large" past the bound, "invalid" past the declared size, "unavailable" when the disk is
        full."""
        self._received.take(chunk)
        rest = memoryview(chunk)
        with disk_errors():
            while rest:
                rest = rest[os.write(self._file, rest) :]

    def commit(self) -> StoredSegment:
        """See `Upload`."""
        sha256 = self._received.check()
        try:
            with disk_errors():
                os.fsync(self._file)
                created = self._appear()
                if not created and self._present_sha256() != sha256:
                    raise name_taken(self._name)
                os.fsync(self._folder)
        finally:
            self._open.close()
        return StoredSegment(self._name, self.written_bytes, sha256, created)

    def abort(self) -> None:
        """Remove what was written. Harmless after a commit."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _appear(self) -> bool:
        """Give the written file its name, unless the name is taken: a link, unlike a rename, replaces nothing."""
        try:
            os.link(self._part, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder, follow_symlinks=False)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return self._appear_without_links()
        return True

    def _appear_without_links(self) -> bool:
        """For file systems without hard links: two uploads of one name at the same moment may replace one another."""
        try:
            os.stat(self._name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            os.rename(self._part, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            return True
        return False

    def _present_sha256(self) -> str:
        try:
            handle = os.open(self._name, _REGULAR, dir_fd=self._folder)
        except OSError:
            return ""
        with os.fdopen(handle, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return ""
            digest = hashlib.sha256()
            while chunk := file.read(_HASH_CHUNK_BYTES):
                digest.update(chunk)
            # It may be an earlier upload's, linked but not synced when its process was ended.
            os.fsync(handle)
            return digest.hexdigest()


@contextmanager
def disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:
            raise ExamError("unavailable", "a link or a file stands where a folder belongs; remove it") from error
        why = "the disk is full" if error.errno in _DISK_FULL else error.strerror or str(error)
        raise ExamError("unavailable", f"the recording cannot be stored now ({why}); send it again later") from error
