"""What clients and operators order done to jobs and queues that are already here. Each item gets its own answer."""

from __future__ import annotations

from msgspec.structs import replace

import zq.protocol.messages as m
from zq.broker.book import Book
from zq.broker.leases import Lease, Leases
from zq.broker.queues import settings_fact
from zq.broker.records import JobRow
from zq.broker.sessions import Session
from zq.broker.waiting import WaitingRoom
from zq.protocol.errors import Code
from zq.protocol.job import ENDED, Cause, State


class Orders:
    def __init__(self, book: Book, room: WaitingRoom, leases: Leases) -> None:
        self._book = book
        self._room = room
        self._leases = leases

    def _reachable(self, session: Session, job_id: bytes) -> JobRow | None:
        """The job, if it is there and the session's key may use its queue."""
        row = self._book.row(job_id)
        if row is not None and session.identity is not None and not session.identity.may_use(row.queue):
            return None
        return row

    def cancel(self, session: Session, job_id: bytes, now_ms: int) -> tuple[m.Change, JobRow | None, Lease | None]:
        """Cancel a job: (answer, the row if it ended at once, the lease that must be revoked if it runs).

        A running one is asked to stop; whichever is committed first decides, its worker's word that it has stopped
        or its result.
        """
        row = self._reachable(session, job_id)
        if row is None:
            return m.Change(job_id, Code.NOT_FOUND, None), None, None
        if row.state in ENDED:
            code = None if row.state is State.CANCELLED else Code.NOT_ALLOWED
            return m.Change(job_id, code, row.state), None, None
        if row.state is State.RUNNING:
            lease = self._leases.by_token[row.token]
            self._leases.ask_cancel(lease, f"asked by {session.instance}", now_ms)
            return m.Change(job_id, None, State.RUNNING), None, lease
        ended = self._room.end(row, State.CANCELLED, Cause.CANCEL, f"cancelled by {session.instance}", now_ms)
        return m.Change(job_id, None, State.CANCELLED), ended, None

    def retry(self, session: Session, job_id: bytes, now_ms: int) -> m.Change:
        """Run a dead, cancelled or expired job again; its old attempts do not count any more."""
        row = self._reachable(session, job_id)
        if row is None:
            return m.Change(job_id, Code.NOT_FOUND, None)
        if row.state not in ENDED or row.state is State.DONE:
            return m.Change(job_id, Code.NOT_ALLOWED, row.state)
        if row.key and self._book.key_holder(row.key) is not None:
            return m.Change(job_id, Code.CONFLICT, row.state)
        after = replace(
            row, state=State.READY, uncounted=row.attempt, ended_ms=0, error="", expires_at_ms=0, cancel_asked=False,
            worker="", admitted=not row.concurrency_key,
        )  # fmt: skip
        by = f"asked by {session.instance}"
        self._room.enter(self._book.move(row, after, Cause.OPERATOR_RETRY, now_ms, detail=by))
        return m.Change(job_id, None, State.READY)

    def drop(self, session: Session, job_id: bytes) -> m.Change:
        """Forget an ended job now. It stays in the counts."""
        row = self._reachable(session, job_id)
        if row is None:
            return m.Change(job_id, Code.NOT_FOUND, None)
        if row.state not in ENDED:
            return m.Change(job_id, Code.NOT_ALLOWED, row.state)
        if not self._book.forget(row):
            return m.Change(job_id, Code.BUSY, row.state)
        return m.Change(job_id, None, None)

    def set_queue(self, session: Session, order: m.SetQueue, now_ms: int) -> None:
        """Change a queue's settings, durable with this round's commit."""
        queue = self._room.queues.get(order.queue)
        given = {
            name: value
            for name in ("paused", "rate_per_s", "running_max", "length_max")
            if (value := getattr(order, name)) is not None
        }
        queue.settings = replace(queue.settings, **given)
        if order.rate_per_s is not None:
            queue.next_dispatch_ms = 0.0
        name, value = settings_fact(order.queue, queue.settings)
        self._book.facts[name] = value
        changes = ", ".join(f"{key} {value}" for key, value in given.items())
        self._book.note_queue(order.queue, Cause.QUEUE_SET, now_ms, f"{changes}, by {session.instance}")
