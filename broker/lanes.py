"""The ready jobs of one queue, in lanes: one for each set of tags that jobs require and each size of their needs.

A job that nobody can run holds up only its like. In a lane, jobs stand by priority, one window each. A lane whose tags
no worker of the queue has is shut: it is not looked at again before a worker comes that has them, so that thousands of
such lanes cost a dispatch nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from zq.broker.book import Book
from zq.broker.journal import View
from zq.broker.records import LANE_BYTES, Index, JobRow, lane_of_row, lane_prefix, queue_prefix, ready_key
from zq.broker.window import Window

AGEING_MS = 60_000
"""Waiting counts: so much of it makes up for one step of priority, so low ones move."""
SWEEP_AT = 64
Head = tuple[int, int, JobRow]
"""(place, acceptance, row) of a job that is first somewhere; the smaller goes before the other."""


class Lane:
    """Ready jobs that ask the same of a worker, by priority."""

    def __init__(self, queue: str, key: bytes, tags: frozenset[str]) -> None:
        self.key = key
        self.tags = tags
        self.windows: dict[int, Window] = {}
        self._queue = queue

    def window(self, priority: int, view: View, dry: list[Window], *, on_disk: bool = False) -> Window:
        window = self.windows.get(priority)
        if window is None:
            load = _loader(view, lane_prefix(self._queue, self.key, priority))
            window = self.windows[priority] = Window(load, dry, on_disk=on_disk)
        return window

    def head(self, book: Book) -> Head | None:
        best: Head | None = None
        for window in self.windows.values():
            first = window.first() if window.ids else None
            if first is None:
                continue
            row = book.row(first[1])
            assert row is not None
            place = row.accepted_ms - row.priority * AGEING_MS
            if best is None or (place, row.seq) < best[:2]:
                best = (place, row.seq, row)
        return best

    @property
    def empty(self) -> bool:
        """Neither in memory nor on disk is a job of this lane."""
        return all(window.empty for window in self.windows.values())

    def __len__(self) -> int:
        return sum(len(window) for window in self.windows.values())


def _loader(view: View, prefix: bytes) -> Callable[[bytes, int], list[tuple[bytes, bytes]]]:
    return lambda after, limit: view.scan(Index.READY, prefix, after, limit)


class Lanes:
    def __init__(self, queue: str, book: Book, dry: list[Window], *, on_disk: bool) -> None:
        self._queue = queue
        self._book = book
        self._dry = dry
        self._open: dict[bytes, Lane] = {}
        self._shut: dict[bytes, Lane] = {}
        self.sweep_at = SWEEP_AT
        """When there are so many, those in which nobody stands are forgotten."""
        for key, row in self._on_disk() if on_disk else ():
            lane = self._open.setdefault(key, Lane(queue, key, frozenset(row.tags)))
            lane.window(row.priority, book.view, dry, on_disk=True)

    def _on_disk(self) -> Iterator[tuple[bytes, JobRow]]:
        """A job of each lane and priority."""
        prefix = queue_prefix(self._queue)
        after = b""
        while found := self._book.view.scan(Index.READY, prefix, after, 1):
            key, job_id = found[0]
            row = self._book.view.row(job_id)
            assert row is not None
            yield key[len(prefix) : len(prefix) + LANE_BYTES], row
            after = key[: len(prefix) + LANE_BYTES + 1] + b"\xff" * 16

    def _window(self, row: JobRow) -> Window:
        key = lane_of_row(row)
        lane = self._open.get(key)
        if lane is None:  # an empty lane is false
            lane = self._shut.get(key)
        if lane is None:
            self._sweep()
            lane = self._open[key] = Lane(self._queue, key, frozenset(row.tags))
        return lane.window(row.priority, self._book.view, self._dry)

    def _sweep(self) -> None:
        if self.count < self.sweep_at:
            return
        for lanes in (self._open, self._shut):
            for key in [key for key, lane in lanes.items() if lane.empty]:
                del lanes[key]
        self.sweep_at = max(SWEEP_AT, 2 * self.count)

    def add(self, row: JobRow) -> None:
        self._window(row).add(ready_key(row), row.id)

    def discard(self, row: JobRow) -> None:
        self._window(row).discard(ready_key(row))

    def head(self) -> JobRow | None:
        """The job that would go first if every worker could run it."""
        lanes = (*self._open.values(), *self._shut.values())
        heads = [head for lane in lanes if (head := lane.head(self._book)) is not None]
        return min(heads, key=lambda head: head[:2])[2] if heads else None

    def open(self) -> Sequence[Lane]:
        """Those that a worker may have the tags for."""
        return list(self._open.values())

    def shut(self, lane: Lane) -> None:
        """No worker of the queue has its tags."""
        self._shut[lane.key] = self._open.pop(lane.key)

    def came(self, tags: frozenset[str]) -> None:
        """A worker with these tags serves the queue now."""
        if self._shut:
            for key in [key for key, lane in self._shut.items() if lane.tags <= tags]:
                self._open[key] = self._shut.pop(key)

    @property
    def count(self) -> int:
        return len(self._open) + len(self._shut)

    @property
    def any_open(self) -> bool:
        """Whether somebody stands where a worker may come for him."""
        return any(map(len, self._open.values()))

    def __len__(self) -> int:
        """Jobs in memory."""
        return sum(len(lane) for lanes in (self._open, self._shut) for lane in lanes.values())
