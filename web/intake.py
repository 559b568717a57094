"""How a segment comes in: streamed to disk while it is hashed, on record before it is answered.

What comes after the student has finished is late: what was merged without it, or is being merged, is not complete, so
a new merge is asked for. Whether it is late is looked up when the segment is durable: a finish during the upload
counts.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final, ParamSpec, TypeVar

from zq.exams.model import Student
from zq.exams.recording_place import Upload
from zq.exams.segments import Segment
from zq.exams.status import MergeState, StudentStatus
from zq.web.exam_views import SegmentView
from zq.web.exams import submit
from zq.web.services import Services, now_ms

WRITE_BYTES: Final = 512 << 10
"""Gathered before a thread is asked to write, at most: fewer hand-overs."""
WRITE_BYTES_MIN: Final = 32 << 10
GATHERED_BYTES: Final = 64 << 20
"""Of all uploads together. Thousands come at once when a network is back; each then writes smaller pieces."""
BYTES_PER_S_MIN: Final = 16 << 10
"""A body that comes at this rate or faster may take longer than `web.body_timeout_s`."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Declared:
    """What the uploader says of a segment; None for what it does not say."""

    seq: int | None
    ts_ms: int | None
    size_bytes: int | None
    sha256: str | None


class Intake:
    """Takes segments of all routes. Belongs to one event loop; disk and database are asked in threads."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def take(
        self, exam_id: str, student_id: str, name: str, declared: Declared, parts: AsyncIterator[bytes], ip: str
    ) -> SegmentView:
        """Store the segment that `parts` brings, durably. Raises ExamError and what `parts` raises; then
        nothing of it is left."""
        merged, writer = await in_thread(self._open, exam_id, student_id, name, declared)
        self._services.uploads += 1
        try:
            waiting: list[bytes] = []
            waiting_bytes = 0
            digest = hashlib.sha256()
            async for part in parts:
                waiting.append(part)
                waiting_bytes += len(part)
                if merged is not None:
                    digest.update(part)
                if waiting_bytes >= gather_bytes(self._services.uploads):
                    await in_thread(_write, writer, waiting)
                    waiting, waiting_bytes = [], 0
            if merged is not None and merged.sha256 == digest.hexdigest():
                # Its answer was lost, and meanwhile it was merged and cleaned up.
                size_bytes = writer.written_bytes + waiting_bytes
                return SegmentView(name=name, size_bytes=size_bytes, sha256=merged.sha256, created=False)
            stored, recorded_ms, student = await in_thread(
                self._commit, writer, waiting, exam_id, student_id, name, declared
            )
        finally:
            self._services.uploads -= 1
            await in_thread(writer.abort)
        self._services.heartbeats.learn(exam_id, student_id)
        self._services.heartbeats.add(exam_id, student_id, at_ms=now_ms(), ip=ip)
        if is_late(student, stored, recorded_ms):
            merge = await asyncio.to_thread(self._services.store.request_merge, exam_id, student_id, now_ms=now_ms())
            await submit(self._services, merge)
        return stored

    def _open(
        self, exam_id: str, student_id: str, name: str, declared: Declared
    ) -> tuple[Segment | None, Upload]:
        student = self._services.store.get_student(exam_id, student_id)
        writer = self._services.storage.open_segment(
            exam_id,
            student_id,
            name,
            size_bytes_max=self._services.config.web.max_segment_mib << 20,
            size_bytes=declared.size_bytes,
            sha256=declared.sha256,
        )
        return self._merged_segment(student, name), writer

    def _merged_segment(self, student: Student, name: str) -> Segment | None:
        """What is on record of a segment that is in the finished video and no longer on disk."""
        if student.recording is None or student.recording.state is not MergeState.DONE:
            return None
        storage = self._services.storage
        if storage.has_segment(student.exam_id, student.student_id, name):
            return None
        return storage.on_record(student.exam_id, student.student_id, name)

    def _commit(
        self, writer: Upload, rest: list[bytes], exam_id: str, student_id: str, name: str, declared: Declared
    ) -> tuple[SegmentView, int, Student]:
        """Also when the segment was put on record, which a repeat does not change."""
        _write(writer, rest)
        stored = writer.commit()
        segment = Segment(name, declared.seq, declared.ts_ms, stored.size_bytes, stored.sha256, now_ms())
        recorded_ms = self._services.storage.record(exam_id, student_id, segment, created=stored.created)
        view = SegmentView(name=name, size_bytes=stored.size_bytes, sha256=stored.sha256, created=stored.created)
        return view, recorded_ms, self._services.store.get_student(exam_id, student_id)


def is_late(student: Student, stored: SegmentView, recorded_ms: int) -> bool:
    """Whether the student has finished, and nobody has asked for a merge since this segment is on record.

    A segment may be there without one: where the merge could not be asked for, the upload was an error, and this is
    its repeat.
    """
    if student.status is not StudentStatus.LOGOUT:
        return False
    return stored.created or student.recording is None or student.recording.requested_ms <= recorded_ms


def gather_bytes(uploads: int) -> int:
    """How much each of so many uploads may gather before it is written."""
    return min(WRITE_BYTES, max(WRITE_BYTES_MIN, GATHERED_BYTES // max(1, uploads)))


def _write(writer: Upload, parts: list[bytes]) -> None:
    for part in parts:
        writer.write(part)


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As asyncio.to_thread, but never leaves while the work still runs: it may use a descriptor that is closed next."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
