"""How many segments there are of a student, without listing what has not changed."""

from __future__ import annotations

from zq.exams.recording_place import Recordings

STUDENTS_MAX = 20_000


class SegmentCounts:
    """Segments are counted again only when something may have changed. Safe to share between threads."""

    def __init__(self, storage: Recordings) -> None:
        self._storage = storage
        self._known: dict[tuple[str, str], tuple[object, int]] = {}

    def count(self, exam_id: str, student_id: str) -> int | None:
        """None if it cannot be told."""
        mark = self._storage.change_mark(exam_id, student_id)
        known = self._known.get((exam_id, student_id))
        if known is not None and mark is not None and known[0] == mark:
            return known[1]
        sizes = self._storage.segment_sizes(exam_id, student_id)
        if sizes is None:
            return None
        if len(self._known) >= STUDENTS_MAX:
            self._known.clear()
        self._known[exam_id, student_id] = (mark, len(sizes))
        return len(sizes)
