"""The merge on real recordings: every case of tests/media/manifest.json, hostile ones included."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tests.workers.merge_recordings import (
    CASES,
    FFMPEGS,
    MERGED,
    REFUSED,
    Job,
    lay_out,
    packets,
    ticks,
)
from zq.exams.segments import MergeRefused
from zq.workers import merge_film
from zq.workers.merge_run import MergeSettings, run_merge
from zq.workers.merge_verify import OutputWrong

STRATEGIES = {"resize-mid": "encode-picture", "audio-missing": "encode-sound"}


EVERYDAY = {"ts-vp8-opus", "restart-vp8-opus", "audio-missing"}
"""With every FFmpeg, one of each way to merge; the other cases every day with the first, in the long run with all."""


@pytest.mark.parametrize(
    ("case_id", "ffmpeg"),
    [
        pytest.param(
            case_id, ffmpeg, id=f"{case_id}-{Path(ffmpeg).name}",
            marks=() if ffmpeg == FFMPEGS[0] or case_id in EVERYDAY else pytest.mark.long,
        )
        for case_id in MERGED
        for ffmpeg in FFMPEGS
    ],
)  # fmt: skip
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
    assert result.strategy == STRATEGIES.get(case_id, "remux" if expect["runs"] == 1 else "concat")
    found = packets(video)
    assert found["video"] == expect["packets"]["video"]
    if "encode" not in result.strategy:
        assert found == expect["packets"]
    assert ("audio" in found) == expect["audio"]
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


def test_every_case_is_tested() -> None:
    assert set(MERGED) | set(REFUSED) == set(CASES)
    assert set(STRATEGIES) == {n for n, c in CASES.items() if c["expect"].get("reference") == "reencode"}


def test_a_byte_changed_after_the_upload_is_found(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "restart-vp8-opus")
    victim = recording.request.folder / "00002-1795449377844.webm"
    content = bytearray(victim.read_bytes())
    content[7000] ^= 1
    victim.write_bytes(content)
    with pytest.raises(MergeRefused, match="changed_segment"):
        recording.merge()


@pytest.mark.parametrize("ffmpeg", FFMPEGS)
def test_a_short_recording_is_decoded_while_it_is_copied(
    tmp_path: Path, ffmpeg: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for folder, most_bytes, full, programs in (("a", 1 << 30, False, 1), ("b", 0, False, 2), ("c", 1 << 30, True, 2)):
        monkeypatch.setattr(merge_film, "DECODE_ALONG_BYTES_MAX", most_bytes)
        recording = lay_out(tmp_path / folder, "restart-vp8-opus")
        job = Job()
        result = run_merge(job, recording.request, MergeSettings(ffmpeg=ffmpeg, full_decode=full))
        assert len(job.programs) == programs
        assert (result.decode_s > 0) == (programs == 2)
        made.append((recording.request.target / result.video).read_bytes())
    assert len(set(made)) == 1


@pytest.mark.parametrize("ffmpeg", FFMPEGS)
def test_a_key_frame_that_does_not_decode_is_found(tmp_path: Path, ffmpeg: str) -> None:
    recording = lay_out(tmp_path, "restart-vp8-opus", recorded=False)
    victim = recording.request.folder / "00002-1795449377844.webm"
    content = victim.read_bytes()
    assert b"\x9d\x01\x2a" in content  # how a key frame of VP8 begins
    victim.write_bytes(content.replace(b"\x9d\x01\x2a", b"\x9d\x01\x2b", 1))
    job = Job()
    with pytest.raises(OutputWrong, match="does not decode"):
        recording.merge(job, ffmpeg)
    assert recording.beside() == []
    # Copied and decoded at once, and then, to know which of the two it was, one after the other.
    assert ["null" in argv for argv in job.programs] == [True, False, True]


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
