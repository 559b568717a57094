"""Recordings with missing segments, where the operator chose to have what is there."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.merge_recordings import CASES, MEDIA, ONE_AND_LONG, Recording, lay_out, made, put, ticks
from zq.exams.segments import MergeRefused
from zq.workers.merge_marker import read_marker
from zq.workers.merge_media import Container
from zq.workers.merge_resume import picture_track, resume_at

CHUNKS = [p.read_bytes() for p in sorted((MEDIA / "ts-vp8-opus").iterdir())]


def shown(recording: Recording, video: str) -> list[tuple[float, int]]:
    return ticks(recording.request.target / video)


def test_a_chunk_missing_inside_a_run_is_reported_and_the_rest_is_there(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "missing-sequence")
    with pytest.raises(MergeRefused, match="sequence_gap: missing 3"):
        recording.merge()
    result = recording.merge(take_gaps=True)
    assert result.gaps[0] == "3 missing before '00004-1795449382128.webm'"
    assert read_marker(recording.request.target / (result.video + ".zq.json")).gaps == result.gaps
    assert result.gaps[0] in str(result)
    found = shown(recording, result.video)
    counters = [tick for _, tick in found]
    assert counters == sorted(counters)
    assert counters[0] == CASES["ts-vp8-opus"]["expect"]["first_tick"]
    assert len(found) == result.frames
    # This recording has one key frame, its first: nothing behind the gap can be shown.
    assert counters[-1] < 320
    assert "bytes beside gaps left out" in result.gaps[1]
    # What is there is at its own time; the hole stays a hole.
    drift = [t - 0.02 * tick for t, tick in found]
    assert max(drift) - min(drift) < 0.25
    recording.assert_kept()


@pytest.mark.parametrize("ffmpeg", ONE_AND_LONG, ids=lambda p: Path(p).name)
def test_a_whole_file_missing_among_whole_ones(tmp_path: Path, ffmpeg: str) -> None:
    recording = lay_out(tmp_path, "restart-vp8-opus", recorded=False)
    (recording.request.folder / "00002-1795449377844.webm").unlink()
    result = recording.merge(ffmpeg=ffmpeg, take_gaps=True)
    assert result.frames == 4 * 21
    assert result.gaps == ("2 missing before '00003-1795449379847.webm'",)


def test_fragments_go_on_behind_a_gap(tmp_path: Path) -> None:
    flags = ("-movflags", "frag_keyframe+empty_moov+default_base_moof", "-g", "6", "-c:v", "libx264")
    whole = made(MEDIA / "mp4-uniform" / "00000.mp4", tmp_path / "whole.mp4", *flags)
    cuts = [len(whole) * n // 6 for n in range(7)]
    recording = put(tmp_path, ".mp4", [whole[a:b] for a, b in pairwise(cuts)])
    (recording.request.folder / "00002-1795449377838.mp4").unlink()
    result = recording.merge(take_gaps=True)
    counters = [tick for _, tick in shown(recording, result.video)]
    assert counters == sorted(counters)
    assert 6 <= len(counters) < 24
    assert len(result.gaps) == 2


def test_without_its_header_a_recording_is_refused_all_the_same(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "missing-header-chunk")
    with pytest.raises(MergeRefused, match="no_header"):
        recording.merge(take_gaps=True)


def test_nothing_else_is_taken_with_gaps(tmp_path: Path) -> None:
    for case_id in ("zero-byte-middle", "garbage-webm", "truncated-mp4", "playlist-hls-local", "text-as-mp4"):
        recording = lay_out(tmp_path / case_id, case_id)
        with pytest.raises(MergeRefused, match=CASES[case_id]["expect"]["reason"]):
            recording.merge(take_gaps=True)
        recording.assert_kept()


def test_chunks_go_on_at_the_next_key_frame(tmp_path: Path) -> None:
    vp8 = ("-c:v", "libvpx", "-deadline", "realtime", "-b:v", "1M", "-g", "6", "-an", "-live", "1")
    source = MEDIA / "mp4-uniform" / "00000.mp4"
    whole = made(source, tmp_path / "whole.webm", *vp8, "-cluster_time_limit", "400")
    cuts = [len(whole) * n // 6 for n in range(7)]
    recording = put(tmp_path, ".webm", [whole[a:b] for a, b in pairwise(cuts)])
    (recording.request.folder / "00002-1795449377838.webm").unlink()
    result = recording.merge(take_gaps=True)
    counters = [tick for _, tick in shown(recording, result.video)]
    assert counters == sorted(counters)
    assert counters[-1] == 96
    assert 12 <= len(counters) < 24


def test_where_a_recording_may_go_on() -> None:
    assert picture_track(CHUNKS[0]) == 1
    assert resume_at(CHUNKS[0], b"".join(CHUNKS[1:]), Container.WEBM) is None
    assert resume_at(CHUNKS[0], b"behind" + CHUNKS[0][207:], Container.WEBM) == 6
    assert resume_at(CHUNKS[0], b"garbage" * 1000, Container.WEBM) is None
    assert resume_at(b"", b"\0\0\0\x18moof\0\0\0\x10mfhd", Container.MP4) == 0


@given(st.binary(max_size=200), st.binary(max_size=400), st.sampled_from(Container))
def test_any_bytes_are_searched(header: bytes, content: bytes, container: Container) -> None:
    found = resume_at(header, content.replace(b"\0\0", b"\x1f\x43\xb6\x75"), container)
    assert found is None or found >= 0
