"""Queues: what is ready in each, and which workers have credit for it.

Credit belongs to a session and a queue and is an absolute limit: what may be given is the limit less the leases the
session holds. There is nothing to count up or down that a lost message could falsify.
"""

from __future__ import annotations

from collections import deque

from zq.broker.journal import View
from zq.broker.records import Index, JobRow, queue_prefix, ready_key
from zq.broker.sessions import Session
from zq.broker.window import Window


class Queue:
    """One queue: its ready jobs in order, and its consumers in turn."""

    def __init__(self, name: str, view: View) -> None:
        self.name = name
        prefix = queue_prefix(name)
        self.ready = Window(lambda after, limit: view.scan(Index.READY, prefix, after, limit))
        self.consumers: dict[int, Session] = {}
        self._turn: deque[Session] = deque()
        self._in_turn: set[int] = set()

    def add(self, row: JobRow) -> None:
        self.ready.add(ready_key(row), row.id)

    def discard(self, row: JobRow) -> None:
        self.ready.discard(ready_key(row))

    def offer(self, session: Session) -> None:
        """The session may have credit here: give it a turn."""
        if session.id not in self._in_turn and session.active and session.free(self.name) > 0:
            self._turn.append(session)
            self._in_turn.add(session.id)

    def next_consumer(self) -> Session | None:
        """The session whose turn it is, still with credit; stays first until `served`."""
        while self._turn:
            session = self._turn[0]
            if session.active and session.free(self.name) > 0:
                return session
            self._turn.popleft()
            self._in_turn.discard(session.id)
        return None

    def served(self) -> None:
        """The first in turn was given a job: the next one is first now, so that work is spread over workers."""
        self._turn.rotate(-1)

    def leave(self, session: Session) -> None:
        self.consumers.pop(session.id, None)
        if session.id in self._in_turn:
            self._in_turn.discard(session.id)
            self._turn.remove(session)

    @property
    def slots(self) -> int:
        return sum(session.limits.get(self.name, 0) for session in self.consumers.values())

    @property
    def free(self) -> int:
        return sum(max(0, session.free(self.name)) for session in self.consumers.values())


class Queues:
    def __init__(self, view: View) -> None:
        self._view = view
        self.by_name: dict[str, Queue] = {name: Queue(name, view) for name in view.counts()}

    def get(self, name: str) -> Queue:
        queue = self.by_name.get(name)
        if queue is None:
            queue = self.by_name[name] = Queue(name, self._view)
        return queue

    def set_credit(self, session: Session, limits: dict[str, int]) -> None:
        session.limits = limits
        for name in limits:
            queue = self.get(name)
            queue.consumers[session.id] = session
            queue.offer(session)

    def leave(self, session: Session) -> None:
        for name in session.limits:
            self.get(name).leave(session)
