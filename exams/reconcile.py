"""What has become of merges of which the store has heard no end: the broker is asked.

A merge writes its own fate into the store. One whose last attempt was killed, that was cancelled before it began, or
that the broker has lost with its disk, cannot; its recording would stay "submitted" for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from zq import payload
from zq.client.requests import JobIdLike
from zq.exams.errors import ExamError
from zq.exams.model import MergeRequest, SubmittedMerge
from zq.exams.recordings import check_outcome
from zq.exams.status import MergeState
from zq.exams.store import ExamStore
from zq.protocol.job import State, format_id
from zq.protocol.messages import JobDetail

SETTLE_MS = 30_000
"""A merge is asked about when its request is older than this."""
PER_CHECK_MAX = 200
"""Merges asked about in one check; the next one goes on with the others."""

_NO_VIDEO = frozenset({State.DEAD, State.CANCELLED, State.EXPIRED})


class Asks(Protocol):
    """The part of `zq.Client` that is needed here. Raises Unavailable and Refused."""

    def details(self, ids: Sequence[JobIdLike]) -> list[JobDetail | None]: ...


class Fate(Enum):
    """What the broker's word on a job means for its recording."""

    OPEN = "open"
    """It lives, and will tell itself."""
    MERGED = "merged"
    """Done, and its result is there to be written down."""
    FAILED = "failed"
    LOST = "lost"
    """Nobody knows what became of it: to be asked for again. A merge that was done is found done."""


def fate_of(detail: JobDetail | None) -> Fate:
    if detail is None:
        return Fate.LOST
    if detail.job.state in _NO_VIDEO:
        return Fate.FAILED
    if detail.job.state is State.DONE:
        return Fate.MERGED if outcome_of(detail) is not None else Fate.LOST
    return Fate.OPEN


def outcome_of(detail: JobDetail) -> dict[str, Any] | None:
    """The arguments of `ExamStore.merge_succeeded` from a merge's result; None if it is not kept, or is no such."""
    try:
        result: Any = payload.decode_result(detail.result) if detail.result_kept else None
        return check_outcome(
            str(result["video"]),
            int(result["segments"]),
            int(result["size_bytes"]),
            round(result["duration_s"] * 1000),
        )
    except (KeyError, TypeError, ValueError, OverflowError, ExamError):
        return None


def error_of(detail: JobDetail) -> str:
    """Why there is no video, in the broker's words."""
    job = detail.job
    return f"merge job {format_id(job.id)} is {job.state.label}" + (f": {job.error}" if job.error else "")


@dataclass
class Reconciled:
    failed: int = 0
    merged: int = 0
    again: list[MergeRequest] = field(default_factory=list)
    """To be submitted now."""


class Reconciler:
    """Goes round the submitted merges, PER_CHECK_MAX a turn, so that a long queue of live ones hides none."""

    def __init__(self, store: ExamStore) -> None:
        self._store = store
        self._after = (0, 0)

    def check(self, client: Asks, now_ms: int) -> Reconciled:
        """One turn. Raises Unavailable, Refused, ExamError("unavailable"): the next turn asks about the same again."""
        merges = self._store.submitted_merges(now_ms - SETTLE_MS, self._after, PER_CHECK_MAX)
        done = Reconciled()
        details = client.details([merge.job_id for merge in merges]) if merges else []
        for merge, detail in zip(merges, details, strict=True):
            self._settle(merge, detail, now_ms, done)
        self._after = merges[-1].place if len(merges) == PER_CHECK_MAX else (0, 0)
        return done

    def _settle(self, merge: SubmittedMerge, detail: JobDetail | None, now_ms: int, done: Reconciled) -> None:
        """Each write happens only if the recording still waits for this very job: its task may have told meanwhile."""
        exam_id, student_id, job_id = merge.exam_id, merge.student_id, merge.job_id
        fate = fate_of(detail)
        outcome = outcome_of(detail) if detail is not None else None
        if fate is Fate.FAILED and detail is not None:
            error = error_of(detail)
            state = self._store.merge_failed(exam_id, student_id, job_id, now_ms=now_ms, error=error)
            done.failed += state is MergeState.FAILED
        elif fate is Fate.MERGED and outcome is not None:
            self._store.merge_succeeded(exam_id, student_id, job_id, now_ms=now_ms, **outcome)
            done.merged += 1
        elif fate is Fate.LOST:
            request = self._store.merge_lost(exam_id, student_id, job_id, now_ms=now_ms)
            if request is not None:
                done.again.append(request)
