"""The worker's session between a broker and slots that do anything at any time, from seeds.

The broker's messages are lost (which breaks the connection or leaves a hole), repeated, and late by up to minutes;
slots finish, fail, die, are over their limits, at random. Then all faults stop. Always: a slot has one job at a time,
a result is offered until the broker has taken it or the lease is lost, and each lease comes to exactly one end.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from functools import partial

import pytest

from zq.protocol import messages as m
from zq.protocol.errors import Code
from zq.protocol.job import JobSpec, Outcome, encode_spec
from zq.protocol.messages import RevokeReason
from zq.workers import session_io as io
from zq.workers.leases import OPEN, Phase
from zq.workers.session import Session, Settings
from zq.workers.stages import Work

QUEUES = {"甲": 3, "b": 1}
HEARTBEAT_MS, TIMEOUT_MS = 500, 3_000
STORM_MS, CALM_MS = 120_000, 90_000


class World:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now_ms = 0
        self.calm = False
        self.session = Session(Settings(instance="w", incarnation=bytes(16), queues=QUEUES), 0)
        self.events: list[tuple[int, int, Callable[[], None]]] = []
        self.counter = 0
        # The broker's side.
        self.link = 0
        self.broker_session = 0
        self.number = 0
        self.credit: dict[str, int] = {}
        self.in_flight: dict[int, str] = {}
        self.taken: dict[int, m.Result] = {}
        self.lost: set[int] = set()
        self.given: set[int] = set()
        # What the session has had and said.
        self.accepted: set[int] = set()
        self.results: dict[int, m.Result] = {}
        # Slots.
        self.slot_queue: dict[int, str] = {}
        self.slot_token: dict[int, int] = {}
        self.slots_ever = 0
        for queue, count in QUEUES.items():
            for _ in range(count):
                self.open_slot(queue)

    # ---------------------------------------------------------------------------------------- time

    def at(self, delay_ms: float, act: Callable[[], None]) -> None:
        self.counter += 1
        heapq.heappush(self.events, (self.now_ms + int(delay_ms), self.counter, act))

    def run_until(self, end_ms: int) -> None:
        while True:
            wake_ms = self.session.wake_ms() if self.session.work is not Work.LEFT else end_ms
            next_ms = min(self.events[0][0] if self.events else end_ms, max(wake_ms, self.now_ms + 1))
            if next_ms >= end_ms:
                self.now_ms = end_ms
                return
            self.now_ms = max(self.now_ms, next_ms)
            while self.events and self.events[0][0] <= self.now_ms:
                heapq.heappop(self.events)[2]()
            self.do(self.session.turn(self.now_ms))
            self.check()

    def tell(self, event: io.Event) -> None:
        self.do(self.session.handle(event, self.now_ms))

    def check(self) -> None:
        for queue, slots in QUEUES.items():
            open_leases = [x for x in self.session.book.all() if x.queue == queue and x.phase in OPEN]
            assert len(open_leases) <= slots
        for token in self.accepted:
            kept = token in self.session.book
            assert kept or token in self.taken or token in self.lost or self.session.work is Work.LEFT

    # ---------------------------------------------------------------------------------------- effects

    def do(self, effects: list[io.Effect]) -> None:
        for effect in effects:
            match effect:
                case io.OpenLink() | io.CloseLink():
                    self.link += 1
                case io.Send(message):
                    link = self.link
                    if self.calm or self.random.random() < 0.97:
                        self.at(self.delay_ms(), partial(self.hear, message, link))
                case io.StartJob(slot, token):
                    assert slot not in self.slot_token, "two jobs in one slot"
                    assert slot in self.slot_queue
                    self.slot_token[slot] = token
                    self.at(self.random.expovariate(1 / 2_000), partial(self.job_ends, slot, token))
                    if self.random.random() < 0.2:
                        self.at(self.random.randrange(2_000), partial(self.tell, io.HoldAsked(token)))
                case io.EndSlot(slot):
                    self.at(self.random.randrange(3_000), partial(self.slot_dies, slot))
                case _:
                    pass

    def delay_ms(self) -> float:
        slow = 0 if self.calm else self.random.random()
        return self.random.randrange(20) + (self.random.randrange(20_000) if slow > 0.995 else 0)

    # ---------------------------------------------------------------------------------------- slots

    def open_slot(self, queue: str) -> None:
        self.slots_ever += 1
        slot = self.slots_ever
        self.slot_queue[slot] = queue
        self.at(self.random.randrange(500), partial(self.tell, io.SlotUp(slot, queue)))

    def slot_dies(self, slot: int) -> None:
        queue = self.slot_queue.pop(slot, None)
        if queue is not None:
            self.slot_token.pop(slot, None)
            self.tell(io.SlotGone(slot, "died"))
            self.open_slot(queue)

    def job_ends(self, slot: int, token: int) -> None:
        if self.slot_token.get(slot) != token:
            return
        dice = 0.5 if self.calm else self.random.random()
        if dice < 0.05:
            self.slot_dies(slot)
        elif dice < 0.1:
            self.tell(io.Overrun(token, "over"))
        elif dice < 0.12:
            del self.slot_token[slot]
            self.tell(io.NotStarted(token))
            self.slot_dies(slot)
        else:
            del self.slot_token[slot]
            if dice < 0.2:
                self.tell(io.SlotClosing(slot))
                self.at(50, partial(self.slot_dies, slot))
            self.tell(io.Reported(token, self.random.choice([Outcome.DONE, Outcome.FAILED, Outcome.REJECTED, None])))

    # ---------------------------------------------------------------------------------------- the broker

    def say(self, message: m.BrokerMessage) -> None:
        """In order within a link; what is lost breaks it, or is missing without a word."""
        link, dice = self.link, 1.0 if self.calm else self.random.random()
        if dice < 0.01:
            self.at(5, lambda: self.tell(io.LinkBroken("cut")) if link == self.link else None)
            return
        if dice < 0.02:
            return
        for _ in range(2 if dice < 0.04 else 1):
            self.at(1, partial(self.deliver, message, link))

    def deliver(self, message: m.BrokerMessage, link: int) -> None:
        if link != self.link:
            return
        ours = getattr(message, "session", None) == self.session.uplink.session
        if isinstance(message, m.Resumed) and ours:
            self.lost.update(message.lost)
        if isinstance(message, m.Revoke) and ours and message.reason is RevokeReason.STALE:
            self.lost.update(message.tokens)
        if isinstance(message, m.Acked) and ours:
            self.lost.update(message.stale)
        self.do(self.session.handle(message, self.now_ms))
        if isinstance(message, m.Dispatch) and ours and message.number <= self.session.uplink.dispatches_seen:
            self.accepted.update(lease.token for lease in message.leases if lease.token not in self.lost)

    def hear(self, message: m.PeerMessage, link: int) -> None:
        if link != self.link:
            return
        if isinstance(message, m.Hello):
            self.broker_session, self.number, self.credit = self.random.getrandbits(60), 0, {}
            self.say(m.Welcome(self.broker_session, 1, 1, HEARTBEAT_MS, TIMEOUT_MS))
            return
        assert not isinstance(message, m.Submit)
        if message.session != self.broker_session or (not self.calm and self.random.random() < 0.005):
            self.say(m.Refusal(0, Code.UNKNOWN_SESSION, ""))
            return
        match message:
            case m.Resume(session, claims):
                named = {claim.token for claim in claims}
                self.lost.update(set(self.in_flight) - named)
                held = [token for token in named if token in self.in_flight and self.random.random() < 0.9]
                lost = [token for token in named if token not in held]
                self.in_flight = {token: self.in_flight[token] for token in held}
                self.say(m.Resumed(session, held, lost))
            case m.Credit(_, limits):
                self.credit = {item.queue: item.slots for item in limits}
            case m.Ack(session, results):
                self.take(session, results)
            case m.Hold(_, request, _, token):
                self.say(m.Held(request, token in self.in_flight))
            case m.Beat(session):
                self.say(m.BeatOk(session))
            case _:
                pass
        self.dispatch()

    def take(self, session: int, results: list[m.Result]) -> None:
        accepted: list[int] = []
        stale: list[int] = []
        for result in results:
            # Whatever is said of a lease, it is said the same each time.
            assert self.results.setdefault(result.token, result) == result
            if result.token in self.in_flight:
                del self.in_flight[result.token]
                self.taken[result.token] = result
            (accepted if result.token in self.taken else stale).append(result.token)
        self.say(m.Acked(session, accepted, stale))

    def dispatch(self) -> None:
        if self.calm:
            return
        leases = []
        for queue, limit in self.credit.items():
            while sum(1 for q in self.in_flight.values() if q == queue) < limit:
                token = self.random.getrandbits(62)
                job_id = self.random.randrange(6).to_bytes(16, "big")
                spec = JobSpec(id=job_id, task="t", queue=queue)
                leases.append(m.Lease(job_id, 1, token, encode_spec(spec)))
                self.in_flight[token] = queue
                self.given.add(token)
        if leases:
            self.number += 1
            self.say(m.Dispatch(self.broker_session, self.number, leases))
        running = [token for token in self.in_flight if token in self.accepted]
        if running and self.random.random() < 0.05:
            token = self.random.choice(running)
            reason = self.random.choice(list(RevokeReason))
            if reason is RevokeReason.STALE:
                del self.in_flight[token]
            self.say(m.Revoke(self.broker_session, [token], reason))


@pytest.mark.parametrize("seed", range(12))
def test_each_lease_comes_to_one_end_and_no_result_is_dropped(seed: int) -> None:
    world = World(seed)
    world.run_until(STORM_MS)
    world.calm = True
    world.run_until(STORM_MS + CALM_MS)
    assert len(world.accepted) > 50, "the storm let nothing through: the test would prove nothing"
    assert world.lost
    assert world.taken
    for token in world.accepted:
        assert token in world.taken or token in world.lost
    assert not [held for held in world.session.book.all() if held.phase is not Phase.ENDED]
    assert len(world.session.book) == 0


@pytest.mark.parametrize("seed", range(4))
def test_a_drain_in_the_middle_ends_and_hands_everything_over(seed: int) -> None:
    world = World(1000 + seed)
    world.run_until(20_000)
    world.calm = True
    world.run_until(40_000)
    world.calm = False
    world.run_until(50_000)
    world.calm = True
    world.tell(io.DrainAsked())
    world.run_until(50_000 + 60_000)
    assert world.session.work is Work.LEFT
    assert all(token in world.taken or token in world.lost for token in world.accepted)
