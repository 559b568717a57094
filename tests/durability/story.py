"""A short life of a broker, told from outside: what it was asked, and what it said before it died."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import TypeVar

import zq.protocol.messages as m
from tests.broker.process import Broker, Connect, Peer, job
from zq.broker.check import check
from zq.broker.lmdb_view import open_to_read
from zq.protocol.job import Outcome, State, job_id_from
from zq.protocol.messages import BrokerMessage, PeerMessage, ReceiptStatus, Role

T = TypeVar("T", bound=BrokerMessage)
QUEUE = [m.QueueSlots("q", 2)]
NAMES = ("a", "b", "later", "d", "e")


class Died(Exception):
    """The broker has gone, and said no more."""


@dataclass
class Told:
    """What the broker has said; all of it must hold for ever."""

    accepted: set[bytes] = field(default_factory=set)
    dispatched: dict[bytes, int] = field(default_factory=dict)
    """job → its newest attempt."""
    results: dict[bytes, Outcome] = field(default_factory=dict)
    """Words that were acknowledged."""
    cancelled: set[bytes] = field(default_factory=set)
    ended: bool = False
    """The whole story was told."""


class Story:
    """Submits, works, cancels and stops, until it is done or the broker dies."""

    def __init__(self, broker: Broker, connect: Connect) -> None:
        self.told = Told()
        self._broker = broker
        self._connect = connect
        self._peers: list[Peer] = []

    def play(self) -> Told:
        """The broker has been started. Its process has ended when this returns."""
        try:
            self._play()
            assert self._broker.process is not None
            self._broker.process.send_signal(signal.SIGTERM)
            self.told.ended = True
        except Died:
            pass
        finally:
            # Left open, each would try to reach the dead broker until the test's end, fifty times a second.
            for peer in self._peers:
                peer.socket.close()
        return self.told

    def _peer(self) -> Peer:
        self._peers.append(self._connect(self._broker.address))
        return self._peers[-1]

    def _play(self) -> None:
        client = self._peer()
        session = self._ask(client, m.Hello(1, 1, Role.ADMIN, "client", bytes(16)), m.Welcome).session
        first = [job("a"), job("b", key="合并:1"), job("later", delay_ms=3_600_000)]
        self._submit(client, session, first)
        worker = self._peer()
        hello = m.Hello(1, 1, Role.WORKER, "worker", bytes(16), QUEUE, ["t"])
        work = self._ask(worker, hello, m.Welcome).session
        self._ask(worker, m.Resume(work, []), m.Resumed)
        leases = self._dispatched(worker, m.Credit(work, QUEUE), 2)
        self._submit(client, session, [job("d", arguments=b"\x92\x90\x80" + bytes(9000)), job("e")])
        self._finish(worker, work, leases[0], Outcome.DONE, result=b"\x01" * 5000)
        self._finish(worker, work, leases[1], Outcome.FAILED, error="它坏了")
        later = job_id_from("later")
        if self._ask(client, m.Cancel(session, 3, [later]), m.Changed).changes[0].state is State.CANCELLED:
            self.told.cancelled.add(later)

    def _submit(self, client: Peer, session: int, jobs: list[bytes]) -> None:
        for receipt in self._ask(client, m.Submit(session, 1, jobs), m.Receipts).receipts:
            assert receipt.status is ReceiptStatus.ACCEPTED
            self.told.accepted.add(receipt.job_id)

    def _dispatched(self, worker: Peer, message: PeerMessage, count: int) -> list[m.Lease]:
        worker.send(message)
        leases: list[m.Lease] = []
        while len(leases) < count:
            leases += self._hear(worker, m.Dispatch).leases
        for lease in leases:
            self.told.dispatched[lease.job_id] = lease.attempt
        return leases

    def _finish(
        self, worker: Peer, work: int, lease: m.Lease, outcome: Outcome, *, result: bytes = b"", error: str = ""
    ) -> None:
        word = m.Result(lease.job_id, lease.attempt, lease.token, outcome, result=result, error=error)
        if lease.token in self._ask(worker, m.Ack(work, [word]), m.Acked).accepted:
            self.told.results[lease.job_id] = outcome

    def _ask(self, peer: Peer, message: PeerMessage, kind: type[T]) -> T:
        peer.send(message)
        return self._hear(peer, kind)

    def _hear(self, peer: Peer, kind: type[T]) -> T:
        """The next message of this kind; the others, which may come in between, are noted or of no interest."""
        assert self._broker.process is not None
        while True:
            gone = self._broker.process.poll() is not None
            message = peer.hear(100)
            if isinstance(message, kind):
                return message
            if isinstance(message, m.Dispatch):
                for lease in message.leases:
                    self.told.dispatched[lease.job_id] = lease.attempt
            if message is None and gone:
                raise Died


def all_holds(broker: Broker, connect: Connect, told: Told) -> None:
    """Start the broker again, and find everything that was ever said; it must be a broker in full health."""
    broker.start()
    peer = connect(broker.address)
    try:
        session = peer.hello().session
        for job_id in told.accepted:
            found = peer.ask(m.AskJob(session, 1, job_id))
            assert isinstance(found, m.JobDetail), "an accepted job is gone"
            _job_holds(found.job, told)
        names = [name for name in NAMES if job_id_from(name) in told.accepted]
        again = peer.ask(m.Submit(session, 2, [job("new")])).receipts[0]
        assert again.status is ReceiptStatus.ACCEPTED
        queues = {queue.name: queue for queue in peer.ask(m.AskQueues(session, 1)).queues}
        assert queues["q"].accepted >= len(names) + 1
        with open_to_read(broker.folder / "journal", shared=True) as reader:
            assert check(reader) == []
        code, log = broker.end(signal.SIGTERM)
        assert code == 0, log
    finally:
        peer.socket.close()
        if broker.process is not None and broker.process.poll() is None:
            broker.process.kill()
            broker.wait()


def _job_holds(found: m.JobInfo, told: Told) -> None:
    assert found.attempt >= told.dispatched.get(found.id, 0), "a dispatch was forgotten"
    if found.id in told.cancelled:
        assert found.state is State.CANCELLED
    outcome = told.results.get(found.id)
    if outcome is Outcome.DONE:
        assert found.state is State.DONE
    elif outcome is Outcome.FAILED:
        assert found.state is State.SCHEDULED
