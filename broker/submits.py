"""Taking jobs in: each job of a SUBMIT gets one receipt, and what the receipt says is on disk before it is sent."""

from __future__ import annotations

from zq.broker.book import Book
from zq.broker.queues import Queues
from zq.broker.records import JobRow
from zq.broker.sessions import Session
from zq.protocol import limits
from zq.protocol.errors import RETRYABLE, Code
from zq.protocol.job import State, decode_spec, digest
from zq.protocol.messages import Receipt, ReceiptStatus

RETRY_AFTER_MS = 2000
_NO_ID = bytes(16)


class Submits:
    def __init__(self, book: Book, queues: Queues) -> None:
        self._book = book
        self._queues = queues
        self.closed: Code | None = None
        """Why new jobs are refused now (DISK_LOW, STOPPING); None while they are taken."""

    def take(self, session: Session, spec_bytes: bytes, now_ms: int) -> tuple[Receipt, JobRow | None]:
        """Accept one job or say why not; the new row if there is one."""
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
        if spec.key:
            holder = self._book.key_holder(spec.key)
            if holder is not None:
                row = self._book.row(holder)
                return Receipt(holder, ReceiptStatus.KEY_TAKEN, row.state if row is not None else None), None
        row = self._book.accept(spec, spec_bytes, spec_digest, now_ms)
        warnings: list[str] = []
        if not self._queues.get(spec.queue).consumers:
            warnings.append(f"no worker serves queue '{spec.queue}' now")
        return Receipt(spec.id, ReceiptStatus.ACCEPTED, row.state, warnings=warnings), row

    def _refusal(self, session: Session, queue: str) -> tuple[Code, str] | None:
        if session.identity is not None and not session.identity.may_use(queue):
            return Code.FORBIDDEN, f"this key may not submit to queue '{queue}'"
        if self.closed is not None:
            return self.closed, "the broker takes no new jobs now; acknowledgements go on"
        counts = self._book.counts.get(queue)
        if counts is None:
            if len(self._book.counts) >= limits.QUEUES_MAX:
                return Code.BUSY, f"there are {limits.QUEUES_MAX} queues already"
        elif counts.by_state[State.READY] + counts.by_state[State.SCHEDULED] >= limits.LIVE_JOBS_PER_QUEUE_MAX:
            return Code.QUEUE_FULL, f"{limits.LIVE_JOBS_PER_QUEUE_MAX} jobs wait in queue '{queue}'"
        return None


def _refused(job_id: bytes, code: Code, detail: str) -> Receipt:
    return Receipt(
        job_id,
        ReceiptStatus.REFUSED,
        code=code,
        detail=detail[: limits.MESSAGE_CHARS_MAX],
        retry_after_ms=RETRY_AFTER_MS if code in RETRYABLE else 0,
    )
