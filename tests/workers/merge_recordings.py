"""Real recordings laid out as uploads leave them, a job that runs programs for real, and eyes for what came out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from zq.context import ProcessLimits, ProcessResult
from zq.exams.segment_index import record_segment
from zq.exams.segments import Segment
from zq.workers.cleanup import clean_up
from zq.workers.ffmpeg import find_ffmpeg
from zq.workers.merge_marker import Input, read_marker
from zq.workers.merge_run import MergeRequest, MergeResult, MergeSettings, run_merge

MEDIA = Path(__file__).parents[1] / "media"
CASES: dict[str, dict[str, Any]] = {c["id"]: c for c in json.loads((MEDIA / "manifest.json").read_text())["cases"]}
MERGED = sorted(n for n, c in CASES.items() if c["expect"]["outcome"] == "merged")
REFUSED = sorted(n for n, c in CASES.items() if c["expect"]["outcome"] == "refused")
FFMPEGS = sorted({find_ffmpeg(environ={"PATH": os.environ["PATH"]}), find_ffmpeg(environ={"PATH": ""})})
"""The distribution's and the wheel's: of other ages, and both must be right."""
ONE_AND_LONG = [FFMPEGS[0], *(pytest.param(other, marks=pytest.mark.long) for other in FFMPEGS[1:])]
"""The first every day, both in the long run."""


@dataclass
class Job:
    """A JobContext that runs programs for real; `at` is called at every step, with its name."""

    id: str = "job1"
    attempt: int = 1
    task: str = "merge"
    queue: str = "video_merge"
    at: Callable[[str], None] = lambda step: None
    programs: list[list[str]] = field(default_factory=list)
    percents: list[float] = field(default_factory=list)

    def progress(self, done: float, total: float, message: str = "") -> None:
        self.percents.append(100 * done / total)
        self.at(message.partition(",")[0])

    def check_soft_limit(self) -> None:
        self.at("check_soft_limit")

    def still_mine(self) -> None:
        self.at("still_mine")

    def run_process(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        limits: ProcessLimits | None = None,
        on_stdout_line: Callable[[str], None] | None = None,
        feed_stdin: Sequence[Path] = (),
    ) -> ProcessResult:
        assert limits is not None
        assert not feed_stdin
        bounds = {
            resource.RLIMIT_AS: limits.memory_bytes,
            resource.RLIMIT_CPU: limits.cpu_s,
            resource.RLIMIT_FSIZE: limits.file_size_bytes,
            resource.RLIMIT_NOFILE: limits.open_files,
        }

        def enter() -> None:
            for kind, value in bounds.items():
                if value:
                    resource.setrlimit(kind, (value, value))

        self.programs.append(list(argv))
        ended = subprocess.run(
            list(argv), cwd=cwd, env=env, preexec_fn=enter, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        for line in ended.stdout.decode("utf-8", "replace").splitlines():
            if on_stdout_line is not None:
                on_stdout_line(line)
        return ProcessResult(ended.returncode, ended.stderr.decode("utf-8", "replace")[-8192:])

    @contextlib.contextmanager
    def publish(self, path: Path) -> Iterator[Path]:
        part = path.with_name(f".zq-{self.id}-{self.attempt}.part")
        try:
            yield part
            self.still_mine()
            os.replace(part, path)
            self.at("renamed")
        finally:
            part.unlink(missing_ok=True)


@dataclass(frozen=True)
class Recording:
    """A case laid out on disk as an upload leaves it."""

    request: MergeRequest
    before: dict[str, bytes]

    def merge(self, job: Job | None = None, ffmpeg: str = FFMPEGS[0], *, take_gaps: bool = False) -> MergeResult:
        return run_merge(job or Job(), self.request, MergeSettings(ffmpeg=ffmpeg, take_gaps=take_gaps))

    def assert_kept(self) -> None:
        folder = self.request.folder
        assert {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")} == self.before

    def beside(self) -> list[str]:
        """What lies beside the segments' folder."""
        return sorted(p.name for p in self.request.target.iterdir() if p != self.request.folder)

    def moved(self, target: Path, exam_id: str) -> Recording:
        """The same after its exam's folder was moved."""
        folder = target / self.request.folder.name
        return replace(self, request=replace(self.request, exam_id=exam_id, folder=folder, target=target))

    def inputs(self, video: str) -> tuple[Input, ...]:
        """What the manifest says the video was made of."""
        return read_marker(self.request.target / (video + ".zq.json")).inputs

    def clean_up(self, *, use_trash: bool = False) -> dict[str, Any]:
        request = self.request
        return clean_up(request.target, request.exam_id, request.student_id, use_trash=use_trash).to_dict()


def lay_out(root: Path, case_id: str, *, recorded: bool = True) -> Recording:
    """Put a case's segments where uploads put them; `recorded`: with what the uploader declared."""
    case = CASES[case_id]
    target = root / "exam1" / "recordings"
    folder = target / "s1"
    folder.mkdir(parents=True)
    for index in case["present"]:
        entry = case["files"][index]
        path = folder / entry["name"]
        if entry.get("generate") == "hls-local":
            path.write_text(_playlist(root))
        else:
            shutil.copyfile(MEDIA / entry["stored"], path)
        content = path.read_bytes()
        mtime_ms = entry.get("mtime_ms", 0)
        if mtime_ms:
            os.utime(path, ns=(mtime_ms * 1_000_000, mtime_ms * 1_000_000))
        if recorded:
            sha256 = entry.get("declared_sha256", hashlib.sha256(content).hexdigest())
            size_bytes = entry.get("declared_bytes", len(content))
            record_segment(
                folder, Segment(entry["name"], entry["seq"], entry["ts_ms"], size_bytes, sha256, mtime_ms=mtime_ms)
            )
    before = {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}
    return Recording(MergeRequest("exam1", "s1", "王小明", folder, target), before)


def put(root: Path, suffix: str | Sequence[str], chunks: Sequence[bytes]) -> Recording:
    """Segments that nobody declared, numbered from 0; `suffix` for all, or one for each."""
    target = root / "exam1" / "recordings"
    folder = target / "s1"
    folder.mkdir(parents=True)
    suffixes = [suffix] * len(chunks) if isinstance(suffix, str) else suffix
    for number, (chunk, ending) in enumerate(zip(chunks, suffixes, strict=True)):
        (folder / f"{number:05d}-{1795449373838 + 2000 * number}{ending}").write_bytes(chunk)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    return Recording(MergeRequest("exam1", "s1", "王小明", folder, target), before)


def made(source: Path, target: Path, *argv: str) -> bytes:
    """The bytes of `source` as FFmpeg makes them anew with these options."""
    command = [FFMPEGS[0], "-v", "error", "-y", "-i", str(source), *argv, str(target)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return target.read_bytes()


def _playlist(root: Path) -> str:
    canary = root / "canary.ts"
    source = MEDIA / "mp4-uniform" / "00000.mp4"
    argv = [FFMPEGS[0], "-v", "error", "-i", str(source), "-c", "copy", "-f", "mpegts", str(canary)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{canary}\n#EXT-X-ENDLIST\n"


def ticks(path: Path) -> list[tuple[float, int]]:
    """(time stamp, counter) of every picture; a counter that fails its parity is an error. Bars around are fine."""
    width_px, height_px = 480, 480
    argv = [FFMPEGS[0], "-v", "error", "-i", str(path), "-vf", f"scale={width_px}:{height_px}:flags=area,format=gray"]
    argv += ["-fps_mode", "passthrough", "-f", "rawvideo", "-"]
    raw = subprocess.run(argv, check=True, capture_output=True, stdin=subprocess.DEVNULL).stdout
    times_s = _times(path)
    frame_bytes = width_px * height_px
    assert len(raw) == frame_bytes * len(times_s)
    found = []
    for i, t in enumerate(times_s):
        frame = raw[i * frame_bytes :][:frame_bytes]
        found.append((t, _counter([frame[y * width_px :][:width_px] for y in range(height_px)])))
    return found


def _times(path: Path) -> list[float]:
    argv = [FFMPEGS[0], "-v", "info", "-nostats", "-i", str(path), "-map", "0:v", "-vf", "showinfo"]
    argv += ["-fps_mode", "passthrough", "-f", "null", "-"]
    said = subprocess.run(argv, check=True, capture_output=True, stdin=subprocess.DEVNULL).stderr.decode()
    return [float(line.split("pts_time:")[1].split()[0]) for line in said.splitlines() if "pts_time:" in line]


BAR_MAX = 30
"""Brighter than this is no bar: the dark cells of the strip are 64."""


def _counter(rows: list[bytes]) -> int:
    inside = [y for y, row in enumerate(rows) if sum(row) > BAR_MAX * len(row)]
    top, height = inside[0], inside[-1] - inside[0] + 1
    lit = [sum(rows[top + dy][x] for dy in range(height // 24, height // 8)) for x in range(len(rows[0]))]
    bright = [x for x, value in enumerate(lit) if value > BAR_MAX * (height // 8 - height // 24)]
    left, width = bright[0], bright[-1] - bright[0] + 1
    cells = []
    for cell in range(24):
        span = range(left + int((cell + 0.3) * width / 24), left + int((cell + 0.7) * width / 24) + 1)
        pixels = [rows[top + dy][x] for dy in range(height // 24, height // 8, 3) for x in span]
        cells.append(sum(pixels) / len(pixels) > 150)
    bits = cells[2:22]
    assert (cells[0], cells[1], cells[23]) == (True, False, True)
    assert cells[22] == (sum(bits) % 2 == 1)
    return int("".join("1" if b else "0" for b in bits), 2)


def packets(path: Path) -> dict[str, int]:
    import av

    with av.open(str(path)) as media:
        found: dict[str, int] = dict.fromkeys((s.type for s in media.streams), 0)
        for packet in media.demux():
            found[packet.stream.type] += bool(packet.size)
    return found
