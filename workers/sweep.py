"""The marker: what a worker's processes carry in their environment, so that a later worker finds what it left.

`ZQ_WORKER=<instance>/<pid>/<start>/<pid namespace>/<generation>` names the parent process that owns them, in a form
that can be proved dead: by pid and start time, and only from within the same pid namespace, where these numbers mean
the same. The keeper ends everything when its worker dies; this net is for what has escaped both.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from pathlib import Path
from typing import Final, NamedTuple

from zq.workers.process import ProcessKey, is_alive, key_of, read_stat, send_signal

MARKER: Final = "ZQ_WORKER"
SYSTEM_MARK: Final = "ZQ_SYSTEM"
"""The data_dir of the system that `zq up` started: `zq down` looks for it."""
_logger = logging.getLogger("zq.workers")


class Marker(NamedTuple):
    """Whose process this is."""

    instance: str
    owner: ProcessKey
    pid_namespace: str
    generation: int
    """Which of the owner's keepers, counted from 1."""

    def format(self) -> str:
        owner = self.owner
        return f"{self.instance}/{owner.pid}/{owner.started_ticks}/{self.pid_namespace}/{self.generation}"


def own_marker(instance: str, generation: int) -> Marker:
    """The marker of what this process owns. Raises ValueError for an instance name that would not survive it."""
    if not instance or "/" in instance or "\0" in instance:
        raise ValueError(f"{instance!r} cannot name a worker: it is empty or has a slash or NUL in it")
    owner = key_of(os.getpid())
    assert owner is not None
    return Marker(instance, owner, _namespace("self"), generation)


def parse_marker(text: str) -> Marker | None:
    """None for anything that is not one: other programs may use the variable's name."""
    parts = text.split("/")
    if len(parts) != 5 or not parts[0]:
        return None
    instance, pid, ticks, namespace, generation = parts
    if not all(part.isascii() and part.isdigit() and len(part) <= 20 for part in (pid, ticks, namespace, generation)):
        return None
    return Marker(instance, ProcessKey(int(pid), int(ticks)), namespace, int(generation))


def _namespace(pid: int | str) -> str:
    """The number of the pid namespace of a process; empty if it cannot be told."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid").partition("[")[2].rstrip("]")
    except OSError:
        return ""


def sweep_dead(instance: str) -> list[int]:
    """KILL what dead workers called `instance` have left. The pids that were signalled; empty means all is clean.

    For the start of a worker: it reads the environment of every process that it may read.
    """
    here = _namespace("self")
    found = [
        (key, marker)
        for key, marker in _marked()
        if marker.instance == instance and marker.pid_namespace == here and not is_alive(marker.owner)
    ]
    return _kill(found)


def sweep_generation(marker: Marker, within_s: float) -> list[int]:
    """KILL what carries exactly this marker, again until nothing does; what still does after `within_s`."""
    until_s = time.monotonic() + within_s
    while True:
        found = [(key, carried) for key, carried in _marked() if carried == marker and key != marker.owner]
        if not found or time.monotonic() >= until_s:
            return [key.pid for key, _ in found]
        _kill(found)
        time.sleep(0.01)


def _kill(found: list[tuple[ProcessKey, Marker]]) -> list[int]:
    killed = []
    for key, marker in found:
        if send_signal(key, signal.SIGKILL):
            _logger.warning("ended process %d, left by worker %s (pid %d)", key.pid, marker.instance, marker.owner.pid)
            killed.append(key.pid)
    return killed


def _marked() -> list[tuple[ProcessKey, Marker]]:
    """Living processes with a marker. The key is read before the environment and again after: one process."""
    prefix = f"{MARKER}=".encode()
    marked = []
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            before = read_stat(pid)
            if before is None or not before.is_living:
                continue
            environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            carried = next((entry for entry in environ if entry.startswith(prefix)), b"")
            marker = parse_marker(os.fsdecode(carried[len(prefix) :]))
            if marker is not None and key_of(pid) == before.key:
                marked.append((before.key, marker))
    return marked
