"""What must hold whatever happens, checked on the history while it is made. Numbers as in docs/promises.md.

The checker sees every batch that was committed, everything the broker sent after it, every receipt a client read,
every attempt that was started, and what workers have said of each. It knows nothing of how the broker works.

Of the seventeen, these are of what is simulated: I1 to I5, I8, I9, I13, I14 and I17 here; I6 and I7 in
test_simulation.py, where a run is such that they can be told. I10, I11, I12, I15 and I16 are of schedulers, merges,
processes, keys and bytes, of which there are none here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from msgspec.structs import replace

import zq.protocol.messages as m
from zq.broker.journal import Step
from zq.broker.memory_journal import MemoryJournal
from zq.broker.records import RESULT_DROPPED, JobRow
from zq.protocol.errors import Code
from zq.protocol.job import ENDED, JobSpec, Outcome, State
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
        self.accepted: set[bytes] = set()
        self.handed_back: dict[bytes, set[int]] = defaultdict(set)
        """job → tokens of the attempts that a draining worker gave back."""
        self.starts: dict[bytes, list[tuple[int, int]]] = defaultdict(list)
        """job → (attempt, token) of every attempt that began to run."""
        self.dispatched: list[tuple[str, int, int]] = []

    def submitted(self, spec: JobSpec) -> None:
        self.specs[spec.id] = spec

    def receipt(self, receipt: Receipt) -> None:
        if receipt.status in (ReceiptStatus.ACCEPTED, ReceiptStatus.DUPLICATE):
            self.receipts[receipt.job_id] = receipt.status
        elif receipt.status is ReceiptStatus.REFUSED:
            for_now = receipt.code is Code.DISK_LOW and receipt.retry_after_ms > 0
            demand(for_now, f"I3: a good job was refused: {receipt.code} {receipt.detail}")

    def answered(self, results: Sequence[m.Result]) -> None:
        """A worker is about to say how attempts have ended."""
        for word in results:
            if word.outcome is Outcome.HANDED_BACK:
                self.handed_back[word.job_id].add(word.token)

    def committed(self, steps: Sequence[Step], *, accepting: bool) -> None:
        """`accepting`: there was room on the disk for new jobs."""
        for step in steps:
            before, after = step.before, step.after
            demand(accepting or before is not None, "I14: a job was accepted while the disk was low")
            if before is None and after is not None:
                demand(after.id not in self.accepted, "I3: a job was accepted twice")
                self.accepted.add(after.id)
            demand(after is not None, "nothing is forgotten within its retention")
            assert after is not None
            if after.id in self.ended and not _only_forgets_its_result(before, after):
                raise Violation(f"I2: job {after.id.hex()} had ended and changed again")
            if after.state in ENDED:
                self.ended[after.id] = after.state
            limit = 1 + self.specs[after.id].max_retries
            demand(after.attempt - after.uncounted <= limit, "I4: more dispatches than 1 + retries")
            handed_back = len(self.handed_back[after.id])
            demand(after.uncounted <= handed_back, "I4: an attempt that nobody handed back does not count")
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
        limit = 1 + self.specs[job_id].max_retries + len(self.handed_back[job_id])
        demand(len(starts) <= limit, "I4: a job ran more than 1 + retries times")

    def in_order(self, steps: Sequence[Step], journal: MemoryJournal) -> None:
        """What has just been committed: nobody who asks the same went before somebody who was there first."""
        begun = [s.after for s in steps if s.after and s.after.attempt and not (s.before and s.before.attempt)]
        for row in begun:
            waiting = [
                r.seq for r in journal._rows.values()
                if r.state is State.READY and r.admitted and not r.attempt and _asks(r) == _asks(row)
            ]  # fmt: skip
            demand(row.seq < min(waiting, default=row.seq + 1), "I9: a job was overtaken by a later one of its kind")

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


def _only_forgets_its_result(before: JobRow | None, after: JobRow) -> bool:
    return before is not None and after == replace(before, result_until_ms=RESULT_DROPPED)


def _asks(row: JobRow) -> tuple[object, ...]:
    """What it asks of a worker, where it waits, and how urgently. Needs of about the same size stand in one line."""
    needs = row.disk_bytes.bit_length(), row.memory_bytes.bit_length()
    return row.queue, row.priority, row.tags, needs
