"""The waiting room: where every job stands that waits for its time or its turn, and how it moves on by itself.

A job enters by `enter` with its READY or SCHEDULED row, and leaves by `leave` with that same row.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from zq.broker.book import Book
from zq.broker.concurrency import Concurrency
from zq.broker.queues import Queues
from zq.broker.records import Index, JobRow
from zq.broker.window import Window
from zq.protocol.job import Cause, State

_READY = State.READY  # as in `records`: looked up once


class WaitingRoom:
    def __init__(self, book: Book) -> None:
        view = book.view
        self._book = book
        self._dry: list[Window] = []
        """Windows that have run out of entries in memory since the last commit."""
        self.queues = Queues(book, self._dry)
        self.concurrency = Concurrency(book)
        self._due = Window(lambda after, limit: view.scan(Index.DUE, b"", after, limit), self._dry)
        self._expiry = Window(lambda after, limit: view.scan(Index.EXPIRY, b"", after, limit), self._dry)

    def enter(self, row: JobRow) -> None:
        if row.state is _READY:
            row = self.concurrency.enter(row)
            if row.admitted:
                self.queues.get(row.queue).lanes.add(row)
        else:
            self._due.add(_time_key(row.due_ms, row), row.id)
        if row.expires_at_ms:
            self._expiry.add(_time_key(row.expires_at_ms, row), row.id)

    def leave(self, row: JobRow) -> None:
        """The job no longer waits under this row. Its concurrency key is not given back: see `Concurrency.left`."""
        if row.state is not _READY:
            self._due.discard(_time_key(row.due_ms, row))
        elif row.admitted:
            self.queues.get(row.queue).lanes.discard(row)
        if row.expires_at_ms:
            self._expiry.discard(_time_key(row.expires_at_ms, row))

    def end(self, row: JobRow, state: State, cause: Cause, detail: str, now_ms: int) -> JobRow:
        """A waiting job ends without having run."""
        self.leave(row)
        self.concurrency.left(row)
        after = replace(row, state=state, ended_ms=now_ms, error=detail, due_ms=0)
        return self._book.move(row, after, cause, now_ms, detail=detail)

    def move_time(self, row: JobRow, due_ms: int, now_ms: int) -> JobRow:
        """A waiting job gets another time."""
        self.leave(row)
        self.concurrency.left(row)
        waits = due_ms > now_ms
        after = replace(
            row,
            state=State.SCHEDULED if waits else State.READY,
            due_ms=due_ms if waits else 0,
            admitted=not row.concurrency_key,
        )
        after = self._book.move(row, after, Cause.RESCHEDULE, now_ms)
        self.enter(after)
        return after

    def promote(self, now_ms: int) -> None:
        """What is due becomes ready, and what a concurrency key has room for enters its queue."""
        while (first := self._due.first()) is not None and _time_of(first[0]) <= now_ms:
            row = self._book.row(first[1])
            assert row is not None
            self.leave(row)
            self.enter(self._book.move(row, replace(row, state=State.READY, due_ms=0), Cause.DUE, now_ms))
        for row in self.concurrency.let_in():
            self.queues.get(row.queue).lanes.add(row)

    def expire(self, now_ms: int) -> Iterator[JobRow]:
        """End what was not started in time."""
        while (first := self._expiry.first()) is not None and _time_of(first[0]) <= now_ms:
            row = self._book.row(first[1])
            assert row is not None
            yield self.end(row, State.EXPIRED, Cause.EXPIRE, "not started in time", now_ms)

    def committed(self) -> bool:
        """Load what memory has run out of; whether there is something to do at once."""
        again = self.concurrency.committed()
        dry = self._dry[:]
        self._dry.clear()
        for window in dry:
            again |= window.refill()
        return again

    def wake_ms(self, latest_ms: int, now_ms: int) -> int:
        """When something happens by itself, at the latest `latest_ms`."""
        for window in (self._due, self._expiry):
            first = window.first()
            if first is not None:
                latest_ms = min(latest_ms, _time_of(first[0]))
        for queue in self.queues.by_name.values():
            if queue.settings.rate_per_s and now_ms < queue.next_dispatch_ms and queue.lanes.any_open:
                latest_ms = min(latest_ms, int(queue.next_dispatch_ms) + 1)
        return latest_ms


def _time_key(time_ms: int, row: JobRow) -> bytes:
    return time_ms.to_bytes(8, "big") + row.id


def _time_of(key: bytes) -> int:
    return int.from_bytes(key[:8], "big")
