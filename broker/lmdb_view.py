"""What is on disk in the LMDB journal, and reading it: the tables, their records, and a view over one environment.

`LmdbJournal` is this view plus writing. `open_to_read` is for another process: LMDB lets any number of processes read
while one writes, each on the state of the last commit before it began. A reader pins the pages of its state, so it
must not stay for long.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lmdb
import msgspec

from zq.broker.hours import hour_key
from zq.broker.journal import Counts, JournalRefused, Totals, prefix_end
from zq.broker.journal_folder import LOG_FILE, TABLES_FILE, in_use
from zq.broker.pages import refuse_cut_short
from zq.broker.records import FORMAT, AttemptRow, EventRow, HourRow, Index, JobRow, KeptResult, key_digest, queue_prefix
from zq.protocol.job import State

DATA_FORMAT = 0
"""The LMDB 0.9 file format; py-lmdb also bundles a newer one that cannot read it."""

LOG_TAG = b"log"
"""Under this name, among the numbers: the tag of the log's records that are not in the tables yet."""
CHECKPOINT_WAIT_S = 5.0
_POLL_S = 0.02

TABLES = ("meta", "row", "spec", "attempt", "result", "keyed", "counts", "hour", "event", "fact", *Index)
DATABASES_MAX = 32
READERS_MAX = 64

encode = msgspec.msgpack.Encoder().encode
_decode_row = msgspec.msgpack.Decoder(JobRow).decode
_decode_attempt = msgspec.msgpack.Decoder(AttemptRow).decode
_decode_event = msgspec.msgpack.Decoder(EventRow).decode
decode_hour = msgspec.msgpack.Decoder(HourRow).decode
_decode_result = msgspec.msgpack.Decoder(KeptResult).decode


class CountsRow(msgspec.Struct, frozen=True, array_like=True):
    queue: str
    accepted: int
    by_state: dict[int, int]


_decode_counts = msgspec.msgpack.Decoder(CountsRow).decode


class LmdbView:
    """See `journal.View`. All answers are of one state until `end_reading`."""

    def __init__(self, env: lmdb.Environment, tables: dict[str, Any]) -> None:
        self._env = env
        self._tables = tables
        self._reader: lmdb.Transaction | None = None

    def _read(self) -> lmdb.Transaction:
        if self._reader is None:
            self._reader = self._env.begin(buffers=False)
        return self._reader

    def end_reading(self) -> None:
        """Let go of the pages that reading has pinned; the next question is answered from the newest state."""
        if self._reader is not None:
            self._reader.abort()
            self._reader = None

    def row(self, job_id: bytes) -> JobRow | None:
        return self._row_in(self._read(), job_id)

    def _row_in(self, txn: lmdb.Transaction, job_id: bytes) -> JobRow | None:
        data = txn.get(job_id, db=self._tables["row"])
        return None if data is None else _decode_row(data)

    def rows(self, after: bytes, limit: int) -> list[JobRow]:
        cursor = self._read().cursor(db=self._tables["row"])
        found: list[JobRow] = []
        if cursor.set_range(after + b"\0"):
            for _, data in cursor:
                found.append(_decode_row(data))
                if len(found) == limit:
                    break
        return found

    def spec(self, job_id: bytes) -> bytes | None:
        return self._spec_in(self._read(), job_id)

    def _spec_in(self, txn: lmdb.Transaction, job_id: bytes) -> bytes | None:
        found = txn.get(job_id, db=self._tables["spec"])
        return None if found is None else bytes(found)

    def attempts(self, job_id: bytes) -> list[AttemptRow]:
        cursor = self._read().cursor(db=self._tables["attempt"])
        found = []
        if cursor.set_range(job_id):
            for key, value in cursor:
                if not bytes(key).startswith(job_id):
                    break
                found.append(_decode_attempt(value))
        return found

    def result(self, job_id: bytes) -> KeptResult | None:
        data = self._read().get(job_id, db=self._tables["result"])
        return None if data is None else _decode_result(data)

    def key_holder(self, key: str) -> bytes | None:
        return self._key_holder_in(self._read(), key)

    def _key_holder_in(self, txn: lmdb.Transaction, key: str) -> bytes | None:
        found = txn.get(key_digest(key), db=self._tables["keyed"])
        return None if found is None else bytes(found)

    def scan(
        self, index: Index, prefix: bytes, after: bytes, limit: int, *, backwards: bool = False
    ) -> list[tuple[bytes, bytes]]:
        return list(itertools.islice(self._entries_in(self._read(), index, prefix, after, backwards), limit))

    def _entries_in(
        self, txn: lmdb.Transaction, index: Index, prefix: bytes, after: bytes, backwards: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        cursor = txn.cursor(db=self._tables[index])
        if backwards:
            start = min(after, prefix_end(prefix)) if after else prefix_end(prefix)
            placed = cursor.prev() if cursor.set_range(start) else cursor.last()
            entries = cursor.iterprev()
        else:
            placed = cursor.set_range(max(after, prefix))
            if placed and after and cursor.key() == after:
                placed = cursor.next()
            entries = cursor.iternext()
        if not placed:
            return
        for entry in entries:
            key, job_id = bytes(entry[0]), bytes(entry[1])
            if not key.startswith(prefix):
                return
            yield key, job_id

    def event(self, number: int) -> EventRow | None:
        data = self._read().get(number.to_bytes(8, "big"), db=self._tables["event"])
        return None if data is None else _decode_event(data)

    def events(self, after: int, limit: int) -> list[EventRow]:
        cursor = self._read().cursor(db=self._tables["event"])
        found: list[EventRow] = []
        if cursor.set_range((after + 1).to_bytes(8, "big")):
            for _, value in cursor:
                found.append(_decode_event(value))
                if len(found) == limit:
                    break
        return found

    @property
    def last_event(self) -> int:
        return self._number(b"last_event")

    def facts(self) -> dict[str, bytes]:
        return {bytes(name).decode(): bytes(value) for name, value in self._read().cursor(db=self._tables["fact"])}

    def totals(self) -> Totals:
        def entries(name: str) -> int:
            return int(self._read().stat(self._tables[name])["entries"])

        return Totals(
            entries("row"), entries("spec"), entries("attempt"), entries("result"), entries("keyed"),
            {index: entries(index) for index in Index},
        )  # fmt: skip

    def counts(self) -> dict[str, Counts]:
        found: dict[str, Counts] = {}
        for _, value in self._read().cursor(db=self._tables["counts"]):
            row = _decode_counts(value)
            found[row.queue] = Counts(row.accepted, {s: row.by_state.get(s, 0) for s in State})
        return found

    def hours(self, queue: str, since_ms: int, limit: int) -> list[HourRow]:
        cursor = self._read().cursor(db=self._tables["hour"])
        prefix = queue_prefix(queue)
        found: list[HourRow] = []
        if cursor.set_range(hour_key(queue, since_ms)):
            for key, value in cursor:
                if not bytes(key).startswith(prefix) or len(found) == limit:
                    break
                found.append(decode_hour(value))
        return found

    def _number(self, name: bytes) -> int:
        return int(self._read().get(name, b"0", db=self._tables["meta"]))

    @property
    def epoch(self) -> int:
        """Of the newest broker on this journal."""
        return self._number(b"epoch")

    @property
    def seq(self) -> int:
        return self._number(b"seq")

    @property
    def time_ms(self) -> int:
        return self._number(b"time_ms")


    def size_bytes(self) -> int:
        """Bytes of the file that hold something (pages up to the last one in use)."""
        return int((self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"])


class LmdbReader(LmdbView):
    """The journal as another process may look at it."""

    def copy_to(self, folder: Path) -> None:
        """Write the newest state into the empty `folder`, without its free pages. Raises JournalRefused."""
        try:
            self._env.copy(str(folder), compact=True)
        except lmdb.Error as error:
            raise JournalRefused(f"{folder} cannot be written: {error}") from error


@contextmanager
def open_to_read(folder: Path, *, shared: bool) -> Iterator[LmdbReader]:
    """The journal in `folder`. `shared`: a broker may be writing to it, so LMDB's locks are needed, and what is only in
    its log now is waited for, some seconds at most. After a broker that was killed, the log waits for the next one.

    Raises JournalRefused if there is no journal, if it is of another format, or if it cannot be read.
    """
    with _opened(folder, shared=shared) as env:
        if shared:
            _await_checkpoint(env, folder)
        reader = LmdbReader(env, {name: env.open_db(name.encode(), create=False) for name in TABLES})
        try:
            yield reader
        finally:
            reader.end_reading()


def has_log(folder: Path) -> bool:
    """Whether something of the journal in `folder` is only in its log. Raises JournalRefused as `open_to_read` does."""
    with _opened(folder, shared=True) as env:
        return _unsettled(env, folder) is not None


@contextmanager
def _opened(folder: Path, *, shared: bool) -> Iterator[lmdb.Environment]:
    if not (folder / TABLES_FILE).is_file():
        raise JournalRefused(f"there is no journal in {folder}")
    try:
        env = lmdb.open(
            str(folder), readonly=True, create=False, lock=shared, max_dbs=DATABASES_MAX, max_readers=READERS_MAX,
            lib_version=DATA_FORMAT,
        )  # fmt: skip
        try:
            if not in_use(folder):
                refuse_cut_short(env, folder)
            with env.begin() as txn:
                found = txn.get(b"format", db=env.open_db(b"meta", txn=txn, create=False))
            refuse_format(folder, found)
            yield env
        finally:
            env.close()
    except lmdb.Error as error:
        raise JournalRefused(f"the journal in {folder} cannot be read: {error}") from None


def _unsettled(env: lmdb.Environment, folder: Path) -> bytes | None:
    """The tag of the log's records that are not in the tables yet; None if there are none."""
    with env.begin() as txn:
        tag = txn.get(LOG_TAG, db=env.open_db(b"meta", txn=txn, create=False))
    with suppress(OSError), (folder / LOG_FILE).open("rb") as log:
        if tag is not None and log.read(len(tag)) == tag:
            return bytes(tag)
    return None


def _await_checkpoint(env: lmdb.Environment, folder: Path) -> None:
    until_s = time.monotonic() + CHECKPOINT_WAIT_S
    tag = _unsettled(env, folder)
    while tag is not None and tag == _unsettled(env, folder) and in_use(folder) and time.monotonic() < until_s:
        time.sleep(_POLL_S)


def refuse_format(folder: Path, found: bytes | None) -> None:
    """Raises JournalRefused unless the journal has this zq's format."""
    if found != str(FORMAT).encode():
        raise JournalRefused(
            f"the journal in {folder} has format {(found or b'none').decode()}, this zq reads {FORMAT}; "
            "start a broker of this version once to upgrade an older one; a newer one needs the zq that wrote it"
        )
