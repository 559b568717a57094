"""`python -m benchmarks.merging`: the merge beside FFmpeg alone, on this machine, in one run.

    hour     one hour of 720p at 5 pictures/s in 1800 chunks, against FFmpeg's bare remux of the joined bytes
    linear   2500 to 20,000 chunks, and as many whole files: time for each
    crowd    hundreds of students who finish in the same minute, against a shell loop of `ffmpeg -f concat -c copy`

Everything goes through a real broker and a real worker; every merge is verified as in real life.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.processes import Started, tree, weigh
from benchmarks.servers import Zq, work_folder
from zq.client.requests import JobRequest
from zq.client.sync import Client
from zq.config import Config, load
from zq.exams.merging import QUEUE, TASK
from zq.protocol.job import format_id
from zq.workers.ffmpeg import find_ffmpeg

PARTS = ("hour", "linear", "crowd")
CLIP_S = 60
VP8 = ("-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-g", "100", "-b:v", "400k")
OPUS = ("-c:a", "libopus", "-b:a", "24k", "-ac", "1")
WAIT_S = 3600.0


class Memory:
    """The most that the worker's whole tree had at once, in MiB of proportional set size, looked at often."""

    def __init__(self, root: int) -> None:
        self.peak_mib = 0.0
        self._root = root
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak_mib = max(self.peak_mib, weigh([self._root]).pss_mib)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()


class System:
    """A broker and a merge worker with so many slots."""

    def __init__(self, folder: Path, slots: int) -> None:
        self._zq = Zq(folder)
        with open(self._zq.config_file, "a", encoding="utf-8") as file:
            file.write(f"[queues.{QUEUE}]\nslots = {slots}\n")
        self.config: Config = load(self._zq.url, {})
        command = [sys.executable, "-m", "zq.workers", "--queue", QUEUE, "--config", self._zq.url]
        self.worker = Started(command, folder / "worker.log")
        self.client = Client(self.config, timeout_s=60)

    def recordings(self, exam_id: str) -> Path:
        folder = self.config.storage_path / exam_id / "recordings"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def merge(self, exam_id: str, students: Sequence[str]) -> tuple[float, list[dict[str, Any]]]:
        """Submit all at once: seconds until the last is done, and their results. Raises JobFailed."""
        requests = [
            JobRequest(task=TASK, queue=QUEUE, kwargs={"exam_id": exam_id, "student_id": student}, max_retries=0)
            for student in students
        ]
        begun_s = time.monotonic()
        receipts = self.client.submit_many(requests)
        results = [self.client.result(format_id(receipt.job_id), WAIT_S) for receipt in receipts]
        return time.monotonic() - begun_s, results

    def cpu_s(self) -> float:
        """Of the worker's tree and everything it has waited for."""
        ticks = 0
        for pid in tree(self.worker.pid):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            own = sum(int(field) for field in fields[11:13])
            ticks += own + sum(int(field) for field in fields[13:15])
        return ticks / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        self.client.close()
        self.worker.end(within_s=30)
        self._zq.end()


def ffmpeg(*arguments: str) -> None:
    command = [find_ffmpeg(), "-v", "error", "-nostdin", "-y", *arguments]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def make_clip(path: Path, seconds: int, *options: str) -> None:
    """A recording that looks like a screen: most of it still, some of it not."""
    picture = f"testsrc2=size=1280x720:rate=5:duration={seconds}"
    sound = f"sine=frequency=300:duration={seconds}"
    ffmpeg("-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", sound, *VP8, *OPUS, *options, str(path))


def make_hour(folder: Path, hours: float) -> bytes:
    """One recorder's bytes, in clusters of two seconds, as MediaRecorder writes them."""
    clip, whole = folder / "clip.webm", folder / "hour.webm"
    make_clip(clip, CLIP_S)
    loops = max(0, round(hours * 3600 / CLIP_S) - 1)
    live = ("-live", "1", "-cluster_time_limit", "2000")
    ffmpeg("-stream_loop", str(loops), "-i", str(clip), "-c", "copy", *live, str(whole))
    return whole.read_bytes()


def put_chunks(folder: Path, content: bytes, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        part = content[len(content) * number // count : len(content) * (number + 1) // count]
        (folder / f"{number:05d}-{1795449373000 + 2000 * number}.webm").write_bytes(part)


def timed(work: Callable[[], object]) -> float:
    begun_s = time.monotonic()
    work()
    return time.monotonic() - begun_s


def hour(folder: Path, system: System, hours: float, repetitions: int) -> dict[str, float]:
    content = make_hour(folder, hours)
    count = max(2, round(1800 * hours))
    source, output = str(folder / "hour.webm"), str(folder / "bare.webm")
    bare: list[float] = []
    runs: list[dict[str, Any]] = []
    with Memory(system.worker.pid) as memory:
        for turn in range(repetitions):
            bare.append(timed(lambda: ffmpeg("-i", source, "-map", "0", "-c", "copy", "-cues_to_front", "1", output)))
            put_chunks(system.recordings("hour") / f"s{turn}", content, count)
            runs += system.merge("hour", [f"s{turn}"])[1]
    # The first merge of a slot also loads what it needs; like the others it counts.
    merged = [run["seconds"] - run["decode_s"] for run in runs]
    return {
        "chunks": count,
        "mib": len(content) / 2**20,
        **spread("bare_remux_s", bare),
        **spread("merge_without_decode_s", merged),
        "times_bare": statistics.median(merged) / statistics.median(bare),
        **spread("decode_s", [run["decode_s"] for run in runs]),
        "worker_tree_peak_mib": memory.peak_mib,
    }


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """The median, and what it lies between."""
    return {name: statistics.median(values), f"{name} (lowest)": min(values), f"{name} (highest)": max(values)}


def linear(folder: Path, system: System, most: int) -> dict[str, float]:
    """Chunks of one recorder, and whole files of recorders that began again."""
    content = make_hour(folder, 1.0)
    clip = folder / "short.webm"
    make_clip(clip, 1)
    found: dict[str, float] = {}
    for count in (most // 8, most // 4, most // 2, most):
        put_chunks(system.recordings("linear") / f"c{count}", content, count)
        files = system.recordings("linear") / f"f{count}"
        files.mkdir()
        for number in range(count):
            os.link(clip, files / f"{number:05d}-{1795449373000 + 2000 * number}.webm")
        for kind in ("c", "f"):
            (result,) = system.merge("linear", [f"{kind}{count}"])[1]
            found[f"{'chunks' if kind == 'c' else 'files'}_{count}_s"] = result["seconds"]
    return found


def crowd(folder: Path, system: System, students: int, segments: int, segment_s: int) -> dict[str, float]:
    clips = folder / "clips"
    clips.mkdir()
    clip = folder / "crowd.webm"
    make_clip(clip, segment_s)
    for number in range(segments):
        shutil.copyfile(clip, clips / f"{number:05d}-{1795449373000 + 1000 * segment_s * number}.webm")
    names = [f"s{number}" for number in range(students)]
    listing = folder / "list.txt"
    listing.write_text("".join(f"file '{path}'\n" for path in sorted(clips.iterdir())))
    for name in names:
        student = system.recordings("crowd") / name
        student.mkdir()
        for path in clips.iterdir():
            os.link(path, student / path.name)
    output = folder / "loop"
    output.mkdir()
    loop = f"{find_ffmpeg()} -v error -nostdin -y -f concat -safe 0 -i {listing} -c copy {output}/%s.webm"
    script = "; ".join(loop % name for name in names)
    loop_s = timed(lambda: subprocess.run(["sh", "-c", script], check=True))
    shutil.rmtree(output)
    output.mkdir()
    jobs = "\n".join(names)
    two_s = timed(
        lambda: subprocess.run(
            ["xargs", "-P", "2", "-I", "{}", "sh", "-c", loop % "{}"], input=jobs, text=True, check=True
        )
    )
    shutil.rmtree(output)
    before_s = system.cpu_s()
    merge_s, results = system.merge("crowd", names)
    cpu_s = system.cpu_s() - before_s
    return {
        "students": students,
        "segments_each": segments,
        "mib_each": sum(path.stat().st_size for path in clips.iterdir()) / 2**20,
        "loop_per_s": students / loop_s,
        "two_loops_per_s": students / two_s,
        "zq_per_s": students / merge_s,
        "of_the_loop": loop_s / merge_s,
        "of_two_loops": two_s / merge_s,
        "ffmpeg_cpu_percent": 100 * sum(result["ffmpeg_cpu_s"] for result in results) / cpu_s,
    }


@click.command()
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="A part; may be given several times.")
@click.option(
    "--hours", type=click.FloatRange(0.01, 24), default=1.0, show_default=True,
    help="Of `hour`. Below a third of one its decode is a part of the copy, and of that figure.",
)
@click.option("--repetitions", type=click.IntRange(1, 20), default=3, show_default=True)
@click.option("--most", type=click.IntRange(80, 100_000), default=20_000, show_default=True, help="Of `linear`.")
@click.option("--students", type=click.IntRange(1, 5000), default=500, show_default=True)
@click.option("--segments", type=click.IntRange(2, 1000), default=60, show_default=True)
@click.option("--segment-s", type=click.IntRange(1, 120), default=10, show_default=True)
@click.option("--slots", type=click.IntRange(1, 64), default=2, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    only: tuple[str, ...], hours: float, repetitions: int, most: int, students: int, segments: int, segment_s: int,
    slots: int, as_json: bool,
) -> None:  # fmt: skip
    """Measure the merge. Some minutes and some gigabytes of disk; leave the machine alone meanwhile."""
    found: dict[str, dict[str, float]] = {}
    folder = work_folder()
    system = System(folder / "system", slots)
    try:
        for part in only or PARTS:
            click.echo(f"{part} …", err=True)
            work = folder / part
            work.mkdir()
            if part == "hour":
                found[part] = hour(work, system, hours, repetitions)
            elif part == "linear":
                found[part] = linear(work, system, most)
            else:
                found[part] = crowd(work, system, students, segments, segment_s)
    finally:
        system.end()
        shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for part, figures in found.items():
        click.echo(part)
        for name, value in figures.items():
            click.echo(f"  {name:<36}{value:>12,.2f}")


if __name__ == "__main__":
    main()
