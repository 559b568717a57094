"""A journal in memory: the engine of the simulator, of the model and of many tests. See `journal.Journal`."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from zq.broker.hours import Hours, changed
from zq.broker.journal import Counts, Notes, Step, Totals, apply_counts, prefix_end
from zq.broker.records import (
    AttemptRow,
    EventRow,
    HourRow,
    Index,
    JobRow,
    KeptResult,
    drops_result,
    holds_key,
    index_keys,
    key_digest,
)


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
        self._hours: dict[tuple[str, int], HourRow] = {}
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
        hours = Hours()
        for step in steps:
            self._apply(step)
            hours.add(step)
        for (queue, start_ms), by in hours.changes.items():
            self._hours[queue, start_ms] = changed(self._hours.get((queue, start_ms)), queue, start_ms, by)
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

    def hours(self, queue: str, since_ms: int, limit: int) -> list[HourRow]:
        return [self._hours[key] for key in sorted(self._hours) if key[0] == queue and key[1] >= since_ms][:limit]

    def forget_hours(self, queue: str, before_ms: int, limit: int) -> None:
        for row in self.hours(queue, 0, limit):
            if row.start_ms < before_ms and not row.live:
                del self._hours[queue, row.start_ms]

    def totals(self) -> Totals:
        return Totals(
            len(self._rows), len(self._specs), sum(map(len, self._attempts.values())), len(self._results),
            len(self._keys), {index: len(table.keys) for index, table in self._indexes.items()},
        )  # fmt: skip

    def counts(self) -> dict[str, Counts]:
        return {name: counts.copy() for name, counts in self._counts.items()}

    def close(self) -> None:
        pass
