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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zq.context import ProcessLimits, ProcessResult
from zq.exams.segment_index import record_segment
from zq.exams.segments import Segment
from zq.workers.cleanup import clean_up
from zq.workers.ffmpeg import find_ffmpeg
from zq.workers.merge_run import MergeRequest, MergeResult, MergeSettings, run_merge

MEDIA = Path(__file__).parents[1] / "media"
CASES: dict[str, dict[str, Any]] = {c["id"]: c for c in json.loads((MEDIA / "manifest.json").read_text())["cases"]}
# Merged by re-encoding, which is not there yet: refused, with every segment kept.
REENCODED = {name for name, case in CASES.items() if case["expect"].get("reference") == "reencode"}
MERGED = sorted(n for n, c in CASES.items() if c["expect"]["outcome"] == "merged" and n not in REENCODED)
REFUSED = sorted(n for n, c in CASES.items() if c["expect"]["outcome"] == "refused")
FFMPEGS = sorted({find_ffmpeg(environ={"PATH": os.environ["PATH"]}), find_ffmpeg(environ={"PATH": ""})})


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
        self.at(message)

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

    def merge(self, job: Job | None = None, ffmpeg: str = FFMPEGS[0]) -> MergeResult:
        return run_merge(job or Job(), self.request, MergeSettings(ffmpeg=ffmpeg))

    def assert_kept(self) -> None:
        folder = self.request.folder
        assert {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")} == self.before

    def beside(self) -> list[str]:
        """What lies beside the segments' folder."""
        return sorted(p.name for p in self.request.target.iterdir() if p != self.request.folder)

    def clean_up(self) -> dict[str, Any]:
        return clean_up(self.request.target, self.request.exam_id, self.request.student_id).to_dict()


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


def _playlist(root: Path) -> str:
    canary = root / "canary.ts"
    source = MEDIA / "mp4-uniform" / "00000.mp4"
    argv = [FFMPEGS[0], "-v", "error", "-i", str(source), "-c", "copy", "-f", "mpegts", str(canary)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{canary}\n#EXT-X-ENDLIST\n"


def ticks(path: Path) -> list[tuple[float, int]]:
    """(time stamp, counter) of every picture; a counter that fails its parity is an error."""
    argv = [FFMPEGS[0], "-v", "error", "-i", str(path), "-vf", "scale=480:270:flags=area,format=gray"]
    argv += ["-fps_mode", "passthrough", "-f", "rawvideo", "-"]
    raw = subprocess.run(argv, check=True, capture_output=True, stdin=subprocess.DEVNULL).stdout
    times_s = _times(path)
    frame_bytes = 480 * 270
    assert len(raw) == frame_bytes * len(times_s)
    return [(t, _counter(raw[i * frame_bytes :][:frame_bytes])) for i, t in enumerate(times_s)]


def _times(path: Path) -> list[float]:
    argv = [FFMPEGS[0], "-v", "info", "-nostats", "-i", str(path), "-map", "0:v", "-vf", "showinfo"]
    argv += ["-fps_mode", "passthrough", "-f", "null", "-"]
    said = subprocess.run(argv, check=True, capture_output=True, stdin=subprocess.DEVNULL).stderr.decode()
    return [float(line.split("pts_time:")[1].split()[0]) for line in said.splitlines() if "pts_time:" in line]


def _counter(frame: bytes) -> int:
    cells = []
    for cell in range(24):
        pixels = [frame[row * 480 + cell * 20 + column] for row in range(12, 34, 3) for column in range(6, 15, 2)]
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
