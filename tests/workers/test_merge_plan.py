"""Runs, their likeness and their lengths; and what a finished copy is held against."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from zq.exams.segments import MergeRefused
from zq.workers.merge_media import Container
from zq.workers.merge_plan import Plan, Run, group_runs, make_plan
from zq.workers.merge_verify import OutputWrong, check_copy
from zq.workers.probe import FileProbe, Probe, StreamProbe

WEBM, MP4, TS, NONE = Container.WEBM, Container.MP4, Container.MPEG_TS, Container.NONE
VIDEO = StreamProbe("video", "vp8", 100, 1, 0.0, 2.0, True, "1/1000", "", 320, 240)
AUDIO = StreamProbe("audio", "opus", 50, 50, 0.1, 1.9, True, "1/1000", "e", 0, 0, 48000, "mono")


def both(video: dict[str, Any] | None = None, audio: dict[str, Any] | None = None) -> FileProbe:
    replace = msgspec.structs.replace
    return FileProbe("r", (replace(VIDEO, **(video or {})), replace(AUDIO, **(audio or {}))))


def planned(*probes: FileProbe, container: Container = WEBM) -> Plan:
    return make_plan([Run(container, (f"s{n}",)) for n in range(len(probes))], probes)


def test_continuations_go_behind_their_header() -> None:
    kinds = {"a": WEBM, "b": NONE, "c": TS, "d": WEBM, "e": WEBM}
    runs = group_runs([["a", "b", "c", "d"], ["e"]], kinds)
    # c begins like MPEG-TS, as a chunk in the middle may by chance.
    assert [r.segments for r in runs] == [("a", "b", "c"), ("d",), ("e",)]


@pytest.mark.parametrize(
    ("kinds", "reason", "segment"),
    [
        ([[NONE, NONE]], "no_header", "00"),
        ([[WEBM, NONE], [NONE]], "no_header", "10"),  # never joined over the end of a session
        ([[TS, TS]], "unsupported_format", "00"),
        ([[Container.AVI]], "unsupported_format", "00"),
        ([[WEBM, NONE, MP4]], "unsupported_mix", "02"),
    ],
)
def test_what_cannot_be_grouped(kinds: list[list[Container]], reason: str, segment: str) -> None:
    named = {f"{i}{j}": kind for i, session in enumerate(kinds) for j, kind in enumerate(session)}
    sessions = [[f"{i}{j}" for j in range(len(session))] for i, session in enumerate(kinds)]
    with pytest.raises(MergeRefused) as refused:
        group_runs(sessions, named)
    assert (refused.value.reason, refused.value.segment) == (reason, segment)


def test_one_run_is_remuxed_and_several_are_concatenated() -> None:
    assert planned(both()) == Plan("remux", ".webm", (2.0,), 2.0)
    two = planned(both(), both())
    assert (two.strategy, two.suffix) == ("concat", ".webm")
    # As close as the streams allow: sound of the second begins 0.1 s after its picture.
    assert two.durations_s == (2.0, 2.0)
    assert planned(both(audio={"end_s": 2.5}), both()).durations_s == (2.4, 2.0)


def test_sound_that_begins_before_zero_gets_room() -> None:
    # AAC in MP4: the first packet lies before zero, and the concat demuxer counts from zero.
    probe = both(video={"codec": "h264"}, audio={"codec": "aac", "first_s": -0.023, "end_s": 2.0})
    plan = planned(probe, probe, container=MP4)
    assert plan.durations_s == pytest.approx((2.023, 2.023))


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (both(video={"codec": "vp9"}), "video codec is vp9, not vp8"),
        (both(video={"width_px": 240, "height_px": 320}), "video picture size is 240x320, not 320x240"),
        (both(audio={"sample_rate_hz": 44100}), "audio sample rate"),
        (both(audio={"layout": "stereo"}), "audio channels"),
        (both(video={"time_base": "1/90000"}), "video time base"),
        (both(audio={"extradata": "f"}), "audio codec parameters"),
        (FileProbe("r", (VIDEO,)), "streams are video, not video+audio"),
        (FileProbe("r", (AUDIO, VIDEO)), "streams are audio+video, not video+audio"),
    ],
)
def test_runs_that_differ_are_refused_by_name(other: FileProbe, what: str) -> None:
    with pytest.raises(MergeRefused, match="unsupported_mix") as refused:
        planned(both(), both(), other)
    assert what in refused.value.detail
    assert refused.value.segment == "s2"


@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        (FileProbe("r", (AUDIO,)), "unsupported_format"),
        (FileProbe("r", ()), "unsupported_format"),
        (FileProbe("r", (VIDEO, VIDEO)), "unsupported_format"),
        (both(video={"packets": 0}), "bad_segment"),
        (both(audio={"rising": False}), "bad_segment"),
        (both(video={"codec": "mjpeg"}), "unsupported_format"),
    ],
)
def test_streams_that_are_not_merged(probe: FileProbe, reason: str) -> None:
    with pytest.raises(MergeRefused) as refused:
        planned(probe)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("codec", "container", "suffix"),
    [("vp9", WEBM, ".webm"), ("h264", WEBM, ".mp4"), ("h264", Container.MATROSKA, ".mkv"), ("h264", MP4, ".mp4")],
)
def test_the_container_follows_the_codec(codec: str, container: Container, suffix: str) -> None:
    assert planned(both(video={"codec": codec}), container=container).suffix == suffix


def test_a_silent_sound_track_keeps_its_place() -> None:
    silent = both(audio={"packets": 0, "first_s": 0.0, "end_s": 0.0})
    assert planned(silent, silent).durations_s == (2.0, 2.0)


RUNS = Probe((both(), both()), ("v", "a"))
GOOD = both(video={"packets": 200, "end_s": 4.0}, audio={"packets": 100, "end_s": 3.9})


def test_a_complete_copy_passes() -> None:
    check_copy(RUNS, Probe((GOOD,), ("v", "a")), planned(both(), both()))


@pytest.mark.parametrize(
    ("output", "hashes", "problem"),
    [
        (both(video={"packets": 199, "end_s": 4.0}, audio={"packets": 100}), ("v", "a"), "199 of 200 video"),
        (GOOD, ("v", "x"), "audio packets are not those"),
        (GOOD, ("x", "a"), "video packets are not those"),
        (FileProbe("o", GOOD.streams[:1]), ("v",), "streams"),
        (both(video={"packets": 200, "end_s": 4.2}, audio={"packets": 100}), ("v", "a"), "lasts 4.200 s"),
        (both(video={"packets": 200, "end_s": 4.0, "rising": False}, audio={"packets": 100}), ("v", "a"), "go back"),
    ],
)
def test_anything_less_does_not(output: FileProbe, hashes: tuple[str, ...], problem: str) -> None:
    with pytest.raises(OutputWrong, match=problem):
        check_copy(RUNS, Probe((output,), hashes), planned(both(), both()))
