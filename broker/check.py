"""Is the journal whole? Every row against indexes, counts, attempts, history and body: what a defect or bad storage
would break.

LMDB has no checksums. Every job's body has one here, its digest, and of everything else there are two records that
must agree.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from zq.broker.hours import hour_ms
from zq.broker.journal import Counts, View
from zq.broker.records import Index, JobRow, holds_key, index_keys, key_digest
from zq.protocol.job import ENDED, LIVE, TRANSITIONS, State, decode_spec, digest, format_id

PROBLEMS_MAX = 100
_PAGE = 1000


def check(view: View, *, problems_max: int = PROBLEMS_MAX) -> list[str]:
    """What is wrong with the journal, a line each, at most `problems_max` of them; nothing if it is whole.

    Reads everything once, and needs no memory that grows with the jobs. The view must stay the same meanwhile.
    """
    found: list[str] = []
    try:
        for problem in _Check(view).problems():
            found.append(problem)
            if len(found) == problems_max:
                found[-1] += " (and there may be more)"
                break
    except (ValueError, AssertionError) as error:
        found.append(f"a record cannot be read: {error}")
    return found


class _Check:
    def __init__(self, view: View) -> None:
        self._view = view
        self._rows = 0
        self._attempts = 0
        self._results = 0
        self._keys = 0
        self._indexed = dict.fromkeys(Index, 0)
        self._states: dict[str, dict[State, int]] = defaultdict(lambda: dict.fromkeys(State, 0))
        self._hours: dict[tuple[str, int], dict[State, int]] = defaultdict(lambda: dict.fromkeys(State, 0))
        oldest = view.events(0, 1)
        self._oldest_event = oldest[0].number if oldest else view.last_event + 1

    def problems(self) -> Iterator[str]:
        after = b""
        while page := self._view.rows(after, _PAGE):
            after = page[-1].id
            for row in page:
                for problem in self._of_job(row):
                    yield f"job {format_id(row.id)} ({row.state.label} in queue '{row.queue}'): {problem}"
        yield from self._of_totals()
        yield from self._of_concurrency()
        for name, counts in sorted(self._view.counts().items()):
            yield from _of_counts(name, counts, self._states.pop(name, dict.fromkeys(State, 0)))
            yield from self._of_hours(name, counts)
        for name in sorted(self._states):
            yield f"queue '{name}' has jobs and no counts"
        for name, start_ms in sorted(self._hours):
            yield f"queue '{name}' has jobs of the hour at {start_ms} ms and no counts of it"

    def _of_job(self, row: JobRow) -> Iterator[str]:
        self._rows += 1
        self._states[row.queue][row.state] += 1
        self._hours[row.queue, hour_ms(row)][row.state] += 1
        yield from _of_row(row, self._view)
        yield from _of_spec(row, self._view.spec(row.id))
        for index, key in index_keys(row):
            self._indexed[index] += 1
            entry = self._view.scan(index, key, b"", 1)
            if entry != [(key, row.id)]:
                yield f"index {index} does not have it"
        if holds_key(row):
            self._keys += 1
            if self._view.key_holder(row.key) != row.id:
                yield f"it is live and does not hold its key '{row.key}'"
        yield from self._of_attempts(row)
        yield from self._of_history(row)
        if self._view.result(row.id) is not None:
            self._results += 1
            if row.state is not State.DONE:
                yield "it has a result and is not done"

    def _of_hours(self, name: str, counts: Counts) -> Iterator[str]:
        since_ms = accepted = 0
        while page := self._view.hours(name, since_ms, _PAGE):
            since_ms = page[-1].start_ms + 1
            for row in page:
                accepted += row.accepted
                by_state = {state: row.by_state.get(int(state), 0) for state in State}
                there = self._hours.pop((name, row.start_ms), dict.fromkeys(State, 0))
                for problem in _of_counts(name, Counts(row.accepted, by_state), there):
                    yield f"hour at {row.start_ms} ms: {problem}"
        if accepted > counts.accepted:
            yield f"queue '{name}': {accepted} accepted by its hours, {counts.accepted} in all"

    def _of_attempts(self, row: JobRow) -> Iterator[str]:
        attempts = self._view.attempts(row.id)
        self._attempts += len(attempts)
        ended = row.attempt - (row.state is State.RUNNING)
        numbers = [attempt.number for attempt in attempts]
        if numbers != list(range(1, ended + 1)):
            yield f"its ended attempts are {numbers}, not 1 to {ended}"
        tokens = [attempt.token for attempt in attempts] + [row.token] * (row.state is State.RUNNING)
        if tokens != sorted(set(tokens)):
            yield "its fencing tokens do not grow"

    def _of_history(self, row: JobRow) -> Iterator[str]:
        """Each event names the one before; the oldest events of the journal are not kept."""
        number, state = row.event, row.state
        if number > self._view.last_event:
            yield f"its newest event is {number}, and the journal's is {self._view.last_event}"
        while number >= self._oldest_event:
            event = self._view.event(number)
            if event is None or event.job_id != row.id:
                yield f"event {number} of its history is missing"
                return
            if event.state is not state:
                yield f"event {number} made it {event.state.label}, and it was {state.label}"
                return
            earlier = self._view.event(event.before) if event.before >= self._oldest_event else None
            if event.before and earlier is None:
                return
            before = earlier.state if earlier is not None else None
            if state not in TRANSITIONS.get((before, event.cause), ()) or event.before >= number:
                yield f"event {number} is no legal step"
                return
            if before is None:
                return
            number, state = event.before, before

    def _of_concurrency(self) -> Iterator[str]:
        """No more jobs of a concurrency key are let in than it allows."""
        after = b""
        group, admitted, limit = b"", 0, 0
        while page := self._view.scan(Index.ADMITTED, b"", after, _PAGE):
            after = page[-1][0]
            for _, job_id in page:
                row = self._view.row(job_id)
                if row is None:
                    continue  # told as a stray
                digest_of = key_digest(row.concurrency_key)
                if digest_of != group:
                    group, admitted, limit = digest_of, 0, 0
                admitted, limit = admitted + 1, max(limit, row.concurrency_limit)
                if admitted > limit:
                    yield f"job {format_id(job_id)} is one more than its concurrency key allows, {limit}"

    def _of_totals(self) -> Iterator[str]:
        totals = self._view.totals()
        for name, there, expected in (
            ("rows", totals.rows, self._rows),
            ("bodies", totals.specs, self._rows),
            ("attempts", totals.attempts, self._attempts),
            ("results", totals.results, self._results),
            ("held keys", totals.keys, self._keys),
        ):
            if there != expected:
                yield f"there are {there} {name}, and the jobs account for {expected}"
        for index in Index:
            if totals.indexes[index] != self._indexed[index]:
                yield from self._strays(index)

    def _strays(self, index: Index) -> Iterator[str]:
        """The entries of an index that no row accounts for."""
        after = b""
        while page := self._view.scan(index, b"", after, _PAGE):
            after = page[-1][0]
            for key, job_id in page:
                row = self._view.row(job_id)
                if row is None:
                    yield f"index {index} names job {format_id(job_id)}, which is not there"
                elif (index, key) not in index_keys(row):
                    yield f"index {index} has job {format_id(job_id)} where it does not stand ({row.state.label})"


def _of_row(row: JobRow, view: View) -> Iterator[str]:
    running = row.state is State.RUNNING
    if running != bool(row.token):
        yield "it runs without a fencing token" if running else "it has a fencing token and does not run"
    if running and not row.worker:
        yield "it runs on no worker"
    if (row.state is State.SCHEDULED) != bool(row.due_ms):
        yield f"its due time is {row.due_ms}"
    if (row.state in ENDED) != bool(row.ended_ms):
        yield f"its end is at {row.ended_ms}"
    if not 0 <= row.uncounted <= row.attempt <= row.attempts_max:
        yield f"attempt {row.attempt}, of which {row.uncounted} do not count, with {row.max_retries} retries"
    if row.seq > view.seq:
        yield f"its acceptance number {row.seq} is larger than the journal's, {view.seq}"
    if max(row.accepted_ms, row.started_ms, row.ended_ms) > view.time_ms:
        yield "its times are later than the journal's"


def _of_spec(row: JobRow, data: bytes | None) -> Iterator[str]:
    if data is None:
        yield "its body is missing"
    elif len(data) != row.size_bytes or digest(data) != row.digest:
        yield "its body is damaged"
    else:
        spec = decode_spec(data)
        if (spec.id, spec.queue, spec.task, spec.key) != (row.id, row.queue, row.task, row.key):
            yield "its body is another job's"


def _of_counts(name: str, counts: Counts, there: dict[State, int]) -> Iterator[str]:
    if not counts.balanced():
        yield f"queue '{name}': {counts.accepted} accepted, {sum(counts.by_state.values())} accounted for"
    for state in State:
        counted = counts.by_state[state]
        # Ended jobs are forgotten in time, and stay counted.
        if counted != there[state] if state in LIVE else counted < there[state]:
            yield f"queue '{name}': {counted} counted as {state.label}, {there[state]} are there"
