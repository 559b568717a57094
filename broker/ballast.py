"""Disk space kept for the worst hour: a file that is deleted when the disk is nearly full.

Submits are refused long before the disk is full, but others write to the same disk. Without a few free pages LMDB
can commit nothing, not even a deletion: then no acknowledgement could be taken, and no job could end. The space of
this file is what they are written to.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

log = logging.getLogger("zq.broker")

NEARLY_FULL = 4
"""The disk is nearly full when less than this part (1/4) of the reserve is left."""


class Ballast:
    """One file of `size_bytes` at `path`; 0 means none."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes
        self._refused = False

    def drop(self, free_bytes: int, reserve_bytes: int) -> None:
        """Delete the file if the disk is nearly full."""
        if free_bytes < reserve_bytes // NEARLY_FULL and self._path.exists():
            self._path.unlink()
            log.error("the disk is nearly full: the ballast is dropped", extra={"free_bytes": free_bytes})

    def adjust(self, free_bytes: int, reserve_bytes: int) -> None:
        """Delete the file if the disk is nearly full, make it if there is room for it above the reserve."""
        self.drop(free_bytes, reserve_bytes)
        wanted = self._size_bytes and not self._refused and free_bytes > reserve_bytes + self._size_bytes
        if wanted and not self._whole():
            self._make()

    def _whole(self) -> bool:
        try:
            return self._path.stat().st_size == self._size_bytes
        except FileNotFoundError:
            return False

    def _make(self) -> None:
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self._size_bytes)
            finally:
                os.close(descriptor)
        except OSError as error:
            # A quota or a limit: the broker does without, and does not try every second.
            self._refused = True
            self._path.unlink(missing_ok=True)
            log.warning("no ballast can be kept on this disk", extra={"error": str(error)})
