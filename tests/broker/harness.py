"""A broker's core with a journal and hand-made peers: messages in, messages out, no sockets and no clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from msgspec.structs import replace

import zq.protocol.messages as m
from zq.broker.core import Core, Settings
from zq.broker.journal import Journal
from zq.broker.memory_journal import MemoryJournal
from zq.broker.records import JobRow
from zq.broker.sessions import Identity
from zq.protocol.job import JobSpec, Outcome, State, encode_spec, job_id_from
from zq.protocol.messages import BrokerMessage, PeerMessage, Role

T = TypeVar("T")


class Harness:
    """`reopen` gives the journal of the first broker, and again that of each further one; without it, one in memory."""

    def __init__(self, settings: Settings | None = None, reopen: Callable[[], Journal] | None = None) -> None:
        self.settings = settings or Settings(
            heartbeat_ms=1000, session_timeout_ms=4000, resume_grace_ms=6000, retention_ms=100_000,
            result_ttl_ms=50_000,
        )
        self._reopen = reopen if reopen is not None else MemoryJournal().reopen
        self.journal: Journal = self._reopen()
        self.now_ms = 1_000_000
        self.identities: dict[str, Identity] = {}
        self.out: list[tuple[str, BrokerMessage]] = []
        self.core = Core(self.journal, self.journal.epoch, self.now_ms, self.settings)

    def restart(self) -> None:
        """The broker dies and starts again on what was committed."""
        self.journal = self._reopen()
        self.core = Core(self.journal, self.journal.epoch, self.now_ms, self.settings)

    def say(self, peer: str, *messages: PeerMessage) -> list[BrokerMessage]:
        """Messages of one peer in one round; what the broker then sends to that peer."""
        for message in messages:
            self.core.receive(peer.encode(), self.identities.get(peer), message, self.now_ms)
        return [message for name, message in self.round() if name == peer]

    def round(self, later_ms: int = 0) -> list[tuple[str, BrokerMessage]]:
        self.now_ms += later_ms
        self.core.advance(self.now_ms)
        batch = self.core.batch()
        self.journal.commit(batch.steps, self.now_ms, batch.notes)
        events = self.core.committed(self.now_ms)
        sent = [(name.decode(), message) for name, message in [*batch.sends, *events]]
        self.out += sent
        return sent

    def row(self, job_id: bytes) -> JobRow:
        row = self.journal.row(job_id)
        assert row is not None
        return row

    def state(self, job_id: bytes) -> State:
        return self.row(job_id).state

    # ------------------------------------------------------------------------------------------ peers

    def client(self, peer: str = "client", role: Role = Role.ADMIN) -> int:
        return one(self.say(peer, m.Hello(1, 1, role, peer, bytes(16))), m.Welcome).session

    def worker(
        self,
        peer: str = "worker",
        slots: int = 1,
        *,
        queue: str = "q",
        name: str = "",
        claims: Any = (),
        inc: int = 0,
        tags: tuple[str, ...] = (),
    ) -> Worker:
        incarnation = inc.to_bytes(16, "big")
        hello = m.Hello(
            1, 1, Role.WORKER, name or peer, incarnation, [m.QueueSlots(queue, slots)], ["t"], "", list(tags)
        )
        session = one(self.say(peer, hello), m.Welcome).session
        worker = Worker(self, peer, session, queue)
        worker.resumed = one(worker.hear(m.Resume(session, list(claims))), m.Resumed)
        worker.hear(m.Credit(session, [m.QueueSlots(queue, slots)]))
        return worker

    def ask(self, kind: type[T], message: PeerMessage) -> T:
        """What an admin is answered; `message` carries any session."""
        session = self.client("asker")
        return one(self.say("asker", replace(message, session=session)), kind)

    def submit(self, name: str, session: int | None = None, **options: Any) -> bytes:
        """Submit one job from `client`; its id. The job is made from its name, so the same name is the same job."""
        self.submit_receipt(name, session, **options)
        return job_id_from(name)

    def submit_receipt(self, name: str, session: int | None = None, **options: Any) -> m.Receipt:
        spec = JobSpec(job_id_from(name), "t", **{"queue": "q", "backoff_ms": 1000, **options})
        if session is None:
            session = self.client()
        return one(self.say("client", m.Submit(session, 1, [encode_spec(spec)])), m.Receipts).receipts[0]


class Worker:
    def __init__(self, harness: Harness, peer: str, session: int, queue: str) -> None:
        self.harness = harness
        self.peer = peer
        self.session = session
        self.queue = queue
        self.resumed: m.Resumed | None = None

    def hear(self, *messages: PeerMessage) -> list[BrokerMessage]:
        return self.harness.say(self.peer, *messages)

    def leases(self) -> list[m.Lease]:
        """Every lease this worker was ever sent."""
        return [
            lease
            for name, message in self.harness.out
            if name == self.peer and isinstance(message, m.Dispatch)
            for lease in message.leases
        ]

    def lease(self) -> m.Lease:
        return self.leases()[-1]

    def ack(self, lease: m.Lease, outcome: Outcome = Outcome.DONE, **fields: Any) -> m.Acked:
        result = m.Result(lease.job_id, lease.attempt, lease.token, outcome, **fields)
        return one(self.hear(m.Ack(self.session, [result])), m.Acked)

    def beat(self, *tokens: int, seen: int = 1) -> list[BrokerMessage]:
        return self.hear(m.Beat(self.session, seen, list(tokens)))


def one(messages: list[BrokerMessage], kind: type[T]) -> T:
    found = [message for message in messages if isinstance(message, kind)]
    assert len(found) == 1, f"one {kind.__name__} was expected: {messages}"
    return found[0]
