"""The first answer to each Idempotency-Key, on disk before it is sent: {data_dir}/http.db, an SQLite database.

That a job is submitted once does not rest on this: a key makes the job's id, and the broker knows its jobs. This is for
what an id cannot hold: the very answer, with its state and warnings, and that another live job had the job's `key`.
All web processes of one data folder share it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

log = logging.getLogger("zq.web")

BYTES_MAX: Final = 512 << 20
"""Of the answers together; the oldest go first, also before their time."""
FORGET_EVERY: Final = 1000
BUSY_S: Final = 10.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    caller TEXT NOT NULL, key TEXT NOT NULL, fingerprint BLOB NOT NULL, status INTEGER NOT NULL, location TEXT NOT NULL,
    body BLOB NOT NULL, made_ms INTEGER NOT NULL, PRIMARY KEY (caller, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS answers_made ON answers (made_ms);
"""


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """What was answered, and to what."""

    fingerprint: bytes
    status: int
    location: str
    body: bytes


def fingerprint(path: str, body: msgspec.Struct) -> bytes:
    """The same for the same request, however its JSON is written."""
    return hashlib.sha256(path.encode() + b"\0" + msgspec.json.encode(body, order="deterministic")).digest()


class AnswerBook:
    """The answers of the last `window_ms`. Blocks; safe to share between threads. Raises sqlite3.Error."""

    def __init__(self, path: Path, window_ms: int, bytes_max: int = BYTES_MAX) -> None:
        self._path = path
        self._window_ms = window_ms
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._opened: sqlite3.Connection | None = None
        self._kept = 0

    def find(self, caller: str, key: str, now_ms: int) -> KeptAnswer | None:
        with self._connection() as connection:
            return _find(connection, caller, key, now_ms - self._window_ms)

    def keep(self, answers: list[tuple[str, str, KeptAnswer]], now_ms: int) -> list[KeptAnswer]:
        """Keep answers to (caller, key), durably; of those that are there already the first. Returns what is kept."""
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                kept = [self._keep(connection, caller, key, one, now_ms) for caller, key, one in answers]
                connection.execute("COMMIT")
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            self._kept += len(answers)
            if self._kept >= FORGET_EVERY:
                self._kept = 0
                self._forget(connection, now_ms)
            return kept

    def _keep(
        self, connection: sqlite3.Connection, caller: str, key: str, one: KeptAnswer, now_ms: int
    ) -> KeptAnswer:
        first = _find(connection, caller, key, now_ms - self._window_ms)
        if first is not None:
            return first
        row = (caller, key, one.fingerprint, one.status, one.location, one.body, now_ms)
        connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return one

    def _forget(self, connection: sqlite3.Connection, now_ms: int) -> None:
        connection.execute("DELETE FROM answers WHERE made_ms <= ?", (now_ms - self._window_ms,))
        while self._size_bytes(connection) > self._bytes_max:
            oldest = "SELECT caller, key FROM answers ORDER BY made_ms LIMIT 1000"
            if not connection.execute(f"DELETE FROM answers WHERE (caller, key) IN ({oldest})").rowcount:
                return

    @staticmethod
    def _size_bytes(connection: sqlite3.Connection) -> int:
        used, free, size = (
            int(connection.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (used - free) * size

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._opened is None:
                # For its owner alone; SQLite gives its side files the same mode.
                os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
                opened = sqlite3.connect(self._path, BUSY_S, isolation_level=None, check_same_thread=False)
                opened.execute("PRAGMA journal_mode=WAL")
                opened.execute("PRAGMA synchronous=FULL")
                opened.executescript(_SCHEMA)
                self._opened = opened
            yield self._opened

    def close(self) -> None:
        with self._lock:
            if self._opened is not None:
                self._opened.close()
                self._opened = None


def _find(connection: sqlite3.Connection, caller: str, key: str, after_ms: int) -> KeptAnswer | None:
    row = connection.execute(
        "SELECT fingerprint, status, location, body FROM answers WHERE caller = ? AND key = ? AND made_ms > ?",
        (caller, key, after_ms),
    ).fetchone()
    return None if row is None else KeptAnswer(*row)


@dataclass
class _Waiting:
    answers: list[tuple[str, str, KeptAnswer]] = field(default_factory=list)
    futures: list[asyncio.Future[KeptAnswer]] = field(default_factory=list)


class AnswerKeeper:
    """The same for an event loop: answers that come together are one transaction."""

    def __init__(self, book: AnswerBook) -> None:
        self._book = book
        self._waiting = _Waiting()
        self._writer: asyncio.Task[None] | None = None

    async def find(self, caller: str, key: str, now_ms: int) -> KeptAnswer | None:
        """None also if the database cannot be read: the broker still knows the job by its id."""
        try:
            return await asyncio.to_thread(self._book.find, caller, key, now_ms)
        except (sqlite3.Error, OSError) as error:
            log.warning("the answers to Idempotency-Keys cannot be read now: %s", error)
            return None

    async def keep(self, caller: str, key: str, answer: KeptAnswer, now_ms: int) -> KeptAnswer:
        """The answer to send: durably kept, or at least this one if the database does not take it."""
        future: asyncio.Future[KeptAnswer] = asyncio.get_running_loop().create_future()
        # Its asker may have hung up by then.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._waiting.answers.append((caller, key, answer))
        self._waiting.futures.append(future)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write(now_ms), name="idempotency")
        try:
            return await asyncio.shield(future)
        except (sqlite3.Error, OSError) as error:
            log.warning("the answer to an Idempotency-Key cannot be kept: %s", error)
            return answer

    async def _write(self, now_ms: int) -> None:
        try:
            while self._waiting.answers:
                taken, self._waiting = self._waiting, _Waiting()
                try:
                    kept = await asyncio.to_thread(self._book.keep, taken.answers, now_ms)
                except Exception as error:
                    for future in taken.futures:
                        future.set_exception(error)
                else:
                    for future, one in zip(taken.futures, kept, strict=True):
                        future.set_result(one)
        finally:
            self._writer = None
