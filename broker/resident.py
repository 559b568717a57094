"""Keep the journal's mapped pages from piling up in the broker's resident memory.

LMDB reads through a shared map of its file, and every page it has ever looked at stays mapped: after ten million jobs
that is gigabytes of "resident" memory which is really the kernel's page cache. Letting go of the mapping costs a soft
fault when a page is wanted again; nothing is lost, since the map is never written through (madvise(2), MADV_DONTNEED).
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

RESIDENT_FILE_BYTES_MAX = 96 << 20
"""Mapped file pages (libraries included) that may stay."""
_MADV_DONTNEED = 4
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def let_go(file: Path) -> bool:
    """Unmap the resident pages of `file` if there are too many of them. Whether it did; never raises."""
    try:
        shared_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[2])
        if shared_pages * _PAGE_BYTES <= RESIDENT_FILE_BYTES_MAX:
            return False
        ranges = _ranges(Path("/proc/self/maps").read_text(encoding="utf-8"), str(file.resolve()))
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        failures = [madvise(start, size_bytes, _MADV_DONTNEED) for start, size_bytes in ranges]
        return not any(failures)
    except (OSError, ValueError, AttributeError):  # not Linux, or no /proc: the kernel must manage by itself
        return False


def _ranges(maps: str, path: str) -> list[tuple[int, int]]:
    """(address, bytes) of the shared mappings of a file, from the text of /proc/PID/maps (proc(5))."""
    found = []
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == path and fields[1].endswith("s"):
            start, end = (int(part, 16) for part in fields[0].split("-"))
            found.append((start, end - start))
    return found
