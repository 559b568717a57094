"""Queues: what is ready in each, which workers have credit for it, and what bounds it.

Ready jobs stand in lanes (lanes.py). Within a priority it is first accepted, first dispatched; each minute of waiting
makes up for one step of priority.

Credit belongs to a session and a queue and is an absolute limit: what may be given is the limit less the leases the
session holds. There is nothing to count up or down that a lost message could falsify.
"""

from __future__ import annotations

from collections import deque

import msgspec

from zq.broker.book import Book
from zq.broker.headroom import Headroom
from zq.broker.lanes import Head, Lanes
from zq.broker.records import JobRow
from zq.broker.sessions import Session
from zq.broker.window import Window
from zq.protocol import limits
from zq.protocol.job import Cause, State

UNSERVED_MS = 2000
"""A worker that starts again is away for less."""
BURST_MS = 50
"""A rate limit lets through at once what it would let through in this time."""

class QueueSettings(msgspec.Struct, frozen=True, array_like=True):
    """What an operator has set; 0 means no bound."""

    paused: bool = False
    rate_per_s: float = 0.0
    running_max: int = 0
    length_max: int = 0


class Queue:
    """One queue: its ready jobs in lanes, its consumers in turn, its settings."""

    def __init__(
        self, name: str, book: Book, settings: QueueSettings, headroom: Headroom, dry: list[Window], *, on_disk: bool
    ) -> None:
        """`on_disk`: the journal may have jobs of it that are ready."""
        self.name = name
        self._headroom = headroom
        self.settings = settings
        self.next_dispatch_ms = 0.0
        """With a rate limit: when the next job may go."""
        self.unserved_since_ms = 0
        self.unserved_told = False
        self._book = book
        self.lanes = Lanes(name, book, dry, on_disk=on_disk)
        self.consumers: dict[int, Session] = {}
        self._turn: deque[Session] = deque()
        self._in_turn: set[int] = set()

    # ------------------------------------------------------------------------------------------ jobs

    def next(self, now_ms: int) -> tuple[JobRow, Session] | None:
        """The next job to dispatch and its worker; None while nothing can go."""
        if not self._turn or self.held_by_settings(now_ms):
            return None
        best: Head | None = None
        chosen: Session | None = None
        for lane in self.lanes.open():
            head = lane.head(self._book)
            if head is not None and (best is None or head[:2] < best[:2]):
                session = self.consumer_for(lane.tags, head[2])
                if session is not None:
                    best, chosen = head, session
                elif not any(lane.tags <= consumer.tags for consumer in self.consumers.values()):
                    self.lanes.shut(lane)
        return (best[2], chosen) if best is not None and chosen is not None else None

    @property
    def waiting(self) -> int:
        """Jobs that are ready, parked ones included."""
        counts = self._book.counts.get(self.name)
        return counts.by_state[State.READY] if counts is not None else 0

    @property
    def running(self) -> int:
        """Leases of this queue, on all workers, and those whose worker is away."""
        counts = self._book.counts.get(self.name)
        return counts.by_state[State.RUNNING] if counts is not None else 0

    def held_by_settings(self, now_ms: int) -> bool:
        settings = self.settings
        full = bool(settings.running_max) and self.running >= settings.running_max
        return settings.paused or full or (bool(settings.rate_per_s) and self.next_dispatch_ms > now_ms)

    def dispatched(self, session: Session, now_ms: int) -> None:
        """A job went to this session: others come first now, and the rate limit has one less to give."""
        self._turn.remove(session)
        self._turn.append(session)
        if self.settings.rate_per_s:
            base_ms = max(self.next_dispatch_ms, now_ms - BURST_MS)
            self.next_dispatch_ms = base_ms + min(1000 / self.settings.rate_per_s, limits.DURATION_MS_MAX - 1)

    # ------------------------------------------------------------------------------------------ consumers

    def serve(self, session: Session) -> None:
        """The session has said how much credit it gives here."""
        if session.id not in self.consumers:
            self.consumers[session.id] = session
            self.lanes.came(session.tags)
        self.offer(session)

    def offer(self, session: Session) -> None:
        """The session may have credit here: give it a turn."""
        if session.id not in self._in_turn and session.active and session.free(self.name) > 0:
            self._turn.append(session)
            self._in_turn.add(session.id)

    def consumer_for(self, tags: frozenset[str], row: JobRow) -> Session | None:
        """The first in turn that has credit, the tags and what the job needs."""
        needy = bool(row.disk_bytes or row.memory_bytes)
        name, turn = self.name, self._turn
        while turn and turn[0].free(name) <= 0:
            self._in_turn.discard(turn.popleft().id)
        for session in turn:
            if (not tags or tags <= session.tags) and session.free(name) > 0:
                if needy and not self._headroom.fits(session, row):
                    continue
                return session
        return None

    def leave(self, session: Session) -> None:
        self.consumers.pop(session.id, None)
        if session.id in self._in_turn:
            self._in_turn.discard(session.id)
            self._turn.remove(session)

    @property
    def slots(self) -> int:
        return sum(session.open_slots(self.name) for session in self.consumers.values())

    @property
    def free(self) -> int:
        return sum(session.free_slots(self.name) for session in self.consumers.values())


_FACT = "queue:"
_decode_settings = msgspec.msgpack.Decoder(QueueSettings).decode


def settings_fact(queue: str, settings: QueueSettings) -> tuple[str, bytes]:
    """Name and value under which a queue's settings are kept in the journal."""
    return _FACT + queue, msgspec.msgpack.encode(settings)


class Queues:
    def __init__(self, book: Book, dry: list[Window]) -> None:
        self._book = book
        self._dry = dry
        self.headroom = Headroom()
        facts = book.view.facts()
        self._settings = {
            name.removeprefix(_FACT): _decode_settings(value) for name, value in facts.items() if name.startswith(_FACT)
        }
        self.by_name: dict[str, Queue] = {}
        for name in sorted({*book.counts, *self._settings}):
            self._make(name, on_disk=True)

    def get(self, name: str) -> Queue:
        # Whatever the journal has jobs of was made at the start, or is of this very batch.
        return self.by_name.get(name) or self._make(name, on_disk=False)

    def _make(self, name: str, *, on_disk: bool) -> Queue:
        settings = self._settings.get(name, QueueSettings())
        queue = Queue(name, self._book, settings, self.headroom, self._dry, on_disk=on_disk)
        self.by_name[name] = queue
        return queue

    def watch(self, now_ms: int) -> None:
        """Raise an event when jobs have waited for UNSERVED_MS in a queue that no worker serves, and when one comes."""
        for queue in self.by_name.values():
            alone = not queue.consumers and queue.waiting
            if not alone:
                if queue.unserved_told:
                    self._book.note_queue(queue.name, Cause.QUEUE_SERVED, now_ms, f"{len(queue.consumers)} workers")
                queue.unserved_since_ms, queue.unserved_told = 0, False
            elif not queue.unserved_since_ms:
                queue.unserved_since_ms = now_ms
            elif not queue.unserved_told and now_ms - queue.unserved_since_ms >= UNSERVED_MS:
                queue.unserved_told = True
                self._book.note_queue(queue.name, Cause.QUEUE_UNSERVED, now_ms, f"{queue.waiting} jobs wait")

    def set_credit(self, session: Session, credit: dict[str, int]) -> None:
        session.limits = {name: slots for name, slots in credit.items() if self.has_room_for(name)}
        for name in session.limits:
            self.get(name).serve(session)

    def leave(self, session: Session) -> None:
        for name in session.limits:
            queue = self.get(name)
            queue.leave(session)
            kept = name in self._book.counts or name in self._settings or queue.settings != QueueSettings()
            if not kept and not queue.consumers:
                del self.by_name[name]

    def has_room_for(self, name: str) -> bool:
        """Whether it is a queue, or may become one."""
        return name in self.by_name or len(self.by_name) < limits.QUEUES_MAX
