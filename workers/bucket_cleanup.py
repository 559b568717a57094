"""What a merge leaves in a bucket: the manifest, the clean-up that follows it, and the trash. As in a folder.

    {recordings}/.zq-manifests/{student_id}.json             what the video was made of
    {recordings}/.zq-trash/{student_id}/{segment}            since when, the server's time of the copy tells

A segment goes into the trash as a copy, and only then from its place: killed in between and run again it ends the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import msgspec

from zq.exams import bucket_keys as keys
from zq.exams.bucket import Bucket, Item, ObjectChanged
from zq.exams.bucket_recordings import BucketRecordings, sha256_of
from zq.exceptions import Reject
from zq.workers.cleanup import CleanupResult
from zq.workers.merge_marker import BYTES_MAX, Input, Marker, MarkerBroken, decode_marker
from zq.workers.merge_trash import Emptied

log = logging.getLogger("zq.workers")


def read_manifest(bucket: Bucket, exam_id: str, student_id: str) -> Marker | None:
    """Of the student's merged recording, if there is one. Raises ExamError("unavailable").

    One that cannot be read is no manifest; the video it belongs to is then in the way, and stays.
    """
    key = keys.manifest(exam_id, student_id)
    try:
        content = bucket.read(key, BYTES_MAX)
        marker = None if content is None else decode_marker(content, key)
    except (MarkerBroken, ValueError, ObjectChanged) as error:
        log.warning("a manifest is left out of account: %s", error)
        return None
    if marker is not None and (marker.exam_id, marker.student_id) != (exam_id, student_id):
        log.warning("a manifest is left out of account: %s is of another recording", key)
        return None
    return marker


def write_manifest(bucket: Bucket, marker: Marker) -> None:
    content = msgspec.json.format(msgspec.json.encode(marker), indent=1) + b"\n"
    bucket.put(keys.manifest(marker.exam_id, marker.student_id), content)


def video_is_right(bucket: Bucket, marker: Marker, on_part: Callable[[int], None] = lambda done_bytes: None) -> bool:
    """Whether the merged file comes back from the bucket with the bytes its manifest says."""
    item = bucket.head(keys.video(marker.exam_id, marker.output))
    if item is None or item.size_bytes != marker.output_size_bytes:
        return False
    try:
        return sha256_of(bucket, item, on_part) == marker.output_sha256
    except ObjectChanged:
        return False


def clean_up_bucket(
    place: BucketRecordings,
    exam_id: str,
    student_id: str,
    *,
    use_trash: bool,
    on_segment: Callable[[int, int], None] = lambda done, total: None,
) -> CleanupResult:
    """As `cleanup.clean_up`. A segment goes just if it is the very object that was merged."""
    bucket = place.bucket
    marker = read_manifest(bucket, exam_id, student_id)
    if marker is None:
        raise Reject(f"no_manifest: no merged recording of {student_id} in exam {exam_id}; nothing was deleted")
    if not video_is_right(bucket, marker):
        raise Reject(f"output_wrong: {marker.output} is not what its manifest says; nothing was deleted")
    items = {item.key: item for item in bucket.items(keys.segments(exam_id, student_id))}
    deleted = gone = kept = freed_bytes = 0
    for done, segment in enumerate(marker.inputs):
        on_segment(done, len(marker.inputs))
        item = items.get(segment.key or keys.segment(exam_id, student_id, segment.name))
        if item is None:
            gone += 1
        elif not same_object(segment, item):
            kept += 1
        else:
            if use_trash:
                bucket.copy(item.key, f"{keys.trash(exam_id, student_id)}/{keys.encoded(segment.name)}")
            else:
                freed_bytes += segment.size_bytes
            bucket.delete(item.key)
            deleted += 1
    return CleanupResult(marker.output, deleted, gone, kept, freed_bytes, trashed=use_trash)


def same_object(segment: Input, item: Item) -> bool:
    return (segment.size_bytes, segment.etag) == (item.size_bytes, item.etag) and bool(item.etag)


def restore_from_trash(bucket: Bucket, exam_id: str, student_id: str, missing: Iterable[Input]) -> int:
    """Bring these segments of an earlier merge back to their places; returns how many came."""
    trash = {item.key: item for item in bucket.items(keys.trash(exam_id, student_id))}
    restored = 0
    for segment in missing:
        item = trash.get(f"{keys.trash(exam_id, student_id)}/{keys.encoded(segment.name)}")
        if item is not None and item.size_bytes == segment.size_bytes:
            bucket.copy(item.key, segment.key or keys.segment(exam_id, student_id, segment.name))
            bucket.delete(item.key)
            restored += 1
    if restored:
        log.info("%d segments of %s are taken out of the trash for a new merge", restored, student_id)
    return restored


def empty_bucket_trash(
    bucket: Bucket,
    exam_id: str,
    keep_s: float,
    now_s: float,
    *,
    on_segment: Callable[[int, int], None] = lambda done, total: None,
) -> Emptied:
    """As `merge_trash.empty`, for the trash of an exam in a bucket."""
    deleted = freed_bytes = kept = 0
    oldest_s = now_s
    for number, item in enumerate(bucket.items(keys.trash(exam_id))):
        on_segment(number, number + 1)
        age_s = now_s - item.modified_ms / 1000
        if age_s < keep_s:
            kept += 1
            oldest_s = min(oldest_s, item.modified_ms / 1000)
            continue
        bucket.delete(item.key)
        deleted += 1
        freed_bytes += item.size_bytes
    return Emptied(deleted, freed_bytes, kept, max(0.0, oldest_s + keep_s - now_s) if kept else 0.0)
