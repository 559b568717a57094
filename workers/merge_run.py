"""One merge, from a folder of segments to a published, verified file with its manifest. Deletes no segment.

    list → read and hash → order → runs → probe → plan → ffmpeg → verify → list again → publish → manifest

Killed at any point and run again it ends the same: before the rename nothing is visible, between the rename and the
manifest the next attempt finds the manifest in the work folder, and after it there is nothing to do.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from zq.context import JobContext, ProcessLimits, ProcessResult
from zq.exams.segment_index import MissingSegments, list_segments
from zq.exams.segments import MergeRefused, Ordered, Segment, order
from zq.exams.storage import video_name
from zq.exceptions import Retry
from zq.workers import ffmpeg
from zq.workers.merge_files import (
    Collected,
    SegmentChanged,
    collect,
    hash_file,
    join_run,
    link_run,
    open_regular,
    sweep_work_folders,
    work_folder,
)
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
from zq.workers.merge_media import Container, walk
from zq.workers.merge_plan import Plan, Run, group_runs, make_plan
from zq.workers.merge_verify import OutputWrong, check_copy, duration_of
from zq.workers.probe import BadFile, Probe, probe

log = logging.getLogger("zq.workers")

PENDING_MARKER = "marker.json"
LIST_NAME = "l.ffconcat"
DISK_SPARE_BYTES = 64 * 1024 * 1024
OUTPUT_FACTOR = 1.5
"""The merged file may be this much larger than its segments, and no larger."""


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
    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("UTC"))
    """In which times without an offset are read, and in which the merged file is named."""


@dataclass(frozen=True)
class MergeResult:
    """`already`: an earlier attempt had done it. `seconds` is the wall time of this attempt."""

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

    def to_dict(self) -> dict[str, Any]:
        """Plain types only: what the job stores as its result."""
        return asdict(self)


def run_merge(job: JobContext, request: MergeRequest, settings: MergeSettings) -> MergeResult:
    """Merge one student's recording.

    Raises MergeRefused where no retry helps; Retry, SegmentChanged, OutputWrong, FfmpegFailed, ProbeFailed and
    OSError where one may; and what `job` raises (LeaseLost, SoftTimeLimitExceeded). Every segment is kept in any case.
    """
    return _Merge(job, request, settings).run()


class FfmpegFailed(Exception):
    """FFmpeg ended with an error; its last words are in the text."""


class _Merge:
    def __init__(self, job: JobContext, request: MergeRequest, settings: MergeSettings) -> None:
        self.job = job
        self.request = request
        self.settings = settings
        self.started_s = time.monotonic()

    def run(self) -> MergeResult:
        request = self.request
        key = f"{request.exam_id}\0{request.student_id}"
        if not request.target.is_dir():
            raise Retry(f"storage_away: {request.target} is not there; is the storage mounted?")
        sweep_work_folders(request.target, key, lambda work: adopt(work, PENDING_MARKER, request.target))
        earlier = find_marker(request.target, request.exam_id, request.student_id)
        segments = self._list(earlier)
        if not segments:
            return self._done_before(earlier)
        collected = self._collect(segments)
        ordered = order(replace(s, sha256=collected[s.name].sha256) for s in segments)
        sequence = [collected[s.name] for session in ordered.sessions for s in session]
        digest = digest_inputs([*sequence, *(collected[n] for n in sorted(ordered.duplicates))])
        if earlier is not None and self._is_done(earlier, digest, collected):
            return self._result(earlier, already=True)
        self._check_space(sum(c.size_bytes for c in sequence))
        with work_folder(request.target, key) as work:
            return self._merge(work, ordered, collected, digest, earlier)

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

    def _is_done(self, earlier: Marker, digest: str, collected: Mapping[str, Collected]) -> bool:
        """Whether `earlier` is this very merge. Raises MergeRefused if it holds what these segments do not."""
        if earlier.input_digest == digest and output_is_right(earlier, self.request.target):
            return True
        if not contains(collected.values(), earlier):
            detail = f"{earlier.output} was merged from segments that are gone, and cannot be merged again with these"
            raise MergeRefused("late_segment", detail)
        return False

    def _done_before(self, earlier: Marker | None) -> MergeResult:
        if earlier is None:
            raise MergeRefused("no_segments", f"there is none in {self.request.folder.name!r}; nothing was uploaded")
        if not output_is_right(earlier, self.request.target):
            raise MergeRefused("no_segments", f"they were merged into {earlier.output}, which is gone or was changed")
        return self._result(earlier, already=True)

    def _result(self, marker: Marker, *, already: bool) -> MergeResult:
        return MergeResult(
            video=marker.output,
            strategy=marker.strategy,
            segments=len(marker.inputs),
            runs=marker.runs,
            frames=marker.frames,
            duration_s=round(marker.duration_s, 3),
            size_bytes=marker.output_size_bytes,
            seconds=round(time.monotonic() - self.started_s, 3),
            already=already,
        )

    def _collect(self, segments: Sequence[Segment]) -> dict[str, Collected]:
        collected: dict[str, Collected] = {}
        for done, segment in enumerate(segments):
            self.job.progress(10 * done / len(segments), 100, "reading segments")
            found = collect(self.request.folder / segment.name)
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

    def _merge(
        self,
        work: Path,
        ordered: Ordered,
        collected: Mapping[str, Collected],
        digest: str,
        earlier: Marker | None,
    ) -> MergeResult:
        runs = group_runs(
            [[s.name for s in session] for session in ordered.sessions],
            {name: c.container for name, c in collected.items()},
        )
        names = self._lay_out(work, runs, collected)
        size_bytes = sum(collected[name].size_bytes for run in runs for name in run.segments)
        probed = self._probe_runs(work, runs, names, size_bytes)
        plan = make_plan(runs, probed.files)
        output = work / ("out" + plan.suffix)
        self._run_ffmpeg(work, names, plan, output.name, size_bytes)
        merged = self._verify(work, output, probed, plan)
        self._check_unchanged(collected, earlier)
        # Another attempt at the same recording may have been faster.
        earlier = find_marker(self.request.target, self.request.exam_id, self.request.student_id)
        if earlier is not None and self._is_done(earlier, digest, collected):
            return self._result(earlier, already=True)
        name = self._name(ordered.sessions[0][0], plan.suffix, earlier)
        out_size_bytes, out_sha256 = hash_file(output)
        video = merged.files[0].of_type("video")
        marker = Marker(
            job_id=self.job.id,
            attempt=self.job.attempt,
            exam_id=self.request.exam_id,
            student_id=self.request.student_id,
            output=name,
            output_size_bytes=out_size_bytes,
            output_sha256=out_sha256,
            duration_s=duration_of(merged.files[0]),
            frames=video.packets if video else 0,
            strategy=plan.strategy,
            runs=len(runs),
            input_digest=digest,
            folder=self.request.folder.name,
            inputs=_inputs(ordered, collected),
        )
        self._publish(work, output, marker, earlier)
        return self._result(marker, already=False)

    def _lay_out(self, work: Path, runs: Sequence[Run], collected: Mapping[str, Collected]) -> list[str]:
        """Give each run a name of our own in the work folder, its chunks joined and their seams checked."""
        names: list[str] = []
        for number, run in enumerate(runs):
            name = f"r{number:05d}.{run.container.value}"
            segments = [collected[s] for s in run.segments]
            if len(segments) == 1:
                link_run(self.request.folder, segments[0], work / name)
            else:
                offsets = join_run(self.request.folder, segments, work / name)
                _check_seams(work / name, run, offsets)
            names.append(name)
            self.job.progress(10 + 5 * number / len(runs), 100, "joining chunks")
        return names

    def _probe_runs(self, work: Path, runs: Sequence[Run], names: Sequence[str], size_bytes: int) -> Probe:
        def on_file(done: int) -> None:
            self.job.progress(15 + 15 * done / len(names), 100, "probing")

        try:
            return probe(self.job, work, names, size_bytes, on_file)
        except BadFile as bad:
            raise bad.refused(runs[bad.index].segments[0]) from None

    def _run_ffmpeg(self, work: Path, names: Sequence[str], plan: Plan, output: str, size_bytes: int) -> None:
        if plan.strategy == "remux":
            argv = ffmpeg.remux_argv(self.settings.ffmpeg, names[0], output)
        else:
            text = ffmpeg.concat_list(list(zip(names, plan.durations_s, strict=True)))
            (work / LIST_NAME).write_text(text, encoding="ascii")
            argv = ffmpeg.concat_argv(self.settings.ffmpeg, LIST_NAME, output)
        ended = self._ffmpeg(argv, work, int(size_bytes * OUTPUT_FACTOR) + DISK_SPARE_BYTES, plan, (30, 70), "merging")
        if ended.returncode != 0 or not (work / output).is_file():
            self._failed(ended)

    def _ffmpeg(
        self, argv: list[str], work: Path, size_bytes: int, plan: Plan, share: tuple[int, int], what: str
    ) -> ProcessResult:
        reader = ffmpeg.ProgressReader()
        low, high = share

        def on_line(line: str) -> None:
            seconds = reader.feed(line)
            if seconds is not None:
                part = min(1.0, seconds / plan.total_s) if plan.total_s > 0 else 1.0
                self.job.progress(low + (high - low) * part, 100, what)

        limits = ProcessLimits(
            memory_bytes=self.settings.memory_limit_bytes,
            cpu_s=self.settings.cpu_s,
            file_size_bytes=size_bytes,
            open_files=256,
            nice=10,
        )
        return self.job.run_process(argv, cwd=work, env=ffmpeg.ENVIRONMENT, limits=limits, on_stdout_line=on_line)

    def _failed(self, ended: ProcessResult) -> None:
        said = ended.stderr_tail.strip()
        if "No space left on device" in said or "Disk quota exceeded" in said:
            raise Retry(f"disk_full: ffmpeg could not write: {said[-300:]}")
        raise FfmpegFailed(f"ffmpeg ended with {ended.returncode}: {said[-1000:] or 'without a word'}")

    def _verify(self, work: Path, output: Path, runs: Probe, plan: Plan) -> Probe:
        self.job.progress(70, 100, "verifying")
        size_bytes = output.stat().st_size
        try:
            merged = probe(self.job, work, [output.name], size_bytes)
        except BadFile as bad:
            raise OutputWrong(f"the merged file cannot be read: {bad.problem}") from None
        check_copy(runs, merged, plan)
        _check_seekable(output)
        argv = ffmpeg.decode_argv(self.settings.ffmpeg, output.name, full=self.settings.full_decode)
        ended = self._ffmpeg(argv, work, DISK_SPARE_BYTES, plan, (75, 95), "decoding")
        # A decoder complains on stderr and exits 0: it must be silent too.
        if ended.returncode != 0 or ended.stderr_tail.strip():
            said = ended.stderr_tail.strip()[-500:]
            raise OutputWrong(f"it does not decode (ffmpeg ended with {ended.returncode}): {said}")
        return merged

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
    return tuple(Input(n, collected[n].size_bytes, collected[n].sha256, same) for n, same in every)


def _check_seams(path: Path, run: Run, offsets: Sequence[int]) -> None:
    """Every chunk of a joined run continues the one before it; the first that does not is named."""
    handle = open_regular(path)
    try:
        found = walk(handle, os.fstat(handle).st_size, run.container)
    finally:
        os.close(handle)
    if found.bad_at is not None:
        place = max(i for i, offset in enumerate(offsets) if offset <= found.bad_at)
        raise MergeRefused("bad_segment", found.problem, run.segments[place])


def _check_seekable(output: Path) -> None:
    kind = Container(output.suffix[1:])
    handle = open_regular(output)
    try:
        found = walk(handle, os.fstat(handle).st_size, kind)
    finally:
        os.close(handle)
    if found.bad_at is not None or not found.whole:
        raise OutputWrong(f"the merged file is cut or broken at byte {found.bad_at}")
    if not found.seekable:
        raise OutputWrong("the merged file has no index in front: it could not be seeked in")
