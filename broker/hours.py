"""Jobs by the hour in which they were accepted, and what has become of them: the books that an audit reads.

Every step moves its job from one state to the next within its queue and hour, so for each of them what was accepted is
what has ended, waits and runs, whenever it is looked at. Forgetting a job changes nothing here.
"""

from __future__ import annotations

from zq.broker.journal import Counts, Step
from zq.broker.records import HourRow, JobRow, queue_prefix
from zq.protocol.job import State

HOUR_MS = 3_600_000
KEPT_MS = 62 * 24 * HOUR_MS
"""Of hours whose jobs have all ended."""


class Hours:
    """What has changed, by queue and the beginning of the hour."""

    def __init__(self) -> None:
        self.changes: dict[tuple[str, int], Counts] = {}

    def add(self, step: Step) -> None:
        row = step.after
        if row is None:
            return
        counts = self._of(row)
        if step.before is None or step.anew:
            counts.accepted += 1
        else:
            counts.by_state[step.before.state] -= 1
        counts.by_state[row.state] += 1

    def _of(self, row: JobRow) -> Counts:
        key = (row.queue, hour_ms(row))
        counts = self.changes.get(key)
        if counts is None:
            counts = self.changes[key] = Counts()
        return counts


def hour_ms(row: JobRow) -> int:
    return row.accepted_ms - row.accepted_ms % HOUR_MS


def hour_key(queue: str, start_ms: int) -> bytes:
    return queue_prefix(queue) + start_ms.to_bytes(8, "big")


def changed(earlier: HourRow | None, queue: str, start_ms: int, by: Counts) -> HourRow:
    """The hour's row with the changes in it."""
    before = earlier.by_state if earlier is not None else {}
    accepted = (earlier.accepted if earlier is not None else 0) + by.accepted
    return HourRow(queue, start_ms, accepted, {int(s): before.get(int(s), 0) + by.by_state[s] for s in State})
