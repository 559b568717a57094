"""Tasks for the tests of whole workers; imported by their slots, not by the tests."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from zq import current_job, registry


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


for _task in (add, moment, whoami, wait_for_file, leave_a_child, fail, die, report_progress, ask_and_wait, eat_memory):
    registry.register(_task.__name__, _task)
