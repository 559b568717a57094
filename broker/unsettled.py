"""What is durable in the log and not in the tables yet, and putting it there."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import lmdb

from zq.broker.hours import Hours, changed, hour_key
from zq.broker.journal import Counts, JournalError, Notes, Step, apply_counts
from zq.broker.lmdb_view import CountsRow, decode_hour, encode
from zq.broker.pending import Pending
from zq.broker.records import EventRow, Index, drops_result, holds_key, index_keys, key_digest

Tables = dict[str, Any]
_Entries = list[tuple[bytes, bytes]]
_KEY = itemgetter(0)


class Unsettled:
    def __init__(self) -> None:
        self.counts: dict[str, Counts] = {}
        """By queue: those of the tables, and what has changed since."""
        self.pending = Pending()
        self.events: list[EventRow] = []
        """In the order of their numbers."""
        self._facts: dict[str, bytes] = {}
        self._queues: set[str] = set()
        """Whose counts have changed."""
        self._hours = Hours()

    def __bool__(self) -> bool:
        return bool(self.events or self._facts or self.pending.steps)

    def add(self, steps: Sequence[Step], notes: Notes) -> None:
        """Take one commit."""
        add, add_hour, counts = self.pending.add, self._hours.add, self.counts
        events: list[EventRow] = []
        for step in steps:
            add(step)
            add_hour(step)
            apply_counts(counts, step)
            events += step.events
            if step.after is not None:
                self._queues.add(step.after.queue)
        events += notes.events
        events.sort(key=_number)
        self.events += events
        self._facts.update(notes.facts)

    def clear(self) -> None:
        """It is all in the tables. The counts stay."""
        self.pending.clear()
        self.events.clear()
        self._facts.clear()
        self._queues.clear()
        self._hours.changes.clear()

    def put(self, txn: lmdb.Transaction, tables: Tables) -> None:
        """Put everything into the tables, within `txn`. Raises JournalError if they contradict it, and lmdb.Error."""
        self._put_steps(txn, tables)
        events = [(event.number.to_bytes(8, "big"), encode(event)) for event in self.events]
        txn.cursor(db=tables["event"]).putmulti(events)
        for name, value in self._facts.items():
            txn.put(name.encode(), value, db=tables["fact"])
        for queue in self._queues:
            now = self.counts[queue]
            row = CountsRow(queue, now.accepted, {int(s): n for s, n in now.by_state.items()})
            txn.put(key_digest(queue), encode(row), db=tables["counts"])
        for (queue, start_ms), by in self._hours.changes.items():
            key = hour_key(queue, start_ms)
            found = txn.get(key, db=tables["hour"])
            earlier = decode_hour(found) if found is not None else None
            txn.put(key, encode(changed(earlier, queue, start_ms, by)), db=tables["hour"])

    def _put_steps(self, txn: lmdb.Transaction, tables: Tables) -> None:
        entries: dict[str, _Entries] = {name: [] for name in ("row", "spec", "attempt", "result", "keyed", *Index)}
        rows, specs, attempts = entries["row"], entries["spec"], entries["attempt"]
        # What is taken away is out of the way before anything is put: a key goes from one job to the next.
        for step in self.pending.steps.values():
            after = step.after
            keys = index_keys(after) if after is not None else []
            if step.before is not None:
                _take_away(txn, tables, step, keys)
            if after is None:
                continue
            job_id = after.id
            rows.append((job_id, encode(after)))
            for index, key in keys:
                entries[index].append((key, job_id))
            if holds_key(after):
                entries["keyed"].append((key_digest(after.key), job_id))
            if step.spec is not None:
                specs.append((job_id, step.spec))
            for attempt in step.attempts:
                attempts.append((job_id + attempt.number.to_bytes(4, "big"), encode(attempt)))
            if step.result is not None:
                entries["result"].append((job_id, encode(step.result)))
        for name, new in entries.items():
            if new:
                new.sort(key=_KEY)
                txn.cursor(db=tables[name]).putmulti(new)


def _take_away(txn: lmdb.Transaction, tables: Tables, step: Step, kept: list[tuple[Index, bytes]]) -> None:
    """What the tables have of a job and will not have any more."""
    before, after = step.before, step.after
    assert before is not None
    for entry in index_keys(before):
        if entry not in kept and not txn.delete(entry[1], db=tables[entry[0]]):
            raise JournalError(f"index {entry[0]} has lost job {before.id.hex()}")
    if holds_key(before) and not (after is not None and holds_key(after)):
        txn.delete(key_digest(before.key), db=tables["keyed"])
    if after is None or step.anew:
        _forget(txn, tables, before.id)
    elif drops_result(before, after):
        txn.delete(before.id, db=tables["result"])


def _forget(txn: lmdb.Transaction, tables: Tables, job_id: bytes) -> None:
    for name in ("row", "spec", "result"):
        txn.delete(job_id, db=tables[name])
    cursor = txn.cursor(db=tables["attempt"])
    while cursor.set_range(job_id) and bytes(cursor.key()).startswith(job_id):
        cursor.delete()


def _number(event: EventRow) -> int:
    return event.number
