"""The merge and the clean-up as tasks: a job's arguments in, plain results out, refusals in the worker's own words."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zq
from zq import config
from zq.context import JobContext, current_job
from zq.exams import names, times
from zq.exams.errors import ExamError
from zq.exams.merging import QUEUE
from zq.exams.segments import MergeRefused
from zq.exams.storage import RecordingStorage
from zq.exceptions import LeaseLost, Reject, Retry
from zq.workers.cleanup import clean_up
from zq.workers.ffmpeg import find_ffmpeg
from zq.workers.merge_run import MergeRequest, MergeResult, MergeSettings, run_merge
from zq.workers.merge_trash import empty
from zq.workers.recording_fate import TRASH_LATER_S, RecordingFate, require_done, submit, trash_request

if TYPE_CHECKING:
    from zq.exams.bucket_recordings import BucketRecordings

MERGE_RETRIES = 3


app = zq.App()


@app.task(queue=QUEUE, max_retries=MERGE_RETRIES)
def merge_recording(exam_id: str, student_id: str, student_name: str = "", folder: str = "") -> dict[str, Any]:
    """Merge one student's segments into one video beside their folder; no segment is deleted, but their clean-up is
    submitted, as a job of its own. Not of a recording with gaps: what is missing may still come.

    `folder` is where the segments are, if not in `{storage}/{exam_id}/recordings/{student_id}`; relative paths are
    relative to the storage, and it must lie inside of it; none may be given where recordings are in a bucket. Returns
    `MergeResult.to_dict()`. Raises Reject, its text beginning with one of `zq.exams.segments.REASONS`, where another
    try could not help.
    """
    settings = config.load()
    job: JobContext = current_job()
    fate = RecordingFate(settings, job, exam_id, student_id)
    try:
        with _task_signals():
            if settings.bucket_url:
                result = _merge_in_bucket(job, settings, exam_id, student_id, student_name, folder)
            else:
                request = _request(settings, exam_id, student_id, student_name, folder)
                result = run_merge(job, request, merge_settings(settings))
    except Exception as error:
        # What another attempt may mend is not a failed recording yet; a lost lease is another attempt's business.
        if isinstance(error, Reject) or (job.attempt > MERGE_RETRIES and not isinstance(error, LeaseLost)):
            fate.failed(str(error) or type(error).__name__)
        raise
    fate.merged(result, folder, clean_up=not result.gaps)
    return result.to_dict()


@app.task(queue=QUEUE)
def clean_up_recording(exam_id: str, student_id: str, folder: str = "", merge_job_id: str = "") -> dict[str, Any]:
    """Put the segments that are in the student's merged video into the trash. Returns `CleanupResult.to_dict()`.

    Without a trash (`merge.trash_keep_s` = 0) they are deleted. With `merge_job_id` not before the broker has that job
    as done.
    """
    job: JobContext = current_job()
    settings = config.load()
    with _task_signals():
        if merge_job_id:
            require_done(settings, merge_job_id)
        use_trash = settings.merge.trash_keep_s > 0

        def on_segment(done: int, total: int) -> None:
            job.progress(done, total, "clearing away merged segments")

        if settings.bucket_url:
            from zq.workers.bucket_cleanup import clean_up_bucket

            place = _bucket(settings, folder)
            result = clean_up_bucket(place, exam_id, student_id, use_trash=use_trash, on_segment=on_segment)
        else:
            target = _request(settings, exam_id, student_id, "", folder).target
            result = clean_up(target, exam_id, student_id, use_trash=use_trash, on_segment=on_segment)
    if result.trashed and not folder:
        submit(settings, job, trash_request(exam_id, settings.merge.trash_keep_s))
    return result.to_dict()


@app.task(queue=QUEUE)
def empty_trash(exam_id: str) -> dict[str, Any]:
    """Delete for good what has been in the exam's trash for `merge.trash_keep_s`. Returns `Emptied.to_dict()`.

    Raises Retry while something in it is younger.
    """
    job: JobContext = current_job()
    settings = config.load()
    with _task_signals():
        keep_s = settings.merge.trash_keep_s

        def on_step(done: int, total: int) -> None:
            job.progress(done, total, "emptying the trash")

        if settings.bucket_url:
            from zq.workers.bucket_cleanup import empty_bucket_trash

            bucket = _bucket(settings).bucket
            emptied = empty_bucket_trash(bucket, exam_id, keep_s, time.time(), on_segment=on_step)
        else:
            target = RecordingStorage(settings.storage_path).exam_folder(exam_id)
            emptied = empty(target, keep_s, time.time(), on_folder=on_step)
    if emptied.kept:
        raise Retry(f"{emptied.kept} segments stay in the trash for now", after_s=emptied.due_s + TRASH_LATER_S)
    return emptied.to_dict()


def merge_settings(settings: config.Config) -> MergeSettings:
    """Raises FfmpegMissing, ExamError (no such time zone on this machine)."""
    return MergeSettings(
        ffmpeg=find_ffmpeg(settings.merge.ffmpeg),
        memory_limit_bytes=settings.merge.memory_limit_mib * 1024 * 1024,
        cpu_s=int(settings.merge.time_limit_s),
        full_decode=settings.merge.full_decode,
        take_gaps=settings.merge.gaps == "merge",
        zone=times.zone(settings.exams.time_zone),
    )


def _merge_in_bucket(
    job: JobContext, settings: config.Config, exam_id: str, student_id: str, student_name: str, folder: str
) -> MergeResult:
    from zq.workers.bucket_merge import BucketMerge

    place = _bucket(settings, folder)
    name = names.person_name(student_name)
    how = merge_settings(settings)
    return BucketMerge(job, place, settings.storage_path, exam_id, student_id, name, how).run()


def _bucket(settings: config.Config, folder: str = "") -> BucketRecordings:
    """Where the recordings are. What it needs is loaded by those who have a bucket (obstore: 8 MiB)."""
    from zq.exams.bucket_recordings import of_config

    if folder:
        raise MergeRefused("bad_request", f"folder {folder!r} cannot be given where recordings are in a bucket")
    return of_config(settings)


def _request(settings: config.Config, exam_id: str, student_id: str, student_name: str, folder: str) -> MergeRequest:
    storage = RecordingStorage(settings.storage_path)
    path = storage.student_folder(exam_id, student_id)
    name = names.person_name(student_name)
    if folder:
        path = _inside(settings.storage_path, folder)
    return MergeRequest(exam_id, student_id, name, path, path.parent)


def _inside(root: Path, folder: str) -> Path:
    """`folder` with every link in it resolved, if that is below `root`: a job may not read or delete elsewhere."""
    base = root.resolve()
    path = base if "\0" in folder else (base / folder).resolve()
    if base not in path.parents or path.parent == base:
        raise MergeRefused("bad_request", f"folder {folder!r} does not lie inside the storage {str(root)!r}")
    return path


_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def _task_signals() -> Iterator[None]:
    """What no retry mends goes to the dead letters at once; a full disk is waited for; the rest is retried as it is."""
    try:
        yield
    except MergeRefused as refused:
        raise Reject(str(refused)) from refused
    except ExamError as error:
        if error.code == "unavailable":
            raise Retry(f"storage_away: {error}") from error
        if error.code == "invalid":
            raise Reject(f"bad_request: {error}") from error
        raise
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise Retry(f"disk_full: {error}") from error
        raise
