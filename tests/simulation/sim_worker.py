"""A worker in the simulator: the real session, with slots that are entries in a dict."""

from __future__ import annotations

from typing import TYPE_CHECKING

import zq.protocol.messages as m
from tests.simulation.checker import DISK_BYTES
from zq.protocol.job import Outcome
from zq.protocol.messages import BrokerMessage
from zq.workers import session as worker_session
from zq.workers import session_io as io

if TYPE_CHECKING:
    from tests.simulation.world import Connection, World

QUEUES = {"merge": 2, "status": 1}
TINY = "status"


class SimWorker:
    """A slot's process outlives a frozen parent."""

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
            instance=self.name, incarnation=world.random.randbytes(16), queues=QUEUES, tasks=("t",), tags=self.tags,
            drain_ms=2000,
        )  # fmt: skip
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

    def drain(self) -> None:
        """SIGTERM: it finishes what it has, or hands it back, and exits; the supervisor starts it again."""
        if self._generation >= 0:
            self._give(io.DrainAsked(), self._generation)

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
                if isinstance(effect.message, m.Ack):
                    self.world.checker.answered(effect.message.results)
                if self._connection is not None:
                    self.world.to_broker(self._connection, effect.message)
            elif isinstance(effect, io.Leave):
                self.die()
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

        connection = self._connection = self.world.connect(self.name, deliver)

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
