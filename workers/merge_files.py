"""The merge's hands on the disk: read segments without trusting them, lay out runs, keep a private work folder.

A work folder lies beside the merged file, so that publishing is a rename, and is locked by the process that made it:
one that is not locked belongs to an attempt that died, and is swept by the next. Segments are only ever read.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from zq.exams.segments import MergeRefused
from zq.workers.merge_media import HEAD_BYTES, Container, sniff, walk
from zq.workers.merge_resume import HEADER_BYTES_MAX, resume_at

GAPS_PER_RUN_MAX = 200
READ_BY_TWO_MIN = 200
SETTLED_NS = 2_500_000_000
_CHUNK_BYTES = 1024 * 1024
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Collected:
    """A segment as it was read: what it is, and by what to see that it has not changed since."""

    name: str
    size_bytes: int
    sha256: str
    container: Container
    inode: int
    mtime_ns: int
    settled: bool = True
    """Whether it had been left alone for a while when it was read. Else one more write may come under the same
    modification time: file systems count in ticks, some of them in seconds."""

    def same_file(self, status: os.stat_result) -> bool:
        return (self.size_bytes, self.inode, self.mtime_ns) == (status.st_size, status.st_ino, status.st_mtime_ns)


class SegmentChanged(Exception):
    """A segment was replaced or written to while it was being merged. Another attempt reads it anew."""


def open_regular(path: Path) -> int:
    """Open for reading, never through a link, never anything but a regular file (MergeRefused: bad_segment)."""
    try:
        handle = os.open(path, _READ_FLAGS)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise MergeRefused("bad_segment", "not a regular file; links are not read", path.name) from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise MergeRefused("bad_segment", "not a regular file", path.name)
    return handle


def collect(path: Path) -> Collected:
    """Read a segment to its end: its hash and what it begins as."""
    with open(open_regular(path), "rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        digest = hashlib.sha256()
        head = b""
        # One buffer for all of it, no larger than it need be: a new megabyte for each of 1800 short files takes longer
        # than to read them.
        view = memoryview(bytearray(min(_CHUNK_BYTES, before.st_size + 1)))
        while length := file.readinto(view):
            head = head or bytes(view[: min(length, HEAD_BYTES)])
            digest.update(view[:length])
        settled = time.time_ns() - before.st_mtime_ns > SETTLED_NS
        found = Collected(
            path.name, before.st_size, digest.hexdigest(), sniff(head), before.st_ino, before.st_mtime_ns, settled
        )
        if not found.same_file(os.fstat(file.fileno())) or file.tell() != before.st_size:
            raise SegmentChanged(f"{path.name!r} was written to while it was read")
    return found


def collect_all(paths: Sequence[Path]) -> Iterator[Collected]:
    """`collect` of each, in order. Many are read by two threads: hashing is most of it, and holds up nobody."""
    if len(paths) < READ_BY_TWO_MIN:
        yield from map(collect, paths)
        return
    readers = ThreadPoolExecutor(2, "segments")
    try:
        yield from readers.map(collect, paths)
    finally:
        readers.shutdown(cancel_futures=True)


def hash_file(path: Path) -> tuple[int, str]:
    """(size in bytes, sha256) of a regular file."""
    found = collect(path)
    return found.size_bytes, found.sha256


class Settling:
    """Hashes a finished file and brings it to the disk, in a thread: meanwhile others look whether it is right."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: Collected | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._settle, name="settling")

    def _settle(self) -> None:
        try:
            self._found = collect(self._path)
            sync_file(self._path)
        except BaseException as error:
            self._error = error

    def result(self) -> Collected:
        """The file as it was read, when it is on the disk. Raises what `collect` raises, and OSError."""
        self._thread.join()
        if self._found is None or self._error is not None:
            raise self._error or AssertionError("a file was not hashed")
        return self._found

    def __enter__(self) -> Settling:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.join()


def link_run(folder: Path, segment: Collected, target: Path) -> None:
    """Give a run of one segment a name of our own: a hard link, or a copy where links cannot be."""
    try:
        os.link(folder / segment.name, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
            raise
        join_run(folder, [segment], target)
        return
    if not segment.same_file(os.lstat(target)):
        raise SegmentChanged(f"{segment.name!r} was replaced while it was merged")


@dataclass(frozen=True, slots=True)
class Joined:
    """Where in a joined run each segment begins, and how many bytes beside a gap could not be used."""

    offsets: tuple[int, ...]
    dropped_bytes: int = 0


def join_run(
    folder: Path,
    segments: Sequence[Collected],
    target: Path,
    *,
    after_gap: Set[str] = frozenset(),
    container: Container = Container.NONE,
) -> Joined:
    """Write the bytes of `segments` one after the other.

    Before each of `after_gap` one is missing: there the run ends with its last whole element and goes on with the
    next one that can be read without it. MergeRefused (sequence_gap) if there are too many gaps.
    """
    if len(after_gap) > GAPS_PER_RUN_MAX:
        raise MergeRefused("sequence_gap", f"{len(after_gap)} gaps in one recording; upload what is missing")
    offsets: list[int] = []
    dropped_bytes = 0
    with open(target, "x+b", buffering=0) as out:
        resuming = False
        for segment in segments:
            if segment.name in after_gap:
                whole_bytes = walk(out.fileno(), out.tell(), container).whole_bytes
                dropped_bytes += out.tell() - whole_bytes
                out.truncate(whole_bytes)
                out.seek(whole_bytes)
                resuming = True
            offsets.append(out.tell())
            handle = open_regular(folder / segment.name)
            try:
                if not segment.same_file(os.fstat(handle)):
                    raise SegmentChanged(f"{segment.name!r} was replaced while it was merged")
                begin = _resume(handle, segment, out.fileno(), container) if resuming else 0
                dropped_bytes += begin
                resuming = resuming and begin == segment.size_bytes
                os.lseek(handle, begin, os.SEEK_SET)
                _append(handle, out.fileno(), segment, segment.size_bytes - begin)
            finally:
                os.close(handle)
    return Joined(tuple(offsets), dropped_bytes)


def _resume(handle: int, segment: Collected, run: int, container: Container) -> int:
    """From where in a segment behind a gap the run can go on; its end if it cannot."""
    header = os.pread(run, HEADER_BYTES_MAX, 0)
    with mmap.mmap(handle, segment.size_bytes, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
        found = resume_at(header, view, container)
    return segment.size_bytes if found is None else found


def _append(handle: int, out: int, segment: Collected, left: int) -> None:
    while left:
        copied = os.sendfile(out, handle, None, left)
        if not copied:
            raise SegmentChanged(f"{segment.name!r} became shorter while it was merged")
        left -= copied


def sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def work_prefix(key: str) -> str:
    """How the work folders of one recording begin."""
    return f".zq-merge-{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}-"


@contextlib.contextmanager
def work_folder(target: Path, key: str) -> Iterator[Path]:
    """A private folder in `target`, locked while this process lives, removed at the end whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix=work_prefix(key), suffix=".part", dir=target))
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Not everywhere: on a file system without locks nothing is ever taken for abandoned.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)


def sweep_work_folders(target: Path, key: str, before_removal: Callable[[Path], None]) -> int:
    """Remove the work folders of this recording whose process is gone; returns how many.

    `before_removal` sees each first: it may hold the manifest of a file that was published just before the end.
    """
    swept = 0
    for folder in sorted(target.glob(f"{work_prefix(key)}*.part")):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            else:
                before_removal(folder)
                shutil.rmtree(folder, ignore_errors=True)
                swept += 1
            finally:
                os.close(handle)
    return swept
