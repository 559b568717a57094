"""One merge, from a folder of segments to a published, verified file with its manifest. Deletes no segment.

    list → read and hash → order → runs → probe → plan → ffmpeg → verify → list again → publish → manifest

Killed at any point and run again it ends the same: before the rename nothing is visible, between the rename and the
manifest the next attempt finds the manifest in the work folder, and after it there is nothing to do.
"""

from __future__ import annotations

import logging
import os
import resource
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from zq.context import JobContext
from zq.exams.segment_index import MissingSegments, list_segments
from zq.exams.segments import MergeRefused, Ordered, Segment, order
from zq.exams.storage import video_name
from zq.exceptions import Retry
from zq.workers.merge_files import (
    Collected,
    SegmentChanged,
    collect_all,
    sweep_work_folders,
    work_folder,
)
from zq.workers.merge_film import DISK_SPARE_BYTES, OUTPUT_FACTOR, Cost, Film, FilmLimits, FilmMaker
from zq.workers.merge_marker import (
    Input,
    Marker,
    adopt,
    contains,
    digest_inputs,
    find_marker,
    output_is_right,
    place_marker,
    write_marker,
)
from zq.workers.merge_trash import restore
from zq.workers.merge_verify import duration_of

log = logging.getLogger("zq.workers")

PENDING_MARKER = "marker.json"
PROGRESS_EVERY = 16
"""Segments; each is read in less time than it takes to say so."""


@dataclass(frozen=True)
class MergeRequest:
    """What to merge: the segments in `folder`, into `target`, which must be the folder that holds it."""

    exam_id: str
    student_id: str
    student_name: str
    folder: Path
    target: Path

    def __post_init__(self) -> None:
        if self.folder.parent != self.target:
            raise ValueError("the merged file goes beside the folder of its segments")


@dataclass(frozen=True)
class MergeSettings:
    """`ffmpeg` is an absolute path; `memory_limit_bytes` bounds the address space of one FFmpeg, 0: no bound."""

    ffmpeg: str
    memory_limit_bytes: int = 2 * 1024**3
    cpu_s: int = 1800
    full_decode: bool = False
    take_gaps: bool = False
    """Merge a recording with missing numbers, and report them, instead of refusing it."""
    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("UTC"))
    """In which times without an offset are read, and in which the merged file is named."""


@dataclass(frozen=True)
class MergeResult:
    """`already`: an earlier attempt had done it. `seconds` is the wall time of this attempt.

    `decode_s` is that part of it in which the verification only decoded; short recordings are decoded while they are
    copied. `peak_memory_bytes`: the most that the slot and one
    FFmpeg had, added; `ffmpeg_cpu_s`: processor time of all its FFmpegs. `gaps` has a line for each.
    """

    video: str
    """Name of the merged file, in the folder that holds the folder of the segments."""
    strategy: str
    segments: int
    runs: int
    frames: int
    duration_s: float
    size_bytes: int
    seconds: float
    already: bool
    decode_s: float = 0.0
    ffmpeg_cpu_s: float = 0.0
    peak_memory_bytes: int = 0
    gaps: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain types only: what the job stores as its result."""
        return asdict(self) | {"gaps": list(self.gaps)}

    def __str__(self) -> str:
        """The one line that says what was made."""
        what = "done before" if self.already else self.strategy
        parts = f"{self.segments} segments in {self.runs} runs, {self.frames} frames, {self.duration_s} s"
        cost = f"{self.size_bytes} bytes, took {self.seconds} s, {self.peak_memory_bytes >> 20} MiB"
        return "; ".join([f"{self.video}: {what}, {parts}, {cost}", *self.gaps])


def run_merge(job: JobContext, request: MergeRequest, settings: MergeSettings) -> MergeResult:
    """Merge one student's recording.

    Raises MergeRefused where no retry helps; Retry, SegmentChanged, OutputWrong, FfmpegFailed, ProbeFailed and
    OSError where one may; and what `job` raises (LeaseLost, SoftTimeLimitExceeded). Every segment is kept in any case.
    """
    result = merge_folder(job, request, settings)
    log.info("merged %s", result)
    return result


def merge_folder(job: JobContext, request: MergeRequest, settings: MergeSettings) -> MergeResult:
    """The same as a step of something larger, which has the last word."""
    return _Merge(job, request, settings).run()


def result_of(marker: Marker, started_s: float, *, already: bool, cost: Cost | None = None) -> MergeResult:
    """What is told of the recording that `marker` is the manifest of."""
    own_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cost = cost or Cost()
    return MergeResult(
        video=marker.output,
        strategy=marker.strategy,
        segments=len(marker.inputs),
        runs=marker.runs,
        frames=marker.frames,
        duration_s=round(marker.duration_s, 3),
        size_bytes=marker.output_size_bytes,
        seconds=round(time.monotonic() - started_s, 3),
        already=already,
        decode_s=round(cost.decode_s, 3),
        ffmpeg_cpu_s=round(cost.cpu_s, 3),
        peak_memory_bytes=own_kib * 1024 + cost.peak_memory_bytes,
        gaps=marker.gaps,
    )


class _Merge:
    def __init__(self, job: JobContext, request: MergeRequest, settings: MergeSettings) -> None:
        self.job = job
        self.request = request
        self.settings = settings
        self.started_s = time.monotonic()
        self.cost = Cost()

    def run(self) -> MergeResult:
        request = self.request
        key = f"{request.exam_id}\0{request.student_id}"
        if not request.target.is_dir():
            raise Retry(f"storage_away: {request.target} is not there; is the storage mounted?")
        sweep_work_folders(request.target, key, lambda work: adopt(work, PENDING_MARKER, request.target))
        earlier = find_marker(request.target, request.exam_id, request.student_id)
        segments = self._list(earlier)
        if earlier is not None and self._take_back(earlier, segments):
            segments = self._list(earlier)
        if not segments:
            return self._done_before(earlier)
        collected = self._collect(segments)
        if earlier is not None and self._is_done(earlier, collected):
            return self._result(earlier, already=True)
        ordered = order(
            (replace(s, sha256=collected[s.name].sha256) for s in segments), take_gaps=self.settings.take_gaps
        )
        sequence = [collected[s.name] for session in ordered.sessions for s in session]
        digest = digest_inputs([*sequence, *(collected[n] for n in sorted(ordered.duplicates))])
        self._check_space(sum(c.size_bytes for c in sequence))
        with work_folder(request.target, key) as work:
            limits = FilmLimits(
                ffmpeg=self.settings.ffmpeg,
                memory_bytes=self.settings.memory_limit_bytes,
                cpu_s=self.settings.cpu_s,
                full_decode=self.settings.full_decode,
            )
            film = FilmMaker(self.job, request.folder, work, limits).make(ordered, collected)
            return self._finish(work, film, ordered, collected, digest, earlier)

    def _list(self, earlier: Marker | None) -> list[Segment]:
        if self.request.folder.is_symlink():
            raise MergeRefused("bad_request", f"{self.request.folder.name!r} is a link; name the folder itself")
        try:
            return list_segments(self.request.folder, self.settings.zone)
        except FileNotFoundError:
            return []
        except MissingSegments as missing:
            # Merged and cleaned up is not missing.
            done = {(i.name, i.sha256) for i in earlier.inputs} if earlier else set()
            names = {name for name, _ in done}
            if all((s.name, s.sha256) in done or (s.sha256 is None and s.name in names) for s in missing.missing):
                return missing.present
            raise

    def _take_back(self, earlier: Marker, segments: Sequence[Segment]) -> bool:
        """If something came after an earlier merge, or its video is lost: bring back what that merge was made of.

        Whether anything came.
        """
        present = {s.name for s in segments}
        missing = [i for i in earlier.inputs if i.name not in present]
        if not missing or (
            present <= {i.name for i in earlier.inputs} and output_is_right(earlier, self.request.target)
        ):
            return False
        return restore(self.request.target, self.request.folder, missing) > 0

    def _is_done(self, earlier: Marker, collected: Mapping[str, Collected]) -> bool:
        """Whether `earlier` was made of these segments, and perhaps of more that have been cleaned up since.

        Raises MergeRefused if it holds what these segments do not.
        """
        known = {(i.name, i.sha256) for i in earlier.inputs}
        within = {(c.name, c.sha256) for c in collected.values()} <= known
        if within and output_is_right(earlier, self.request.target):
            return True
        if not contains(collected.values(), earlier):
            detail = (
                f"{earlier.output} was merged from segments that are gone for good, and cannot be merged again with"
                " these; the video is there without them"
            )
            raise MergeRefused("late_segment", detail)
        return False

    def _done_before(self, earlier: Marker | None) -> MergeResult:
        if earlier is None:
            raise MergeRefused("no_segments", f"there is none in {self.request.folder.name!r}; nothing was uploaded")
        if not output_is_right(earlier, self.request.target):
            raise MergeRefused("no_segments", f"they were merged into {earlier.output}, which is gone or was changed")
        return self._result(earlier, already=True)

    def _result(self, marker: Marker, *, already: bool) -> MergeResult:
        return result_of(marker, self.started_s, already=already, cost=self.cost)

    def _collect(self, segments: Sequence[Segment]) -> dict[str, Collected]:
        collected: dict[str, Collected] = {}
        paths = [self.request.folder / segment.name for segment in segments]
        for done, (segment, found) in enumerate(zip(segments, collect_all(paths), strict=True)):
            if done % PROGRESS_EVERY == 0:
                self.job.progress(10 * done / len(segments), 100, "reading segments")
            if found.size_bytes == 0:
                raise MergeRefused("empty_segment", "it has no bytes; upload it again", segment.name)
            for what, said, is_now in (
                ("bytes", segment.size_bytes, found.size_bytes),
                ("sha256", segment.sha256, found.sha256),
            ):
                if said is not None and said != is_now:
                    detail = f"{what} {said} declared at upload, {is_now} on disk; upload it again"
                    raise MergeRefused("changed_segment", detail, segment.name)
            collected[segment.name] = found
        return collected

    def _check_space(self, size_bytes: int) -> None:
        needed = int(size_bytes * (1 + OUTPUT_FACTOR)) + DISK_SPARE_BYTES
        free = shutil.disk_usage(self.request.target).free
        if free < needed:
            raise Retry(f"disk_full: the merge needs {needed} bytes in {self.request.target}, {free} are free")

    def _finish(
        self,
        work: Path,
        film: Film,
        ordered: Ordered,
        collected: Mapping[str, Collected],
        digest: str,
        earlier: Marker | None,
    ) -> MergeResult:
        """Publish a verified film, if the segments are still those it was made of and nobody was faster."""
        self.cost = film.cost
        self._check_unchanged(collected, earlier)
        # Another attempt at the same recording may have been faster.
        earlier = find_marker(self.request.target, self.request.exam_id, self.request.student_id)
        if earlier is not None and self._is_done(earlier, collected):
            return self._result(earlier, already=True)
        name = self._name(ordered.sessions[0][0], film.plan.suffix, earlier)
        merged = film.probe.files[0]
        video = merged.of_type("video")
        marker = Marker(
            job_id=self.job.id,
            attempt=self.job.attempt,
            exam_id=self.request.exam_id,
            student_id=self.request.student_id,
            output=name,
            output_size_bytes=film.file.size_bytes,
            output_sha256=film.file.sha256,
            output_inode=film.file.inode,
            output_mtime_ns=film.file.mtime_ns,
            duration_s=duration_of(merged),
            frames=video.packets if video else 0,
            strategy=film.plan.strategy,
            runs=film.runs,
            input_digest=digest,
            folder=self.request.folder.name,
            inputs=_inputs(ordered, collected),
            gaps=film.gaps,
        )
        self._publish(work, film.path, marker, earlier)
        return self._result(marker, already=False)

    def _check_unchanged(self, collected: Mapping[str, Collected], earlier: Marker | None) -> None:
        """What was merged is still what is there, and all of it: else begin again."""
        folder = self.request.folder
        found = {s.name for s in self._list(earlier)}
        if late := sorted(found - set(collected)):
            raise Retry(f"late_segment: {late[0]!r} arrived during the merge", after_s=1.0)
        for name, was in collected.items():
            try:
                same = was.same_file(os.lstat(folder / name))
            except FileNotFoundError:
                same = False
            if not same:
                raise SegmentChanged(f"{name!r} was replaced or removed during the merge")

    def _name(self, first: Segment, suffix: str, earlier: Marker | None) -> str:
        """The name to publish under; the same segments always get the same. Raises MergeRefused if it is taken."""
        if earlier is not None and earlier.output.endswith(suffix):
            return earlier.output
        request = self.request
        at_ms = first.ts_ms if first.ts_ms is not None else first.mtime_ms
        name = video_name(request.student_id, request.student_name, at_ms, self.settings.zone, suffix)
        if os.path.lexists(request.target / name):
            raise MergeRefused("output_exists", f"{name} is there and has no manifest of this recording; move it away")
        return name

    def _publish(self, work: Path, output: Path, marker: Marker, earlier: Marker | None) -> None:
        self.job.progress(95, 100, "publishing")
        # First the manifest, in the work folder: a later attempt that finds the file published can finish from it.
        pending = work / PENDING_MARKER
        write_marker(marker, pending)
        os.chmod(output, 0o640)
        with self.job.publish(self.request.target / marker.output) as part:
            os.replace(output, part)
        place_marker(pending, self.request.target, marker.output)
        if earlier is not None and earlier.output != marker.output:
            log.warning("%s is superseded by %s", earlier.output, marker.output)
        self.job.progress(100, 100, "done")


def _inputs(ordered: Ordered, collected: Mapping[str, Collected]) -> tuple[Input, ...]:
    merged = [s.name for session in ordered.sessions for s in session]
    every = [(name, "") for name in merged] + sorted(ordered.duplicates.items())
    return tuple(_input(collected[name], same) for name, same in every)


def _input(segment: Collected, same: str) -> Input:
    inode, mtime_ns = (segment.inode, segment.mtime_ns) if segment.settled else (0, 0)
    return Input(segment.name, segment.size_bytes, segment.sha256, same, inode, mtime_ns)
