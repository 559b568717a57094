"""Recordings in an S3-compatible bucket, by the keys of `bucket_keys`.

A segment is created, never replaced: two uploads of one name cannot both be stored with other bytes. While it comes in
it is on a local disk, without a name there, and it is answered when bucket and record have it.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from zq.config import Config
from zq.exams import bucket_keys as keys
from zq.exams import names
from zq.exams.bucket import ALONE_BYTES_MAX, PART_BYTES, Bucket, Item, ObjectChanged
from zq.exams.errors import ExamError
from zq.exams.recording_place import Received, StoredSegment, name_taken
from zq.exams.segments import MEDIA_SUFFIXES, SEGMENTS_MAX, MergeRefused, Segment, check_name, parse_name, with_known
from zq.exams.storage import disk_errors
from zq.exams.times import zone as zone_of

_log = logging.getLogger("zq.exams")

MARK_S = 10.0
"""So long a count of segments is taken for the present one: asking again is a request to the bucket."""
LATELY_S = 3.0
AWAY_S = 15.0
"""So long a bucket that did not answer is not asked whether there are segments."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What the bucket has of one student: each segment with its object, and records whose segment is not there."""

    segments: tuple[Segment, ...]
    items: dict[str, Item]
    missing: tuple[Segment, ...]


class BucketRecordings:
    """`spool` is a local folder for what is on its way in."""

    def __init__(self, bucket: Bucket, spool: Path, time_zone: str) -> None:
        self.bucket = bucket
        self._spool = spool
        self._zone = zone_of(time_zone)
        self._away_until_s = 0.0
        self._lately: tuple[float, str, set[str]] = (-LATELY_S, "", set())

    def open_segment(
        self,
        exam_id: str,
        student_id: str,
        name: str,
        *,
        size_bytes_max: int,
        size_bytes: int | None = None,
        sha256: str | None = None,
    ) -> BucketUpload:
        """See `Recordings`."""
        key = keys.segment(exam_id, student_id, name)
        received = Received(name, size_bytes_max, size_bytes, sha256)
        with disk_errors():
            self._spool.mkdir(parents=True, exist_ok=True)
            file = tempfile.TemporaryFile(dir=self._spool)  # noqa: SIM115 - the upload closes it
        return BucketUpload(self.bucket, key, received, file, lambda: self.on_record(exam_id, student_id, name))

    def record(self, exam_id: str, student_id: str, segment: Segment, *, created: bool) -> int:
        """See `Recordings`."""
        known = None if created else self.on_record(exam_id, student_id, segment.name)
        if known is not None and known.sha256 == segment.sha256:
            return known.mtime_ms
        self.bucket.put(keys.record(exam_id, student_id, segment), b"")
        return segment.mtime_ms

    def on_record(self, exam_id: str, student_id: str, name: str) -> Segment | None:
        """See `Recordings`. Raises ExamError("unavailable")."""
        place = f"{keys.records(exam_id, student_id)}/{keys.encoded(name)}"
        return _newest(map(keys.read_record, (item.key for item in self.bucket.items(place)))).get(name)

    def has_segment(self, exam_id: str, student_id: str, name: str) -> bool:
        """See `Recordings`. Raises ExamError("unavailable")."""
        return self.bucket.head(keys.segment(exam_id, student_id, name)) is not None

    def has_segments(self, exam_id: str, student_id: str) -> bool:
        """See `Recordings`. While the bucket is away, one question in AWAY_S waits for it."""
        if time.monotonic() < self._away_until_s:
            return True
        try:
            return any(True for _ in self._items(exam_id, student_id))
        except MergeRefused:
            return True  # it is the merge that says what is wrong with it
        except ExamError as error:
            self._away_until_s = time.monotonic() + AWAY_S
            _log.warning("whether student %s in exam %s has segments cannot be told: %s", student_id, exam_id, error)
            return True

    def had_segments(self, exam_id: str, student_id: str) -> bool:
        """See `Recordings`: one listing for all students of an exam; one for each would take a minute at its end."""
        if time.monotonic() < self._away_until_s:
            return True
        at_s, exam, students = self._lately
        if exam != exam_id or time.monotonic() - at_s > LATELY_S:
            try:
                students = self.bucket.folders(keys.recordings(exam_id))
            except ExamError:
                return self.has_segments(exam_id, student_id)
            self._lately = (time.monotonic(), exam_id, students)
        return names.student_id(student_id) in students

    def segment_sizes(self, exam_id: str, student_id: str) -> list[int] | None:
        """See `Recordings`."""
        try:
            return [item.size_bytes for _, item in self._items(exam_id, student_id)]
        except (ExamError, MergeRefused):
            return None

    def change_mark(self, exam_id: str, student_id: str) -> object:
        """See `Recordings`: by the clock."""
        return int(time.monotonic() / MARK_S)

    def open_video(self, exam_id: str, video: str) -> BucketVideo:
        """See `Recordings`."""
        item = self.bucket.head(keys.video(exam_id, video))
        if item is None:
            raise ExamError("not_found", f"no video {video!r} in exam {exam_id!r}")
        return BucketVideo(self.bucket, item)

    def listing(self, exam_id: str, student_id: str) -> Listing:
        """All segments of a student with what was said of them. Raises ExamError("unavailable"), MergeRefused."""
        items: dict[str, Item] = {}
        for name, item in self._items(exam_id, student_id):
            if name in items:
                raise MergeRefused("bad_segment", f"two objects of the bucket stand for it; remove {item.key!r}", name)
            if len(items) >= SEGMENTS_MAX:
                raise MergeRefused("bad_segment", f"more than {SEGMENTS_MAX} segments of one student")
            items[name] = item
        records = self.bucket.items(keys.records(exam_id, student_id))
        said = _newest(keys.read_record(item.key) for item in records)
        segments = []
        for name, item in sorted(items.items()):
            parsed = parse_name(name, self._zone)
            found = Segment(name=name, seq=parsed.seq, ts_ms=parsed.ts_ms, mtime_ms=item.modified_ms)
            segments.append(with_known(found, said.pop(name, None)))
        return Listing(tuple(segments), items, tuple(said[name] for name in sorted(said)))

    def _items(self, exam_id: str, student_id: str) -> Iterator[tuple[str, Item]]:
        for item in self.bucket.items(keys.segments(exam_id, student_id)):
            name = keys.decoded(item.key.rpartition("/")[2])
            if item.key.count("/") == 3 and not name.startswith(".") and _suffix(name) in MEDIA_SUFFIXES:
                try:
                    yield check_name(name), item
                except ValueError as error:
                    raise MergeRefused("bad_segment", str(error), ascii(name)) from None


def of_config(config: Config) -> BucketRecordings:
    """Raises ExamError("invalid") for a bucket, region or time zone that cannot be."""
    exams = config.exams
    where = (config.bucket_url, exams.storage_endpoint, exams.storage_region)
    return _opened(*where, config.storage_path, exams.time_zone)


@functools.lru_cache(maxsize=4)
def _opened(url: str, endpoint: str, region: str, spool: Path, time_zone: str) -> BucketRecordings:
    return BucketRecordings(Bucket(url, endpoint, region), spool, time_zone)


class BucketUpload:
    """See `Upload`. Waits on a local disk, in a file without a name."""

    def __init__(
        self, bucket: Bucket, key: str, received: Received, file: BinaryIO, on_record: Callable[[], Segment | None]
    ) -> None:
        self._bucket = bucket
        self._key = key
        self._received = received
        self._file = file
        self._on_record = on_record

    @property
    def written_bytes(self) -> int:
        return self._received.written_bytes

    def write(self, chunk: bytes | memoryview) -> None:
        """See `Upload`."""
        self._received.take(chunk)
        with disk_errors():
            self._file.write(chunk)

    def commit(self) -> StoredSegment:
        """See `Upload`."""
        try:
            sha256 = self._received.check()
            with disk_errors():
                self._file.seek(0)
            created = self._create()
            if not created and self._present_sha256() != sha256:
                raise name_taken(self._received.name)
        finally:
            self.abort()
        return StoredSegment(self._received.name, self.written_bytes, sha256, created)

    def abort(self) -> None:
        """See `Upload`."""
        self._file.close()

    def _create(self) -> bool:
        if self.written_bytes <= ALONE_BYTES_MAX:
            return self._bucket.create(self._key, self._file.read())
        # Sent in parts nothing can be asked of the server: of two such uploads of one name at the same moment the
        # later one stays, and the merge tells from the record if it is the wrong one.
        if self._bucket.head(self._key) is not None:
            return False
        self._bucket.put_parts(self._key, iter(lambda: self._file.read(PART_BYTES), b""), self.written_bytes)
        return True

    def _present_sha256(self) -> str:
        item = self._bucket.head(self._key)
        if item is None or item.size_bytes != self.written_bytes:
            return ""
        return sha256_of(self._bucket, item)


class BucketVideo:
    """See `Video`. Each read is a request."""

    def __init__(self, bucket: Bucket, item: Item) -> None:
        self._bucket = bucket
        self._item = item
        self.size_bytes = item.size_bytes
        self.etag = item.etag.strip('"')

    def read_at(self, length: int, offset: int) -> bytes:
        """Raises OSError if the video was replaced, or the bucket is away."""
        length = min(length, self.size_bytes - offset)
        if length <= 0:
            return b""
        try:
            return self._bucket.range(self._item, offset, length)
        except (ExamError, ObjectChanged) as error:
            raise OSError(str(error)) from error

    def close(self) -> None:
        """See `Video`."""


def sha256_of(bucket: Bucket, item: Item, on_part: Callable[[int], None] = lambda done: None) -> str:
    """Of the object's bytes as they come back. Raises ExamError("unavailable"), ObjectChanged."""
    digest = hashlib.sha256()
    for number, part in enumerate(bucket.parts(item)):
        on_part(number * PART_BYTES)
        digest.update(part)
    return digest.hexdigest()


def _newest(records: Iterator[Segment | None]) -> dict[str, Segment]:
    """By name, what was said last."""
    found: dict[str, Segment] = {}
    for segment in records:
        if segment is not None and (segment.name not in found or segment.mtime_ms >= found[segment.name].mtime_ms):
            found[segment.name] = segment
    return found


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
