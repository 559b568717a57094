"""The journal in a job's own verbs: what happened to which job; append a batch and know that it is durable; look up.

A `Step` is one job going from one row to the next. A journal applies a batch of steps as a whole or not at all, and
`commit` returns only when it is durable. Everything else here is looking up what was committed. Any engine that can
do this much can be the journal: nothing here is LMDB's own.

`MemoryJournal` is an engine for the simulator and for tests; one suite exercises it and the LMDB engine alike.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from zq.broker.records import (
    AttemptRow,
    EventRow,
    Index,
    JobRow,
    KeptResult,
    drops_result,
    holds_key,
    index_keys,
    key_digest,
)
from zq.protocol.job import ENDED, State


class JournalError(Exception):
    """The journal could not do it; what is on disk is unknown. The process must end without another word."""


class JournalRefused(Exception):
    """The journal cannot be opened as it is. The text says what to do; a restart alone does not mend it."""


class Step(msgspec.Struct, frozen=True, gc=False):
    """One job goes from `before` to `after`. No `before`: accepted. No `after`: forgotten, its retention is over."""

    before: JobRow | None
    after: JobRow | None
    spec: bytes | None = None
    """With acceptance: the encoded JobSpec."""
    attempts: tuple[AttemptRow, ...] = ()
    """Attempts that ended on the way."""
    result: KeptResult | None = None
    events: tuple[EventRow, ...] = ()
    """What happened on the way, in order."""
    anew: bool = False
    """`before` was forgotten on the way, and `after` is another job under the same id."""


@dataclass(frozen=True, slots=True)
class Notes:
    """What is committed beside the steps of jobs: small settings, and events that are no job's."""

    facts: Mapping[str, bytes] = field(default_factory=dict)
    events: Sequence[EventRow] = ()

    def __bool__(self) -> bool:
        return bool(self.facts or self.events)


@dataclass(slots=True)
class Counts:
    """Jobs of one queue by state. Ended ones are counted for ever, so `accepted` is always the sum of the others."""

    accepted: int = 0
    by_state: dict[State, int] = field(default_factory=lambda: dict.fromkeys(State, 0))

    def copy(self) -> Counts:
        return Counts(self.accepted, dict(self.by_state))

    def balanced(self) -> bool:
        return self.accepted == sum(self.by_state.values())


@dataclass(frozen=True, slots=True)
class Totals:
    """How many entries each table has, over all queues."""

    rows: int
    specs: int
    attempts: int
    results: int
    keys: int
    indexes: dict[Index, int]


class View(Protocol):
    """What a journal can be asked. All answers are of what was committed."""

    def row(self, job_id: bytes) -> JobRow | None: ...

    def rows(self, after: bytes, limit: int) -> list[JobRow]:
        """Up to `limit` jobs of all queues and states, by ascending id, of those with an id greater than `after`."""
        ...

    def spec(self, job_id: bytes) -> bytes | None: ...
    def attempts(self, job_id: bytes) -> list[AttemptRow]: ...
    def result(self, job_id: bytes) -> KeptResult | None: ...

    def key_holder(self, key: str) -> bytes | None:
        """The live job that has this key."""
        ...

    def event(self, number: int) -> EventRow | None: ...

    def events(self, after: int, limit: int) -> list[EventRow]:
        """Up to `limit` events with larger numbers than `after`, in order, of those that are kept."""
        ...

    @property
    def last_event(self) -> int:
        """The largest event number ever committed."""
        ...

    def facts(self) -> dict[str, bytes]:
        """Small durable settings by name."""
        ...

    def scan(
        self, index: Index, prefix: bytes, after: bytes, limit: int, *, backwards: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """Up to `limit` (key, job id) of an index, of the keys that begin with `prefix`, in key order.

        Begins behind the key `after`; empty means at the end where the scan begins.
        """
        ...

    def totals(self) -> Totals: ...

    def counts(self) -> dict[str, Counts]:
        """By queue."""
        ...

    @property
    def seq(self) -> int:
        """The largest acceptance number ever committed."""
        ...

    @property
    def time_ms(self) -> int:
        """The largest broker time ever committed: a new broker's time never begins before it."""
        ...


class Journal(View, Protocol):
    @property
    def epoch(self) -> int:
        """1 for the first broker on this journal, one more for each further one; durable before it is told."""
        ...

    def commit(self, steps: Sequence[Step], now_ms: int, notes: Notes | None = None) -> None:
        """Make the steps and notes durable, all or none. Raises JournalError; nothing may be said any more then."""
        ...

    def forget_events(self, kept_max: int, limit: int) -> None:
        """Drop up to `limit` of the oldest events beyond `kept_max`; durable with the next commit at the latest."""
        ...

    def close(self) -> None: ...


def prefix_end(prefix: bytes) -> bytes:
    """A key that is greater than every key with this prefix and not greater than any other key behind them."""
    return prefix + b"\xff" * 64


def apply_counts(counts: dict[str, Counts], step: Step) -> None:
    """Adjust the counts for one step. Forgetting a job changes no count."""
    row = step.after
    if row is None:
        # A joined step from a live state to nothing would not say in which state the job ended.
        assert step.before is not None
        assert step.before.state in ENDED, "only ended jobs are forgotten"
        return
    queue = counts.get(row.queue)
    if queue is None:
        queue = counts[row.queue] = Counts()
    if step.before is None or step.anew:
        queue.accepted += 1
    else:
        queue.by_state[step.before.state] -= 1
    queue.by_state[row.state] += 1


class _SortedIndex:
    """Sorted keys with their job ids, in memory."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.ids: dict[bytes, bytes] = {}

    def add(self, key: bytes, job_id: bytes) -> None:
        assert key not in self.ids, "two jobs under one index key"
        bisect.insort(self.keys, key)
        self.ids[key] = job_id

    def remove(self, key: bytes) -> None:
        del self.ids[key]
        del self.keys[bisect.bisect_left(self.keys, key)]


class MemoryJournal:
    """A journal that lasts as long as the object. `crash()` is what a killed broker leaves: all that was committed."""

    def __init__(self) -> None:
        self._rows: dict[bytes, JobRow] = {}
        self._specs: dict[bytes, bytes] = {}
        self._attempts: dict[bytes, dict[int, AttemptRow]] = {}
        self._results: dict[bytes, KeptResult] = {}
        self._keys: dict[bytes, bytes] = {}
        self._indexes = {index: _SortedIndex() for index in Index}
        self._counts: dict[str, Counts] = {}
        self._events: dict[int, EventRow] = {}
        self._facts: dict[str, bytes] = {}
        self._last_event = 0
        self._seq = 0
        self._time_ms = 0
        self._epoch = 1

    def reopen(self) -> MemoryJournal:
        """What the next broker finds: the same content under the next epoch."""
        self._epoch += 1
        return self

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def seq(self) -> int:
        return self._seq

    @property
    def time_ms(self) -> int:
        return self._time_ms

    def commit(self, steps: Sequence[Step], now_ms: int, notes: Notes | None = None) -> None:
        for step in steps:
            self._apply(step)
        if notes is not None:
            self._facts.update(notes.facts)
            self._keep(notes.events)
        self._time_ms = max(self._time_ms, now_ms)

    def _apply(self, step: Step) -> None:
        before, after = step.before, step.after
        job_id = (after or before).id  # type: ignore[union-attr]
        assert self._rows.get(job_id) == before, "a step must begin where the job stands"
        if before is not None:
            for index, key in index_keys(before):
                self._indexes[index].remove(key)
            if holds_key(before):
                del self._keys[key_digest(before.key)]
        if after is None or step.anew:
            self._rows.pop(job_id, None)
            self._specs.pop(job_id, None)
            self._attempts.pop(job_id, None)
            self._results.pop(job_id, None)
        if after is not None:
            for index, key in index_keys(after):
                self._indexes[index].add(key, job_id)
            if holds_key(after):
                assert key_digest(after.key) not in self._keys, "two live jobs with one key"
                self._keys[key_digest(after.key)] = job_id
            self._rows[job_id] = after
            self._seq = max(self._seq, after.seq)
        if step.spec is not None:
            self._specs[job_id] = step.spec
        for attempt in step.attempts:
            self._attempts.setdefault(job_id, {})[attempt.number] = attempt
        if step.result is not None:
            self._results[job_id] = step.result
        if drops_result(before, after):
            self._results.pop(job_id, None)
        self._keep(step.events)
        apply_counts(self._counts, step)

    def _keep(self, events: Sequence[EventRow]) -> None:
        for event in events:
            self._events[event.number] = event
            self._last_event = max(self._last_event, event.number)

    def row(self, job_id: bytes) -> JobRow | None:
        return self._rows.get(job_id)

    def rows(self, after: bytes, limit: int) -> list[JobRow]:
        return [self._rows[job_id] for job_id in sorted(job_id for job_id in self._rows if job_id > after)[:limit]]

    def spec(self, job_id: bytes) -> bytes | None:
        return self._specs.get(job_id)

    def attempts(self, job_id: bytes) -> list[AttemptRow]:
        return [row for _, row in sorted(self._attempts.get(job_id, {}).items())]

    def result(self, job_id: bytes) -> KeptResult | None:
        return self._results.get(job_id)

    def key_holder(self, key: str) -> bytes | None:
        return self._keys.get(key_digest(key))

    def scan(
        self, index: Index, prefix: bytes, after: bytes, limit: int, *, backwards: bool = False
    ) -> list[tuple[bytes, bytes]]:
        table = self._indexes[index]
        keys = table.keys
        first = bisect.bisect_left(keys, prefix)
        end = bisect.bisect_left(keys, prefix_end(prefix)) if prefix else len(keys)
        if backwards:
            if after:
                end = min(end, bisect.bisect_left(keys, after))
            chosen = keys[max(first, end - limit) : end][::-1]
        else:
            if after:
                first = max(first, bisect.bisect_right(keys, after))
            chosen = keys[first : min(end, first + limit)]
        return [(key, table.ids[key]) for key in chosen]

    def event(self, number: int) -> EventRow | None:
        return self._events.get(number)

    def events(self, after: int, limit: int) -> list[EventRow]:
        return [self._events[number] for number in sorted(n for n in self._events if n > after)[:limit]]

    @property
    def last_event(self) -> int:
        return self._last_event

    def facts(self) -> dict[str, bytes]:
        return dict(self._facts)

    def forget_events(self, kept_max: int, limit: int) -> None:
        for number in sorted(self._events)[: min(limit, max(0, len(self._events) - kept_max))]:
            del self._events[number]

    def totals(self) -> Totals:
        return Totals(
            len(self._rows), len(self._specs), sum(map(len, self._attempts.values())), len(self._results),
            len(self._keys), {index: len(table.keys) for index, table in self._indexes.items()},
        )  # fmt: skip

    def counts(self) -> dict[str, Counts]:
        return {name: counts.copy() for name, counts in self._counts.items()}

    def close(self) -> None:
        pass
