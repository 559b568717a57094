"""What must hold whatever happens, checked on the history while it is made. Numbers as in docs/promises.md.

The checker sees every batch that was committed, everything the broker sent after it, every receipt a client read, and
every attempt that was started. It knows nothing of how the broker works.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import zq.protocol.messages as m
from zq.broker.journal import Step
from zq.broker.memory_journal import MemoryJournal
from zq.broker.records import JobRow
from zq.protocol.job import ENDED, JobSpec, State
from zq.protocol.messages import BrokerMessage, Receipt, ReceiptStatus

DISK_BYTES = 1 << 30
"""Of each disk; nothing that runs in the simulator uses any of it."""


class Violation(AssertionError):
    """A promise was broken."""


def demand(condition: bool, promise: str) -> None:
    if not condition:
        raise Violation(promise)


class Checker:
    def __init__(self) -> None:
        self._credit: dict[tuple[str, str], int] = {}
        """Of each worker and queue, as the broker has last read it."""
        self.disks: dict[str, str] = {}
        """worker → the disk it is on."""
        self.specs: dict[bytes, JobSpec] = {}
        self.receipts: dict[bytes, ReceiptStatus] = {}
        self.ended: dict[bytes, State] = {}
        self.starts: dict[bytes, list[tuple[int, int]]] = defaultdict(list)
        """job → (attempt, token) of every attempt that began to run."""
        self.dispatched: list[tuple[str, int, int]] = []

    def submitted(self, spec: JobSpec) -> None:
        self.specs[spec.id] = spec

    def receipt(self, receipt: Receipt) -> None:
        if receipt.status in (ReceiptStatus.ACCEPTED, ReceiptStatus.DUPLICATE):
            self.receipts[receipt.job_id] = receipt.status
        elif receipt.status is ReceiptStatus.REFUSED:
            raise Violation(f"I3: a good job was refused: {receipt.code} {receipt.detail}")

    def committed(self, steps: Sequence[Step]) -> None:
        for step in steps:
            before, after = step.before, step.after
            demand(after is not None, "nothing is forgotten within its retention")
            assert after is not None
            if after.id in self.ended:
                raise Violation(f"I2: job {after.id.hex()} had ended and changed again")
            if after.state in ENDED:
                self.ended[after.id] = after.state
            limit = 1 + self.specs[after.id].max_retries
            demand(after.attempt - after.uncounted <= limit, "I4: more dispatches than 1 + retries")
            earlier = before.attempt if before is not None else 0
            demand(after.attempt - earlier >= 0, "I4: attempts are counted up")
            demand(
                len(step.attempts) <= after.attempt - earlier + (1 if before and before.token else 0),
                "attempts end once",
            )
            if step.result is not None:
                token = int.from_bytes(step.result.data, "big")
                attempts = {row.token: row for row in step.attempts}
                demand(token in attempts, "I5: a result counts under its own token only")
                demand(after.state is State.DONE, "a result makes a job done")

    def announced(self, worker: str, credit: Sequence[m.QueueSlots]) -> None:
        """A worker's CREDIT or BEAT is about to be read by the broker."""
        for item in credit:
            self._credit[worker, item.queue] = item.slots

    def sent(self, message: BrokerMessage, journal: MemoryJournal) -> None:
        """Called for everything that leaves the broker: what it says must be on disk."""
        if isinstance(message, m.Receipts):
            for receipt in message.receipts:
                if receipt.status in (ReceiptStatus.ACCEPTED, ReceiptStatus.DUPLICATE):
                    demand(journal.row(receipt.job_id) is not None, "I1: a receipt before the job is on disk")
        elif isinstance(message, m.Dispatch):
            for lease in message.leases:
                row = journal.row(lease.job_id)
                on_disk = row is not None and row.attempt >= lease.attempt
                demand(on_disk, "I4: a dispatch before its attempt is on disk")
                self._check_credit(row, journal)
                self._check_key(row, journal)
                self._check_disk(row, journal)
        elif isinstance(message, m.Acked):
            for token in message.accepted:
                rows = [row for row in journal._rows.values() if row.token == token]
                demand(not rows, "I13: an acknowledgement before the end is on disk")

    def _check_credit(self, row: JobRow | None, journal: MemoryJournal) -> None:
        if row is None or row.state is not State.RUNNING:
            return
        held = [r for r in journal._rows.values() if r.worker == row.worker and r.queue == row.queue and r.token]
        demand(len(held) <= self._credit.get((row.worker, row.queue), 0), "I8: more leases than credit")

    def _check_key(self, row: JobRow | None, journal: MemoryJournal) -> None:
        if row is None or row.state is not State.RUNNING or not row.concurrency_key:
            return
        key = row.concurrency_key
        running = [r for r in journal._rows.values() if r.concurrency_key == key and r.state is State.RUNNING]
        demand(len(running) <= row.concurrency_limit, "more jobs of one concurrency key run than its limit")

    def _check_disk(self, row: JobRow | None, journal: MemoryJournal) -> None:
        if row is None or row.state is not State.RUNNING or not row.disk_bytes:
            return
        disk = self.disks[row.worker]
        needs = sum(r.disk_bytes for r in journal._rows.values() if r.token and self.disks.get(r.worker) == disk)
        demand(needs <= DISK_BYTES, "headroom: jobs that run on one disk need more than it has")

    def started(self, job_id: bytes, attempt: int, token: int) -> None:
        starts = self.starts[job_id]
        demand((attempt, token) not in starts, "an attempt runs once")
        demand(all(token != t for _, t in starts), "a token is used once")
        starts.append((attempt, token))
        self.dispatched.append((self.specs[job_id].queue, attempt, token))
        # Nobody drains in the simulator, so no attempt that began was handed back.
        demand(len(starts) <= 1 + self.specs[job_id].max_retries, "I4: a job ran more than 1 + retries times")

    def finish(self, journal: MemoryJournal) -> None:
        """At the end of a run, on what is on disk."""
        for job_id in self.receipts:
            demand(journal.row(job_id) is not None, "I1: an accepted job is gone")
        for job_id, row in journal._rows.items():
            demand(job_id in self.specs, "a job nobody submitted")
            numbers = [a.number for a in journal.attempts(job_id)]
            running = [row.attempt] if row.state is State.RUNNING else []
            demand(numbers + running == list(range(1, row.attempt + 1)), "attempts are numbered without a gap")
            tokens = [a.token for a in journal.attempts(job_id)]
            demand(tokens == sorted(set(tokens)), "I5: tokens grow")
        for name, counts in journal.counts().items():
            demand(counts.balanced(), f"audit: queue {name} does not balance")
            for state in State:
                rows = sum(1 for row in journal._rows.values() if row.queue == name and row.state is state)
                demand(rows == counts.by_state[state], f"audit: {state.label} of queue {name}")
