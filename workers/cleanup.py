"""After a merge is done and that is durable: the segments that are in the merged file go, and nothing else.

They go into the trash (`merge_trash`) for a time, from where a new merge can take them back. A job of its own, so that
it is journalled and retried, and so that no merge can delete anything. Run any number of times it ends the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zq.exams.segment_index import sync_folder
from zq.exceptions import Reject
from zq.workers.merge_marker import Marker, find_marker, output_is_right
from zq.workers.merge_trash import open_trash, state_of, throw_away


@dataclass(frozen=True)
class CleanupResult:
    """How many segments of the manifest went now, were gone before, and were kept because they changed.

    `trashed`: they are in the trash; else they are deleted.
    """

    video: str
    deleted: int
    gone: int
    kept: int
    freed_bytes: int
    trashed: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def clean_up(
    target: Path,
    exam_id: str,
    student_id: str,
    *,
    use_trash: bool = False,
    on_segment: Callable[[int, int], None] = lambda done, total: None,
) -> CleanupResult:
    """Delete the merged segments of one student, or trash them; `target` is the folder of the merged file.

    Each goes just if it is the very file that was merged, untouched since, or has its size and hash by the manifest.
    Raises Reject, having touched nothing, if there is no manifest or the merged file is not what the manifest says;
    OSError if the disk refuses (a retry goes on).
    """
    try:
        marker = find_marker(target, exam_id, student_id)
    except FileNotFoundError:
        marker = None
    if marker is None:
        raise Reject(f"no_manifest: no merged recording of {student_id} in exam {exam_id}; nothing was deleted")
    # What goes into the trash can come back; before anything goes for good, the video is read once more.
    if not output_is_right(marker, target, read_again=not use_trash):
        raise Reject(f"output_wrong: {marker.output} is not what its manifest says; nothing was deleted")
    return _delete(marker, target, on_segment, use_trash=use_trash)


def _delete(
    marker: Marker, target: Path, on_segment: Callable[[int, int], None], *, use_trash: bool
) -> CleanupResult:
    folder = target / marker.folder
    if folder.is_symlink():
        raise Reject(f"output_wrong: {marker.folder} is a link; nothing was deleted")
    trash = open_trash(target, marker.folder) if use_trash else None
    deleted = gone = kept = freed_bytes = 0
    for done, segment in enumerate(marker.inputs):
        on_segment(done, len(marker.inputs))
        state = state_of(segment, folder)
        if state == "same":
            if trash is not None:
                throw_away(folder / segment.name, trash)
            else:
                os.unlink(folder / segment.name)
                freed_bytes += segment.size_bytes
            deleted += 1
        elif state == "gone":
            gone += 1
        else:
            kept += 1
    if deleted:
        sync_folder(folder)
        if trash is not None:
            sync_folder(trash)
    return CleanupResult(marker.output, deleted, gone, kept, freed_bytes, trashed=trash is not None)
