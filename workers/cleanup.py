"""After a merge is done and that is durable: delete the segments that are in the merged file, and nothing else.

A job of its own, so that it is journalled and retried, and so that no merge can delete anything. Run any number of
times it ends the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zq.exams.segment_index import sync_folder
from zq.exams.segments import MergeRefused
from zq.exceptions import Reject
from zq.workers.merge_files import SegmentChanged, hash_file
from zq.workers.merge_marker import Input, Marker, find_marker, output_is_right


@dataclass(frozen=True)
class CleanupResult:
    """How many segments of the manifest were deleted now, were gone before, and were kept because they changed."""

    video: str
    deleted: int
    gone: int
    kept: int
    freed_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def clean_up(
    target: Path,
    exam_id: str,
    student_id: str,
    *,
    on_segment: Callable[[int, int], None] = lambda done, total: None,
) -> CleanupResult:
    """Delete the merged segments of one student; `target` is the folder of the merged file.

    Each is deleted just if its size and hash are those of the manifest. Raises Reject, having deleted nothing, if there
    is no manifest or the merged file is not what the manifest says; OSError if the disk refuses (a retry goes on).
    """
    try:
        marker = find_marker(target, exam_id, student_id)
    except FileNotFoundError:
        marker = None
    if marker is None:
        raise Reject(f"no_manifest: no merged recording of {student_id} in exam {exam_id}; nothing was deleted")
    if not output_is_right(marker, target):
        raise Reject(f"output_wrong: {marker.output} is not what its manifest says; nothing was deleted")
    return _delete(marker, target / marker.folder, on_segment)


def _delete(marker: Marker, folder: Path, on_segment: Callable[[int, int], None]) -> CleanupResult:
    if folder.is_symlink():
        raise Reject(f"output_wrong: {marker.folder} is a link; nothing was deleted")
    deleted = gone = kept = freed_bytes = 0
    for done, segment in enumerate(marker.inputs):
        on_segment(done, len(marker.inputs))
        state = _state(segment, folder)
        if state == "same":
            os.unlink(folder / segment.name)
            deleted += 1
            freed_bytes += segment.size_bytes
        elif state == "gone":
            gone += 1
        else:
            kept += 1
    if deleted:
        sync_folder(folder)
    return CleanupResult(marker.output, deleted, gone, kept, freed_bytes)


def _state(segment: Input, folder: Path) -> str:
    path = folder / segment.name
    try:
        if os.lstat(path).st_size != segment.size_bytes:
            return "changed"
        return "same" if hash_file(path) == (segment.size_bytes, segment.sha256) else "changed"
    except FileNotFoundError:
        return "gone"
    except (MergeRefused, SegmentChanged):
        return "changed"
