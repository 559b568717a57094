"""A whole zq in virtual time, from one seed: the real broker core, the real worker session, and a bad world between.

The fault model
- A message on its way is delayed by any time, and may be lost or arrive twice. A connection may be cut: what is on its
  way in it is lost, and its peers notice only by what they no longer hear.
- The broker may die between any two of its effects: before a commit (the batch never was), after it (nothing of it is
  said), or between two sends. It starts again on what was committed, after a while.
- A commit may be slow; messages wait meanwhile. It may fail: then the broker dies, and what was in it never was.
- The broker may freeze, as a stopped or suspended machine does, and thaw with everything late.
- A peer may be cut off in one direction only: it hears and is not heard, or the other way round.
- The broker's clock may run at another pace than the workers': only durations cross machines.
- A worker may die with everything it runs, and start again under the same name; it may freeze, with its slots running
  on, and thaw; a slot's process may die.
- Jobs of one queue are tiny, so that slots get several at once; a slot begins the next one without asking anybody.
- Attempts succeed, fail, are rejected, or run for very long. A client asks to cancel a job now and then.
- Clients send again, with the same ids, what has no answer, as the protocol demands.

Everything random comes from one generator, everything that happens goes through one queue of events: a seed is a run.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass

import zq.protocol.messages as m
from tests.simulation.checker import DISK_BYTES, Checker
from zq.broker.core import Core, Settings
from zq.broker.memory_journal import MemoryJournal
from zq.protocol import codec
from zq.protocol.job import JobSpec, KeyPolicy, Outcome, encode_spec
from zq.protocol.messages import BrokerMessage, PeerMessage
from zq.workers import session as worker_session
from zq.workers import session_io as io


@dataclass(frozen=True)
class Faults:
    """Probabilities, each for one occasion of its kind; intervals in milliseconds."""

    lose: float = 0.0
    repeat: float = 0.0
    delay_max_ms: int = 3
    cut_every_ms: int = 0
    broker_dies_every_ms: int = 0
    broker_dies_in_round: float = 0.0
    worker_dies_every_ms: int = 0
    worker_freezes_every_ms: int = 0
    slot_dies: float = 0.0
    attempt_fails: float = 0.0
    attempt_rejects: float = 0.0
    attempt_is_long: float = 0.0
    cancel: float = 0.0
    slow_commit: float = 0.0
    failed_commit: float = 0.0
    broker_freezes_every_ms: int = 0
    deafens_every_ms: int = 0
    clock_pace: float = 1.0
    """Broker milliseconds for each millisecond of the others."""

    def quiet(self) -> Faults:
        return Faults(clock_pace=self.clock_pace)


ALL_FAULTS = Faults(
    lose=0.02, repeat=0.03, delay_max_ms=60, cut_every_ms=4000, broker_dies_every_ms=15_000, broker_dies_in_round=0.004,
    worker_dies_every_ms=12_000, worker_freezes_every_ms=20_000, slot_dies=0.03, attempt_fails=0.2,
    attempt_rejects=0.03, attempt_is_long=0.1, cancel=0.05, slow_commit=0.05, failed_commit=0.002,
    broker_freezes_every_ms=20_000, deafens_every_ms=6000, clock_pace=1.05,
)  # fmt: skip

SETTINGS = Settings(
    heartbeat_ms=500, idle_beats_per_s=2, session_timeout_ms=3000, resume_grace_ms=6000, retention_ms=10_000_000
)
QUEUES = {"merge": 2, "status": 1}
TINY = "status"


class Connection:
    """One connection of one peer. Cut means: nothing comes through any more, and nobody is told."""

    def __init__(self, name: bytes, deliver: Callable[[BrokerMessage], None]) -> None:
        self.name = name
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
        self.worker_names: dict[bytes, str] = {}
        """By connection."""
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
        self._inbox: list[tuple[bytes, PeerMessage]] = []
        self._frozen_until_ms = 0
        self._start_broker()
        self.workers = [SimWorker(self, f"worker-{n}") for n in range(workers)]
        self.clients = [SimClient(self, f"client-{n}", jobs // clients, burst) for n in range(clients)]
        self._every(lambda: self.faults.cut_every_ms, self._cut_one)
        self._every(lambda: self.faults.broker_dies_every_ms, self._kill_broker)
        self._every(lambda: self.faults.broker_freezes_every_ms, self._freeze_broker)
        self._every(lambda: self.faults.deafens_every_ms, self._deafen_one)
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

    def chance(self, probability: float) -> bool:
        return probability > 0 and self.random.random() < probability

    # ------------------------------------------------------------------------------------------ network

    def connect(self, deliver: Callable[[BrokerMessage], None]) -> Connection:
        self._serial += 1
        connection = Connection(self._serial.to_bytes(5, "big"), deliver)
        self._connections[connection.name] = connection
        return connection

    def to_broker(self, connection: Connection, message: PeerMessage) -> None:
        again = codec.decode_from_peer(codec.encode(message))
        if not connection.mute:
            self._carry(connection, lambda: self._inbox.append((connection.name, again)))

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
            if not connection.cut:
                arrive()

        if self.chance(self.faults.lose):
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

    def drop(self, connection: Connection | None) -> None:
        if connection is not None:
            connection.cut = True
            self._connections.pop(connection.name, None)

    # ------------------------------------------------------------------------------------------ broker

    @property
    def broker_ms(self) -> int:
        """The time of the broker's machine."""
        return int(self.now_ms * self.faults.clock_pace)

    def _start_broker(self) -> None:
        if self.core is None:
            self.journal.reopen()
            self.core = self._core_type(self.journal, self.journal.epoch, self.broker_ms, SETTINGS)
            self._round(self.core)

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
        for name, message in inbox:
            if isinstance(message, m.Credit | m.Beat):
                announced = message.limits if isinstance(message, m.Credit) else message.credit
                self.checker.announced(self.worker_names[name], announced)
            core.receive(name, None, message, now_ms)
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
            self.checker.committed(batch.steps)
            self.journal.commit(batch.steps, now_ms, batch.notes)
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


class SimWorker:
    """The real session, with slots that are entries in a dict. A slot's process outlives a frozen parent."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.tags = ("gpu",) if name.endswith("0") else ()
        self.disk = "own" if name.endswith("2") else "shared"
        world.checker.disks[name] = self.disk
        self.frozen = False
        self._incarnation = 0
        self._begin()

    def _begin(self) -> None:
        world = self.world
        self._incarnation += 1
        self._generation = self._incarnation
        self._connection: Connection | None = None
        self._slots: dict[int, tuple[str, list[io.StartJob]]] = {}
        """Their queues, and what they have not ended; the first of it is begun."""
        self._next_slot = 0
        self._held_back: list[BrokerMessage | io.Event] = []
        settings = worker_session.Settings(
            instance=self.name, incarnation=world.random.randbytes(16), queues=QUEUES, tasks=("t",), tags=self.tags
        )
        self.session = worker_session.Session(settings, world.now_ms)
        for queue, count in QUEUES.items():
            for _ in range(count):
                self._open_slot(queue)
        self._turn(self._generation)

    def die(self) -> None:
        """kill -9: the process, its slots and all they hold are gone; the supervisor starts it again."""
        if self._generation < 0:
            return
        self._generation = -1
        self.frozen = False
        self.world.drop(self._connection)
        self.world.at(self.world.random.randint(50, 4000), self._begin)

    def freeze(self) -> None:
        if self.frozen or self._generation < 0:
            return
        generation = self._generation
        self.frozen = True

        def thaw() -> None:
            if self._generation != generation:
                return
            self.frozen = False
            for event in self._held_back:
                self._handle(event)
            self._held_back.clear()

        self.world.at(self.world.random.randint(100, 9000), thaw)

    def _give(self, event: BrokerMessage | io.Event, generation: int) -> None:
        if generation != self._generation:
            return
        if self.frozen:
            self._held_back.append(event)
        else:
            self._handle(event)

    def _handle(self, event: BrokerMessage | io.Event) -> None:
        self._carry_out(self.session.handle(event, self.world.now_ms))

    def _turn(self, generation: int) -> None:
        if generation != self._generation:
            return
        if not self.frozen:
            if self.session.wants_room(self.world.now_ms):
                self._handle(io.RoomMeasured(DISK_BYTES, DISK_BYTES, self.disk, self.name))
            self._carry_out(self.session.turn(self.world.now_ms))
        self.world.at(20, lambda: self._turn(generation))

    def _carry_out(self, effects: list[io.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, io.OpenLink):
                self._open_link()
            elif isinstance(effect, io.CloseLink):
                self.world.drop(self._connection)
                self._connection = None
            elif isinstance(effect, io.Send):
                if self._connection is not None:
                    self.world.to_broker(self._connection, effect.message)
            elif isinstance(effect, io.StartJob):
                self._start(effect)
            elif isinstance(effect, io.TakeBack):
                self._take_back(effect.slot)
            elif isinstance(effect, io.EndSlot):
                self._end_slot(effect.slot, effect.why)

    def _open_link(self) -> None:
        generation = self._generation
        self.world.drop(self._connection)

        def deliver(message: BrokerMessage) -> None:
            if self._connection is connection:
                self._give(message, generation)

        connection = self.world.connect(deliver)
        self._connection = connection
        self.world.worker_names[connection.name] = self.name

    def _open_slot(self, queue: str) -> None:
        self._next_slot += 1
        self._slots[self._next_slot] = (queue, [])
        self._carry_out(self.session.handle(io.SlotUp(self._next_slot, queue), self.world.now_ms))

    def _start(self, effect: io.StartJob) -> None:
        if effect.slot not in self._slots:
            self._handle(io.NotStarted(effect.token))
            return
        jobs = self._slots[effect.slot][1]
        jobs.append(effect)
        self.world.deepest = max(self.world.deepest, len(jobs))
        if len(jobs) == 1:
            self._begin_job(effect)

    def _take_back(self, slot: int) -> None:
        _, jobs = self._slots.get(slot, ("", []))
        tokens = tuple(job.token for job in jobs[1:])
        del jobs[1:]
        self._handle(io.TakenBack(slot, tokens))

    def _begin_job(self, effect: io.StartJob) -> None:
        world, generation, slot = self.world, self._generation, effect.slot
        queue, jobs = self._slots[slot]
        world.checker.started(effect.spec.id, effect.attempt, effect.token)
        faults = world.faults
        if world.chance(faults.slot_dies):
            world.at(world.random.randint(0, 500), lambda: self._lose_slot(slot, generation))
            return
        outcome = Outcome.DONE
        if world.chance(faults.attempt_fails):
            outcome = Outcome.FAILED
        elif world.chance(faults.attempt_rejects):
            outcome = Outcome.REJECTED
        result = effect.token.to_bytes(8, "big")
        long = world.chance(faults.attempt_is_long)
        delay_ms = world.random.randint(2000, 20_000) if long else world.random.randint(0, 1 if queue == TINY else 300)
        report = io.Reported(effect.token, outcome, result if outcome is Outcome.DONE else b"", ran_ms=float(delay_ms))

        def end() -> None:
            if generation == self._generation and slot in self._slots and jobs and jobs[0] is effect:
                del jobs[0]
                if jobs:
                    self._begin_job(jobs[0])
                self._give(report, generation)

        world.at(delay_ms, end)

    def _lose_slot(self, slot: int, generation: int) -> None:
        if generation == self._generation and slot in self._slots:
            self._end_slot(slot, "the slot's process died: signal 9")

    def _end_slot(self, slot: int, why: str) -> None:
        entry = self._slots.pop(slot, None)
        if entry is None:
            return
        generation = self._generation

        def gone() -> None:
            for job in entry[1][1:]:
                self._give(io.NotStarted(job.token), generation)
            self._give(io.SlotGone(slot, why), generation)
            if generation == self._generation:
                self._next_slot += 1
                self._slots[self._next_slot] = (entry[0], [])
                self._give(io.SlotUp(self._next_slot, entry[0]), generation)

        self.world.at(self.world.random.randint(1, 50), gone)


class SimClient:
    """Submits its jobs one after the other, sends again what has no answer, and cancels some."""

    RESEND_MS = 400

    def __init__(self, world: World, name: str, jobs: int, burst: int) -> None:
        self.world = world
        self.name = name
        self._left = jobs
        self._burst = burst
        self._session: int | None = None
        self._pending: dict[int, bytes] = {}
        self._request = 0
        self._connection: Connection | None = None
        self._heard_ms = world.now_ms
        world.at(1, self._work)

    @property
    def content(self) -> bool:
        return self._left == 0 and not self._pending

    def _work(self) -> None:
        world = self.world
        if self.content:
            return
        if self._connection is None or world.now_ms - self._heard_ms > 3 * self.RESEND_MS:
            self._reconnect()
        elif self._session is not None:
            for _ in range(self._burst):
                if self._left and len(self._pending) < 10 * self._burst:
                    self._submit()
            for request, data in self._pending.items():
                self._say(m.Submit(self._session, request, [data]))
            self._cancel_some(self._session)
        world.at(world.random.randint(1, self.RESEND_MS), self._work)

    def _reconnect(self) -> None:
        world = self.world
        world.drop(self._connection)

        def deliver(message: BrokerMessage) -> None:
            if self._connection is connection:
                self._hear(message)

        connection = world.connect(deliver)
        self._connection, self._session, self._heard_ms = connection, None, world.now_ms
        self._say(m.Hello(1, 1, m.Role.ADMIN, self.name, bytes(16)))

    def _say(self, message: PeerMessage) -> None:
        assert self._connection is not None
        self.world.to_broker(self._connection, message)

    def _submit(self) -> None:
        world = self.world
        self._left -= 1
        self._request += 1
        chosen = world.random
        concurrency_key = chosen.choice(["", "", "c1", "c2"])
        job_id = chosen.randbytes(16)
        spec = JobSpec(
            id=job_id,
            task="t",
            queue=chosen.choice([*QUEUES, *[TINY] * (self._burst // 4)]),
            priority=chosen.randint(0, 9),
            delay_ms=chosen.choice([0, 0, 0, 700]),
            expires_ms=chosen.choice([0, 0, 0, 0, 4000]),
            max_retries=chosen.randint(0, 3),
            backoff_ms=chosen.choice([0, 50, 1000]),
            key=chosen.choice(["", "", "", "k1", "k2"]),
            key_policy=chosen.choice(list(KeyPolicy)),
            concurrency_key=concurrency_key,
            concurrency_limit=2 if concurrency_key == "c2" else 1,
            tags=chosen.choice([(), (), (), ("gpu",)]),
            disk_bytes=(0, 0, DISK_BYTES // 3, DISK_BYTES // 2 + 1)[job_id[0] % 4],
        )
        data = encode_spec(spec)
        self._pending[self._request] = data
        self.world.checker.submitted(spec)

    def _cancel_some(self, session: int) -> None:
        if self.world.chance(self.world.faults.cancel) and self.world.checker.receipts:
            job_id = self.world.random.choice(sorted(self.world.checker.receipts))
            self._say(m.Cancel(session, 1 << 40, [job_id]))

    def _hear(self, message: BrokerMessage) -> None:
        self._heard_ms = self.world.now_ms
        if isinstance(message, m.Welcome):
            self._session = message.session
        elif isinstance(message, m.Refusal):
            self._heard_ms = 0  # unknown session, most likely: begin anew
        elif isinstance(message, m.Receipts) and message.request in self._pending:
            del self._pending[message.request]
            self.world.checker.receipt(message.receipts[0])
