"""Which slots a worker's session may give jobs to, what each of them has in hand, and which leases wait. Pure.

A slot's first lease runs; those behind it can be taken back until it has begun them. How many it may have is the
queue's pace: one, but for tiny jobs.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final

from zq.workers.leases import LEASES_MAX, HeldLease, Phase
from zq.workers.pace import SHORT_MS, SLOW_MS, Pace

EXTRA_MAX: Final = LEASES_MAX // 4
"""Leases in hand beyond one for each slot, over all queues."""
_NO_LIMIT: Final = 1 << 60


class Hand:
    """A slot: what it has, in the order in which it runs them."""

    __slots__ = ("closed", "ended", "leases", "left", "queue", "slot", "slow")

    def __init__(self, slot: int, queue: str, left: int) -> None:
        self.slot = slot
        self.queue = queue
        self.leases: deque[HeldLease] = deque()
        self.left = left
        """How many more it may be given in its life."""
        self.closed = False
        """It gets no more jobs: it is being ended or replaced."""
        self.ended = False
        """We have its process tree ended."""
        self.slow = False
        """Its first job has run for SLOW_MS: nothing is put behind it."""


class SessionSlots:
    def __init__(self, queues: Mapping[str, int], single: Collection[str] = ()) -> None:
        """`single`: queues whose slots are never given a second job."""
        self._total = dict(queues)
        self._share = EXTRA_MAX // max(1, sum(queues.values()))
        self.paces = {queue: Pace(1) if queue in single else Pace() for queue in queues}
        self._hands: dict[int, Hand] = {}
        self._open: dict[str, dict[int, Hand]] = {queue: {} for queue in queues}
        self._free: dict[str, list[Hand]] = {queue: [] for queue in queues}
        self._waiting: dict[str, deque[HeldLease]] = {queue: deque() for queue in queues}
        self._deep: dict[int, Hand] = {}
        """Those with more than one job."""

    def total(self, queue: str) -> int:
        """Slots the queue is to have; 0 for a queue that is not ours."""
        return self._total.get(queue, 0)

    def depth(self, queue: str) -> int:
        """Jobs that one slot of the queue may have now."""
        return min(self.paces[queue].depth, 1 + self._share)

    def credit(self, queue: str) -> int:
        """Jobs the queue's slots may have, all together."""
        hands, depth = self._open[queue].values(), self.depth(queue)
        if depth == 1:
            return len(hands)
        # What a slot that is being replaced would have had is for the one in its place: it comes sooner than jobs do.
        replaced = sum(1 for hand in self._hands.values() if hand.queue == queue and hand.closed and not hand.ended)
        return sum(1 if hand.slow else depth for hand in hands) + depth * min(replaced, self._total[queue] - len(hands))

    # ------------------------------------------------------------------------------------------ slots

    def add(self, slot: int, queue: str, jobs_max: int = 0) -> None:
        assert slot not in self._hands, "slot numbers are never used again"
        hand = self._hands[slot] = Hand(slot, queue, jobs_max or _NO_LIMIT)
        self._open[queue][slot] = hand
        self._free[queue].append(hand)

    def close(self, slot: int) -> None:
        """Give it no more jobs. Closing twice, or a slot that is gone, changes nothing."""
        hand = self._hands.get(slot)
        if hand is None or hand.closed:
            return
        hand.closed = True
        del self._open[hand.queue][slot]
        if hand in self._free[hand.queue]:
            self._free[hand.queue].remove(hand)

    def end(self, slot: int) -> None:
        """Its process tree is being ended."""
        self.close(slot)
        if slot in self._hands:
            self._hands[slot].ended = True

    def remove(self, slot: int) -> Hand | None:
        """The slot is gone; what it had."""
        self.close(slot)
        self._deep.pop(slot, None)
        return self._hands.pop(slot, None)

    def get(self, slot: int) -> Hand | None:
        return self._hands.get(slot)

    # ------------------------------------------------------------------------------------------ jobs

    def drop(self, lease: HeldLease) -> HeldLease | None:
        """A slot no longer has this lease. Its next one, if this was its first: that one runs now."""
        assert lease.slot is not None
        hand = self._hands.get(lease.slot)
        if hand is None:
            return None
        was_first = hand.leases[0] is lease
        if lease.phase is Phase.HANDED:
            hand.left += 1
        if was_first:
            hand.leases.popleft()
            hand.slow = False
        else:
            hand.leases.remove(lease)
        if len(hand.leases) < 2:
            self._deep.pop(hand.slot, None)
        if hand.leases:
            return hand.leases[0] if was_first else None
        if not hand.closed and hand.left:
            self._free[hand.queue].append(hand)
        return None

    def wait(self, lease: HeldLease) -> None:
        """Bounded by the caller."""
        self._waiting[lease.queue].append(lease)

    def wait_first(self, leases: list[HeldLease]) -> None:
        """They came before all that wait: they had been given to a slot already."""
        for lease in reversed(leases):
            self._waiting[lease.queue].appendleft(lease)

    def stop_waiting(self, lease: HeldLease) -> None:
        self._waiting[lease.queue].remove(lease)

    @property
    def anything_waits(self) -> bool:
        return any(self._waiting.values())

    def overdue(self, now_ms: int) -> list[HeldLease]:
        """Those that have waited long enough for a slot; they wait no more."""
        found: list[HeldLease] = []
        for queue, waiting in self._waiting.items():
            due = [lease for lease in waiting if lease.return_ms is not None and lease.return_ms <= now_ms]
            if due:
                found += due
                self._waiting[queue] = deque(x for x in waiting if x.return_ms is None or x.return_ms > now_ms)
        return found

    def return_ms(self) -> int | None:
        """When the next of them has."""
        times = [x.return_ms for waiting in self._waiting.values() for x in waiting if x.return_ms is not None]
        return min(times, default=None)

    def match(self, occupied: Callable[[bytes], bool]) -> Iterator[tuple[Hand, HeldLease]]:
        """Give what waits to slots, idle ones first; but nothing whose job still has processes here."""
        for queue, waiting in self._waiting.items():
            if waiting:
                yield from self._match(queue, waiting, occupied)

    def _match(
        self, queue: str, waiting: deque[HeldLease], occupied: Callable[[bytes], bool]
    ) -> Iterator[tuple[Hand, HeldLease]]:
        held_back: list[HeldLease] = []
        free, depth = self._free[queue], self.depth(queue)
        busy: list[tuple[int, int]] | None = None
        while waiting:
            lease = waiting.popleft()
            if occupied(lease.job_id):
                held_back.append(lease)
                continue
            if free:
                hand = free.pop()
            else:
                if busy is None:
                    busy = self._with_room(queue, depth)
                if not busy:
                    waiting.appendleft(lease)
                    break
                load, slot = busy[0]
                hand = self._hands[slot]
                if load + 1 < depth and hand.left > 1:
                    heapq.heapreplace(busy, (load + 1, slot))
                else:
                    heapq.heappop(busy)
                self._deep[slot] = hand
            hand.leases.append(lease)
            hand.left -= 1
            yield hand, lease
        waiting.extendleft(reversed(held_back))

    def _with_room(self, queue: str, depth: int) -> list[tuple[int, int]]:
        if depth == 1:
            return []
        hands = self._open[queue].values()
        busy = [(len(x.leases), x.slot) for x in hands if not x.slow and x.left and len(x.leases) < depth]
        heapq.heapify(busy)
        return busy

    # ------------------------------------------------------------------------------------------ slow ones

    def held_up(self, now_ms: int) -> list[Hand]:
        """Slots whose followers are to be taken back: their first job has turned out slow, or they have too many."""
        found = []
        for queue, pace in self.paces.items():
            if pace.depth == 1:
                continue
            for hand in self._open[queue].values():
                if hand.leases and not hand.slow and now_ms - hand.leases[0].started_ms >= SLOW_MS:
                    hand.slow = True
                    pace.slow()
        for hand in self._deep.values():
            if hand.closed:
                continue
            ran_ms = now_ms - hand.leases[0].started_ms
            if ran_ms >= SLOW_MS:
                hand.slow = True
            idle = ran_ms >= SHORT_MS and self._free[hand.queue]
            if hand.slow or idle or len(hand.leases) > 2 * self.paces[hand.queue].most:
                found.append(hand)
        return found

    def in_hand(self) -> int:
        """Jobs that the slot which runs dry first has; 0 if one is idle and another is not, or all are."""
        if len(self._deep) < len(self._hands):
            return 0
        return min((len(hand.leases) for hand in self._deep.values()), default=0)

    def look_ms(self) -> int | None:
        """When `held_up` may find another one."""
        times = []
        for hand in self._deep.values():
            if not (hand.slow or hand.closed):
                times.append(hand.leases[0].started_ms + (SHORT_MS if self._free[hand.queue] else SLOW_MS))
        for queue, pace in self.paces.items():
            if pace.depth > 1:
                busy = (hand for hand in self._open[queue].values() if hand.leases and not hand.slow)
                times += [hand.leases[0].started_ms + SLOW_MS for hand in busy]
        return min(times, default=None)
