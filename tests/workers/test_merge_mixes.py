"""Recordings whose parts are not alike, and containers beside WebM and MP4: each the fastest right way, both FFmpegs.

The pictures count, so what comes out is read back: every picture there, in order, at its own time.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tests.workers.merge_recordings import MEDIA, ONE_AND_LONG, Recording, made, packets, put, ticks
from zq.exams.segments import MergeRefused
from zq.workers.merge_run import MergeResult

SOURCES = sorted((MEDIA / "mp4-uniform").iterdir())
PICTURES = 24
"""In each source, with 88 packets of sound, over two seconds."""
TICKS_OF_ONE = 100

both = pytest.mark.parametrize(
    "ffmpeg",
    ONE_AND_LONG,
    ids=lambda p: Path(p).name,
)
"""One of them in the everyday tests."""

COPY = ("-c", "copy")
VP8 = ("-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "1M", "-c:a", "libopus", "-ac", "1")
VP9 = ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "1M", "-c:a", "libopus", "-ac", "1")
X264 = ("-c:v", "libx264", "-preset", "ultrafast", "-g", "12")
AAC = ("-c:a", "aac")


def parts(tmp_path: Path, *made_as: tuple[str, tuple[str, ...]]) -> Recording:
    """The first sources in order, each made anew as a (suffix, options)."""
    chunks = [
        made(source, tmp_path / f"made{n}{suffix}", *options)
        for n, (source, (suffix, options)) in enumerate(zip(SOURCES, made_as, strict=False))
    ]
    names = [".mp4" if suffix == ".ts" else suffix for suffix, _ in made_as]
    return put(tmp_path, names, chunks)


def check(recording: Recording, result: MergeResult, count: int, *, drift_s: float = 0.25) -> dict[str, int]:
    """Everything is in the film, in order and in time; returns its packets."""
    video = recording.request.target / result.video
    shown = ticks(video)
    counters = [tick for _, tick in shown]
    assert len(shown) == result.frames == count * PICTURES
    assert counters == sorted(counters)
    assert counters[0] == 0
    assert counters[-1] >= count * TICKS_OF_ONE - 8
    assert all(b - a <= 5 for a, b in pairwise(counters))
    assert all(b > a for (a, _), (b, _) in pairwise(shown))
    drift = [t - 0.02 * tick for t, tick in shown]
    assert max(drift) - min(drift) < drift_s
    assert abs(result.duration_s - 2.0 * count) < 0.35
    assert recording.beside() == [result.video, result.video + ".zq.json"]
    recording.assert_kept()
    return packets(video)


@both
def test_the_codec_changes(tmp_path: Path, ffmpeg: str) -> None:
    recording = parts(tmp_path, (".webm", VP8), (".webm", VP8), (".webm", VP9), (".webm", VP8))
    result = recording.merge(ffmpeg=ffmpeg)
    assert (result.strategy, result.runs, Path(result.video).suffix) == ("encode-picture", 4, ".mp4")
    assert check(recording, result, 4)["audio"] > 380


@both
def test_the_container_and_the_codec_change(tmp_path: Path, ffmpeg: str) -> None:
    recording = parts(tmp_path, (".webm", VP8), (".mp4", COPY), (".mkv", VP9))
    result = recording.merge(ffmpeg=ffmpeg)
    assert result.strategy == "encode"
    assert check(recording, result, 3)["audio"] > 280


@both
def test_only_the_container_changes(tmp_path: Path, ffmpeg: str) -> None:
    recording = parts(tmp_path, (".webm", VP8), (".mkv", VP8), (".webm", VP8))
    result = recording.merge(ffmpeg=ffmpeg)
    assert (result.strategy, Path(result.video).suffix) == ("rewrap", ".webm")
    check(recording, result, 3)


@both
def test_the_time_base_changes(tmp_path: Path, ffmpeg: str) -> None:
    other = (*COPY, "-video_track_timescale", "90000")
    recording = parts(tmp_path, (".mp4", COPY), (".mp4", other), (".mp4", COPY))
    result = recording.merge(ffmpeg=ffmpeg)
    assert result.strategy == "rewrap"
    assert check(recording, result, 3) == {"video": 3 * PICTURES, "audio": 3 * 88}


@both
@pytest.mark.parametrize("silent", [(0,), (1,), (2,), (0, 1)])
def test_parts_without_sound(tmp_path: Path, ffmpeg: str, silent: tuple[int, ...]) -> None:
    made_as = [(".mp4", (*COPY, "-an") if n in silent else COPY) for n in range(3)]
    recording = parts(tmp_path, *made_as)
    result = recording.merge(ffmpeg=ffmpeg)
    assert result.strategy == "encode-sound"  # the picture is copied
    assert check(recording, result, 3)["audio"] >= 298  # 20 ms each: no hole


@both
def test_no_part_has_sound(tmp_path: Path, ffmpeg: str) -> None:
    recording = parts(tmp_path, (".mp4", (*COPY, "-an")), (".mp4", (*COPY, "-an")))
    result = recording.merge(ffmpeg=ffmpeg)
    assert result.strategy == "concat"
    assert check(recording, result, 2) == {"video": 2 * PICTURES}


@both
def test_mpeg_ts_that_begins_again(tmp_path: Path, ffmpeg: str) -> None:
    recording = parts(tmp_path, *[(".ts", COPY)] * 5)
    result = recording.merge(ffmpeg=ffmpeg)
    assert (result.strategy, result.runs, Path(result.video).suffix) == ("remux", 1, ".mp4")
    assert check(recording, result, 5)["audio"] == 5 * 88


@both
def test_mpeg_ts_that_goes_on_cut_anywhere(tmp_path: Path, ffmpeg: str) -> None:
    whole = made(SOURCES[0], tmp_path / "whole.ts", *COPY, "-bsf:v", "h264_mp4toannexb")
    for cuts in ([0, 188 * 40, 188 * 100, len(whole)], [0, 7_000, 19_001, len(whole)]):
        recording = put(tmp_path / str(cuts[1]), ".mp4", [whole[a:b] for a, b in pairwise(cuts)])
        result = recording.merge(ffmpeg=ffmpeg)
        assert (result.strategy, result.runs) == ("remux", 1)
        check(recording, result, 1)


@both
def test_the_picture_size_changes_inside_an_mpeg_ts(tmp_path: Path, ffmpeg: str) -> None:
    smaller = (*X264, "-vf", "scale=160:120", *AAC)
    recording = parts(tmp_path, (".ts", (*X264, *AAC)), (".ts", smaller), (".ts", (*X264, *AAC)))
    result = recording.merge(ffmpeg=ffmpeg)
    assert result.strategy == "encode"
    check(recording, result, 3)


@both
def test_avi_and_its_codecs(tmp_path: Path, ffmpeg: str) -> None:
    mpeg4 = ("-c:v", "mpeg4", "-q:v", "2", "-c:a", "mp3")
    recording = parts(tmp_path, (".avi", mpeg4), (".avi", mpeg4), (".avi", ("-c:v", "mjpeg", "-c:a", "pcm_s16le")))
    result = recording.merge(ffmpeg=ffmpeg)
    assert (result.strategy, Path(result.video).suffix) == ("encode", ".mp4")
    check(recording, result, 3)


def test_quicktime_without_a_type(tmp_path: Path) -> None:
    whole = made(SOURCES[0], tmp_path / "made.mov", *COPY)
    assert whole[4:8] == b"ftyp"
    size_bytes = int.from_bytes(whole[:4], "big")
    free = (size_bytes - 8).to_bytes(4, "big") + b"free" + bytes(size_bytes - 16)
    recording = put(tmp_path, ".mov", [b"\0\0\0\x08wide" + free + whole[size_bytes:]])
    result = recording.merge()
    assert (result.strategy, Path(result.video).suffix) == ("remux", ".mp4")


def test_bytes_behind_an_avi_are_not_taken_for_its_continuation(tmp_path: Path) -> None:
    avi = made(SOURCES[0], tmp_path / "made.avi", "-c:v", "mpeg4", "-an")
    recording = put(tmp_path, ".avi", [avi, (MEDIA / "bad" / "garbage.webm").read_bytes()])
    with pytest.raises(MergeRefused, match="bad_segment") as refused:
        recording.merge()
    assert refused.value.segment.startswith("00001-")
    assert recording.beside() == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("-c:v", "ffv1", "-an"), "unsupported_format: ffv1"),
        (("-c:v", "copy", "-map", "0:v", "-map", "0:v"), "unsupported_format: streams: video, video"),
        (("-vn", "-c:a", "copy"), "unsupported_format: streams: audio"),
    ],
)
def test_streams_that_no_recorder_makes_are_refused(tmp_path: Path, options: tuple[str, ...], reason: str) -> None:
    recording = put(tmp_path, ".mkv", [made(SOURCES[0], tmp_path / "made.mkv", *options)])
    with pytest.raises(MergeRefused, match=reason):
        recording.merge()
    recording.assert_kept()


def test_chunks_of_a_fragmented_mp4_are_joined(tmp_path: Path) -> None:
    flags = ("-movflags", "frag_keyframe+empty_moov+default_base_moof", "-frag_duration", "200000")
    whole = made(SOURCES[0], tmp_path / "whole.mp4", *COPY, *flags)
    third = len(whole) // 3
    recording = put(tmp_path, ".mp4", [whole[:third], whole[third : 2 * third], whole[2 * third :]])
    result = recording.merge()
    assert (result.strategy, result.frames, result.segments) == ("remux", 24, 3)


@both
def test_chromiums_h264_with_start_codes(tmp_path: Path, ffmpeg: str) -> None:
    chunks = [path.read_bytes() for path in sorted((MEDIA / "chromium-h264").iterdir())]
    result = put(tmp_path, ".webm", chunks).merge(ffmpeg=ffmpeg)
    assert (result.strategy, result.runs, result.frames, Path(result.video).suffix) == ("concat", 2, 81, ".mkv")


@pytest.mark.parametrize(("doctype", "suffix"), [(b"webm\0\0\0\0", ".mp4"), (b"matroska", ".mkv")])
def test_h264_in_matroska_gets_a_container_that_may_hold_it(tmp_path: Path, doctype: bytes, suffix: str) -> None:
    whole = made(SOURCES[0], tmp_path / "made.mkv", *COPY, "-map", "0:v")
    chunk = whole.replace(b"\x42\x82\x88matroska", b"\x42\x82\x88" + doctype, 1)
    result = put(tmp_path, ".webm", [chunk, chunk]).merge()
    assert (result.frames, result.runs, Path(result.video).suffix) == (48, 2, suffix)
