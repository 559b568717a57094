"""From segments to a way of merging them: runs, what they have in common, how long each is. Pure.

A run is what one recorder wrote as one file: a header and everything until the next header. Chunks of a run are
joined byte by byte, runs are joined by FFmpeg's concat demuxer with durations of our own counting (those in the
containers are short or missing), and copied only where every run has the same parameters, because a copy of others
gives a broken film without a word of warning. Where they differ, neighbours of one shape make a group, each group is
brought to one common shape (only what differs is encoded anew), and the groups are then joined as runs are.

What cannot be done rightly is refused, with the reason and the segment named.
"""

from __future__ import annotations

from collections.abc import Container as Holds
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from zq.exams.segments import MergeRefused
from zq.workers.merge_media import Container
from zq.workers.probe import FileProbe, StreamProbe

RUNS_MAX = 100_000
PIXELS_MAX = 8192 * 4320
"""Of one picture. Above, decoding alone would take gigabytes."""
_WEBM_CODECS = frozenset({"vp8", "vp9", "av1", "opus", "vorbis"})
_MP4_CODECS = frozenset({"h264", "hevc", "av1", "vp9", "aac", "mp3", "opus"})
_COPIED = _WEBM_CODECS | _MP4_CODECS
DECODED = _COPIED | {"mpeg4", "mjpeg", "msmpeg4v3", "mpeg2video", "mp2", "ac3", "flac", "pcm_s16le", "pcm_u8"}
"""Formats of the streams of recorders; no other decoder is ever opened."""
_OVERLAPPING_CLOCKS = frozenset({Container.MPEG_TS})


@dataclass(frozen=True, slots=True)
class Run:
    """One recorder's output: the names of its segments, in order, the first with the header.

    `after_gap` are those of them before which a segment is missing.
    """

    container: Container
    segments: tuple[str, ...]
    after_gap: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring runs of one shape: the indices from `first` to before `end`, and how long they last together."""

    first: int
    end: int
    total_s: float
    has_sound: bool


@dataclass(frozen=True, slots=True)
class Encoding:
    """What is encoded anew where runs differ. A picture fits into `width_px` by `height_px`, with bars around it."""

    picture: bool
    sound: bool
    width_px: int = 0
    height_px: int = 0
    channels: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """`durations_s` has one entry per run; `total_s` is their sum.

    `strategy`: remux (one run, copied), concat (several, copied), rewrap (copied by way of a container that they can
    share), encode-sound, encode-picture, encode (both). `groups` is empty for the first two, `encoding` None for the
    first three.
    """

    strategy: str
    suffix: str
    durations_s: tuple[float, ...]
    total_s: float
    groups: tuple[Group, ...] = ()
    encoding: Encoding | None = None

    @property
    def encodes_picture(self) -> bool:
        return self.encoding is not None and self.encoding.picture

    @property
    def encodes_sound(self) -> bool:
        return self.encoding is not None and self.encoding.sound


def group_runs(
    sessions: Sequence[Sequence[str]], kinds: Mapping[str, Container], gaps: Holds[str] = frozenset()
) -> list[Run]:
    """Put each segment without a header behind the one it continues; a run never reaches over a recording session.

    MPEG-TS has no header, or one in each packet: neighbours are one run. `gaps` are the segments before which one is
    missing. Raises MergeRefused: no_header, too_many_runs.
    """
    runs: list[tuple[Container, list[str]]] = []
    for session in sessions:
        for place, name in enumerate(session):
            kind = kinds[name]
            if kind is Container.MPEG_TS and place > 0 and runs[-1][0] is not Container.MPEG_TS:
                # A continuation may begin with any bytes, these too. The walk over the joined run will tell.
                kind = Container.NONE
            if kind is Container.MPEG_TS and runs and runs[-1][0] is Container.MPEG_TS:
                runs[-1][1].append(name)
            elif kind is not Container.NONE:
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
        raise MergeRefused("too_many_runs", f"more than {RUNS_MAX} recorder starts in one recording")
    return [Run(kind, tuple(names), frozenset(n for n in names[1:] if n in gaps)) for kind, names in runs]


def make_plan(runs: Sequence[Run], probes: Sequence[FileProbe]) -> Plan:
    """How to merge `runs`. Raises MergeRefused: bad_segment, unsupported_format."""
    for run, probed in zip(runs, probes, strict=True):
        _check_streams(run, probed)
    durations = tuple(_distance(a, b) for a, b in pairwise(probes))
    durations += (probes[-1].end_s - probes[-1].first_s,)
    encoding = _encoding(runs, probes)
    shapes = [_shape(run, probed) for run, probed in zip(runs, probes, strict=True)]
    if not (encoding.picture or encoding.sound) and len(set(shapes)) == 1:
        suffix = _suffix(runs[0].container, _codecs(probes[0]))
        return Plan("remux" if len(runs) == 1 else "concat", suffix, durations, sum(durations))
    codecs = _codecs(probes[0])
    if encoding.picture:
        codecs = {"h264"} | _codecs(probes[0], "audio")
    if encoding.sound:
        codecs = {"opus"} | (codecs - _codecs(probes[0], "audio"))
    strategy = {(False, False): "rewrap", (False, True): "encode-sound", (True, False): "encode-picture"}
    return Plan(
        strategy=strategy.get((encoding.picture, encoding.sound), "encode"),
        suffix=_suffix(runs[0].container, codecs),
        durations_s=durations,
        total_s=sum(durations),
        groups=_groups(shapes, probes, durations),
        encoding=encoding if encoding.picture or encoding.sound else None,
    )


def _check_streams(run: Run, probed: FileProbe) -> None:
    kinds = [s.type for s in probed.streams]
    name = run.segments[0]
    if sorted(kinds) not in (["video"], ["audio", "video"]):
        found = ", ".join(kinds) or "none"
        raise MergeRefused("unsupported_format", f"streams: {found}; want one picture and at most one sound", name)
    if other := _codecs(probed) - DECODED:
        raise MergeRefused("unsupported_format", f"{', '.join(sorted(other))} is not merged; record in another", name)
    for stream in probed.streams:
        if stream.type == "video" and not stream.packets:
            raise MergeRefused("bad_segment", "a header, but no picture behind it", name)
        if stream.width_px * stream.height_px > PIXELS_MAX:
            raise MergeRefused("unsupported_format", f"pictures of {stream.width_px}x{stream.height_px}", name)
        if not stream.rising and run.container not in _OVERLAPPING_CLOCKS:
            raise MergeRefused("bad_segment", "its time stamps repeat or go back: chunks swapped or sent twice?", name)


def _codecs(probed: FileProbe, kind: str = "") -> set[str]:
    return {s.codec for s in probed.streams if s.type == kind or not kind}


def _encoding(runs: Sequence[Run], probes: Sequence[FileProbe]) -> Encoding:
    pictures = [p.of_type("video") for p in probes]
    sounds = [p.of_type("audio") for p in probes]
    looks = {_look(stream) for stream in pictures}
    tones = {_look(stream) for stream in sounds}
    # AVI has no time stamps of its own, so that pictures out of order would be copied wrongly.
    unlike = any(r.container is Container.AVI for r in runs) or any(s and s.parameter_sets > 1 for s in pictures)
    mixed_ts = len(runs) > 1 and any(r.container is Container.MPEG_TS for r in runs)
    picture = unlike or len(looks) > 1 or mixed_ts or not all(s and s.codec in _COPIED for s in pictures)
    heard = [s for s in sounds if s is not None]
    # A track without a packet is as silent as none.
    silences = {s is None or s.packets == 0 for s in sounds}
    sound = bool(heard) and (
        len(tones) > 1
        or len(silences) > 1
        or unlike
        or mixed_ts
        or any(s.codec not in _COPIED for s in heard)
        or not (picture or _fits_one_container(runs[0].container, _codecs(probes[0])))
    )
    return Encoding(
        picture=picture,
        sound=sound,
        # Even, as H.264 wants them.
        width_px=2 * ((max(s.width_px for s in pictures if s) + 1) // 2),
        height_px=2 * ((max(s.height_px for s in pictures if s) + 1) // 2),
        channels=1 if all(s.layout == "mono" for s in heard) else 2,
    )


def _look(stream: StreamProbe | None) -> tuple[object, ...]:
    """What has to be equal for a copy, but for the time base, which another container makes equal."""
    if stream is None:
        return ()
    return (stream.codec, stream.width_px, stream.height_px, stream.sample_rate_hz, stream.layout, stream.extradata)


def _shape(run: Run, probed: FileProbe) -> tuple[object, ...]:
    """Runs of one shape can be read by one concat demuxer, one behind the other."""
    streams = tuple((s.type, _look(s), s.time_base, bool(s.packets) or s.type == "video") for s in probed.streams)
    return run.container, streams


def _groups(
    shapes: Sequence[tuple[object, ...]], probes: Sequence[FileProbe], durations_s: Sequence[float]
) -> tuple[Group, ...]:
    starts = [0, *(i for i in range(1, len(shapes)) if shapes[i] != shapes[i - 1])]
    groups = []
    for first, end in pairwise([*starts, len(shapes)]):
        sound = probes[first].of_type("audio")
        heard = sound is not None and sound.packets > 0
        groups.append(Group(first, end, sum(durations_s[first:end]), heard))
    return tuple(groups)


def _distance(run: FileProbe, following: FileProbe) -> float:
    """From the start of `run` to the start of `following`: the least at which no stream overlaps itself."""
    gaps = []
    for kind in ("video", "audio"):
        a, b = run.of_type(kind), following.of_type(kind)
        if a is not None and b is not None and a.packets and b.packets:
            gaps.append((a.end_s - run.first_s) - (b.first_s - following.first_s))
        elif a is not None and a.packets:
            gaps.append(a.end_s - run.first_s)
    # The concat demuxer counts from a file's start time, which is never below zero, even where sound begins before it.
    early = max(0.0, -following.first_s) - max(0.0, -run.first_s)
    return max(0.001, *gaps) + early


def _fits_one_container(first: Container, codecs: set[str]) -> bool:
    return first is Container.MATROSKA or codecs <= _WEBM_CODECS or codecs <= _MP4_CODECS


def _suffix(first: Container, codecs: set[str]) -> str:
    """The container of the merged file: that of the recording where it may hold the streams."""
    if first is Container.MATROSKA:
        return ".mkv"
    if codecs <= _WEBM_CODECS and (first is Container.WEBM or not codecs <= _MP4_CODECS):
        return ".webm"
    # H.264 inside WebM, as Chromium writes it: no .webm may hold it.
    return ".mp4"
