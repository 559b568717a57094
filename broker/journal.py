"""The journal in a job's own verbs: what happened to which job; append a batch and know that it is durable; look up.

A `Step` is one job going from one row to the next. A journal applies a batch of steps as a whole or not at all, and
`commit` returns only when it is durable. Everything else here is looking up what was committed. Any engine that can
do this much can be the journal: nothing here is LMDB's own.

Two engines: `lmdb_journal` for the broker, `memory_journal` for the simulator and for tests; one suite exercises both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from zq.broker.records import AttemptRow, EventRow, HourRow, Index, JobRow, KeptResult
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

    def hours(self, queue: str, since_ms: int, limit: int) -> list[HourRow]:
        """Up to `limit` hours of a queue, in order, of those that begin at `since_ms` or later."""
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
        """Drop up to `limit` of the oldest events beyond `kept_max`; a crash may bring them back."""
        ...

    def forget_hours(self, queue: str, before_ms: int, limit: int) -> None:
        """Drop up to `limit` of a queue's oldest hours that began before, if all their jobs have ended."""
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
