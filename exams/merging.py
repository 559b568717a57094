"""From the store's wish for a merge to the broker's job, so that any number of attempts is one job.

The request stands in the store, with the id of its job, before the job is submitted. A crash after that is healed by
a repeated finish and by the next status check: both submit the same id under the same key again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zq.client.requests import JobRequest
from zq.config import Config
from zq.exams.model import MergeRequest
from zq.exams.recording_place import open_recordings
from zq.protocol.errors import Code
from zq.protocol.job import State, format_id
from zq.protocol.messages import Receipt, ReceiptStatus

if TYPE_CHECKING:
    from zq.client.aio import AsyncClient
    from zq.client.sync import Client
    from zq.exams.store import ExamStore

TASK = "zq.workers.merge.merge_recording"
QUEUE = "video_merge"
BATCH_JOBS = 500
"""Submitted at once, so that the exit of a whole exam is a handful of messages."""
DISK_FACTOR = 2.5
"""A joined copy, and a video that may come out larger than its parts, for each byte of segments."""
BUCKET_DISK_FACTOR = 3.5
"""From a bucket the segments themselves come to the disk, too."""
DISK_SPARE_BYTES = 64 << 20
ASKED_OF_BUCKET_MAX = 50


@dataclass(frozen=True, slots=True)
class Submitted:
    """What the broker said to a request."""

    merge: MergeRequest
    job_id: str
    """The job that will do it: the request's own, or the live one that has the student's key."""
    accepted: bool
    """False: not now; the next check tries again."""
    detail: str = ""


def job_request(config: Config, merge: MergeRequest, disk_bytes: int = 0) -> JobRequest:
    """The job of a request; `disk_bytes`: what it writes, so that it waits for a worker that has so much left."""
    return JobRequest(
        task=TASK,
        queue=QUEUE,
        kwargs=merge.kwargs,
        id=merge.job_id,
        key=merge.key,
        countdown=config.exams.merge_quiet_s or None,
        soft_time_limit_s=config.merge.soft_time_limit_s,
        time_limit_s=config.merge.time_limit_s,
        stall_after_s=config.merge.stall_after_s,
        disk_bytes=disk_bytes,
    )


def disk_need_bytes(config: Config, merge: MergeRequest) -> int:
    """What the merge of the segments that are there now asks for before it begins. 0 if they cannot be seen from here:
    then only the merge itself will find out.
    """
    sizes = open_recordings(config).segment_sizes(merge.exam_id, merge.student_id)
    if not sizes:
        return 0
    return int(sum(sizes) * (BUCKET_DISK_FACTOR if config.bucket_url else DISK_FACTOR)) + DISK_SPARE_BYTES


def read_receipt(merge: MergeRequest, receipt: Receipt) -> Submitted:
    """Pure. A conflict means that the broker has this very id, submitted under other settings: it will do.

    The student's merge may be running already, perhaps past the point where it looks for segments. Then the request
    stays open, and the check after its end submits a merge that has them all.
    """
    if receipt.status is ReceiptStatus.KEY_TAKEN and receipt.state is State.RUNNING:
        return Submitted(merge, format_id(receipt.job_id), False, "another merge of this student is running")
    if receipt.status is ReceiptStatus.REFUSED and receipt.code is not Code.CONFLICT:
        return Submitted(merge, merge.job_id, False, f"{receipt.code}: {receipt.detail}")
    if receipt.status is ReceiptStatus.KEY_TAKEN:
        return Submitted(merge, format_id(receipt.job_id), True)
    return Submitted(merge, merge.job_id, True)


def confirm(store: ExamStore, submitted: Sequence[Submitted]) -> None:
    """Write that the broker has these jobs. Raises ExamError("unavailable"); repeating it is harmless."""
    for item in submitted:
        if item.accepted:
            store.merge_submitted(item.merge.exam_id, item.merge.student_id, item.merge.job_id, item.job_id)


def submit_merges(
    client: Client, store: ExamStore, config: Config, merges: Sequence[MergeRequest]
) -> list[Submitted]:
    """Submit and confirm, in order. Raises Unavailable and ExamError("unavailable"): what was not confirmed stays open
    in the store and is handed out again."""
    done: list[Submitted] = []
    for start in range(0, len(merges), BATCH_JOBS):
        part = merges[start : start + BATCH_JOBS]
        # Of a whole exam's end a bucket is not asked student by student: each merge finds out for itself.
        asked = not config.bucket_url or len(merges) <= ASKED_OF_BUCKET_MAX
        needs = [disk_need_bytes(config, merge) if asked else 0 for merge in part]
        receipts = client.submit_many([job_request(config, m, need) for m, need in zip(part, needs, strict=True)])
        submitted = [read_receipt(merge, receipt) for merge, receipt in zip(part, receipts, strict=True)]
        confirm(store, submitted)
        done += submitted
    return done


async def submit_merge(
    client: AsyncClient, store: ExamStore, config: Config, merge: MergeRequest
) -> Submitted:
    """The same for one request in an event loop; the store is asked in a thread."""
    import asyncio  # 3 MiB that a merge worker, which also imports this module, does not need

    disk_bytes = await asyncio.to_thread(disk_need_bytes, config, merge)
    (receipt,) = await client.submit_many([job_request(config, merge, disk_bytes)])
    submitted = read_receipt(merge, receipt)
    await asyncio.to_thread(confirm, store, [submitted])
    return submitted
