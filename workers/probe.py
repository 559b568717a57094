"""What is in the runs of a recording and in the merged file: packet counts, hashes, times, parameters.

What a browser records is read here (`scan`), by a reader of zq's own. Everything else is done by `probe_child.py` in a
process of its own with limits, for the bytes are hostile and PyAV is large: here are its command, its limits and the
bounded reading of its answers.
"""

from __future__ import annotations

import array
import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import msgspec
import xxhash
from msgspec import Meta

from zq.context import JobContext, ProcessLimits, ProcessResult
from zq.exams.segments import MergeRefused
from zq.workers import webm_scan
from zq.workers.merge_files import open_regular

LIST_NAME = "probe.list"
LINE_CHARS_MAX = 32_768
MEMORY_BYTES = 2 * 1024**3
"""Address space, of which the libraries alone map a quarter."""
CPU_S_BASE = 30
CPU_S_PER_GIB = 120
"""Measured: about 4 s per GiB."""
_DEMUXERS = {"webm": "matroska", "mkv": "matroska", "mp4": "mov", "ts": "mpegts", "avi": "avi"}
_OWN_NAME = re.compile(r"([rn][0-9]{5,7}|out)\.(webm|mkv|mp4|ts|avi)")
# The child's own doing on hostile bytes. SIGKILL is not here: somebody outside ended it, so another try may pass.
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGXCPU}

_Text = Annotated[str, Meta(max_length=128)]
_Count = Annotated[int, Meta(ge=0)]


class StreamProbe(msgspec.Struct, frozen=True):
    """One stream of one file. Times are in seconds on the file's own clock; `rising`: no time stamp repeats or falls.

    `codec` is FFmpeg's name of the format, whatever decodes it; `time_base` is a fraction, as "1/1000"; `extradata` is
    a sha256 or ""; `parameter_sets` counts the different ones inside an MPEG-TS. Where the clock of an MPEG-TS begins
    anew, the times go on.
    """

    type: _Text
    codec: _Text
    packets: _Count
    key_frames: _Count
    first_s: float
    end_s: float
    rising: bool
    time_base: _Text = ""
    extradata: _Text = ""
    width_px: _Count = 0
    height_px: _Count = 0
    sample_rate_hz: _Count = 0
    layout: _Text = ""
    parameter_sets: _Count = 0
    last_s: float = 0.0
    """Where the packet begins that ends last: how long a last picture is, WebM does not say."""
    byte_stream: bool = False
    """H.264 or HEVC with start codes, as in MPEG-TS and in Chromium's Matroska: a muxer frames it anew."""


class FileProbe(msgspec.Struct, frozen=True):
    """One file. `error` is set, and nothing else, if it could not be read."""

    name: str
    streams: Annotated[tuple[StreamProbe, ...], Meta(max_length=64)] = ()
    error: Annotated[str, Meta(max_length=400)] = ""

    @property
    def first_s(self) -> float:
        return min((s.first_s for s in self.streams if s.packets), default=0.0)

    @property
    def end_s(self) -> float:
        return max((s.end_s for s in self.streams if s.packets), default=0.0)

    @property
    def last_s(self) -> float:
        return max((s.last_s for s in self.streams if s.packets), default=0.0)

    def of_type(self, kind: str) -> StreamProbe | None:
        return next((s for s in self.streams if s.type == kind), None)


class _Totals(msgspec.Struct, frozen=True):
    totals: Annotated[dict[_Text, Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]], Meta(max_length=64)]


class Probe(msgspec.Struct, frozen=True):
    """All files of one call; `payload_hash` per type of stream, over the packets of all files in order.

    XXH3-128 of the bytes and of the lengths: it finds what a muxer lost or mixed up, in a thirtieth of the time of
    SHA-256. Whoever made two recordings of one hash would still have to make FFmpeg turn the one into the other; what
    names a segment or a video is SHA-256.
    """

    files: tuple[FileProbe, ...]
    payload_hash: dict[str, str]


def scan(folder: Path, names: Sequence[str], on_file: Callable[[int], None] = lambda done: None) -> Probe | None:
    """What `probe` would say, for files that are all a regular WebM; None if one of them is not, or cannot be read.

    In this process and in Python: no decoder's library sees a byte, and every element is seen to be in its place.
    """
    totals: dict[str, tuple[Any, Any]] = {}

    def take(track: webm_scan.Track) -> None:
        total, lengths = totals.setdefault(track.described["type"], (xxhash.xxh3_128(), xxhash.xxh3_128()))
        lengths.update(array.array("I", map(len, track.held)).tobytes())
        if track.described["type"] == "audio":
            total.update(b"".join(track.held))
            return
        for payload in track.held:  # too long to be worth a copy
            total.update(payload)

    files = []
    for name in names:
        if name.rpartition(".")[2] not in ("webm", "mkv"):
            return None
        try:
            with open(open_regular(folder / name), "rb", buffering=0) as file:
                tracks = webm_scan.scan(file.fileno(), os.fstat(file.fileno()).st_size, take)
        except (webm_scan.Irregular, IndexError, MergeRefused, OSError):
            return None
        streams = tuple(StreamProbe(**track.described, **track.timing()) for track in tracks)
        files.append(FileProbe(name, streams))
        on_file(len(files))
    hashes = {kind: a.hexdigest() + b.hexdigest() for kind, (a, b) in totals.items()}
    return Probe(tuple(files), hashes)


class ProbeFailed(Exception):
    """The probe did not end by itself; nothing is known of the files. Another attempt may pass."""


def probe(
    job: JobContext,
    folder: Path,
    names: Sequence[str],
    size_bytes: int,
    on_file: Callable[[int], None] = lambda done: None,
) -> Probe:
    """Read `names` in `folder`, in order. `size_bytes` is the sum of their sizes and bounds the time.

    Raises ProbeFailed, and BadFile for the first file that cannot be read as the container its suffix says.
    """
    lines = []
    for name in names:
        if not _OWN_NAME.fullmatch(name):
            raise ValueError(f"not a name of zq's own making: {name!r}")
        lines.append(f"{_DEMUXERS[name.rpartition('.')[2]]} {name}\n")
    (folder / LIST_NAME).write_text("".join(lines), encoding="ascii")
    reader = _Answers(names, on_file)
    cpu_s = CPU_S_BASE + CPU_S_PER_GIB * size_bytes // 1024**3
    limits = ProcessLimits(
        memory_bytes=MEMORY_BYTES, cpu_s=cpu_s, file_size_bytes=1024 * 1024, open_files=64, nice=10
    )
    ended = _run(job, folder, limits, reader.feed)
    if reader.problem is not None:
        raise reader.problem
    if -ended.returncode in _CRASHES and len(reader.files) < len(names):
        raise BadFile(len(reader.files), f"reading it ended with {signal.Signals(-ended.returncode).name}")
    if ended.returncode != 0 or reader.result is None:
        raise ProbeFailed(f"the probe ended with {ended.returncode}: {ended.stderr_tail[-500:].strip()}")
    return reader.result


@runtime_checkable
class Forks(Protocol):
    """A job context that can run a function in a copy of its process: a slot's."""

    def run_forked(
        self,
        function: Callable[[], int],
        *,
        cwd: Path,
        limits: ProcessLimits,
        on_stdout_line: Callable[[str], None],
    ) -> ProcessResult: ...


def _run(
    job: JobContext, folder: Path, limits: ProcessLimits, on_stdout_line: Callable[[str], None]
) -> ProcessResult:
    if isinstance(job, Forks):
        # A new Python with PyAV takes a tenth of a second, as long as the merge of a short recording. A slot has it
        # loaded from its first merge on. The copy may do what a new process of the same user may, and no more.
        from zq.workers import probe_child

        main = functools.partial(probe_child.main, LIST_NAME)
        return job.run_forked(main, cwd=folder, limits=limits, on_stdout_line=on_stdout_line)
    return job.run_process(
        [sys.executable, "-I", str(Path(__file__).with_name("probe_child.py")), LIST_NAME],
        cwd=folder,
        env={"LC_ALL": "C.UTF-8", "MALLOC_ARENA_MAX": "2"},
        limits=limits,
        on_stdout_line=on_stdout_line,
    )


class BadFile(Exception):
    """File number `index` of a probe cannot be read."""

    def __init__(self, index: int, problem: str) -> None:
        super().__init__(f"file {index}: {problem}")
        self.index = index
        self.problem = problem

    def refused(self, segment: str) -> MergeRefused:
        return MergeRefused("bad_segment", f"cannot be read as a recording: {self.problem}", segment)


class _Answers:
    """Reads the child's lines: one per file in the order asked, then the totals. The first wrong one is `problem`."""

    def __init__(self, names: Sequence[str], on_file: Callable[[int], None]) -> None:
        self._names = names
        self._on_file = on_file
        self.files: list[FileProbe] = []
        self.result: Probe | None = None
        self.problem: BadFile | ProbeFailed | None = None

    def feed(self, line: str) -> None:
        if not line.strip() or self.problem is not None:
            return
        try:
            self._take(line)
        except (BadFile, ProbeFailed) as error:
            self.problem = error

    def _take(self, line: str) -> None:
        if len(line) > LINE_CHARS_MAX or self.result is not None:
            raise ProbeFailed("the probe said more than it may")
        try:
            if len(self.files) == len(self._names):
                totals = msgspec.json.decode(line.encode(), type=_Totals).totals
                self.result = Probe(tuple(self.files), totals)
                return
            answer = msgspec.json.decode(line.encode(), type=FileProbe)
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            raise ProbeFailed(f"the probe's answer cannot be read: {error}") from None
        if answer.name != self._names[len(self.files)]:
            raise ProbeFailed(f"the probe answered for {answer.name!r} out of turn")
        if answer.error:
            raise BadFile(len(self.files), answer.error)
        self.files.append(answer)
        self._on_file(len(self.files))
