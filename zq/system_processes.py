"""The processes of one zq system, found by what they are and never by their name: those below its supervisord, and
those that carry its mark, which is where they are found when supervisord is gone.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from zq.workers.process import ProcessKey, is_alive, key_of, living_below, read_stat
from zq.workers.sweep import SYSTEM_MARK


class SystemProcesses:
    """Follows the processes of the system of `data_dir`, also when their parents end before them."""

    def __init__(self, data_dir: Path, supervisor_pid: int | None) -> None:
        self._mark = f"{SYSTEM_MARK}={data_dir}".encode()
        self._known: set[ProcessKey] = set()
        self._not_ours = _self_and_above()
        if supervisor_pid is not None and (key := key_of(supervisor_pid)) is not None:
            self._known.add(key)

    def living(self) -> list[ProcessKey]:
        """Those that live now, oldest first."""
        self._known = {key for key in self._known if is_alive(key)}
        self._known.update(self._marked())
        self._known.update(living_below(*(key.pid for key in self._known)))
        # What runs this, `zq down` in a task or a shell of the system, is not to be waited for.
        self._known = {key for key in self._known if key.pid not in self._not_ours and is_alive(key)}
        return sorted(self._known, key=lambda key: (key.started_ticks, key.pid))

    def tops(self) -> list[ProcessKey]:
        """Those living ones whose parent is not one of the system's: they look after their own children."""
        living = self.living()
        pids = {key.pid for key in living}
        parents = {key: stat.parent_pid for key in living if (stat := read_stat(key.pid)) is not None}
        return [key for key in living if parents.get(key) not in pids]

    def _marked(self) -> set[ProcessKey]:
        found = set()
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            # Processes end while this looks, and those of other users do not show their environment.
            with contextlib.suppress(OSError):
                stat = read_stat(int(name))
                if stat is None or not stat.is_living:
                    continue
                environ = Path("/proc", name, "environ").read_bytes()
                if self._mark in environ.split(b"\0") and key_of(stat.key.pid) == stat.key:
                    found.add(stat.key)
        return found


def tree_of(pid: int) -> list[ProcessKey]:
    """A living process and all below it."""
    key = key_of(pid)
    return [key, *living_below(pid)] if key is not None else []


def what_is(key: ProcessKey) -> str:
    """A process in words: `ffmpeg (pid 123)`, `zq.workers --queue video_merge (pid 7)`."""
    words: list[str] = []
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{key.pid}/cmdline").read_bytes().decode("utf-8", "replace")
        words = [word for word in command.split("\0") if word]
    if "zq.supervised" in words:
        shown = " ".join(words[words.index("zq.supervised") + 1 :])
    elif any("supervisord" in word for word in words[:3]):
        shown = "supervisord"
    else:
        shown = os.path.basename(words[0]) if words else "a process"
    shown = "".join(c if c.isprintable() else "?" for c in shown)[:60]
    return f"{shown} (pid {key.pid})"


def _self_and_above() -> set[int]:
    pids = set()
    pid = os.getpid()
    while pid > 0 and pid not in pids:
        pids.add(pid)
        stat = read_stat(pid)
        pid = stat.parent_pid if stat is not None else 0
    return pids
