"""The merge on real recordings: every case of tests/media/manifest.json, hostile ones included."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from tests.workers.merge_recordings import (
    CASES,
    FFMPEGS,
    MEDIA,
    MERGED,
    REENCODED,
    REFUSED,
    Job,
    Recording,
    lay_out,
    packets,
    ticks,
)
from zq.exams.segments import MergeRefused
from zq.workers.merge_run import MergeRequest


@pytest.mark.parametrize("ffmpeg", FFMPEGS, ids=lambda p: Path(p).name)
@pytest.mark.parametrize("case_id", MERGED)
def test_case_merges_whole_and_in_order(tmp_path: Path, case_id: str, ffmpeg: str) -> None:
    expect = CASES[case_id]["expect"]
    recording = lay_out(tmp_path, case_id)
    job = Job()
    result = recording.merge(job, ffmpeg)
    recording.assert_kept()
    assert recording.beside() == [result.video, result.video + ".zq.json"]
    video = recording.request.target / result.video
    assert abs(result.duration_s - expect["duration_s"]) <= expect["tolerance_s"]
    assert (result.frames, result.runs, result.segments) == (expect["frames"], expect["runs"], len(recording.before))
    assert packets(video) == expect["packets"]
    shown = ticks(video)
    counters = [tick for _, tick in shown]
    assert counters == sorted(counters)
    assert (counters[0], counters[-1]) == (expect["first_tick"], expect["last_tick"])
    assert len(set(counters)) == expect["distinct_ticks"]
    assert max(b - a for a, b in pairwise(counters)) <= expect["max_tick_step"]
    # The film keeps the recording's own time: the two do not drift apart.
    drift = [t - 0.02 * tick for t, tick in shown]
    assert max(drift) - min(drift) < 0.25
    assert job.percents == sorted(job.percents)
    assert job.percents[-1] == 100
    assert result.video.startswith("s1_王小明_")


@pytest.mark.parametrize("case_id", ["ts-vp8-opus", "restart-vp8-opus", "natural-sort", "timestamp-only"])
def test_segments_without_a_record_are_taken_by_name(tmp_path: Path, case_id: str) -> None:
    recording = lay_out(tmp_path, case_id, recorded=False)
    assert recording.merge().frames == CASES[case_id]["expect"]["frames"]


@pytest.mark.parametrize("case_id", REFUSED)
def test_case_is_refused_and_every_segment_kept(tmp_path: Path, case_id: str) -> None:
    expect = CASES[case_id]["expect"]
    recording = lay_out(tmp_path, case_id)
    job = Job()
    with pytest.raises(MergeRefused) as refused:
        recording.merge(job)
    assert refused.value.reason in {expect["reason"], expect.get("also_ok_reason")}
    assert str(refused.value).startswith(refused.value.reason)
    for missing in expect.get("missing", []):
        assert str(missing) in refused.value.detail
    recording.assert_kept()
    assert recording.beside() == []
    if case_id == "playlist-hls-local":
        assert refused.value.segment == "00003-1795449379847.webm"
        assert (tmp_path / "canary.ts").stat().st_size > 0
        assert not job.programs  # no program of ours ever saw the playlist


@pytest.mark.parametrize(("case_id", "what"), [("resize-mid", "picture size"), ("audio-missing", "streams")])
def test_a_mix_is_refused_with_the_difference_named(tmp_path: Path, case_id: str, what: str) -> None:
    recording = lay_out(tmp_path, case_id)
    with pytest.raises(MergeRefused, match="unsupported_mix") as refused:
        recording.merge()
    assert what in refused.value.detail
    assert refused.value.segment == "00002-1763800004000.mp4"
    recording.assert_kept()
    assert recording.beside() == []


def test_every_case_is_tested() -> None:
    assert sorted(REENCODED) == ["audio-missing", "resize-mid"]
    assert set(MERGED) | set(REFUSED) | REENCODED == set(CASES)


def test_a_byte_changed_after_the_upload_is_found(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "restart-vp8-opus")
    victim = recording.request.folder / "00002-1795449377844.webm"
    content = bytearray(victim.read_bytes())
    content[7000] ^= 1
    victim.write_bytes(content)
    with pytest.raises(MergeRefused, match="changed_segment"):
        recording.merge()


def test_links_are_not_followed(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "restart-vp8-opus", recorded=False)
    victim = recording.request.folder / "00002-1795449377844.webm"
    victim.rename(tmp_path / "elsewhere.webm")
    victim.symlink_to(tmp_path / "elsewhere.webm")
    with pytest.raises(MergeRefused, match="bad_segment"):
        recording.merge()
    assert (tmp_path / "elsewhere.webm").exists()


def test_an_accepted_segment_that_is_gone_is_missed(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "restart-vp8-opus")
    (recording.request.folder / "00004-1795449381851.webm").unlink()
    with pytest.raises(MergeRefused, match="missing_segment"):
        recording.merge()


def _made(target: Path, *argv: str) -> bytes:
    source = ["-i", str(MEDIA / "mp4-uniform" / "00000.mp4"), "-c", "copy"]
    subprocess.run([FFMPEGS[0], "-v", "error", *source, *argv, str(target)], check=True, stdin=subprocess.DEVNULL)
    return target.read_bytes()


def _put(tmp_path: Path, suffix: str, chunks: list[bytes]) -> Recording:
    folder = tmp_path / "exam1" / "recordings" / "s1"
    folder.mkdir(parents=True)
    for number, chunk in enumerate(chunks):
        (folder / f"{number:05d}-{1795449373838 + number}{suffix}").write_bytes(chunk)
    return Recording(MergeRequest("exam1", "s1", "王小明", folder, folder.parent), {})


def test_chunks_of_a_fragmented_mp4_are_joined(tmp_path: Path) -> None:
    flags = ("-movflags", "frag_keyframe+empty_moov+default_base_moof", "-frag_duration", "200000")
    whole = _made(tmp_path / "whole.mp4", *flags)
    third = len(whole) // 3
    recording = _put(tmp_path, ".mp4", [whole[:third], whole[third : 2 * third], whole[2 * third :]])
    result = recording.merge()
    assert (result.strategy, result.frames, result.segments) == ("remux", 24, 3)


@pytest.mark.parametrize(("doctype", "suffix"), [(b"webm\0\0\0\0", ".mp4"), (b"matroska", ".mkv")])
def test_h264_in_matroska_gets_a_container_that_may_hold_it(tmp_path: Path, doctype: bytes, suffix: str) -> None:
    made = _made(tmp_path / "made.mkv", "-map", "0:v")
    chunk = made.replace(b"\x42\x82\x88matroska", b"\x42\x82\x88" + doctype, 1)
    result = _put(tmp_path, ".webm", [chunk, chunk]).merge()
    assert (result.frames, result.runs, Path(result.video).suffix) == (48, 2, suffix)
