"""FFmpeg from outside: where it is, what to say to it, what it says back. Pure but for `find_ffmpeg`.

Every input is hostile. So each command names a closed list of formats and protocols (a segment that is really an HLS
playlist would otherwise make FFmpeg read other files), input names are made by zq and begin with `file:`, and no text
of a user's is in an argument or a list. The exit code proves nothing: the merge verifies what came out.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from importlib import resources

ENVIRONMENT: Mapping[str, str] = {"MALLOC_ARENA_MAX": "2", "LC_ALL": "C"}
"""The whole environment FFmpeg runs in. Fewer arenas, because its address space is limited and its threads are many."""

RUN_NAME = re.compile(r"r[0-9]{5,7}\.(webm|mkv|mp4)")
_COMMON = ("-v", "error", "-xerror", "-nostdin", "-nostats", "-progress", "pipe:1", "-stats_period", "1", "-y")
_INPUT_FORMAT = {"webm": "matroska", "mkv": "matroska", "mp4": "mov"}
_CONCAT_FORMATS = "concat,matroska,webm,mov,mp4"


class FfmpegMissing(Exception):
    """No FFmpeg on this machine. The text says where it was looked for."""


def find_ffmpeg(configured: str = "", environ: Mapping[str, str] | None = None) -> str:
    """Absolute path of ffmpeg: `configured`, ZQ_FFMPEG, PATH, the imageio-ffmpeg wheel. Raises FfmpegMissing."""
    env = os.environ if environ is None else environ
    for source, named in (("merge.ffmpeg", configured), ("ZQ_FFMPEG", env.get("ZQ_FFMPEG", ""))):
        if named:
            found = shutil.which(named, path=env.get("PATH", os.defpath))
            if found is None:
                raise FfmpegMissing(f"{source} is {named!r}, which is not a program; correct it or leave it out")
            return os.path.abspath(found)
    found = shutil.which("ffmpeg", path=env.get("PATH", os.defpath)) or _from_wheel()
    if found is None:
        raise FfmpegMissing("no ffmpeg on PATH and no imageio-ffmpeg; pip install 'zq[merge]' or set merge.ffmpeg")
    return os.path.abspath(found)


def _from_wheel() -> str | None:
    # Looked up by hand: imageio_ffmpeg.get_ffmpeg_exe() starts the program to see whether it works, and falls back on
    # places that were not asked for.
    try:
        folder = resources.files("imageio_ffmpeg") / "binaries"
        with resources.as_file(folder) as path:
            programs = sorted(p for p in path.glob("ffmpeg-*") if os.access(p, os.X_OK))
    except (ModuleNotFoundError, FileNotFoundError):
        return None
    return str(programs[-1]) if programs else None


def remux_argv(ffmpeg: str, run: str, output: str) -> list[str]:
    """Copy the streams of one run into a seekable file."""
    return [
        *(ffmpeg, *_COMMON, *_input(run), "-map", "0", "-c", "copy"),
        *_output(output),
    ]


def concat_argv(ffmpeg: str, list_name: str, output: str) -> list[str]:
    """Copy the streams of the runs in a `concat_list`, one after the other, into a seekable file."""
    return [
        *(ffmpeg, *_COMMON, "-protocol_whitelist", "file", "-format_whitelist", _CONCAT_FORMATS),
        *("-auto_convert", "0", "-f", "concat", "-safe", "1", "-i", f"file:{list_name}", "-map", "0", "-c", "copy"),
        *_output(output),
    ]


def decode_argv(ffmpeg: str, output: str, *, full: bool) -> list[str]:
    """Decode `output` to nowhere: right when it exits 0 and says nothing. `full`: every frame, not the key frames."""
    skip = () if full else ("-skip_frame:v", "nokey")
    return [
        *(ffmpeg, "-v", "error", "-xerror", "-nostdin", "-nostats", "-progress", "pipe:1", "-stats_period", "1"),
        *("-threads", "2", *skip, *_input(output), "-map", "0"),
        *("-fps_mode", "passthrough", "-enc_time_base", "1:90000", "-f", "null", "-"),
    ]


def _input(name: str) -> tuple[str, ...]:
    input_format = _INPUT_FORMAT[name.rpartition(".")[2]]
    return ("-protocol_whitelist", "file", "-f", input_format, "-i", f"file:{name}")


def _output(name: str) -> tuple[str, ...]:
    # bitexact: no random identifiers, so that a second attempt makes the same bytes and may replace the first's file.
    front = ("-movflags", "+faststart") if name.endswith(".mp4") else ("-cues_to_front", "1")
    return ("-fflags", "+bitexact", *front, f"file:{name}")


def concat_list(runs: Sequence[tuple[str, float]]) -> str:
    """The list for `concat_argv`: (name of zq's own making, duration in seconds) of each run, in order."""
    lines = ["ffconcat version 1.0"]
    for name, duration_s in runs:
        if not RUN_NAME.fullmatch(name):
            raise ValueError(f"not a name of zq's own making: {name!r}")
        lines += [f"file {name}", f"duration {duration_s:.6f}"]
    return "\n".join(lines) + "\n"


class ProgressReader:
    """Reads the lines of `-progress`. `feed` returns the seconds of output so far when a line tells them."""

    def __init__(self) -> None:
        self.out_time_s = 0.0
        self.size_bytes = 0
        self.ended = False

    def feed(self, line: str) -> float | None:
        key, _, value = line.strip().partition("=")
        if key == "progress":
            self.ended = value == "end"
            return None
        if key not in ("out_time_us", "total_size"):
            return None
        # "N/A" before the first packet, and the year 2262 where a time stamp is missing: neither is progress.
        if not re.fullmatch(r"[0-9]{1,18}", value):
            return None
        if key == "total_size":
            self.size_bytes = int(value)
            return None
        self.out_time_s = max(self.out_time_s, int(value) / 1e6)
        return self.out_time_s
