"""Which slots a worker's session may give jobs to, and which leases wait for one. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from zq.workers.leases import HeldLease


class SessionSlots:
    """Slots by number, each of one queue: free, busy, or closed (being ended or replaced: it gets no more jobs)."""

    def __init__(self, queues: Mapping[str, int]) -> None:
        self._total = dict(queues)
        self._queue_of: dict[int, str] = {}
        self._closed: set[int] = set()
        self._free: dict[str, list[int]] = {queue: [] for queue in queues}
        self._waiting: list[HeldLease] = []
        self._up: Counter[str] = Counter()

    def total(self, queue: str) -> int:
        """Slots the queue is to have; 0 for a queue that is not ours."""
        return self._total.get(queue, 0)

    def up(self, queue: str) -> int:
        """Slots that have a job or can take one."""
        return self._up[queue]

    def add(self, slot: int, queue: str) -> None:
        assert slot not in self._queue_of, "slot numbers are never used again"
        self._queue_of[slot] = queue
        self._up[queue] += 1
        self._free[queue].append(slot)

    def free(self, slot: int) -> None:
        """The slot's job has ended."""
        if slot in self._queue_of and slot not in self._closed:
            self._free[self._queue_of[slot]].append(slot)

    def close(self, slot: int) -> None:
        """Give it no more jobs. Closing twice, or a slot that is gone, changes nothing."""
        if slot not in self._queue_of or slot in self._closed:
            return
        queue = self._queue_of[slot]
        self._closed.add(slot)
        self._up[queue] -= 1
        if slot in self._free[queue]:
            self._free[queue].remove(slot)

    def remove(self, slot: int) -> None:
        self.close(slot)
        self._closed.discard(slot)
        self._queue_of.pop(slot, None)

    def wait(self, lease: HeldLease) -> None:
        """Bounded by the caller: never more leases than `total` are open in a queue."""
        self._waiting.append(lease)

    def stop_waiting(self, lease: HeldLease) -> None:
        self._waiting.remove(lease)

    def match(self, occupied: Callable[[bytes], bool]) -> tuple[int, HeldLease] | None:
        """Take the first lease that a slot is free for, and the slot; but none whose job still has processes here."""
        for lease in self._waiting:
            if self._free[lease.queue] and not occupied(lease.job_id):
                self._waiting.remove(lease)
                return self._free[lease.queue].pop(), lease
        return None
