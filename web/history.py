"""What the charts show: samples of the queues' counts, kept in memory for some hours. Pure.

Two sources, one form. The sampler adds what the broker counts now; `rewound` computes what it must have counted before,
from the journal's events, so that a server that has just started can show the hours before its start.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from zq.protocol.job import TRANSITIONS, Cause, State
from zq.protocol.messages import EventInfo, QueueInfo

STEP_MS: Final = 10_000
KEPT_MS: Final = 6 * 3_600_000
QUEUES_MAX: Final = 64
"""Queues with a chart of their own, the busiest first; the others count in the sum of all."""
POINTS_MAX: Final = 240
"""Of one answer: more would not be seen on a screen."""
GAP_MS: Final = 3 * STEP_MS
"""Nothing was sampled for so long: the chart has a gap there, and no line over it."""

ALL: Final = ""
"""The name of the sum over all queues; no queue has it."""

_FIELDS: Final = ("accepted", "done", "failed", "ready", "running", "scheduled")
_WIDTH: Final = len(_FIELDS)
_COUNTERS: Final = 3
"""The first of the fields only grow, but for retries of dead letters; the rest are levels."""

Row = tuple[int, int, int, int, int, int]


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """One chart's points. Lists are equally long; null is where nothing is known."""

    queue: str
    step_s: float
    begins_at_ms: int
    """Before this nothing is known of any queue."""
    at_ms: list[int]
    accepted_per_s: list[float | None]
    done_per_s: list[float | None]
    failed_per_s: list[float | None]
    """Jobs that became dead letters or expired."""
    ready: list[int | None]
    running: list[int | None]
    scheduled: list[int | None]


@dataclass(frozen=True, slots=True)
class _Sample:
    at_ms: int
    names: tuple[str, ...]
    """Shared with the sample before, as long as the queues are the same."""
    values: array[int]

    def row(self, queue: str) -> Row | None:
        try:
            start = self.names.index(queue) * _WIDTH
        except ValueError:
            return None
        a, b, c, d, e, f = self.values[start : start + _WIDTH]
        return a, b, c, d, e, f


def counts_of(queues: Sequence[QueueInfo]) -> dict[str, Row]:
    """What a sample keeps of each queue."""
    return {q.name: (q.accepted, q.done, q.dead + q.expired, q.ready, q.running, q.scheduled) for q in queues}


class History:
    """Samples in the order of their times, at most KEPT_MS of them."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()

    @property
    def begins_at_ms(self) -> int | None:
        return self._samples[0].at_ms if self._samples else None

    def add(self, at_ms: int, queues: Mapping[str, Row]) -> None:
        """A sample that is not later than the one before it (a clock was put back) takes its place."""
        while self._samples and self._samples[-1].at_ms >= at_ms:
            self._samples.pop()
        kept = dict(sorted(queues.items(), key=lambda item: item[1][0], reverse=True)[:QUEUES_MAX])
        total = [sum(column) for column in zip(*queues.values(), strict=True)] or [0] * _WIDTH
        names = (ALL, *sorted(kept))
        if self._samples and self._samples[-1].names == names:
            names = self._samples[-1].names
        values = array("q", total)
        for name in names[1:]:
            values.extend(kept[name])
        self._samples.append(_Sample(at_ms, names, values))
        while self._samples[0].at_ms < at_ms - KEPT_MS:
            self._samples.popleft()

    def series(self, queue: str, now_ms: int, span_ms: int) -> Series:
        """The last `span_ms`, in at most POINTS_MAX steps of equal length that stand still on the clock."""
        step_ms = STEP_MS * max(1, -(-span_ms // (POINTS_MAX * STEP_MS)))
        last = now_ms // step_ms * step_ms
        ends = range(last - (span_ms // step_ms - 1) * step_ms, last + 1, step_ms)
        samples = [s for s in self._samples if s.at_ms > ends[0] - step_ms - GAP_MS]
        columns: list[list[float | None]] = [[] for _ in _FIELDS]
        at = sum(sample.at_ms <= ends[0] - step_ms for sample in samples)
        before = samples[at - 1] if at else None
        for end in ends:
            newest = None
            while at < len(samples) and samples[at].at_ms <= end:
                newest = samples[at]
                at += 1
            for column, value in zip(columns, _point(before, newest, queue), strict=True):
                column.append(value)
            before = newest or (before if before is not None and end - before.at_ms < GAP_MS else None)
        accepted, done, failed, *levels = columns
        return Series(
            queue=queue, step_s=step_ms / 1000, begins_at_ms=self.begins_at_ms or now_ms, at_ms=list(ends),
            accepted_per_s=accepted, done_per_s=done, failed_per_s=failed,
            ready=_whole(levels[0]), running=_whole(levels[1]), scheduled=_whole(levels[2]),
        )  # fmt: skip

    def rates(self, queues: Mapping[str, Row], at_ms: int, window_ms: int) -> dict[str, tuple[float, float, float]]:
        """Accepted, done and failed a second from the last sample that is at least `window_ms` old until `at_ms`;
        nothing for a queue that is not in it."""
        old = next((s for s in reversed(self._samples) if s.at_ms <= at_ms - window_ms), None)
        if old is None or at_ms - old.at_ms > window_ms + GAP_MS:
            return {}
        found = {}
        for name, row in queues.items():
            before = old.row(name)
            if before is not None:
                a, d, f = (_per_s(row[i] - before[i], at_ms - old.at_ms) for i in range(_COUNTERS))
                found[name] = (a, d, f)
        return found


def _point(before: _Sample | None, newest: _Sample | None, queue: str) -> list[float | None]:
    now = newest.row(queue) if newest is not None else None
    if newest is None or now is None:
        return [None] * _WIDTH
    old = before.row(queue) if before is not None else None
    if before is None or old is None or newest.at_ms - before.at_ms > GAP_MS * 4:
        return [None] * _COUNTERS + list(now[_COUNTERS:])
    elapsed_ms = newest.at_ms - before.at_ms
    return [*(_per_s(now[i] - old[i], elapsed_ms) for i in range(_COUNTERS)), *now[_COUNTERS:]]


def _per_s(grown: int, elapsed_ms: int) -> float:
    # Retried dead letters make their count smaller: no rate is negative.
    return round(max(0, grown) * 1000 / max(1, elapsed_ms), 3)


def _whole(column: list[float | None]) -> list[int | None]:
    return [None if value is None else int(value) for value in column]


_PLACES: Final = {
    State.DONE: 1, State.DEAD: 2, State.EXPIRED: 2, State.READY: 3, State.RUNNING: 4, State.SCHEDULED: 5,
}  # fmt: skip


def rewound(
    events: Sequence[EventInfo], now: Mapping[str, Row], now_ms: int, since_ms: int
) -> list[tuple[int, dict[str, Row]]]:
    """The samples that would have been taken before `now`, oldest first, from all events since `since_ms`.

    The state before an event is the one that the job's event before it led to; where that lies too far back, the one
    that the table of transitions allows, and where it allows several, ready.
    """
    counts = {name: list(row) for name, row in now.items()}
    before = _states_before(events)
    samples: list[tuple[int, dict[str, Row]]] = []
    at = len(events)
    first_ms = max(since_ms, now_ms - KEPT_MS)
    for edge_ms in range((now_ms - 1) // STEP_MS * STEP_MS, first_ms, -STEP_MS):
        while at and events[at - 1].at_ms > edge_ms:
            at -= 1
            _undo(counts.setdefault(events[at].queue, [0] * _WIDTH), events[at], before[at])
        samples.append((edge_ms, {name: _row(values) for name, values in counts.items()}))
    return samples[::-1]


def _states_before(events: Sequence[EventInfo]) -> list[State | None]:
    last: dict[bytes, State] = {}
    found: list[State | None] = []
    for event in events:
        state = last.get(event.job_id)
        if state is None and event.cause is not Cause.ACCEPT:
            steps = TRANSITIONS.items()
            allowed = [old for (old, cause), after in steps if cause is event.cause and event.state in after]
            state = allowed[0] if len(allowed) == 1 else State.READY
        found.append(state)
        last[event.job_id] = event.state
    return found


def _undo(counts: list[int], event: EventInfo, before: State | None) -> None:
    if event.cause >= Cause.QUEUE_UNSERVED:
        return
    if before is None:
        counts[0] -= 1
    for state, change in ((event.state, -1), (before, 1)):
        place = _PLACES.get(state) if state is not None else None
        if place is not None:
            counts[place] += change


def _row(values: Sequence[int]) -> Row:
    a, b, c, d, e, f = (max(0, value) for value in values)
    return a, b, c, d, e, f
