"""Runs, their likeness and their lengths; and what a finished copy is held against."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from zq.exams.segments import MergeRefused
from zq.workers.merge_media import Container
from zq.workers.merge_plan import Encoding, Plan, Run, group_runs, make_plan
from zq.workers.merge_verify import OutputWrong, check_merge, shows_the_same
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


def test_neighbours_in_mpeg_ts_are_one_run() -> None:
    kinds = {"a": TS, "b": TS, "c": NONE, "d": TS, "e": MP4, "f": TS}
    runs = group_runs([["a", "b", "c"], ["d", "e"], ["f"]], kinds)
    assert [r.segments for r in runs] == [("a", "b", "c", "d"), ("e",), ("f",)]


def test_a_run_knows_its_gaps() -> None:
    runs = group_runs([["a", "b", "c"], ["d"]], {"a": WEBM, "b": NONE, "c": NONE, "d": WEBM}, {"c": "2", "d": "1"})
    assert [r.after_gap for r in runs] == [{"c"}, set()]


@pytest.mark.parametrize(
    ("kinds", "reason", "segment"),
    [
        ([[NONE, NONE]], "no_header", "00"),
        ([[WEBM, NONE], [NONE]], "no_header", "10"),  # never joined over the end of a session
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
    ("other", "strategy", "suffix"),
    [
        (both(video={"codec": "vp9"}), "encode-picture", ".mp4"),
        (both(video={"width_px": 240, "height_px": 320}), "encode-picture", ".mp4"),
        (both(video={"extradata": "f"}), "encode-picture", ".mp4"),
        (both(audio={"sample_rate_hz": 44100}), "encode-sound", ".webm"),
        (both(audio={"layout": "stereo"}), "encode-sound", ".webm"),
        (both(audio={"extradata": "f"}), "encode-sound", ".webm"),
        (both(audio={"packets": 0, "first_s": 0.0, "end_s": 0.0}), "encode-sound", ".webm"),
        (both(video={"codec": "vp9"}, audio={"codec": "vorbis"}), "encode", ".mp4"),
        (both(video={"time_base": "1/90000"}), "rewrap", ".webm"),
        (FileProbe("r", (VIDEO,)), "encode-sound", ".webm"),
        (FileProbe("r", (AUDIO, VIDEO)), "rewrap", ".webm"),
    ],
)
def test_of_runs_that_differ_only_what_differs_is_encoded(other: FileProbe, strategy: str, suffix: str) -> None:
    plan = planned(both(), both(), other, both())
    assert (plan.strategy, plan.suffix) == (strategy, suffix)
    assert [(g.first, g.end) for g in plan.groups] == [(0, 2), (2, 3), (3, 4)]
    assert plan.total_s == pytest.approx(sum(g.total_s for g in plan.groups))
    assert plan.encodes_picture == (strategy in ("encode", "encode-picture"))
    assert plan.encodes_sound == (strategy in ("encode", "encode-sound"))


def test_every_picture_fits_into_the_common_size() -> None:
    plan = planned(both(), both(video={"width_px": 241, "height_px": 319}), both(audio={"layout": "stereo"}))
    assert plan.encoding == Encoding(picture=True, sound=True, width_px=320, height_px=320, channels=2)


def test_what_may_not_be_copied_is_encoded() -> None:
    assert planned(both(), container=Container.AVI).strategy == "encode"
    assert planned(both(video={"codec": "mjpeg"})).strategy == "encode-picture"
    assert planned(both(audio={"codec": "pcm_s16le"})).strategy == "encode-sound"
    assert planned(both(video={"codec": "h264"}, audio={"codec": "vorbis"})).strategy == "encode-sound"
    h264 = {"codec": "h264", "parameter_sets": 1}
    assert planned(both(video=h264, audio={"codec": "aac"}), container=TS).strategy == "remux"
    assert planned(both(video=h264 | {"parameter_sets": 2}, audio={"codec": "aac"}), container=TS).encodes_picture


@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        (FileProbe("r", (AUDIO,)), "unsupported_format"),
        (FileProbe("r", ()), "unsupported_format"),
        (FileProbe("r", (VIDEO, VIDEO)), "unsupported_format"),
        (both(video={"packets": 0}), "bad_segment"),
        (both(audio={"rising": False}), "bad_segment"),
        (both(video={"codec": "ffv1"}), "unsupported_format"),
        (both(video={"width_px": 20_000, "height_px": 20_000}), "unsupported_format"),
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


PAYLOAD = {"video": "v", "audio": "a"}
RUNS = [Run(WEBM, ("a",)), Run(WEBM, ("b",))]
PROBED = Probe((both(), both()), PAYLOAD)
GOOD = both(video={"packets": 200, "end_s": 4.0}, audio={"packets": 100, "end_s": 3.9})
COPIED = planned(both(), both())


def test_a_complete_copy_passes() -> None:
    check_merge(PROBED, Probe((GOOD,), PAYLOAD), COPIED, RUNS)


@pytest.mark.parametrize(
    ("output", "hashes", "problem"),
    [
        (both(video={"packets": 199, "end_s": 4.0}, audio={"packets": 100}), PAYLOAD, "199 of 200 video"),
        (GOOD, PAYLOAD | {"audio": "x"}, "audio packets are not those"),
        (GOOD, PAYLOAD | {"video": "x"}, "video packets are not those"),
        (FileProbe("o", GOOD.streams[:1]), PAYLOAD, "streams"),
        (both(video={"packets": 200, "end_s": 4.2}, audio={"packets": 100}), PAYLOAD, "lasts 4.200 s"),
        (both(video={"packets": 200, "end_s": 4.0, "rising": False}, audio={"packets": 100}), PAYLOAD, "go back"),
    ],
)
def test_anything_less_does_not(output: FileProbe, hashes: dict[str, str], problem: str) -> None:
    with pytest.raises(OutputWrong, match=problem):
        check_merge(PROBED, Probe((output,), hashes), COPIED, RUNS)


@pytest.mark.parametrize("other", [{"codec": "vp9"}, {"width_px": 8}, {"extradata": "x"}])
def test_a_copy_decodes_as_its_parts_do_if_it_is_for_the_same_decoder(other: dict[str, Any]) -> None:
    assert shows_the_same(PROBED, Probe((GOOD,), PAYLOAD))
    assert not shows_the_same(PROBED, Probe((both(video=other),), PAYLOAD))
    assert not shows_the_same(Probe((both(), both(video=other)), PAYLOAD), Probe((GOOD,), PAYLOAD))


SILENT = FileProbe("r", (VIDEO,))
ENCODED = planned(both(), SILENT)
OTHER = {"video": "v", "audio": "anew"}


def test_where_the_bytes_are_framed_anew_every_packet_is_counted() -> None:
    probed = Probe((both(video={"codec": "h264", "byte_stream": True}), both()), PAYLOAD)
    check_merge(probed, Probe((GOOD,), PAYLOAD | {"video": "framed"}), COPIED, RUNS)
    with pytest.raises(OutputWrong, match="audio packets are not those"):
        check_merge(probed, Probe((GOOD,), PAYLOAD | {"audio": "x"}), COPIED, RUNS)
    fewer = both(video={"packets": 199, "end_s": 4.0}, audio={"packets": 100, "end_s": 3.9})
    with pytest.raises(OutputWrong, match="199 of 200"):
        check_merge(probed, Probe((fewer,), PAYLOAD), COPIED, RUNS)


def test_sound_that_was_filled_up_lasts_to_the_end() -> None:
    probed = Probe((both(), SILENT), PAYLOAD)
    check_merge(probed, Probe((GOOD,), OTHER), ENCODED, RUNS)
    short = both(video={"packets": 200, "end_s": 4.0}, audio={"end_s": 2.0})
    with pytest.raises(OutputWrong, match="sound lasts"):
        check_merge(probed, Probe((short,), OTHER), ENCODED, RUNS)
    with pytest.raises(OutputWrong, match="streams"):
        check_merge(probed, Probe((FileProbe("o", GOOD.streams[:1]),), OTHER), ENCODED, RUNS)
    with pytest.raises(OutputWrong, match="video packets are not those"):  # the picture was to be copied
        check_merge(probed, Probe((GOOD,), OTHER | {"video": "x"}), ENCODED, RUNS)


def test_pictures_that_were_encoded_are_all_there() -> None:
    plan = planned(both(), both(video={"codec": "vp9"}))
    check_merge(PROBED, Probe((GOOD,), PAYLOAD | {"video": "anew"}), plan, RUNS)
    fewer = both(video={"packets": 199, "end_s": 4.0}, audio={"packets": 100, "end_s": 3.9})
    with pytest.raises(OutputWrong, match="199 of 200"):
        check_merge(PROBED, Probe((fewer,), PAYLOAD), plan, RUNS)
