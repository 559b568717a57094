"""What is kept of jobs that have ended, and for how long: results by their time, jobs by their time and their number.

A little at a time, since deletes need free pages, too, and everybody else waits meanwhile; and again soon while there
is more, so that a broker that ends thousands of jobs a second also forgets thousands.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import islice

from zq.broker.book import Book
from zq.broker.records import Index, state_prefix
from zq.protocol.job import ENDED, LIVE

EVERY_MS = 1000
AGAIN_MS = 25
JOBS = 200
_PAGE = 32


class Retention:
    def __init__(self, book: Book, retention_ms: int, retention_jobs: int, now_ms: int) -> None:
        self._book = book
        self._retention_ms = retention_ms
        self._retention_jobs = retention_jobs
        self.next_ms = now_ms + EVERY_MS
        """When there is something to be looked for again."""

    def turn(self, now_ms: int) -> None:
        if now_ms < self.next_ms:
            return
        dropped = self._drop_results(now_ms)
        forgotten = self._forget_jobs(now_ms)
        self.next_ms = now_ms + (AGAIN_MS if JOBS in (dropped, forgotten) else EVERY_MS)

    def _drop_results(self, now_ms: int) -> int:
        """Drop results whose time is over; how many were looked at."""
        entries = self._book.view.scan(Index.RESULT, b"", b"", JOBS)
        for count, (key, job_id) in enumerate(entries):
            if int.from_bytes(key[:8], "big") > now_ms:
                return count
            row = self._book.row(job_id)
            if row is not None and row.result_until_ms > 0:
                self._book.drop_result(row)
        return len(entries)

    def _forget_jobs(self, now_ms: int) -> int:
        """Forget ended jobs whose retention is over, or that are more than are kept, the oldest first; how many."""
        live = sum(counts.by_state[state] for counts in self._book.counts.values() for state in LIVE)
        surplus = self._book.view.totals().rows - live - self._retention_jobs
        if surplus > 0:
            left, before_ms = min(JOBS, surplus), now_ms
        else:
            left, before_ms = JOBS, now_ms - self._retention_ms
        ended = heapq.merge(*(self._ended(state_prefix(state, name)) for name in self._book.counts for state in ENDED))
        forgotten = 0
        for ended_ms, job_id in islice(ended, left):
            if ended_ms > before_ms:
                break
            row = self._book.row(job_id)
            if row is not None and row.state in ENDED and row.ended_ms == ended_ms:
                self._book.forget(row)
            forgotten += 1
        return forgotten

    def _ended(self, prefix: bytes) -> Iterator[tuple[int, bytes]]:
        """(end, job) of one queue and state, oldest first, as of the last commit."""
        after = b""
        while page := self._book.view.scan(Index.STATE, prefix, after, _PAGE):
            for after, job_id in page:
                yield int.from_bytes(after[len(prefix) : len(prefix) + 8], "big"), job_id
