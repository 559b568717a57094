"""From segments to a way of merging them: runs, what they have in common, how long each is. Pure.

A run is what one recorder wrote as one file: a header and everything until the next header. Chunks of a run are
joined byte by byte, runs are joined by FFmpeg's concat demuxer with durations of our own counting (those in the
containers are short or missing), and only where every run has the same parameters, because a copy of others gives a
broken film without a word of warning. What this cannot do is refused, with the difference and the segment named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from zq.exams.segments import MergeRefused
from zq.workers.merge_media import Container
from zq.workers.probe import FileProbe, StreamProbe

RUNS_MAX = 100_000
RECORDED = {Container.WEBM, Container.MATROSKA, Container.MP4}
_WEBM_CODECS = {"vp8", "vp9", "av1", "libdav1d", "opus", "vorbis"}
_MP4_CODECS = {"h264", "hevc", "av1", "libdav1d", "vp9", "aac", "mp3", "opus"}


@dataclass(frozen=True, slots=True)
class Run:
    """One recorder's output: the names of its segments, in order, the first with the header."""

    container: Container
    segments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """`strategy` is remux (one run) or concat; `durations_s` has one entry per run; `total_s` is their sum."""

    strategy: str
    suffix: str
    durations_s: tuple[float, ...]
    total_s: float


def group_runs(sessions: Sequence[Sequence[str]], kinds: Mapping[str, Container]) -> list[Run]:
    """Put each segment without a header behind the one it continues; a run never reaches over a recording session.

    Raises MergeRefused: no_header, unsupported_format, unsupported_mix for two kinds of containers.
    """
    runs: list[tuple[Container, list[str]]] = []
    for session in sessions:
        for place, name in enumerate(session):
            kind = kinds[name]
            if kind is Container.MPEG_TS and place > 0 and runs[-1][0] is not Container.MPEG_TS:
                # A continuation may begin with any bytes, these too. The walk over the joined run will tell.
                kind = Container.NONE
            if kind is not Container.NONE:
                runs.append((kind, [name]))
            elif place == 0:
                raise MergeRefused(
                    "no_header",
                    "the recording's first segment has no header, so what follows cannot be read; upload the first one",
                    name,
                )
            else:
                runs[-1][1].append(name)
    if len(runs) > RUNS_MAX:
        raise MergeRefused("unsupported_mix", f"more than {RUNS_MAX} recorder starts in one recording")
    first = runs[0]
    for kind, names in runs:
        if kind not in RECORDED:
            raise MergeRefused("unsupported_format", f"{kind.name} recordings are not merged yet", names[0])
        if kind is not first[0]:
            raise MergeRefused(
                "unsupported_mix", f"container {kind.name} after {first[0].name} in {first[1][0]!r}", names[0]
            )
    return [Run(kind, tuple(names)) for kind, names in runs]


def make_plan(runs: Sequence[Run], probes: Sequence[FileProbe]) -> Plan:
    """How to merge `runs`. Raises MergeRefused: bad_segment, unsupported_format, unsupported_mix."""
    for run, probed in zip(runs, probes, strict=True):
        _check_streams(run, probed)
    for run, probed in zip(runs[1:], probes[1:], strict=True):
        if difference := _difference(probes[0], probed):
            raise MergeRefused("unsupported_mix", f"{difference} (first: {runs[0].segments[0]!r})", run.segments[0])
    durations = tuple(_distance(a, b) for a, b in pairwise(probes))
    durations += (probes[-1].end_s - probes[-1].first_s,)
    return Plan(
        strategy="remux" if len(runs) == 1 else "concat",
        suffix=_suffix(runs[0], probes[0]),
        durations_s=durations,
        total_s=sum(durations),
    )


def _check_streams(run: Run, probed: FileProbe) -> None:
    kinds = [s.type for s in probed.streams]
    name = run.segments[0]
    if sorted(kinds) not in (["video"], ["audio", "video"]):
        found = ", ".join(kinds) or "none"
        raise MergeRefused("unsupported_format", f"streams: {found}; want one picture and at most one sound", name)
    if not all(s.packets for s in probed.streams if s.type == "video"):
        raise MergeRefused("bad_segment", "a header, but no picture behind it", name)
    if not all(s.rising for s in probed.streams):
        raise MergeRefused("bad_segment", "its time stamps repeat or go back: chunks swapped or sent twice?", name)


def _shape(stream: StreamProbe) -> dict[str, object]:
    return {
        "codec": stream.codec,
        "picture size": f"{stream.width_px}x{stream.height_px}",
        "sample rate": stream.sample_rate_hz,
        "channels": stream.layout,
        "time base": stream.time_base,
        "codec parameters": stream.extradata[:12],
    }


def _difference(first: FileProbe, other: FileProbe) -> str:
    """What keeps `other` from being copied behind `first`; "" if nothing does."""
    kinds, others = [s.type for s in first.streams], [s.type for s in other.streams]
    if kinds != others:
        return f"streams are {'+'.join(others)}, not {'+'.join(kinds)}"
    for a, b in zip(first.streams, other.streams, strict=True):
        theirs = _shape(b)
        for what, value in _shape(a).items():
            if theirs[what] != value:
                return f"{a.type} {what} is {theirs[what]}, not {value}"
    return ""


def _distance(run: FileProbe, following: FileProbe) -> float:
    """From the start of `run` to the start of `following`: the least at which no stream overlaps itself."""
    gaps = [
        (a.end_s - run.first_s) - (b.first_s - following.first_s)
        for a, b in zip(run.streams, following.streams, strict=True)
        if a.packets and b.packets
    ]
    # The concat demuxer counts from a file's start time, which is never below zero, even where sound begins before it.
    early = max(0.0, -following.first_s) - max(0.0, -run.first_s)
    return max(0.001, *gaps) + early


def _suffix(run: Run, probed: FileProbe) -> str:
    codecs = {s.codec for s in probed.streams}
    if run.container is Container.MATROSKA:
        return ".mkv"
    if run.container is Container.WEBM and codecs <= _WEBM_CODECS:
        return ".webm"
    # H.264 inside WebM, as Chromium writes it: no .webm may hold it.
    if codecs <= _MP4_CODECS:
        return ".mp4"
    raise MergeRefused("unsupported_format", f"no container for {', '.join(sorted(codecs))}", run.segments[0])
