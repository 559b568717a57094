"""FFmpeg's commands, its list files and its progress."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zq.workers.ffmpeg import (
    FfmpegMissing,
    ProgressReader,
    Sound,
    concat_list,
    copy_argv,
    decode_argv,
    find_ffmpeg,
    part_argv,
)
from zq.workers.merge_plan import Encoding

ENCODING = Encoding(picture=True, sound=True, width_px=320, height_px=240)
COMMANDS = {
    "remux": copy_argv("/bin/ffmpeg", "r00000.webm", "out.webm"),
    "remux and decode": copy_argv("/bin/ffmpeg", "r00000.webm", "out.webm", decode_keys=True),
    "concat": copy_argv("/bin/ffmpeg", "l.ffconcat", "out.mp4"),
    "rewrap": part_argv("/bin/ffmpeg", "r00000.mp4", "n00000.mkv", None, sound=Sound.HEARD, total_s=2),
    "encode": part_argv("/bin/ffmpeg", "g00000.ffconcat", "n00000.mkv", ENCODING, sound=Sound.SILENCE, total_s=2),
    "decode": decode_argv("/bin/ffmpeg", "out.mp4", full=False),
}


@pytest.mark.parametrize("argv", COMMANDS.values(), ids=COMMANDS)
def test_every_command_has_closed_lists_and_no_standard_input(argv: list[str]) -> None:
    before_input = argv[: argv.index("-i")]
    assert before_input[before_input.index("-protocol_whitelist") + 1] == "file"
    assert "h264" in before_input[before_input.index("-codec_whitelist") + 1].split(",")
    assert "-max_pixels" in before_input
    assert "-f" in before_input  # a forced demuxer: nothing is probed
    assert {"-nostdin", "-xerror"} <= set(argv)
    assert argv[argv.index("-i") + 1].startswith("file:")


def test_commands_say_what_is_copied_and_what_is_made_anew() -> None:
    concat, encode = COMMANDS["concat"], COMMANDS["encode"]
    assert concat[concat.index("-format_whitelist") + 1] == "concat,matroska,webm,mov,mp4,avi"
    assert concat[concat.index("-safe") + 1] == "1"
    assert COMMANDS["remux"][-1] == "file:out.webm"
    assert "-cues_to_front" in COMMANDS["remux"]
    assert "+faststart" in concat
    assert "nokey" in COMMANDS["decode"]
    assert "nokey" in COMMANDS["remux and decode"]
    assert "file:out.webm" in COMMANDS["remux and decode"]
    assert COMMANDS["remux and decode"][-3:] == COMMANDS["decode"][-3:] == ["-f", "null", "-"]
    assert "nokey" not in decode_argv("/bin/ffmpeg", "out.mp4", full=True)
    assert {"libx264", "libopus", "passthrough", "1:a:0", "anullsrc=r=48000:cl=mono:d=2.000000"} <= set(encode)
    assert "libx264" not in COMMANDS["rewrap"]
    silent = part_argv("/bin/ffmpeg", "r00000.avi", "out.mp4", ENCODING, sound=Sound.ABSENT, total_s=2)
    assert "libopus" not in silent
    assert not any(word.endswith(":a:0") for word in silent)
    # The joined bytes of MPEG-TS always fail with it.
    assert "-xerror" not in copy_argv("/bin/ffmpeg", "r00000.ts", "out.mp4")


def test_a_list_holds_only_names_of_our_own_making() -> None:
    text = concat_list([("r00000.webm", 1.5), ("r00001.webm", 2.0000004)])
    assert text == "ffconcat version 1.0\nfile r00000.webm\nduration 1.500000\nfile r00001.webm\nduration 2.000000\n"
    for name in ("x.webm", "r00000.webm\nfile x", "../r00000.webm", "r00000.ts", "r00000.webm\n"):
        with pytest.raises(ValueError, match="own making"):
            concat_list([(name, 1.0)])


def test_progress_is_read_and_never_goes_back() -> None:
    reader = ProgressReader()
    lines = ["frame=3", "out_time_us=N/A", "out_time_us=1500000", "total_size=77", "out_time_us=9", "progress=end"]
    assert [reader.feed(line) for line in lines] == [None, None, 1.5, None, 1.5, None]
    assert (reader.out_time_s, reader.size_bytes, reader.ended) == (1.5, 77, True)
    assert reader.feed("out_time_us=-9223372036854775807") is None


@given(st.text() | st.builds("out_time_us={}".format, st.text() | st.integers()))
def test_any_line_is_read(line: str) -> None:
    assert ProgressReader().feed(line) is None or ProgressReader().out_time_s >= 0


def _program(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_where_ffmpeg_is_looked_for(tmp_path: Path) -> None:
    configured = _program(tmp_path / "a" / "ffmpeg-own")
    named = _program(tmp_path / "b" / "ffmpeg-named")
    on_path = _program(tmp_path / "c" / "ffmpeg")
    environ = {"ZQ_FFMPEG": named, "PATH": str(tmp_path / "c")}
    assert find_ffmpeg(configured, environ) == configured
    assert find_ffmpeg("", environ) == named
    assert find_ffmpeg("", {"PATH": str(tmp_path / "c")}) == on_path
    assert os.access(find_ffmpeg("", {"PATH": ""}), os.X_OK)  # the wheel's
    with pytest.raises(FfmpegMissing, match=r"merge\.ffmpeg is 'nowhere/ffmpeg'"):
        find_ffmpeg("nowhere/ffmpeg", environ)
    with pytest.raises(FfmpegMissing, match="ZQ_FFMPEG"):
        find_ffmpeg("", {"ZQ_FFMPEG": "nowhere/ffmpeg"})
