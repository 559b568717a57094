"""One merge of a recording in a bucket: fetch, merge in a folder, send, look at what arrived. Deletes no segment.

    list → fetch → merge as in a folder (`merge_run`) → list again → manifest → video → read it back

The manifest goes first: until the video is there with the bytes it names, it proves nothing, and the next attempt knows
by it that a video which is there is this recording's own. A worker needs the bucket and room on its disk, nothing else.
"""

from __future__ import annotations

import dataclasses
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec

from zq.context import JobContext, ProcessLimits, ProcessResult
from zq.exams import bucket_keys as keys
from zq.exams.bucket import PART_BYTES, Item, ObjectChanged
from zq.exams.bucket_recordings import BucketRecordings, Listing
from zq.exams.merging import BUCKET_DISK_FACTOR, DISK_SPARE_BYTES
from zq.exams.segment_index import MissingSegments, write_index
from zq.exams.segments import MergeRefused, Segment
from zq.exceptions import Retry
from zq.workers.bucket_cleanup import (
    read_manifest,
    restore_from_trash,
    same_object,
    video_is_right,
    write_manifest,
)
from zq.workers.merge_files import SegmentChanged, work_folder
from zq.workers.merge_marker import SUFFIX, Marker, read_marker, write_marker
from zq.workers.merge_run import MergeRequest, MergeResult, MergeSettings, merge_folder, result_of
from zq.workers.merge_verify import OutputWrong
from zq.workers.probe import Forks

log = logging.getLogger("zq.workers")

FETCHED, MERGED, SENT = 20.0, 80.0, 95.0
"""Percent of the whole at which each step ends."""


@dataclass
class BucketMerge:
    """One attempt at the recording of one student. `scratch` is a folder on this machine."""

    job: JobContext
    place: BucketRecordings
    scratch: Path
    exam_id: str
    student_id: str
    student_name: str
    settings: MergeSettings

    def run(self) -> MergeResult:
        """As `run_merge`; also raises ExamError("unavailable") while the bucket is away."""
        self._started_s = time.monotonic()
        self.scratch.mkdir(parents=True, exist_ok=True)
        sweep_scratch(self.scratch)
        bucket = self.place.bucket
        earlier = read_manifest(bucket, self.exam_id, self.student_id)
        right = earlier is not None and video_is_right(bucket, earlier)
        listing = self._listing(earlier)
        if earlier is not None and self._take_back(earlier, listing, right):
            listing = self._listing(earlier)
        if not listing.segments:
            result = self._done_before(earlier, right)
        elif earlier is not None and right and _is_known(earlier, listing):
            result = result_of(earlier, self._started_s, already=True)
        else:
            with work_folder(self.scratch, f"{self.exam_id}\0{self.student_id}") as work:
                result = self._merge(work, listing, earlier)
        result = dataclasses.replace(result, seconds=round(time.monotonic() - self._started_s, 3))
        log.info("merged %s", result)
        return result

    def _listing(self, earlier: Marker | None) -> Listing:
        """Raises MissingSegments for what was accepted, is in no video and is not there."""
        listing = self.place.listing(self.exam_id, self.student_id)
        done = {(i.name, i.sha256) for i in earlier.inputs} if earlier is not None else set()
        lost = [segment for segment in listing.missing if (segment.name, segment.sha256) not in done]
        if lost:
            raise MissingSegments(lost, list(listing.segments))
        return listing

    def _take_back(self, earlier: Marker, listing: Listing, right: bool) -> bool:
        """If something came after an earlier merge, or its video is lost: bring back what that merge was made of."""
        missing = [segment for segment in earlier.inputs if segment.name not in listing.items]
        if not missing or (right and set(listing.items) <= {segment.name for segment in earlier.inputs}):
            return False
        return restore_from_trash(self.place.bucket, self.exam_id, self.student_id, missing) > 0

    def _done_before(self, earlier: Marker | None, right: bool) -> MergeResult:
        if earlier is None:
            raise MergeRefused("no_segments", f"there is none of {self.student_id}; nothing was uploaded")
        if not right:
            raise MergeRefused("no_segments", f"they were merged into {earlier.output}, which is gone or was changed")
        return result_of(earlier, self._started_s, already=True)

    def _merge(self, work: Path, listing: Listing, earlier: Marker | None) -> MergeResult:
        target = work / "recordings"
        folder = target / self.student_id
        folder.mkdir(parents=True)
        self._fetch(listing, folder)
        if earlier is not None:
            # Its video is not here, so this says just what must be in a new one, and what that is called.
            write_marker(earlier, target / (earlier.output + SUFFIX))
        request = MergeRequest(self.exam_id, self.student_id, self.student_name, folder, target)
        result = merge_folder(part_of(self.job, FETCHED, MERGED), request, self.settings)
        self._check_unchanged(listing, earlier)
        marker = read_marker(target / (result.video + SUFFIX))
        self._send(target / result.video, _with_objects(marker, listing), earlier)
        return result

    def _fetch(self, listing: Listing, folder: Path) -> None:
        total_bytes = sum(item.size_bytes for item in listing.items.values())
        needed = int(total_bytes * BUCKET_DISK_FACTOR) + DISK_SPARE_BYTES
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise Retry(f"disk_full: the merge needs {needed} bytes in {self.scratch}, {free} are free")
        done_bytes = 0
        for segment in listing.segments:
            item = listing.items[segment.name]
            path = folder / segment.name
            with path.open("xb") as file:
                for part in self._parts(item):
                    file.write(part)
                    done_bytes += len(part)
                    self.job.progress(FETCHED * done_bytes / total_bytes, 100, "fetching segments")
            os.utime(path, ns=(item.modified_ms * 1_000_000, item.modified_ms * 1_000_000))
        write_index(folder, [s for s in listing.segments if s.sha256 is not None])

    def _parts(self, item: Item) -> Iterator[bytes]:
        try:
            for part in self.place.bucket.parts(item):
                self.job.check_soft_limit()
                yield part
        except ObjectChanged as error:
            raise SegmentChanged(str(error)) from None

    def _check_unchanged(self, listing: Listing, earlier: Marker | None) -> None:
        now = self._listing(earlier).items
        if late := sorted(set(now) - set(listing.items)):
            raise Retry(f"late_segment: {late[0]!r} arrived during the merge", after_s=1.0)
        for name, item in listing.items.items():
            if name not in now or (now[name].etag, now[name].size_bytes) != (item.etag, item.size_bytes):
                raise SegmentChanged(f"{name!r} was replaced or removed during the merge")

    def _send(self, video: Path, marker: Marker, earlier: Marker | None) -> None:
        bucket = self.place.bucket
        key = keys.video(self.exam_id, marker.output)
        if (earlier is None or earlier.output != marker.output) and bucket.head(key) is not None:
            detail = f"{marker.output} is there and has no manifest of this recording; move it away"
            raise MergeRefused("output_exists", detail)
        self.job.still_mine()
        write_manifest(bucket, marker)
        bucket.put_parts(key, self._read(video, marker.output_size_bytes), marker.output_size_bytes)
        step = (100 - SENT) / marker.output_size_bytes

        def on_part(done_bytes: int) -> None:
            self.job.progress(SENT + step * done_bytes, 100, "reading the video back")

        if not video_is_right(bucket, marker, on_part):
            raise OutputWrong(f"{marker.output} does not come back from the bucket as it was sent")
        if earlier is not None and earlier.output != marker.output:
            log.warning("%s is superseded by %s", earlier.output, marker.output)
        self.job.progress(100, 100, "done")

    def _read(self, video: Path, size_bytes: int) -> Iterator[bytes]:
        done_bytes = 0
        with video.open("rb") as file:
            while part := file.read(PART_BYTES):
                self.job.progress(MERGED + (SENT - MERGED) * done_bytes / size_bytes, 100, "sending the video")
                yield part
                done_bytes += len(part)


def _is_known(earlier: Marker, listing: Listing) -> bool:
    """Whether every segment that is there is in the earlier video, with these bytes."""
    inputs = {segment.name: segment for segment in earlier.inputs}

    def known(segment: Segment) -> bool:
        was = inputs.get(segment.name)
        item = listing.items[segment.name]
        return was is not None and (
            same_object(was, item) or (segment.sha256, item.size_bytes) == (was.sha256, was.size_bytes)
        )

    return all(map(known, listing.segments))


def _with_objects(marker: Marker, listing: Listing) -> Marker:
    """The manifest of the merge in a folder, with the objects that its segments were."""
    inputs = tuple(
        msgspec.structs.replace(i, inode=0, mtime_ns=0, key=listing.items[i.name].key, etag=listing.items[i.name].etag)
        for i in marker.inputs
    )
    return msgspec.structs.replace(marker, inputs=inputs, output_inode=0, output_mtime_ns=0)


def sweep_scratch(scratch: Path) -> int:
    """Remove the work folders of attempts that died on this machine, of whatever recording; returns how many."""
    swept = 0
    for folder in sorted(scratch.glob(".zq-merge-*.part")):
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
            swept += 1
        except OSError:
            continue  # somebody works there
        finally:
            os.close(handle)
    return swept


class _Part:
    """The job, for a step that is a part of the whole: its percents are from `low` to `high`."""

    def __init__(self, job: JobContext, low: float, high: float) -> None:
        self._job = job
        self._low = low
        self._high = high

    def progress(self, done: float, total: float, message: str = "") -> None:
        self._job.progress(self._low + (self._high - self._low) * done / total, 100, message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._job, name)


class _ForkingPart(_Part):
    """Of a job that can run a function in a copy of its process."""

    def run_forked(
        self, function: Callable[[], int], *, cwd: Path, limits: ProcessLimits, on_stdout_line: Callable[[str], None]
    ) -> ProcessResult:
        job = self._job
        assert isinstance(job, Forks)
        return job.run_forked(function, cwd=cwd, limits=limits, on_stdout_line=on_stdout_line)


def part_of(job: JobContext, low: float, high: float) -> JobContext:
    kind = _ForkingPart if isinstance(job, Forks) else _Part
    return cast(JobContext, kind(job, low, high))
