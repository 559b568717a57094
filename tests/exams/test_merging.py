from __future__ import annotations

from pathlib import Path

from zq.config import Config, ExamsSection, MergeSection
from zq.exams.merging import (
    DISK_SPARE_BYTES,
    QUEUE,
    TASK,
    disk_need_bytes,
    job_request,
    read_receipt,
)
from zq.exams.model import MergeRequest
from zq.exams.storage import RecordingStorage
from zq.protocol.errors import Code
from zq.protocol.job import State, format_id, new_job_id
from zq.protocol.messages import Receipt, ReceiptStatus

OWN, OTHER = new_job_id(), new_job_id()
MERGE = MergeRequest("math", "s1", "王小明", format_id(OWN))


def test_the_job_of_a_request_follows_from_it_alone() -> None:
    config = Config(exams=ExamsSection(merge_quiet_s=20.0), merge=MergeSection(soft_time_limit_s=10, time_limit_s=20))
    job = job_request(config, MERGE)
    assert job == job_request(config, MERGE)
    assert (job.task, job.queue, job.id, job.key) == (TASK, QUEUE, MERGE.job_id, "merge:math:s1")
    assert job.kwargs == {"exam_id": "math", "student_id": "s1", "student_name": "王小明"}
    assert (job.countdown, job.soft_time_limit_s, job.time_limit_s) == (20.0, 10, 20)


def test_a_merge_asks_for_the_disk_that_its_segments_call_for(tmp_path: Path) -> None:
    config = Config(data_dir=str(tmp_path))
    assert disk_need_bytes(config, MERGE) == 0, "no folder here: only the merge itself can know"
    folder = RecordingStorage(config.storage_path).student_folder("math", "s1")
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.webm").write_bytes(bytes(1_000_000))
    need = disk_need_bytes(config, MERGE)
    assert need == 7_500_000 + DISK_SPARE_BYTES
    job = job_request(config, MERGE, need)
    assert (job.disk_bytes, job.stall_after_s) == (need, 120.0)


def test_what_the_broker_has_is_accepted() -> None:
    for receipt in (
        Receipt(OWN, ReceiptStatus.ACCEPTED, State.READY),
        Receipt(OWN, ReceiptStatus.DUPLICATE, State.DONE),
        Receipt(OWN, ReceiptStatus.REFUSED, code=Code.CONFLICT),  # the same id under settings of yesterday
    ):
        submitted = read_receipt(MERGE, receipt)
        assert (submitted.accepted, submitted.job_id) == (True, MERGE.job_id)


def test_a_live_merge_that_has_not_begun_will_do() -> None:
    for state in (State.SCHEDULED, State.READY):
        submitted = read_receipt(MERGE, Receipt(OTHER, ReceiptStatus.KEY_TAKEN, state))
        assert (submitted.accepted, submitted.job_id) == (True, format_id(OTHER))


def test_a_running_merge_may_miss_the_latest_segments_so_the_request_stays_open() -> None:
    assert not read_receipt(MERGE, Receipt(OTHER, ReceiptStatus.KEY_TAKEN, State.RUNNING)).accepted


def test_a_refusal_leaves_the_request_open_and_says_why() -> None:
    submitted = read_receipt(MERGE, Receipt(OWN, ReceiptStatus.REFUSED, code=Code.QUEUE_FULL, detail="full"))
    assert not submitted.accepted
    assert submitted.detail == "queue_full: full"
