"""What this machine has for jobs that say what they need: `Gauge` measures it, `Headroom` says it to the broker.

The broker takes the needs of all leases off what it is told, so what such jobs have used already is told as if it were
still free: a job that has written half of its 4 GiB needs 2 GiB more, not 4.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final, NamedTuple

from zq.protocol import limits
from zq.protocol import messages as m
from zq.workers import session_io as io
from zq.workers.leases import OPEN, LeaseBook

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_logger = logging.getLogger("zq.workers")


class Headroom:
    """The session's part of it. Pure."""

    def __init__(self, book: LeaseBook) -> None:
        self._book = book
        self._measured: io.RoomMeasured | None = None

    def measured(self, event: io.RoomMeasured, now_ms: int) -> None:
        self._measured = event

    @property
    def unknown(self) -> bool:
        return self._measured is None

    def room(self) -> m.Room | None:
        """For CREDIT and BEAT; None while nothing was measured."""
        free = self._measured
        if free is None:
            return None
        disk_bytes, memory_bytes = free.disk_bytes, free.memory_bytes
        for lease in self._book.needy():
            if lease.phase in OPEN and lease.spec is not None:
                disk_bytes += min(lease.spec.disk_bytes, lease.usage.write_bytes)
                memory_bytes += min(lease.spec.memory_bytes, lease.rss_bytes)
        most = limits.NEED_BYTES_MAX
        return m.Room(min(disk_bytes, most), min(memory_bytes, most), free.disk, free.machine)


class Gauge:
    """Measures the disk that holds `folder`, and the memory that this worker's processes may still take."""

    def __init__(self, folder: Path, disk_reserve_bytes: int) -> None:
        self._folder = folder
        self._reserve_bytes = disk_reserve_bytes
        self._cgroup = memory_cgroup()
        self._complained = False
        self._boot = _first_line(_BOOT_ID)
        # The memory of a machine is shared by all on it, that of a bounded cgroup by all in it.
        machine = self._boot if self._cgroup is None else f"{self._boot}{self._cgroup.folder}"
        self._machine = machine[-limits.DISK_NAME_CHARS_MAX :]

    def measure(self) -> io.RoomMeasured:
        """Now; some ten microseconds. A folder that cannot be looked at has no room."""
        disk_bytes, disk = self._disk()
        return io.RoomMeasured(disk_bytes, self._memory_bytes(), disk, self._machine)

    def _disk(self) -> tuple[int, str]:
        folder = self._folder
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent  # it is made by the first job that writes there
        try:
            found = os.statvfs(folder)
            name = f"{self._boot}:{os.stat(folder).st_dev}" if self._boot else ""
        except OSError as error:
            if not self._complained:
                self._complained = True
                _logger.error("no room for jobs that need disk: %s cannot be looked at: %s", self._folder, error)
            return 0, ""
        self._complained = False
        return max(0, found.f_bavail * found.f_frsize - self._reserve_bytes), name

    def _memory_bytes(self) -> int:
        free_bytes = _available_bytes()
        if self._cgroup is not None:
            free_bytes = min(free_bytes, self._cgroup.free_bytes())
        return max(0, free_bytes)


def _available_bytes() -> int:
    """What the kernel says programs may still have; 0 if it does not say."""
    try:
        for line in Path("/proc/meminfo").read_bytes().splitlines():
            if line.startswith(b"MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


class Cgroup(NamedTuple):
    """A cgroup that bounds the memory of this process, and the names of its files (version 1 or 2)."""

    folder: Path
    bound: str
    used: str
    files: tuple[str, ...]
    """In memory.stat: pages of files, which the kernel gives back."""

    def free_bytes(self) -> int:
        """What it may still take; that of a machine if it is bounded no more."""
        bound, used = _first_line(self.folder / self.bound), _first_line(self.folder / self.used)
        if not (bound.isdigit() and used.isdigit()):
            return limits.NEED_BYTES_MAX
        stat = dict(line.split(" ", 1) for line in _text(self.folder / "memory.stat").splitlines() if " " in line)
        return max(0, int(bound) - int(used) + sum(int(stat.get(name, "0")) for name in self.files))


def memory_cgroup(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Cgroup | None:
    """The cgroup of this process, if it bounds its memory."""
    for line in _text(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        path = path.lstrip("/")
        if not controllers:
            found = Cgroup(root / path, "memory.max", "memory.current", ("inactive_file", "active_file"))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            found = Cgroup(root / "memory" / path, *names, ("total_inactive_file", "total_active_file"))
        else:
            continue
        bound = _first_line(found.folder / found.bound)
        if bound.isdigit() and int(bound) < limits.NEED_BYTES_MAX:  # version 1 writes a huge number for none
            return found
    return None


def _first_line(path: Path) -> str:
    return _text(path).partition("\n")[0].strip()


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError:
        return ""
