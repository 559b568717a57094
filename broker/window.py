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

    def __init__(self, load: Load) -> None:
        self._load = load
        self._ids: dict[bytes, bytes] = {}
        self._heap: list[bytes] = []
        self._edge: bytes | None = b""
        self.refill()

    def add(self, key: bytes, job_id: bytes) -> None:
        if self._edge is not None and key > self._edge:
            return
        if key not in self._ids:
            heapq.heappush(self._heap, key)
        self._ids[key] = job_id
        if len(self._ids) > 2 * self.SIZE:
            self._cut()

    def discard(self, key: bytes) -> None:
        self._ids.pop(key, None)

    def first(self) -> tuple[bytes, bytes] | None:
        """The smallest entry in memory; None says that none is left there (see `dry`)."""
        heap = self._heap
        while heap:
            job_id = self._ids.get(heap[0])
            if job_id is not None:
                return heap[0], job_id
            heapq.heappop(heap)
        return None

    def pop(self) -> None:
        """Take away what `first` returned."""
        del self._ids[heapq.heappop(self._heap)]

    @property
    def dry(self) -> bool:
        """Nothing in memory, but there may be more on disk."""
        return not self._ids and self._edge is not None

    def refill(self) -> bool:
        """Load the next entries if nothing is left in memory; whether there are any."""
        if not self.dry:
            return False
        assert self._edge is not None
        entries = self._load(self._edge, self.SIZE)
        self._ids = dict(entries)
        self._heap = [key for key, _ in entries]  # sorted, so a heap
        self._edge = entries[-1][0] if len(entries) == self.SIZE else None
        return bool(entries)

    def _cut(self) -> None:
        kept = sorted(self._ids)[: self.SIZE]
        self._ids = {key: self._ids[key] for key in kept}
        self._heap = kept
        self._edge = kept[-1]

    def __len__(self) -> int:
        return len(self._ids)
