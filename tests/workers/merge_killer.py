"""The merge's tasks for a worker of which something is killed at a step that a file names: once, with -9.

The file says `STEP|slot` or `STEP|worker`. Imported by the worker as its task module.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil

from zq.workers import merge, merge_run
from zq.workers.job_context import SlotJob
from zq.workers.recording_fate import RecordingFate

ORDER = Path(os.environ["MERGE_KILLER"])


def reached(step: str) -> None:
    try:
        wanted, victim = ORDER.read_text("utf-8").split("|")
    except FileNotFoundError:
        return
    if wanted != step or victim not in ("slot", "worker"):
        return
    ORDER.unlink()
    if victim == "slot":
        os.kill(os.getpid(), signal.SIGKILL)
    # Its keeper, a fork of it, goes by the same command line.
    above = [p for p in psutil.Process().parents() if p.cmdline()[1:3] == ["-m", "zq.workers"]]
    above[-1].send_signal(signal.SIGKILL)
    time.sleep(60)  # this process ends with its worker


def _before(owner: Any, name: str, step: str) -> None:
    real = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        reached(step)
        return real(*args, **kwargs)

    setattr(owner, name, wrapped)


def _after_progress() -> None:
    real = SlotJob.progress

    def wrapped(job: SlotJob, done: float, total: float, message: str = "") -> None:
        real(job, done, total, message)
        reached(message.partition(",")[0])

    setattr(SlotJob, "progress", wrapped)  # noqa: B010 - mypy will not have an assignment to a method


_after_progress()
_before(SlotJob, "still_mine", "before the rename")
_before(merge_run, "place_marker", "after the rename")
_before(RecordingFate, "merged", "before the store is told")
_before(merge, "submit", "before the trash is due")
