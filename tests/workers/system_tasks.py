"""Tasks for the tests of whole workers; imported by their slots, not by the tests."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from zq import SoftTimeLimitExceeded, current_job, registry
from zq.workers.ffmpeg import ProgressReader, find_ffmpeg


def add(a: int, b: int) -> int:
    return a + b


def moment() -> float:
    """When it ran, on a clock that all processes share."""
    return time.monotonic()


def whoami() -> int:
    return os.getpid()


def wait_for_file(folder: str, limit_s: float = 30.0) -> int:
    """Says `started-ATTEMPT`, waits for `go`, returns its attempt."""
    job = current_job()
    Path(folder, f"started-{job.attempt}").touch()
    until_s = time.monotonic() + limit_s
    while not Path(folder, "go").exists():
        assert time.monotonic() < until_s
        time.sleep(0.01)
    return job.attempt


def leave_a_child(folder: str) -> int:
    """The first attempt starts stubborn programs that hide as well as they can, and never ends."""
    job = current_job()
    if Path(folder, "pids").exists():
        return job.attempt
    deaf = "trap '' TERM HUP INT; echo $$ >> pids; exec sleep 300"
    subprocess.Popen(["setsid", "sh", "-c", deaf], cwd=folder)
    subprocess.run(["sh", "-c", 'setsid sh -c "$0" &', deaf], cwd=folder, check=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(60)


def fail() -> None:
    raise ValueError(f"no luck in attempt {current_job().attempt}")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def report_progress(folder: str) -> int:
    current_job().progress(3, 10, "三")
    return wait_for_file(folder)


def ask_and_wait(folder: str) -> int:
    """Asks while the broker may be away; returns when it has said yes."""
    attempt = wait_for_file(folder)
    current_job().still_mine()
    Path(folder, "answered").touch()
    return attempt


def eat_memory() -> None:
    hoard = bytearray(os.urandom(1 << 20)) * 200
    while hoard:
        time.sleep(1)


def stand(folder: str, *pids: int) -> None:
    """Say that the task has begun, and which processes are its."""
    file = Path(folder, f"pids-{current_job().task}")
    part = file.with_suffix(".part")
    part.write_text("\n".join(map(str, [os.getpid(), *pids])))
    part.replace(file)


def deaf_daemons(folder: str) -> None:
    """Double fork, setsid, no environment, no signals; and it is deaf itself."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    deaf = "trap '' TERM HUP INT; echo $$ > daemon; exec sleep 300"
    subprocess.run(["sh", "-c", 'setsid sh -c "$0" &', deaf], cwd=folder, check=True, env={"PATH": os.environ["PATH"]})
    while not Path(folder, "daemon").exists() or not Path(folder, "daemon").read_text().strip():
        time.sleep(0.01)
    stand(folder, int(Path(folder, "daemon").read_text()))
    _for_ever()


def full_pipes(folder: str) -> None:
    """A program that writes into a pipe which nobody reads."""
    process = subprocess.Popen(["yes"], stdout=subprocess.PIPE)
    stand(folder, process.pid)
    _for_ever(process.wait)


def hundred_children(folder: str) -> None:
    pids = []
    for _ in range(100):
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                time.sleep(300)
        pids.append(pid)
    stand(folder, *pids)
    _for_ever()


def hungry_children(folder: str) -> None:
    """No single process is large; the tree is."""
    pids = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            hoard = bytearray(os.urandom(1 << 20)) * 60
            while hoard:
                time.sleep(300)
        pids.append(pid)
    stand(folder, *pids)
    _for_ever()


def stopped(folder: str) -> str:
    """Stops itself; says so if it is given the chance to finish."""
    stand(folder)
    try:
        while True:
            os.kill(os.getpid(), signal.SIGSTOP)
    except SoftTimeLimitExceeded as error:
        return f"finished: {error}"


def holds_the_gil(folder: str) -> None:
    """No handler runs in it and no thread of it: minutes in one call of C."""
    stand(folder)
    pow(3, 10**9)


def _for_ever(wait: Callable[[], object] = signal.pause) -> None:
    while True:
        try:
            wait()
        except SoftTimeLimitExceeded:
            continue


def spin_until(folder: str, name: str, limit_s: float = 60.0) -> int:
    """All the CPU there is, until the file is there."""
    until_s = time.monotonic() + limit_s
    Path(folder, f"spins-{name}").touch()
    rounds = 0
    while not Path(folder, "go").exists() and time.monotonic() < until_s:
        rounds += sum(range(200_000)) > 0
    return rounds


def film(folder: str, *arguments: str) -> str:
    """FFmpeg as the merge runs it, with its progress."""
    job = current_job()
    reader = ProgressReader()

    def advance(line: str) -> None:
        out_time_s = reader.feed(line)
        if out_time_s is not None:
            if not Path(folder, "ffmpeg").exists():
                children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
                Path(folder, "ffmpeg.part").write_text(children[0])
                Path(folder, "ffmpeg.part").replace(Path(folder, "ffmpeg"))
            job.progress(out_time_s, 0)

    argv = [find_ffmpeg(), "-v", "error", "-nostdin", "-nostats", "-progress", "pipe:1", "-stats_period", "0.5", "-y"]
    result = job.run_process([*argv, *arguments], on_stdout_line=advance)
    return f"{result.returncode} after {reader.out_time_s:g} s"


def write_bytes(folder: str, size_bytes: int) -> int:
    """Returns its attempt, when `go` is there; until then its bytes are on the disk."""
    Path(folder, f"bytes-{current_job().id}").write_bytes(bytes(size_bytes))
    return wait_for_file(folder)


TASKS = (
    add, moment, whoami, wait_for_file, leave_a_child, fail, die, report_progress, ask_and_wait, eat_memory,
    deaf_daemons, full_pipes, hundred_children, hungry_children, stopped, holds_the_gil, spin_until, film, write_bytes,
)  # fmt: skip
for _task in TASKS:
    registry.register(_task.__name__, _task)
