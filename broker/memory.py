"""A bound of the broker's own memory, and giving back what a burst has left.

What a peer sends is bounded frame by frame, but libzmq keeps the parts of a message that never ends, and the frames
that wait. So the process has a limit of its own (RLIMIT_DATA, which does not count the journal's map). At the limit
libzmq refuses a large frame and cuts its sender off, and what that one had sent is free again; where a small
allocation fails, libzmq or Python ends the process. Either way nothing more is said, and what was said is on disk.
"""

from __future__ import annotations

import ctypes
import os
import resource
from contextlib import suppress
from pathlib import Path

EXIT_MEMORY = 71
"""EX_OSERR of sysexits(3): the memory limit was reached. A restart begins with little."""
GROWN_BYTES = 64 << 20
"""So much more than after the last time is worth asking the allocator to give back what is free."""
_M_ARENA_MAX = -8
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def bound(limit_bytes: int) -> None:
    """Let this process allocate no more than this from now on; what it maps of files is not counted.

    Call it before there is a thread: glibc would give each a heap of its own, and what a flood has left in the heap of
    libzmq's thread would count against the limit for ever, and be of no use to Python.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = limit_bytes if hard == resource.RLIM_INFINITY else min(limit_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def unbound() -> None:
    """Room for the last words of a process that has reached its limit."""
    with suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


class Returns:
    """Gives freed memory back to the system after it has grown; the allocator alone keeps what a burst has left."""

    def __init__(self) -> None:
        self._kept_bytes = _own_bytes()

    def turn(self) -> bool:
        """Whether something may have been given back; never raises."""
        if _own_bytes() < self._kept_bytes + GROWN_BYTES:
            return False
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
        self._kept_bytes = _own_bytes()
        return True


def _own_bytes() -> int:
    """Resident memory that is no file's."""
    try:
        _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return 0
    return (resident - shared) * _PAGE_BYTES
