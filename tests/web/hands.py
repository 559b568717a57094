"""A worker in the test's own hands: takes jobs of a queue and ends them as it is told."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import zmq

import zq.protocol.messages as m
from tests.broker.process import Peer
from zq.protocol.job import Outcome
from zq.protocol.messages import Role


class Hands:
    def __init__(self, peer: Peer, queue: str, slots: int, tags: Sequence[str]) -> None:
        self.peer = peer
        queues = [m.QueueSlots(queue, slots)]
        name = f"hands-{uuid.uuid4().hex[:8]}"
        welcome = peer.ask(m.Hello(1, 1, Role.WORKER, name, os.urandom(16), queues, [], "", list(tags)))
        self.session: int = welcome.session
        assert isinstance(peer.ask(m.Resume(self.session, [])), m.Resumed)
        peer.send(m.Credit(self.session, queues))

    def take(self) -> m.Lease:
        """The next job."""
        answer: Any = self.peer.hear()
        assert isinstance(answer, m.Dispatch), answer
        (lease,) = answer.leases
        return lease

    def end(self, lease: m.Lease, outcome: Outcome = Outcome.DONE, error: str = "") -> None:
        result = m.Result(lease.job_id, lease.attempt, lease.token, outcome, error=error)
        answer = self.peer.ask(m.Ack(self.session, [result]))
        while isinstance(answer, m.Dispatch):
            answer = self.peer.hear()
        assert answer.accepted == [lease.token]

    def progress(self, lease: m.Lease, done: float, total: float, message: str) -> None:
        self.peer.send(m.Progress(self.session, [m.JobProgress(lease.job_id, lease.token, done, total, message)]))


@contextlib.contextmanager
def hands(broker_port: int, queue: str, slots: int = 1, tags: Sequence[str] = ()) -> Iterator[Hands]:
    context: zmq.Context[Any] = zmq.Context()
    peer = Peer(context, f"tcp://127.0.0.1:{broker_port}")
    try:
        made = Hands(peer, queue, slots, tags)
        yield made
        peer.send(m.Bye(made.session))
    finally:
        peer.socket.close(linger=500)
        context.term()


def kill_jobs(broker_port: int, queue: str, errors: Sequence[str]) -> None:
    """The next jobs of the queue become dead letters, each with the error of its place."""
    with hands(broker_port, queue) as worker:
        for error in errors:
            worker.end(worker.take(), Outcome.REJECTED, error)
