"""Concurrency keys: at most so many jobs with one key run at once, whatever workers and machines they are on.

A ready job with a key is either admitted, and stands in its queue, or parked, and stands only in the journal's index
of its key. At most `concurrency_limit` are admitted (waiting for a slot or running); when one of them ends, the first
parked one is let in. So a key that is full holds up nobody else, and ten million parked jobs cost no memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from zq.broker.book import Book
from zq.broker.records import KEY_DIGEST_BYTES, Index, JobRow, key_digest
from zq.protocol.job import State
from zq.protocol.limits import CREDIT_MAX

KEYS_PER_ROUND = 500
_KEYS_REMEMBERED = 10_000
_PAGE = 64


class Concurrency:
    def __init__(self, book: Book) -> None:
        self._book = book
        self._admitted: dict[str, int] = {}
        """Exact for each key in it; others are counted in the journal when they are first needed."""
        self._free: set[str] = set()
        """Keys that may have room for a parked job."""
        self._unseen: Iterator[str] | None = self._parked_on_disk()
        """At the start every key with a parked job may have: the broker may have died between the commit that made room
        and the one that would have let it in. A few are looked at in each round, however many there are."""
        self._parked_now: set[str] = set()
        """Keys with jobs parked in this round: the journal does not show those yet."""

    def _parked_on_disk(self) -> Iterator[str]:
        after = b""
        while found := self._book.view.scan(Index.PARKED, b"", after, 1):
            key, job_id = found[0]
            row = self._book.view.row(job_id)
            assert row is not None
            yield row.concurrency_key
            after = key[:KEY_DIGEST_BYTES] + b"\xff" * 16

    def _count(self, key: str) -> int:
        count = self._admitted.get(key)
        if count is None:
            # Nothing of this key has changed since the last commit, or it would be known here.
            count = len(self._book.view.scan(Index.ADMITTED, key_digest(key), b"", CREDIT_MAX))
            self._admitted[key] = count
        return count

    def enter(self, row: JobRow) -> JobRow:
        """A job has become ready: admitted if its key has room and nobody waits before it."""
        key = row.concurrency_key
        if not key or row.admitted:
            return row
        if self._count(key) < row.concurrency_limit and not self._has_parked(key):
            self._admitted[key] += 1
            return self._book.admit(row)
        self._parked_now.add(key)
        return row

    def _has_parked(self, key: str) -> bool:
        return key in self._parked_now or bool(self._book.view.scan(Index.PARKED, key_digest(key), b"", 1))

    def left(self, before: JobRow) -> None:
        """A job that stood admitted (ready or running) is so no longer."""
        key = before.concurrency_key
        if key and before.admitted and before.state in (State.READY, State.RUNNING):
            self._admitted[key] = self._count(key) - 1
            self._free.add(key)

    def let_in(self) -> Iterator[JobRow]:
        """Admit parked jobs whose key has room now; each is to be put into its queue."""
        keys, self._free = sorted(self._free), set()
        if self._unseen is not None:
            some = list(islice(self._unseen, KEYS_PER_ROUND))
            keys += some
            if len(some) < KEYS_PER_ROUND:
                self._unseen = None
        for key in keys:
            yield from self._let_in(key)

    def _let_in(self, key: str) -> Iterator[JobRow]:
        after = b""
        while page := self._book.view.scan(Index.PARKED, key_digest(key), after, _PAGE):
            for after, job_id in page:  # noqa: B007
                row = self._book.row(job_id)
                if row is None or row.state is not State.READY or row.admitted:
                    continue  # has left in this very round
                if self._count(key) >= row.concurrency_limit:
                    return
                self._admitted[key] += 1
                yield self._book.admit(row)

    def committed(self) -> bool:
        """The journal shows everything now; whether there is somebody to let in at once."""
        if len(self._admitted) > _KEYS_REMEMBERED:
            self._admitted.clear()
        # Jobs that were parked while room was made in the same round were not seen by let_in.
        self._free |= self._parked_now
        self._parked_now.clear()
        return bool(self._free) or self._unseen is not None

    def holders(self, key: str, limit: int) -> list[bytes]:
        """Jobs that the key has admitted, as of the last commit."""
        return [job_id for _, job_id in self._book.view.scan(Index.ADMITTED, key_digest(key), b"", limit)]
