"""The first entries of an index in memory, the rest on disk: what keeps a broker with ten million jobs small.

Keys up to the edge are all in memory; keys behind it are in the journal only. While there is no edge, everything is
in memory. Entries must be added when they enter the index and discarded when they leave it; `refill` may be called
only when the journal has committed everything that was added.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

Load = Callable[[bytes, int], list[tuple[bytes, bytes]]]
"""(after, limit) → the next entries of the index, in key order; see View.scan."""


class Window:
    SIZE = 1024
    """Entries loaded at once; up to twice as many are held."""

    def __init__(self, load: Load, dry: list[Window], *, on_disk: bool = True) -> None:
        """`dry` is where it puts itself when memory has run out of entries and the disk may have more. What is known to
        be empty is not `on_disk`: there, entries that are just being taken away may still be seen."""
        self._load = load
        self._dry = dry
        self.ids: dict[bytes, bytes] = {}
        """What is in memory: key → job id."""
        self._heap: list[bytes] = []
        self._edge: bytes | None = b"" if on_disk else None
        self.refill()

    def add(self, key: bytes, job_id: bytes) -> None:
        if self._edge is not None and key > self._edge:
            return
        if key not in self.ids:
            heapq.heappush(self._heap, key)
        self.ids[key] = job_id
        if len(self.ids) > 2 * self.SIZE:
            self._cut()

    def discard(self, key: bytes) -> None:
        if self.ids.pop(key, None) is not None and not self.ids and self._edge is not None:
            self._dry.append(self)

    def first(self) -> tuple[bytes, bytes] | None:
        """The smallest entry in memory; None says that none is left there (see `dry`)."""
        heap = self._heap
        if not self.ids:
            heap.clear()
            return None
        while heap:
            job_id = self.ids.get(heap[0])
            if job_id is not None:
                return heap[0], job_id
            heapq.heappop(heap)
        return None

    def refill(self) -> bool:
        """Load the next entries if nothing is left in memory; whether there are any."""
        if self.ids or self._edge is None:
            return False
        entries = self._load(self._edge, self.SIZE)
        self.ids = dict(entries)
        self._heap = [key for key, _ in entries]  # sorted, so a heap
        self._edge = entries[-1][0] if len(entries) == self.SIZE else None
        return bool(entries)

    def _cut(self) -> None:
        kept = sorted(self.ids)[: self.SIZE]
        self.ids = {key: self.ids[key] for key in kept}
        self._heap = kept
        self._edge = kept[-1]

    @property
    def empty(self) -> bool:
        """Neither in memory nor on disk is an entry."""
        return not self.ids and self._edge is None

    def __len__(self) -> int:
        return len(self.ids)
