"""What a task under measurement does: leave its number and the time of its first line, and nothing else.

Every system runs this very function, so that what differs is the system. Standard library only: it is imported in the
peers' environment too.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import Final, NamedTuple

FOLDER_VARIABLE: Final = "BENCH_EVIDENCE"
_RECORD: Final = struct.Struct("<QQ")
_open: dict[int, int] = {}
"""pid → descriptor: a forked worker opens a file of its own."""


class Ran(NamedTuple):
    number: int
    at_ns: int
    """CLOCK_MONOTONIC, which all processes of a machine share."""


def record(number: int) -> int:
    """Called as the first line of a task. One write of 16 bytes to a file of this process."""
    now_ns = time.monotonic_ns()
    pid = os.getpid()
    descriptor = _open.get(pid)
    if descriptor is None:
        path = Path(os.environ[FOLDER_VARIABLE]) / str(pid)
        descriptor = _open[pid] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    os.write(descriptor, _RECORD.pack(number, now_ns))
    return number


def count(folder: Path) -> int:
    """How many tasks have run. Cheap enough to be asked while they run."""
    with os.scandir(folder) as entries:
        return sum(entry.stat().st_size for entry in entries) // _RECORD.size


def read(folder: Path) -> list[Ran]:
    """All that ran, in the order of time."""
    found: list[Ran] = []
    for path in folder.iterdir():
        found.extend(Ran(*fields) for fields in _RECORD.iter_unpack(path.read_bytes()))
    return sorted(found, key=lambda ran: ran.at_ns)


class Audit(NamedTuple):
    """What became of the jobs that were submitted."""

    missing: int
    twice: int
    unknown: int

    @property
    def clean(self) -> bool:
        return not any(self)


def audit(submitted: set[int], ran: list[Ran]) -> Audit:
    numbers = [item.number for item in ran]
    seen = set(numbers)
    return Audit(len(submitted - seen), len(numbers) - len(seen), len(seen - submitted))


def rate_per_s(ran: list[Ran]) -> float:
    """Tasks per second over the middle 80 %: neither the start of the workers nor the tail belongs to it."""
    tenth = len(ran) // 10
    middle = ran[tenth : len(ran) - tenth]
    if len(middle) < 2:
        return 0.0
    return (len(middle) - 1) / max((middle[-1].at_ns - middle[0].at_ns) / 1e9, 1e-9)
