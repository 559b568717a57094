"""The worker's session between a broker and slots that do anything at any time, from seeds.

The broker's messages are lost (which breaks the connection or leaves a hole), repeated, and late by up to minutes;
slots finish, fail, die, are over their limits, at random. Jobs of one queue are tiny, so that its slots get many at
once. Then all faults stop. Always: a slot runs one job at a time, nothing stays behind a slow one, a result is offered
until the broker has taken it or the lease is lost, and each lease comes to exactly one end.
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
from zq.workers.pace import DEPTH_MAX, SLOW_MS
from zq.workers.session import Session, Settings
from zq.workers.stages import Work

QUEUES = {"甲": 3, "b": 2}
TINY = "b"
REPORT_MS = 3
"""How late the session may hear that a job has ended; the slot has begun its next one meanwhile."""
HEARTBEAT_MS, TIMEOUT_MS = 500, 3_000
STORM_MS, CALM_MS = 40_000, 90_000


class World:
    def __init__(self, seed: int) -> None:
        self.way_ms = 3 if seed % 2 else 20
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
        self.slot_tokens: dict[int, list[int]] = {}
        """What each has not ended; the first is begun."""
        self.begun_ms: dict[int, int] = {}
        self.unheard: dict[int, list[io.Event]] = {}
        self.dying: set[int] = set()
        self.jobs_left: dict[int, int] = {}
        self.deepest = 0
        self.taken_back = 0
        self.most: dict[str, int] = dict(QUEUES)
        """The largest credit announced."""
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
            assert len(open_leases) <= max(slots, self.most[queue])
        for slot, tokens in self.slot_tokens.items():
            self.deepest = max(self.deepest, len(tokens))
            assert len(tokens) <= DEPTH_MAX
            if len(tokens) > 1 and slot not in self.dying:
                assert self.now_ms - self.begun_ms[slot] <= SLOW_MS + REPORT_MS, "a job waits behind a slow one"
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
                    if isinstance(message, m.Credit | m.Beat):
                        limits = message.limits if isinstance(message, m.Credit) else message.credit
                        for item in limits:
                            self.most[item.queue] = max(item.slots, self.most[item.queue])
                    if self.calm or self.random.random() < 0.97:
                        self.at(self.delay_ms(), partial(self.hear, message, link))
                case io.StartJob(slot, token):
                    if slot not in self.slot_queue:
                        self.tell(io.NotStarted(token))
                        continue
                    self.slot_tokens[slot].append(token)
                    if len(self.slot_tokens[slot]) == 1:
                        self.begin(slot)
                case io.TakeBack(slot):
                    tokens = self.slot_tokens.get(slot, [])
                    taken = tuple(tokens[1:])
                    del tokens[1:]
                    self.taken_back += len(taken)
                    self.tell(io.TakenBack(slot, taken))
                case io.EndSlot(slot):
                    self.dying.add(slot)
                    self.at(self.random.randrange(3_000), partial(self.slot_dies, slot))
                case _:
                    pass

    def delay_ms(self) -> float:
        slow = 0 if self.calm else self.random.random()
        return self.random.randrange(self.way_ms) + (self.random.randrange(20_000) if slow > 0.995 else 0)

    # ---------------------------------------------------------------------------------------- slots

    def open_slot(self, queue: str) -> None:
        self.slots_ever += 1
        slot = self.slots_ever
        self.slot_queue[slot] = queue
        self.slot_tokens[slot], self.unheard[slot] = [], []
        jobs_max = self.random.choice([0, 0, 40])
        self.jobs_left[slot] = jobs_max
        self.at(self.random.randrange(500), partial(self.tell, io.SlotUp(slot, queue, jobs_max)))

    def begin(self, slot: int) -> None:
        """The slot takes the ticket of its next job."""
        token = self.slot_tokens[slot][0]
        self.begun_ms[slot] = self.now_ms
        tiny = self.slot_queue[slot] == TINY and self.random.random() < 0.98
        run_ms = self.random.randrange(2) if tiny else self.random.expovariate(1 / 2_000)
        self.at(run_ms, partial(self.job_ends, slot, token, tiny))
        if self.random.random() < 0.2 and not tiny:
            self.at(self.random.randrange(2_000), partial(self.tell, io.HoldAsked(token)))

    def hear_slot(self, slot: int) -> None:
        while self.unheard.get(slot):
            self.tell(self.unheard[slot].pop(0))

    def slot_dies(self, slot: int) -> None:
        queue = self.slot_queue.pop(slot, None)
        if queue is not None:
            self.hear_slot(slot)
            for token in self.slot_tokens.pop(slot)[1:]:
                self.tell(io.NotStarted(token))
            self.dying.discard(slot)
            self.tell(io.SlotGone(slot, "died"))
            self.open_slot(queue)

    def job_ends(self, slot: int, token: int, tiny: bool) -> None:
        tokens = self.slot_tokens.get(slot)
        if not tokens or tokens[0] != token:
            return
        dice = 0.5 if self.calm or (tiny and self.random.random() < 0.98) else self.random.random()
        if dice < 0.05:
            self.slot_dies(slot)
            return
        if dice < 0.1:
            self.hear_slot(slot)
            self.tell(io.Overrun(token, "over"))
            return
        del tokens[0]
        outcome = self.random.choice([Outcome.DONE, Outcome.FAILED, Outcome.REJECTED, None])
        self.unheard[slot].append(io.Reported(token, outcome, ran_ms=0.2 if tiny else None))
        self.jobs_left[slot] -= 1
        if tokens:
            assert self.jobs_left[slot], "a slot has more jobs than it may"
            self.begin(slot)
        elif dice < 0.2 or not self.jobs_left[slot]:
            self.unheard[slot].insert(-1, io.SlotClosing(slot))
            self.at(50, partial(self.slot_dies, slot))
        self.at(self.random.randrange(REPORT_MS), partial(self.hear_slot, slot))

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
                job_id = self.random.randrange(500 if queue == TINY else 6).to_bytes(16, "big")
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
    assert world.deepest > 8, "no slot had many jobs: the test would prove little"
    assert world.taken_back > 8
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
