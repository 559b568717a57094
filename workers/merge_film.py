"""From ordered segments to one verified file in a work folder: lay out, probe, plan, FFmpeg, verify.

Nothing here publishes or deletes. Every file in the work folder has a name of zq's own making: `r00000.webm` … for
runs, `n00000.mkv` … for parts brought to one shape, `out.*` for the film.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zq.context import JobContext, ProcessLimits, ProcessResult
from zq.exams.segments import MergeRefused, Ordered
from zq.exceptions import Retry
from zq.workers import ffmpeg
from zq.workers.ffmpeg import Sound
from zq.workers.merge_files import Collected, Settling, join_run, link_run, open_regular
from zq.workers.merge_media import Container, walk
from zq.workers.merge_plan import Group, Plan, Run, group_runs, make_plan
from zq.workers.merge_verify import OutputWrong, check_merge, shows_the_same
from zq.workers.probe import BadFile, Probe, probe, scan

LIST_NAME = "l.ffconcat"
OUTPUT_FACTOR = 1.5
"""A copy may be this much larger than its segments, and no larger."""
ENCODED_FACTOR = 8
"""What is encoded anew may be this much larger: a recorder's rate is not ours."""
DECODE_ALONG_BYTES_MAX = 64 * 1024 * 1024
"""A recording that is no larger is decoded while it is copied: the start of an FFmpeg is a tenth of its merge. A larger
one is decoded afterwards, while it is hashed and brought to the disk."""
DISK_SPARE_BYTES = 64 * 1024 * 1024


class FfmpegFailed(Exception):
    """FFmpeg ended with an error; its last words are in the text."""


@dataclass(frozen=True, slots=True)
class FilmLimits:
    """Of each FFmpeg: `memory_bytes` of address space (0: no bound), `cpu_s` of time on one processor."""

    ffmpeg: str
    memory_bytes: int
    cpu_s: int
    full_decode: bool


@dataclass(slots=True)
class Cost:
    """What FFmpeg took: the most memory of one, the processor time of all, and the time on the clock of the decoding
    that verifies."""

    peak_memory_bytes: int = 0
    cpu_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Film:
    """A verified file in the work folder."""

    path: Path
    file: Collected
    """As it was read, once, after FFmpeg had ended."""
    plan: Plan
    runs: int
    probe: Probe
    gaps: tuple[str, ...]
    """One line for each gap in it, in order."""
    cost: Cost


@dataclass
class FilmMaker:
    """Makes one film in `work` from the segments in `folder`."""

    job: JobContext
    folder: Path
    work: Path
    limits: FilmLimits
    _size_bytes: int = field(default=0, init=False)
    _cost: Cost = field(default_factory=Cost, init=False)
    _progress: _Progress = field(init=False)

    def __post_init__(self) -> None:
        self._progress = _Progress(self.job)

    def make(self, ordered: Ordered, collected: Mapping[str, Collected]) -> Film:
        """Raises MergeRefused, OutputWrong, FfmpegFailed, ProbeFailed, SegmentChanged, Retry, OSError."""
        runs = group_runs(
            [[s.name for s in session] for session in ordered.sessions],
            {name: c.container for name, c in collected.items()},
            ordered.gaps,
        )
        self._size_bytes = sum(collected[name].size_bytes for run in runs for name in run.segments)
        names, gaps, seams = self._lay_out(runs, collected, ordered.gaps)
        probed, regular = self._probe_runs(runs, names, seams)
        plan = make_plan(runs, probed.files)
        output = self.work / ("out" + plan.suffix)
        decoded = False
        if plan.groups:
            self._make_parts(names, plan, output)
        else:
            parts = list(zip(names, plan.durations_s, strict=True))
            along = regular and not self.limits.full_decode and self._size_bytes <= DECODE_ALONG_BYTES_MAX
            decoded = self._copy(parts, output.name, plan.total_s, (30, 70), decode_keys=along)
        with Settling(output) as settling:
            merged = self._verify(output, probed, plan, runs, decoded=decoded)
            file = settling.result()
        return Film(output, file, plan, len(runs), merged, gaps, self._cost)

    def _lay_out(
        self, runs: Sequence[Run], collected: Mapping[str, Collected], missing: Mapping[str, str]
    ) -> tuple[list[str], tuple[str, ...], dict[int, Sequence[int]]]:
        """Give each run a name of our own, its chunks joined; a line for each gap; the seams of runs, by number."""
        names: list[str] = []
        gaps: list[str] = []
        seams: dict[int, Sequence[int]] = {}
        for number, run in enumerate(runs):
            name = f"r{number:05d}.{run.container.value}"
            segments = [collected[s] for s in run.segments]
            gaps += [f"{missing[s]} missing before {s!r}" for s in run.segments if s in missing]
            if len(segments) == 1:
                link_run(self.folder, segments[0], self.work / name)
                if run.container is Container.AVI:
                    seams[number] = (0,)
            else:
                joined = join_run(
                    self.folder, segments, self.work / name, after_gap=run.after_gap, container=run.container
                )
                seams[number] = joined.offsets
                if joined.dropped_bytes:
                    gaps.append(f"{joined.dropped_bytes} bytes beside gaps left out")
            names.append(name)
            self._progress.at(10 + 5 * number / len(runs), "joining chunks")
        return names, tuple(gaps), seams

    def _probe_runs(
        self, runs: Sequence[Run], names: Sequence[str], seams: Mapping[int, Sequence[int]]
    ) -> tuple[Probe, bool]:
        """What is in the runs, and that every chunk continues the one before it; whether all are regular WebM."""

        def on_file(done: int) -> None:
            self._progress.at(15 + 15 * done / len(names), "probing")

        if (found := scan(self.work, names, on_file)) is not None:
            return found, True
        for number, offsets in seams.items():
            _check_seams(self.work / names[number], runs[number], offsets)
        try:
            return probe(self.job, self.work, names, self._size_bytes, on_file), False
        except BadFile as bad:
            raise bad.refused(runs[bad.index].segments[0]) from None

    def _make_parts(self, names: Sequence[str], plan: Plan, output: Path) -> None:
        """Bring each group to the common shape, then join them as runs are joined."""
        parts: list[str] = []
        done_s = 0.0
        for number, group in enumerate(plan.groups):
            part = output.name if len(plan.groups) == 1 else f"n{number:05d}.mkv"
            source = self._source(names, plan, group)
            argv = ffmpeg.part_argv(
                self.limits.ffmpeg, source, part, plan.encoding, sound=_sound_of(plan, group), total_s=group.total_s
            )
            share = (30 + 35 * done_s / plan.total_s, 30 + 35 * (done_s + group.total_s) / plan.total_s)
            self._run(argv, part, ENCODED_FACTOR, group.total_s, share, "encoding" if plan.encoding else "copying")
            done_s += group.total_s
            parts.append(part)
        if len(parts) > 1:
            total_bytes = sum((self.work / part).stat().st_size for part in parts)
            found = probe(self.job, self.work, parts, total_bytes)
            shares = make_plan([Run(Container.MATROSKA, (part,)) for part in parts], found.files)
            if shares.strategy not in ("remux", "concat"):
                raise OutputWrong(f"its parts do not fit together: they would need {shares.strategy}")
            self._copy(list(zip(parts, shares.durations_s, strict=True)), output.name, plan.total_s, (65, 70))

    def _source(self, names: Sequence[str], plan: Plan, group: Group) -> str:
        """The name of the group's only run, or of a list of its runs."""
        if group.end - group.first == 1:
            return names[group.first]
        runs = list(zip(names, plan.durations_s, strict=True))[group.first : group.end]
        list_name = f"g{group.first:05d}{ffmpeg.LIST_SUFFIX}"
        (self.work / list_name).write_text(ffmpeg.concat_list(runs), encoding="ascii")
        return list_name

    def _copy(
        self,
        runs: Sequence[tuple[str, float]],
        output: str,
        total_s: float,
        share: tuple[float, float],
        *,
        decode_keys: bool = False,
    ) -> bool:
        """Copy `runs` into one file; whether every key frame was decoded on the way, and rightly."""
        source = runs[0][0]
        if len(runs) > 1:
            (self.work / LIST_NAME).write_text(ffmpeg.concat_list(runs), encoding="ascii")
            source = LIST_NAME
        if decode_keys:
            argv = ffmpeg.copy_argv(self.limits.ffmpeg, source, output, decode_keys=True)
            ended = self._ffmpeg(argv, self._output_bytes_max(OUTPUT_FACTOR), total_s, share, "merging")
            if _is_silent_success(ended):
                return True
            # Which of the two went wrong, the two one after the other will tell.
        argv = ffmpeg.copy_argv(self.limits.ffmpeg, source, output)
        self._run(argv, output, OUTPUT_FACTOR, total_s, share, "merging")
        return False

    def _run(
        self, argv: list[str], output: str, factor: float, total_s: float, share: tuple[float, float], what: str
    ) -> None:
        ended = self._ffmpeg(argv, self._output_bytes_max(factor), total_s, share, what)
        if ended.returncode != 0 or not (self.work / output).is_file():
            _failed(ended)

    def _output_bytes_max(self, factor: float) -> int:
        before = max(self._size_bytes, sum(p.stat().st_size for p in self.work.glob("n*.mkv")))
        return int(before * factor) + DISK_SPARE_BYTES

    def _ffmpeg(
        self, argv: list[str], size_bytes: int, total_s: float, share: tuple[float, float], what: str
    ) -> ProcessResult:
        reader = ffmpeg.ProgressReader()
        low, high = share
        self._progress.at(low, what)

        def on_line(line: str) -> None:
            seconds = reader.feed(line)
            if seconds is not None:
                part = min(1.0, seconds / total_s) if total_s > 0 else 1.0
                self._progress.at(low + (high - low) * part, what)

        limits = ProcessLimits(
            memory_bytes=self.limits.memory_bytes,
            # Encoders and decoders work on several processors at once.
            cpu_s=self.limits.cpu_s * ffmpeg.THREADS,
            file_size_bytes=size_bytes,
            open_files=256,
            nice=10,
            idle_io=True,
        )
        ended = self.job.run_process(argv, cwd=self.work, env=ffmpeg.ENVIRONMENT, limits=limits, on_stdout_line=on_line)
        self._cost.peak_memory_bytes = max(self._cost.peak_memory_bytes, ended.peak_memory_bytes)
        self._cost.cpu_s += ended.cpu_s
        return ended

    def _verify(self, output: Path, probed: Probe, plan: Plan, runs: Sequence[Run], *, decoded: bool) -> Probe:
        """Raises OutputWrong. `decoded`: the key frames of what `output` was copied from decode."""
        self._progress.at(70, "verifying")
        try:
            merged = scan(self.work, [output.name])
            if merged is None:
                merged = probe(self.job, self.work, [output.name], output.stat().st_size)
        except BadFile as bad:
            raise OutputWrong(f"the merged file cannot be read: {bad.problem}") from None
        check_merge(probed, merged, plan, runs)
        _check_seekable(output)
        if decoded and shows_the_same(probed, merged):
            return merged
        full = self.limits.full_decode or plan.encoding is not None
        argv = ffmpeg.decode_argv(self.limits.ffmpeg, output.name, full=full)
        begun_s = time.monotonic()
        ended = self._ffmpeg(argv, DISK_SPARE_BYTES, plan.total_s, (75, 95), "decoding")
        self._cost.decode_s = time.monotonic() - begun_s
        if not _is_silent_success(ended):
            said = ended.stderr_tail.strip()[-500:]
            raise OutputWrong(f"it does not decode (ffmpeg ended with {ended.returncode}): {said}")
        return merged


class _Progress:
    """Percent, and from their pace how long the rest may take."""

    def __init__(self, job: JobContext, now_s: Callable[[], float] = time.monotonic) -> None:
        self._job = job
        self._now_s = now_s
        self._started_s = now_s()
        self._highest = 0.0

    def at(self, percent: float, what: str) -> None:
        self._highest = percent = max(self._highest, percent)
        left_s = seconds_left(percent, self._now_s() - self._started_s)
        self._job.progress(percent, 100, what if left_s is None else f"{what}, about {left_s:.0f} s left")


ETA_AFTER_S = 2.0
"""Before that a pace is a guess; and what is over sooner needs none."""


def seconds_left(percent: float, elapsed_s: float) -> float | None:
    """How long the rest takes at the pace so far; None while that would be a guess."""
    if elapsed_s < ETA_AFTER_S or percent <= 0:
        return None
    return elapsed_s * (100 - percent) / percent


def _sound_of(plan: Plan, group: Group) -> Sound:
    if group.has_sound:
        return Sound.HEARD
    return Sound.SILENCE if plan.encodes_sound else Sound.ABSENT


def _is_silent_success(ended: ProcessResult) -> bool:
    """A decoder complains on stderr and exits 0: it must be silent too."""
    return ended.returncode == 0 and not ended.stderr_tail.strip()


def _failed(ended: ProcessResult) -> None:
    said = ended.stderr_tail.strip()
    if "No space left on device" in said or "Disk quota exceeded" in said:
        raise Retry(f"disk_full: ffmpeg could not write: {said[-300:]}")
    raise FfmpegFailed(f"ffmpeg ended with {ended.returncode}: {said[-1000:] or 'without a word'}")


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
        # Every packet in it has been read: its outline is enough.
        found = walk(handle, os.fstat(handle).st_size, kind, into_clusters=False)
    finally:
        os.close(handle)
    if found.bad_at is not None or not found.whole:
        raise OutputWrong(f"the merged file is cut or broken at byte {found.bad_at}")
    if not found.seekable:
        raise OutputWrong("the merged file has no index in front: it could not be seeked in")
