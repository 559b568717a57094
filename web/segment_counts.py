"""How many segments of a student are on disk, without listing folders that have not changed."""

from __future__ import annotations

import os

from zq.exams.segments import MEDIA_SUFFIXES
from zq.exams.storage import RecordingStorage

STUDENTS_MAX = 20_000


class SegmentCounts:
    """A folder is listed again only when its time of change has moved. Safe to share between threads."""

    def __init__(self, storage: RecordingStorage) -> None:
        self._storage = storage
        self._known: dict[tuple[str, str], tuple[int, int]] = {}

    def count(self, exam_id: str, student_id: str) -> int | None:
        """None if the folder cannot be read."""
        folder = self._storage.student_folder(exam_id, student_id)
        try:
            changed_ns = os.stat(folder, follow_symlinks=False).st_mtime_ns
            known = self._known.get((exam_id, student_id))
            if known is not None and known[0] == changed_ns:
                return known[1]
            with os.scandir(folder) as entries:
                found = sum(_is_segment(entry.name) for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return 0
        except OSError:
            return None
        if len(self._known) >= STUDENTS_MAX:
            self._known.clear()
        self._known[exam_id, student_id] = (changed_ns, found)
        return found


def _is_segment(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in MEDIA_SUFFIXES
