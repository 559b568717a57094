"""A whole zq in virtual time, from one seed: the real broker core, the real worker session, and a bad world between.

The fault model
- A message on its way is delayed by any time, so one may overtake another, and may be lost or arrive twice. A
  connection may be cut: what is on its way in it is lost, and its peers notice only by what they no longer hear.
- A peer may be cut off in one direction only: it hears and is not heard, or the other way round. A partition separates
  some peers from the broker for a while, whatever connections they make meanwhile.
- The broker may die between any two of its effects: before a commit (the batch never was), after it (nothing of it is
  said), or between two sends. It starts again on what was committed, after a while.
- A commit may be slow, as it is when the disk is, or when a map that is full is made larger; messages wait meanwhile.
  It may fail: then the broker dies, and what was in it never was.
- The disk may be low for a while: then new jobs are refused, with a time to come again, and all else goes on.
- The broker may freeze, as a stopped or suspended machine does, and thaw with everything late.
- The broker's clock may run at another pace than the workers': only durations cross machines. At a restart it may find
  that its wall clock was set, forward or back.
- A worker may die with everything it runs, and start again under the same name; it may freeze, with its slots running
  on, and thaw; a slot's process may die. A worker may be told to drain: it lets its jobs finish or hands them back.
- Jobs of one queue are tiny, so that slots get several at once; a slot begins the next one without asking anybody.
- Attempts succeed, fail, are rejected, or run for very long. A client asks to cancel a job now and then.
- Clients send again, with the same ids, what has no answer, as the protocol demands.

Liveness is looked at after `heal`: from then on nothing goes wrong, and everything must come to its end. Without it,
under any number of faults, what must never happen must not (`faults.RUIN`).

Everything random comes from one generator, everything that happens goes through one queue of events: a seed is a run.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import zq.protocol.messages as m
from tests.simulation.checker import Checker
from tests.simulation.faults import Faults
from tests.simulation.sim_client import SimClient
from tests.simulation.sim_worker import QUEUES, SimWorker
from zq.broker.core import Core, Settings
from zq.broker.memory_journal import MemoryJournal
from zq.protocol import codec
from zq.protocol.errors import Code
from zq.protocol.messages import BrokerMessage, PeerMessage

SETTINGS = Settings(
    heartbeat_ms=500, idle_beats_per_s=2, session_timeout_ms=3000, resume_grace_ms=6000, retention_ms=1 << 50
)

class Connection:
    """One connection of one peer. Cut means: nothing comes through any more, and nobody is told."""

    def __init__(self, name: bytes, owner: str, deliver: Callable[[BrokerMessage], None]) -> None:
        self.name = name
        self.owner = owner
        self.deliver = deliver
        self.cut = False
        self.deaf = False
        """Nothing reaches the peer any more."""
        self.mute = False
        """Nothing of the peer's reaches the broker any more."""


class World:
    def __init__(
        self,
        seed: int,
        faults: Faults,
        *,
        workers: int = 3,
        clients: int = 2,
        jobs: int = 60,
        core: type[Core] = Core,
        burst: int = 1,
        speaks_first: bool = False,
    ) -> None:
        """`burst`: jobs that a client submits at once; many of them are tiny ones."""
        self.random = random.Random(seed)
        self.faults = faults
        self.now_ms = 1_000_000
        self.events = 0
        self.checker = Checker()
        self.deepest = 0
        """The most jobs that a slot has had at once."""
        self._core_type = core
        self._speaks_first = speaks_first
        """A defect on purpose: replies and dispatches leave before the commit."""
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._serial = 0
        self._connections: dict[bytes, Connection] = {}
        self.journal = MemoryJournal()
        self.core: Core | None = None
        self._inbox: list[tuple[Connection, PeerMessage]] = []
        self._frozen_until_ms = 0
        self._separated_until_ms: dict[str, int] = {}
        """Peers on the other side of a partition."""
        self._disk_is_low_until_ms = 0
        self._clock_ahead_ms = 0
        self._start_broker()
        self.workers = [SimWorker(self, f"worker-{n}") for n in range(workers)]
        self.clients = [SimClient(self, f"client-{n}", jobs // clients, burst) for n in range(clients)]
        self._every(lambda: self.faults.cut_every_ms, self._cut_one)
        self._every(lambda: self.faults.broker_dies_every_ms, self._kill_broker)
        self._every(lambda: self.faults.broker_freezes_every_ms, self._freeze_broker)
        self._every(lambda: self.faults.deafens_every_ms, self._deafen_one)
        self._every(lambda: self.faults.partitions_every_ms, self._separate_some)
        self._every(lambda: self.faults.disk_is_low_every_ms, self._fill_disk)
        self._every(lambda: self.faults.worker_drains_every_ms, lambda: self.random.choice(self.workers).drain())
        self._every(lambda: self.faults.worker_dies_every_ms, lambda: self.random.choice(self.workers).die())
        self._every(lambda: self.faults.worker_freezes_every_ms, lambda: self.random.choice(self.workers).freeze())

    # ------------------------------------------------------------------------------------------ time

    def at(self, delay_ms: int, action: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._queue, (self.now_ms + delay_ms, self._serial, action))

    def _every(self, interval_ms: Callable[[], int], action: Callable[[], None]) -> None:
        """Do it again and again, at random times around the interval; 0 means not for now."""

        def happen() -> None:
            if interval_ms():
                action()
            self.at(self.random.randint(1, 2 * (interval_ms() or 1000)), happen)

        self.at(self.random.randint(1, 2 * (interval_ms() or 1000)), happen)

    def run(self, until: Callable[[], bool], limit_ms: int) -> bool:
        """Let events happen until the condition holds; False if the time is over first."""
        end_ms = self.now_ms + limit_ms
        while self._queue and self.now_ms < end_ms:
            if until():
                return True
            self.now_ms, _, action = heapq.heappop(self._queue)
            self.events += 1
            action()
        return until()

    def heal(self) -> None:
        """From now on nothing goes wrong by itself."""
        self.faults = self.faults.quiet()
        self._separated_until_ms.clear()
        self._disk_is_low_until_ms = 0

    def chance(self, probability: float) -> bool:
        return probability > 0 and self.random.random() < probability

    # ------------------------------------------------------------------------------------------ network

    def connect(self, owner: str, deliver: Callable[[BrokerMessage], None]) -> Connection:
        self._serial += 1
        connection = Connection(self._serial.to_bytes(5, "big"), owner, deliver)
        self._connections[connection.name] = connection
        return connection

    def to_broker(self, connection: Connection, message: PeerMessage) -> None:
        again = codec.decode_from_peer(codec.encode(message))
        if not connection.mute:
            self._carry(connection, lambda: self._inbox.append((connection, again)))

    def _to_peer(self, name: bytes, message: BrokerMessage) -> bool:
        """False when the ROUTER knows that it cannot be sent."""
        connection = self._connections.get(name)
        if connection is None:
            return False
        again = codec.decode_from_broker(codec.encode(message))
        if not connection.deaf:
            self._carry(connection, lambda: connection.deliver(again))
        return True

    def _carry(self, connection: Connection, arrive: Callable[[], None]) -> None:
        def if_whole() -> None:
            if not connection.cut and not self._separated(connection):
                arrive()

        if self.chance(self.faults.lose) or self._separated(connection):
            return
        for _ in range(2 if self.chance(self.faults.repeat) else 1):
            self.at(self.random.randint(0, self.faults.delay_max_ms), if_whole)

    def _cut_one(self) -> None:
        if self._connections:
            connection = self._connections.pop(self.random.choice(sorted(self._connections)))
            connection.cut = True

    def _deafen_one(self) -> None:
        if self._connections:
            connection = self._connections[self.random.choice(sorted(self._connections))]
            connection.deaf = self.random.random() < 0.5
            connection.mute = not connection.deaf

    def _separated(self, connection: Connection) -> bool:
        return self._separated_until_ms.get(connection.owner, 0) > self.now_ms

    def _separate_some(self) -> None:
        names = [worker.name for worker in self.workers] + [client.name for client in self.clients]
        until_ms = self.now_ms + self.random.randint(100, 4000)
        for name in self.random.sample(names, self.random.randint(1, len(names))):
            self._separated_until_ms[name] = until_ms

    def drop(self, connection: Connection | None) -> None:
        if connection is not None:
            connection.cut = True
            self._connections.pop(connection.name, None)

    # ------------------------------------------------------------------------------------------ broker

    @property
    def broker_ms(self) -> int:
        """The time of the broker's machine."""
        return int(self.now_ms * self.faults.clock_pace) + self._clock_ahead_ms

    def _start_broker(self) -> None:
        if self.core is None:
            self.journal.reopen()
            if self.faults.clock_jumps_ms:
                jump_ms = self.random.randint(-self.faults.clock_jumps_ms, self.faults.clock_jumps_ms)
                self._clock_ahead_ms += max(jump_ms, self.journal.time_ms - self.broker_ms)
            self.core = self._core_type(self.journal, self.journal.epoch, self.broker_ms, SETTINGS)
            self._round(self.core)

    @property
    def disk_is_low(self) -> bool:
        return self.now_ms < self._disk_is_low_until_ms

    def _fill_disk(self) -> None:
        self._disk_is_low_until_ms = self.now_ms + self.random.randint(100, 3000)

    def _freeze_broker(self) -> None:
        self._frozen_until_ms = self.now_ms + self.random.randint(100, 12_000)

    def _kill_broker(self) -> None:
        """It dies; everything in its sockets dies with it. Connections are made anew by ZeroMQ when it is back."""
        self.core = None
        self._inbox.clear()
        for connection in self._connections.values():
            connection.cut = True
        self._connections.clear()
        self.at(self.random.randint(10, 3000), self._start_broker)

    def _round(self, core: Core) -> None:
        if self.core is not core:
            return
        if self.now_ms < self._frozen_until_ms:
            self.at(self._frozen_until_ms - self.now_ms, lambda: self._round(core))
            return
        inbox, self._inbox = self._inbox, []
        now_ms = self.broker_ms
        low = self.disk_is_low
        core.submits.closed = Code.DISK_LOW if low else None
        for connection, message in inbox:
            if isinstance(message, m.Credit | m.Beat):
                announced = message.limits if isinstance(message, m.Credit) else message.credit
                self.checker.announced(connection.owner, announced)
            core.receive(connection.name, None, message, now_ms)
        core.advance(now_ms)
        batch = core.batch()
        if self.chance(self.faults.broker_dies_in_round):
            self._kill_broker()
            return
        if self._speaks_first:
            self._speak(core, batch.sends)
        commit_ms = self.random.randint(100, 5000) if self.chance(self.faults.slow_commit) else 1

        def commit() -> None:
            if self.core is not core:
                return
            if self.chance(self.faults.failed_commit):
                self._kill_broker()
                return
            self.checker.committed(batch.steps, accepting=not low)
            self.journal.commit(batch.steps, now_ms, batch.notes)
            self.checker.in_order(batch.steps, self.journal)
            events = core.committed(now_ms)
            if not self._speaks_first:
                self._speak(core, [*batch.sends, *events])
            if self.core is core:
                self.at(1, lambda: self._round(core))

        self.at(commit_ms, commit)

    def _speak(self, core: Core, sends: list[tuple[bytes, BrokerMessage]]) -> None:
        for name, message in sends:
            if self.chance(self.faults.broker_dies_in_round / 4):
                self._kill_broker()
                return
            self.checker.sent(message, self.journal)
            if not self._to_peer(name, message):
                core.unreachable(name)

    # ------------------------------------------------------------------------------------------ the end

    def all_ended(self) -> bool:
        """Every job that was submitted has its receipt and has ended, and all credit is back."""
        if self.core is None or not all(client.content for client in self.clients):
            return False
        queues = self.core.queries.queues(1, self.broker_ms).queues
        busy = sum(q.scheduled + q.ready + q.running for q in queues)
        slots = sum(q.free for q in queues)
        return busy == 0 and slots == sum(QUEUES.values()) * len(self.workers)
