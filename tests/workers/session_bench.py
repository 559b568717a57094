"""A worker's session with its time, and a broker that says what a test says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from zq.protocol import messages as m
from zq.protocol.job import JobSpec, Outcome, encode_spec
from zq.workers import session_io as io
from zq.workers.session import Session, Settings
from zq.workers.uplink import Link

T = TypeVar("T")
HEARTBEAT_MS, TIMEOUT_MS = 2_000, 15_000


def of(kind: type[T], effects: Sequence[io.Effect]) -> list[T]:
    """The effects of a kind, or the messages of a kind that are sent."""
    sent = [effect.message for effect in effects if isinstance(effect, io.Send)]
    return [item for item in (*effects, *sent) if isinstance(item, kind)]


def one(kind: type[T], effects: Sequence[io.Effect]) -> T:
    found = of(kind, effects)
    assert len(found) == 1, (kind, effects)
    return found[0]


def spec(job: int = 1, *, queue: str = "q") -> JobSpec:
    return JobSpec(id=job.to_bytes(16, "big"), task="t", queue=queue)


def lease(token: int, *, job: int | None = None, queue: str = "q", attempt: int = 1) -> m.Lease:
    job = token if job is None else job
    return m.Lease(job.to_bytes(16, "big"), attempt, token, encode_spec(spec(job, queue=queue)))


class Bench:
    """A session, its time, and a broker that says what the test says."""

    def __init__(self, slots: int = 2, *, up: bool = True, queues: dict[str, int] | None = None) -> None:
        self.now_ms = 1_000
        settings = Settings(instance="w", incarnation=b"i" * 16, queues=queues or {"q": slots}, tasks=("t",))
        self.session = Session(settings, self.now_ms)
        self.session_id = 0
        self.dispatches = 0
        if up:
            for number in range(1, slots + 1):
                self.tell(io.SlotUp(number, "q"))

    def tell(self, *events: m.BrokerMessage | io.Event) -> list[io.Effect]:
        """The effects of these and of the turn that follows."""
        effects = [effect for event in events for effect in self.session.handle(event, self.now_ms)]
        return effects + self.session.turn(self.now_ms)

    def later(self, ms: int) -> list[io.Effect]:
        self.now_ms += ms
        return self.session.turn(self.now_ms)

    def welcome(self) -> list[io.Effect]:
        """Greet, and be welcomed."""
        while self.session.uplink.link is not Link.GREETING:
            self.now_ms = max(self.now_ms, self.session.wake_ms())
            self.session.turn(self.now_ms)
        self.session_id += 1
        self.dispatches = 0
        return self.tell(m.Welcome(self.session_id, 1, 7, HEARTBEAT_MS, TIMEOUT_MS))

    def dispatch(self, *leases: m.Lease) -> list[io.Effect]:
        self.dispatches += 1
        return self.tell(m.Dispatch(self.session_id, self.dispatches, list(leases)))

    def report(self, token: int, outcome: Outcome | None = Outcome.DONE) -> list[io.Effect]:
        return self.tell(io.Reported(token, outcome))

    def acked(self, *tokens: int) -> list[io.Effect]:
        return self.tell(m.Acked(self.session_id, list(tokens), []))
