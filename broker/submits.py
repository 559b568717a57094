"""Taking jobs in: each job of a SUBMIT gets one receipt, and what the receipt says is on disk before it is sent."""

from __future__ import annotations

from zq.broker.book import Book
from zq.broker.records import JobRow, due_ms_of
from zq.broker.sessions import Session
from zq.broker.waiting import WaitingRoom
from zq.protocol import limits
from zq.protocol.errors import RETRYABLE, Code
from zq.protocol.job import Cause, KeyPolicy, State, decode_spec, digest, format_id
from zq.protocol.messages import Receipt, ReceiptStatus

RETRY_AFTER_MS = 2000
_NO_ID = bytes(16)
_READY, _SCHEDULED, _ACCEPTED = State.READY, State.SCHEDULED, ReceiptStatus.ACCEPTED  # as in `records`


class Submits:
    def __init__(self, book: Book, room: WaitingRoom) -> None:
        self._book = book
        self._room = room
        self.closed: Code | None = None
        """Why new jobs are refused now (DISK_LOW, STOPPING); None while they are taken."""

    def take(self, session: Session, spec_bytes: bytes, now_ms: int) -> tuple[Receipt, JobRow | None]:
        """Accept one job or say why not. Also returns a job that this one has ended, by taking its key."""
        try:
            spec = decode_spec(spec_bytes)
        except ValueError as error:
            return _refused(_NO_ID, Code.INVALID, str(error)), None
        spec_digest = digest(spec_bytes)
        known = self._book.row(spec.id)
        if known is not None:
            if known.digest == spec_digest:
                return Receipt(spec.id, ReceiptStatus.DUPLICATE, known.state), None
            return _refused(spec.id, Code.CONFLICT, "this job id was used for another job"), None
        refusal = self._refusal(session, spec.queue)
        if refusal is not None:
            return _refused(spec.id, *refusal), None
        replaced: JobRow | None = None
        if spec.key:
            holder = self._book.key_holder(spec.key)
            if holder is not None:
                row = self._book.row(holder)
                assert row is not None
                # A key is one over all queues: what waits where this peer has no business is left alone.
                untouchable = row.state is State.RUNNING or not _may_use(session, row.queue)
                if untouchable or spec.key_policy is KeyPolicy.REFUSE:
                    return Receipt(holder, ReceiptStatus.KEY_TAKEN, row.state), None
                if spec.key_policy is KeyPolicy.RESCHEDULE:
                    row = self._room.move_time(row, due_ms_of(spec, now_ms), now_ms)
                    return Receipt(holder, ReceiptStatus.KEY_TAKEN, row.state), None
                detail = f"replaced by job {format_id(spec.id)}"
                replaced = self._room.end(row, State.CANCELLED, Cause.REPLACE, detail, now_ms)
        row = self._book.accept(spec, spec_bytes, spec_digest, now_ms)
        self._room.enter(row)
        return Receipt(spec.id, _ACCEPTED, row.state, warnings=self._warnings(row)), replaced

    def _warnings(self, row: JobRow) -> list[str]:
        consumers = self._room.queues.get(row.queue).consumers.values()
        if not consumers:
            return [f"no worker serves queue '{row.queue}' now"]
        able = [consumer for consumer in consumers if consumer.tags.issuperset(row.tags)] if row.tags else consumers
        if not able:
            return [f"no worker of queue '{row.queue}' has the tags {', '.join(row.tags)} now"]
        if (row.disk_bytes or row.memory_bytes) and (lack := self._room.queues.headroom.lack(row, able)):
            return [f"it waits for room: {lack}"[: limits.MESSAGE_CHARS_MAX]]
        return []

    def _refusal(self, session: Session, queue: str) -> tuple[Code, str] | None:
        if not _may_use(session, queue):
            return Code.FORBIDDEN, f"this key may not submit to queue '{queue}'"
        if self.closed is not None:
            return self.closed, "the broker takes no new jobs now; acknowledgements go on"
        counts = self._book.counts.get(queue)
        if counts is None:
            if len(self._book.counts) >= limits.QUEUES_MAX:
                return Code.BUSY, f"there are {limits.QUEUES_MAX} queues already"
            return None
        length_max = self._room.queues.get(queue).settings.length_max or limits.LIVE_JOBS_PER_QUEUE_MAX
        if counts.by_state[_READY] + counts.by_state[_SCHEDULED] >= length_max:
            return Code.QUEUE_FULL, f"{length_max} jobs wait in queue '{queue}'"
        return None


def _may_use(session: Session, queue: str) -> bool:
    return session.identity is None or session.identity.may_use(queue)


def _refused(job_id: bytes, code: Code, detail: str) -> Receipt:
    return Receipt(
        job_id,
        ReceiptStatus.REFUSED,
        code=code,
        detail=detail[: limits.MESSAGE_CHARS_MAX],
        retry_after_ms=RETRY_AFTER_MS if code in RETRYABLE else 0,
    )
