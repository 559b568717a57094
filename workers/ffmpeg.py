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
from enum import Enum
from importlib import resources

from zq.workers.merge_plan import Encoding

ENVIRONMENT: Mapping[str, str] = {"MALLOC_ARENA_MAX": "2", "LC_ALL": "C"}
"""The whole environment FFmpeg runs in. Fewer arenas, because its address space is limited and its threads are many."""

RUN_NAME = re.compile(r"[rn][0-9]{5,7}\.(webm|mkv|mp4|avi)")
LIST_SUFFIX = ".ffconcat"
THREADS = 2
"""Of one decoder or encoder: several merges share the machine."""
_COMMON = ("-v", "error", "-nostdin", "-nostats", "-progress", "pipe:1", "-stats_period", "1", "-y")
_INPUT_FORMAT = {"webm": "matroska", "mkv": "matroska", "mp4": "mov", "avi": "avi", "ts": "mpegts"}
_CONCAT_FORMATS = "concat,matroska,webm,mov,mp4,avi"
_DECODERS = (
    "h264,hevc,vp8,vp9,av1,libdav1d,libaom-av1,mpeg4,mjpeg,msmpeg4,mpeg2video,"
    "aac,opus,libopus,vorbis,libvorbis,mp3,mp3float,mp2,mp2float,ac3,flac,pcm_s16le,pcm_u8"
)
"""Whatever a file asks for, no other decoder is opened: most holes are in those nobody uses."""
_PIXELS_MAX = 8192 * 4320


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


# Threads wait for the frames between: key frames alone take half the time with one. The loop filter smooths what was
# decoded for the eye, and cannot fail.
_KEYS_ONLY = ("-threads", "1", "-skip_frame:v", "nokey", "-skip_loop_filter:v", "all")
_TO_NOWHERE = ("-fps_mode", "passthrough", "-enc_time_base", "1:90000", "-f", "null", "-")


def copy_argv(ffmpeg: str, source: str, output: str, *, decode_keys: bool = False) -> list[str]:
    """Copy the streams of `source`, a run or a `concat_list` of runs, into a seekable file.

    `decode_keys`: and decode each key frame that is copied, as `decode_argv` would those of the copy; it is right if
    FFmpeg exits 0 and says nothing.
    """
    # The joined bytes of an MPEG-TS break its counters at every seam, which -xerror takes for damage.
    strict = () if source.endswith(".ts") else ("-xerror",)
    pace, decode = (_KEYS_ONLY, ("-map", "0:v", *_TO_NOWHERE)) if decode_keys else ((), ())
    copy = ("-map", "0", "-c", "copy", *_output(output))
    return [ffmpeg, *_COMMON, *strict, *pace, *_input(source), *copy, *decode]


def part_argv(
    ffmpeg: str, source: str, output: str, encoding: Encoding | None, *, sound: Sound, total_s: float
) -> list[str]:
    """Bring `source` to the shape that all parts share: one picture, and one sound unless `sound` is ABSENT.

    Without an encoding the streams are copied; what it does not name is copied too. `total_s` is how long silence
    lasts where there is no sound.
    """
    strict = () if source.endswith(".ts") else ("-xerror",)
    picture = encoding is not None and encoding.picture
    # Filters are not to be made anew where a picture changes its size inside a run: they would start from zero.
    keep = ("-reinit_filter", "0") if picture else ()
    argv = [ffmpeg, *_COMMON, *strict, *keep, *_input(source)]
    if sound is Sound.SILENCE:
        channels = _LAYOUTS[encoding.channels if encoding is not None else 1]
        argv += ["-f", "lavfi", "-i", f"anullsrc=r={_SOUND_HZ}:cl={channels}:d={total_s:.6f}"]
    argv += ["-map", "0:v:0"]
    argv += {Sound.ABSENT: [], Sound.HEARD: ["-map", "0:a:0"], Sound.SILENCE: ["-map", "1:a:0"]}[sound]
    argv += ["-c", "copy"]
    if encoding is not None and encoding.picture:
        argv += _picture(encoding)
    if encoding is not None and encoding.sound and sound is not Sound.ABSENT:
        argv += _sound(encoding)
    return [*argv, *_output(output)]


class Sound(Enum):
    """Where the sound of a part comes from."""

    ABSENT = "absent"
    HEARD = "heard"
    SILENCE = "silence"


_LAYOUTS = {1: "mono", 2: "stereo"}
_SOUND_HZ = 48_000
_SOUND_BITS_PER_CHANNEL = 24_000


_LEVELS = ((1280 * 720, "4.0"), (1920 * 1088, "4.2"), (4096 * 2304, "5.2"))
_LEVEL_MAX = "6.2"


def _picture(encoding: Encoding) -> list[str]:
    """Whatever comes in, the encoder's header is the same to the bit: else the parts could not be joined."""
    size = f"{encoding.width_px}:{encoding.height_px}"
    colours = "range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709"
    filters = (
        f"scale={size}:force_original_aspect_ratio=decrease:out_range=tv:out_color_matrix=bt709",
        f"pad={size}:(ow-iw)/2:(oh-ih)/2:eval=frame,setsar=1,format=yuv420p,setparams={colours}",
    )
    pixels = encoding.width_px * encoding.height_px
    # By the size alone: the encoder would go by the rate of pictures too, which no two parts have in common.
    level = next((level for most, level in _LEVELS if pixels <= most), _LEVEL_MAX)
    return [
        *("-vf", ",".join(filters), "-fps_mode", "passthrough", "-enc_time_base:v", "1:1000"),
        *("-c:v", "libx264", "-preset", "veryfast", "-crf", "26", "-g", "100", "-bf", "0", "-threads", str(THREADS)),
        *("-level:v", level, "-x264-params", "chromaloc=0"),
    ]


def _sound(encoding: Encoding) -> list[str]:
    filters = f"aresample={_SOUND_HZ}:async=1:first_pts=0,aformat=channel_layouts={_LAYOUTS[encoding.channels]}"
    bits = _SOUND_BITS_PER_CHANNEL * encoding.channels
    return ["-af", filters, "-c:a", "libopus", "-b:a", str(bits)]


def decode_argv(ffmpeg: str, output: str, *, full: bool) -> list[str]:
    """Decode `output` to nowhere: right when it exits 0 and says nothing.

    `full`: every picture and all sound. Else the key frames: what was copied bit for bit decodes as it did, if the
    decoder is the right one, and sound alone would take longer than all the rest of a merge.
    """
    pace = ("-threads", str(THREADS)) if full else _KEYS_ONLY
    return [ffmpeg, *_COMMON, "-xerror", *pace, *_input(output), "-map", "0" if full else "0:v", *_TO_NOWHERE]


def _input(name: str) -> tuple[str, ...]:
    bounds = ("-protocol_whitelist", "file", "-codec_whitelist", _DECODERS, "-max_pixels", str(_PIXELS_MAX))
    if name.endswith(LIST_SUFFIX):
        lists = ("-format_whitelist", _CONCAT_FORMATS, "-auto_convert", "0", "-f", "concat", "-safe", "1")
        return (*bounds, *lists, "-i", f"file:{name}")
    return (*bounds, "-f", _INPUT_FORMAT[name.rpartition(".")[2]], "-i", f"file:{name}")


def _output(name: str) -> tuple[str, ...]:
    # bitexact: no random identifiers, so that a second attempt makes the same bytes and may replace the first's file.
    front = ("-movflags", "+faststart") if name.endswith(".mp4") else ("-cues_to_front", "1")
    return ("-fflags", "+bitexact", *front, f"file:{name}")


def concat_list(runs: Sequence[tuple[str, float]]) -> str:
    """A list for `copy_argv` and `part_argv`: (name of zq's own making, duration in seconds) of each run, in order."""
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
