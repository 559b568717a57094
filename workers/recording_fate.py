"""What follows from a merge beyond its file: the exam store learns of it, and its segments may go.

The clean-up is a job of its own, submitted by the merge before its own result is durable. It therefore asks the broker
whether the merge is done and deletes nothing before. Its id follows from the merge job's: however often the merge is
repeated, it is one clean-up.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import zq
from zq.client.requests import JobRequest
from zq.config import Config
from zq.context import JobContext
from zq.exams.errors import ExamError
from zq.exams.merging import QUEUE
from zq.exceptions import Refused, Reject, Retry, Unavailable
from zq.protocol.errors import Code
from zq.protocol.job import ENDED, State, job_id_from, parse_id
from zq.workers.merge_run import MergeResult

if TYPE_CHECKING:
    from zq.exams.store import ExamStore

CLEAN_UP_TASK = "zq.workers.merge.clean_up_recording"
EMPTY_TASK = "zq.workers.merge.empty_trash"
TRASH_LATER_S = 60.0
"""After the first segment is due, so that its neighbours are too."""
_COUNTDOWN_S = 1.0
"""For the merge's own result to arrive first."""
_PRIORITY = 7
"""Before further merges: a clean-up is short and makes room on the disk."""
_RETRIES = 100
_ASK_AGAIN_S = 3.0
_ASK_LATER_S = 60.0

log = logging.getLogger("zq.workers")


@dataclass(frozen=True)
class RecordingFate:
    """The recording of one student, in the hands of one attempt of a merge job."""

    config: Config
    job: JobContext
    exam_id: str
    student_id: str

    def merged(self, result: MergeResult, folder: str, *, clean_up: bool = True) -> None:
        """Write the success and, with `clean_up`, submit that; waits for the broker, up to the soft limit of the job.

        Raises ExamError("unavailable"), Refused: another attempt finds the merge done and comes here again.
        """
        if self._has_store():
            with self._store() as store:
                store.merge_succeeded(
                    self.exam_id,
                    self.student_id,
                    self.job.id,
                    now_ms=_now_ms(),
                    video=result.video,
                    segments=result.segments,
                    size_bytes=result.size_bytes,
                    duration_ms=round(result.duration_s * 1000),
                )
        if not clean_up:
            return
        submit(self.config, self.job, clean_up_request(self.job.id, self.exam_id, self.student_id, folder))

    def failed(self, error: str) -> None:
        """Write why there is no video. Never raises for the store's sake: the job's own error is the one to show."""
        if not self._has_store():
            return
        try:
            with self._store() as store:
                store.merge_failed(self.exam_id, self.student_id, self.job.id, now_ms=_now_ms(), error=error)
        except ExamError as trouble:
            log.warning("the store did not learn of a failed merge of %s: %s", self.student_id, trouble)

    def _has_store(self) -> bool:
        """Not on a machine that has only the recordings and the broker. There the job's result and error say it all,
        and the status check, which asks the broker what became of merges, writes them down."""
        return bool(self.config.exams.database) or (self.config.data_path / "exams.db").exists()

    @contextlib.contextmanager
    def _store(self) -> Iterator[ExamStore]:
        """A recording that was merged by hand, of a student the store does not know, is nothing to the store."""
        from zq.exams.store import ExamStore  # 15 MiB, which only a slot that has merged needs

        with contextlib.closing(ExamStore(self.config.database_url, self.config.exams.time_zone)) as store:
            try:
                yield store
            except ExamError as error:
                if error.code not in ("not_found", "invalid"):
                    raise
                log.info("the store has no place for the merge of %s: %s", self.student_id, error)


def submit(config: Config, job: JobContext, request: JobRequest) -> None:
    """Submit what follows from a job; waits for the broker, up to the soft limit of the job. Raises Refused."""
    with zq.Client(config) as client:
        while True:
            try:
                client.submit_request(request)
                return
            except Unavailable:
                job.check_soft_limit()


def trash_request(exam_id: str, keep_s: float) -> JobRequest:
    """The emptying of an exam's trash: one job an exam, put off by each clean-up. Pure."""
    return JobRequest(
        task=EMPTY_TASK,
        queue=QUEUE,
        kwargs={"exam_id": exam_id},
        key=f"trash:{exam_id}",
        key_policy="reschedule",
        countdown=keep_s + TRASH_LATER_S,
        max_retries=_RETRIES,
    )


def clean_up_request(merge_job_id: str, exam_id: str, student_id: str, folder: str) -> JobRequest:
    """The clean-up that belongs to a merge job. Pure."""
    kwargs = {"exam_id": exam_id, "student_id": student_id, "folder": folder, "merge_job_id": merge_job_id}
    return JobRequest(
        task=CLEAN_UP_TASK,
        queue=QUEUE,
        kwargs=kwargs,
        id=job_id_from("clean-up", merge_job_id),
        priority=_PRIORITY,
        countdown=_COUNTDOWN_S,
        max_retries=_RETRIES,
        backoff_s=_ASK_AGAIN_S,
    )


def require_done(config: Config, merge_job_id: str) -> None:
    """Returns if the broker has it on disk that this merge is done. Raises Retry while it may become so, else Reject.

    Reject as well for a merge the broker does not know: then nobody can say that it was done.
    """
    try:
        with zq.Client(config) as client:
            state = client.detail(parse_id(merge_job_id)).job.state
    except Unavailable as error:
        raise Retry(f"is the merge {merge_job_id} done? {error}", after_s=_ASK_AGAIN_S) from None
    except Refused as error:
        if error.code == Code.NOT_FOUND:
            raise Reject(f"merge_unknown: the broker has no job {merge_job_id}; nothing was deleted") from None
        raise
    if state is State.DONE:
        return
    if state in ENDED:
        raise Reject(f"merge_not_done: job {merge_job_id} is {state.label}; nothing was deleted")
    again_s = _ASK_AGAIN_S if state is State.RUNNING else _ASK_LATER_S
    raise Retry(f"the merge {merge_job_id} is {state.label}", after_s=again_s)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
