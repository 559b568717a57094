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
    concat_argv,
    concat_list,
    decode_argv,
    find_ffmpeg,
    remux_argv,
)


def test_every_command_has_closed_lists_and_no_standard_input() -> None:
    remux = remux_argv("/bin/ffmpeg", "r00000.webm", "out.webm")
    concat = concat_argv("/bin/ffmpeg", "l.ffconcat", "out.mp4")
    decode = decode_argv("/bin/ffmpeg", "out.mp4", full=False)
    for argv in (remux, concat, decode):
        before_input = argv[: argv.index("-i")]
        assert before_input[before_input.index("-protocol_whitelist") + 1] == "file"
        assert "-f" in before_input  # a forced demuxer: nothing is probed
        assert {"-nostdin", "-xerror"} <= set(argv)
        assert argv[argv.index("-i") + 1].startswith("file:")
    assert concat[concat.index("-format_whitelist") + 1] == "concat,matroska,webm,mov,mp4"
    assert concat[concat.index("-safe") + 1] == "1"
    assert remux[-1] == "file:out.webm"
    assert "-cues_to_front" in remux
    assert "+faststart" in concat
    assert "nokey" in decode
    assert "nokey" not in decode_argv("/bin/ffmpeg", "out.mp4", full=True)


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
