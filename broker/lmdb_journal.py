"""The journal on LMDB: one write transaction a batch, one commit with fsync, then it is durable.

What was measured and is relied on: a commit writes the data pages, calls fdatasync, then writes the meta page through
an O_DSYNC descriptor, so what `commit()` returned from survives a power failure; `sync` and `metasync` stay on, and
`writemap` stays off (a full disk would be SIGBUS). LMDB does not remember a failed fsync: after any error here the
process must end. The environment belongs to one thread of one process and is never carried over a fork.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import lmdb
import msgspec

from zq.broker.journal import Counts, JournalError, JournalRefused, Step, apply_counts, prefix_end
from zq.broker.records import FORMAT, AttemptRow, EventRow, Index, JobRow, KeptResult, holds_key, index_keys, key_digest
from zq.protocol.job import State

_DATA_FORMAT = 0
"""The LMDB 0.9 file format; py-lmdb also bundles a newer one that cannot read it."""

_REMOTE_FILESYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs"})
"""No memory map with working locks there."""

_TABLES = ("meta", "row", "spec", "attempt", "result", "keyed", "counts", "event", "fact", *Index)

_encode = msgspec.msgpack.Encoder().encode
_decode_row = msgspec.msgpack.Decoder(JobRow).decode
_decode_attempt = msgspec.msgpack.Decoder(AttemptRow).decode
_decode_event = msgspec.msgpack.Decoder(EventRow).decode
_decode_result = msgspec.msgpack.Decoder(KeptResult).decode


class _CountsRow(msgspec.Struct, frozen=True, array_like=True):
    queue: str
    accepted: int
    by_state: dict[int, int]


_decode_counts = msgspec.msgpack.Decoder(_CountsRow).decode


class LmdbJournal:
    """See `journal.Journal`. Opening locks the folder for the life of the process and begins a new epoch.

    Raises JournalRefused if another process has the journal, if it is of another format, on a remote file system, or
    if it cannot be read.
    """

    def __init__(self, folder: Path, *, map_size_bytes: int, sync: bool = True) -> None:
        self.folder = folder
        self._pid = os.getpid()
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_remote(folder.parent)
        self._lock = _lock(folder.with_name(folder.name + ".lock"))
        self._commits_us: list[int] = []
        self.commits = 0
        try:
            if not folder.exists():
                _create(folder, map_size_bytes)
            self._open(folder, map_size_bytes, sync)
        except lmdb.Error as error:
            os.close(self._lock)
            raise JournalRefused(
                f"the journal in {folder} cannot be opened: {error}. Nothing was changed. Restore a backup, or move "
                "the folder away to begin with an empty journal"
            ) from None
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self, folder: Path, map_size_bytes: int, sync: bool) -> None:
        self._env = _environment(folder, map_size_bytes, sync=sync)
        with self._env.begin(write=True) as txn:
            meta = self._env.open_db(b"meta", txn=txn)
            found = txn.get(b"format", db=meta)
            if found != str(FORMAT).encode():
                raise JournalRefused(
                    f"the journal in {folder} has format {(found or b'none').decode()}, this zq reads {FORMAT}; "
                    "use the version of zq that wrote it"
                )
            self._tables = {name: self._env.open_db(name.encode(), txn=txn) for name in _TABLES}
            self._epoch = int(txn.get(b"epoch", b"0", db=meta)) + 1
            self._seq = int(txn.get(b"seq", b"0", db=meta))
            self._time_ms = int(txn.get(b"time_ms", b"0", db=meta))
            self._last_event = int(txn.get(b"last_event", b"0", db=meta))
            self._counts: dict[str, Counts] = {}
            for _, value in txn.cursor(db=self._tables["counts"]):
                row = _decode_counts(value)
                self._counts[row.queue] = Counts(row.accepted, {s: row.by_state.get(s, 0) for s in State})
            txn.put(b"epoch", str(self._epoch).encode(), db=meta)
        self._reader: lmdb.Transaction | None = None

    # ------------------------------------------------------------------------------------------ writing

    def commit(self, steps: Sequence[Step], now_ms: int, facts: Mapping[str, bytes] | None = None) -> None:
        assert os.getpid() == self._pid, "the journal was carried over a fork"
        self._end_reading()
        begun_ns = time.perf_counter_ns()
        counts = {name: Counts(c.accepted, dict(c.by_state)) for name, c in self._counts.items()}
        while True:
            try:
                self._write(steps, now_ms, counts, facts or {})
                break
            except lmdb.MapFullError:
                # The batch as a whole is tried again in a larger map; it is address space, the disk's own bound is
                # guarded before a submit is accepted.
                counts = {name: Counts(c.accepted, dict(c.by_state)) for name, c in self._counts.items()}
                self._env.set_mapsize(self._env.info()["map_size"] * 2)
            except lmdb.Error as error:
                raise JournalError(f"commit failed: {error}") from error
        self._counts = counts
        self._time_ms = max(self._time_ms, now_ms)
        self.commits += 1
        self._note_duration((time.perf_counter_ns() - begun_ns) // 1000)

    def _write(
        self, steps: Sequence[Step], now_ms: int, counts: dict[str, Counts], facts: Mapping[str, bytes]
    ) -> None:
        tables = self._tables
        seq = self._seq
        last_event = self._last_event
        touched: set[str] = set()
        with self._env.begin(write=True) as txn:
            put, delete = txn.put, txn.delete
            rows, specs, keyed = tables["row"], tables["spec"], tables["keyed"]
            for step in steps:
                before, after = step.before, step.after
                if before is not None:
                    for index, key in index_keys(before):
                        if not delete(key, db=tables[index]):
                            raise JournalError(f"index {index} has lost job {before.id.hex()}")
                    if holds_key(before):
                        delete(key_digest(before.key), db=keyed)
                if after is None:
                    assert before is not None
                    self._forget(txn, before.id)
                    continue
                job_id = after.id
                put(job_id, _encode(after), db=rows)
                for index, key in index_keys(after):
                    put(key, job_id, db=tables[index])
                if holds_key(after):
                    put(key_digest(after.key), job_id, db=keyed)
                if step.spec is not None:
                    put(job_id, step.spec, db=specs)
                    seq = max(seq, after.seq)
                for attempt in step.attempts:
                    put(job_id + attempt.number.to_bytes(4, "big"), _encode(attempt), db=tables["attempt"])
                for event in step.events:
                    put(event.number.to_bytes(8, "big"), _encode(event), db=tables["event"])
                    last_event = max(last_event, event.number)
                if step.result is not None:
                    put(job_id, _encode(step.result), db=tables["result"])
                queue = apply_counts(counts, step)
                if queue is not None:
                    touched.add(queue)
            for queue in touched:
                c = counts[queue]
                row = _CountsRow(queue, c.accepted, {int(s): n for s, n in c.by_state.items()})
                put(key_digest(queue), _encode(row), db=tables["counts"])
            for name, value in facts.items():
                put(name.encode(), value, db=tables["fact"])
            put(b"seq", str(seq).encode(), db=tables["meta"])
            put(b"last_event", str(last_event).encode(), db=tables["meta"])
            put(b"time_ms", str(max(now_ms, self._time_ms)).encode(), db=tables["meta"])
        self._seq = seq
        self._last_event = last_event

    def forget_events(self, kept_max: int, limit: int) -> None:
        """See Journal. A transaction of its own: it is small, and nothing depends on it."""
        self._end_reading()
        try:
            with self._env.begin(write=True) as txn:
                table = self._tables["event"]
                surplus = txn.stat(table)["entries"] - kept_max
                cursor = txn.cursor(db=table)
                for _ in range(min(surplus, limit)):
                    if not cursor.first():
                        break
                    cursor.delete()
        except lmdb.Error as error:
            raise JournalError(f"events could not be forgotten: {error}") from error

    def _forget(self, txn: lmdb.Transaction, job_id: bytes) -> None:
        for name in ("row", "spec", "result"):
            txn.delete(job_id, db=self._tables[name])
        cursor = txn.cursor(db=self._tables["attempt"])
        while cursor.set_range(job_id) and bytes(cursor.key()).startswith(job_id):
            cursor.delete()

    def _note_duration(self, duration_us: int) -> None:
        self._commits_us.append(duration_us)
        if len(self._commits_us) > 2048:
            del self._commits_us[:1024]

    # ------------------------------------------------------------------------------------------ reading

    def _read(self) -> lmdb.Transaction:
        """The read transaction between two commits: short-lived, since it pins pages."""
        if self._reader is None:
            self._reader = self._env.begin(buffers=False)
        return self._reader

    def _end_reading(self) -> None:
        if self._reader is not None:
            self._reader.abort()
            self._reader = None

    def row(self, job_id: bytes) -> JobRow | None:
        data = self._read().get(job_id, db=self._tables["row"])
        return None if data is None else _decode_row(data)

    def spec(self, job_id: bytes) -> bytes | None:
        found = self._read().get(job_id, db=self._tables["spec"])
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
        found = self._read().get(key_digest(key), db=self._tables["keyed"])
        return None if found is None else bytes(found)

    def scan(
        self, index: Index, prefix: bytes, after: bytes, limit: int, *, backwards: bool = False
    ) -> list[tuple[bytes, bytes]]:
        cursor = self._read().cursor(db=self._tables[index])
        if backwards:
            start = min(after, prefix_end(prefix)) if after else prefix_end(prefix)
            placed = cursor.prev() if cursor.set_range(start) else cursor.last()
            entries = cursor.iterprev()
        else:
            placed = cursor.set_range(max(after, prefix))
            if placed and after and cursor.key() == after:
                placed = cursor.next()
            entries = cursor.iternext()
        found: list[tuple[bytes, bytes]] = []
        if not placed:
            return found
        for entry in entries:
            key, job_id = bytes(entry[0]), bytes(entry[1])
            if not key.startswith(prefix):
                break
            found.append((key, job_id))
            if len(found) == limit:
                break
        return found

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
        return self._last_event

    def facts(self) -> dict[str, bytes]:
        cursor = self._read().cursor(db=self._tables["fact"])
        return {bytes(name).decode(): bytes(value) for name, value in cursor}

    def counts(self) -> dict[str, Counts]:
        return {name: Counts(c.accepted, dict(c.by_state)) for name, c in self._counts.items()}

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def seq(self) -> int:
        return self._seq

    @property
    def time_ms(self) -> int:
        return self._time_ms

    # ------------------------------------------------------------------------------------------ the rest

    def commit_p99_us(self) -> int:
        """Of the last one or two thousand commits, in microseconds; 0 before the first."""
        ordered = sorted(self._commits_us)
        return ordered[len(ordered) * 99 // 100] if ordered else 0

    def size_bytes(self) -> int:
        """Bytes of the file that hold something (pages up to the last one in use)."""
        info = self._env.info()
        return int((info["last_pgno"] + 1) * self._env.stat()["psize"])

    def end_reading(self) -> None:
        """Let go of the pages that reading has pinned; called when the broker has nothing to do."""
        self._end_reading()

    def close(self) -> None:
        self._end_reading()
        self._env.close()
        os.close(self._lock)


def _environment(folder: Path, map_size_bytes: int, *, sync: bool = True) -> lmdb.Environment:
    # Without thread-local reader slots: the one thread's transactions are objects of ours. The mode is for the
    # files; the folder has been made 0700 before (py-lmdb would give it the files' mode).
    return lmdb.open(
        str(folder), map_size=map_size_bytes, max_dbs=32, mode=0o600, subdir=True, create=True, sync=sync,
        metasync=True, writemap=False, max_readers=64, lib_version=_DATA_FORMAT,
    )  # fmt: skip


def _create(folder: Path, map_size_bytes: int) -> None:
    """Make an empty journal under another name and rename it: a crash in LMDB's own creation leaves a broken file."""
    new = folder.with_name(folder.name + ".new")
    if new.exists():
        for file in new.iterdir():
            file.unlink()
    new.mkdir(mode=0o700, exist_ok=True)
    env = _environment(new, map_size_bytes)
    with env.begin(write=True) as txn:
        meta, *_ = [env.open_db(name.encode(), txn=txn) for name in _TABLES]
        txn.put(b"format", str(FORMAT).encode(), db=meta)
        txn.put(b"created_ms", str(int(time.time() * 1000)).encode(), db=meta)
    env.sync(True)
    env.close()
    _fsync_folder(new)
    new.rename(folder)
    _fsync_folder(folder.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(path: Path) -> int:
    """One broker a journal: LMDB itself would let two write in turn. The lock ends with the process."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 64, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise JournalRefused(
            f"another broker has this journal ({path}: pid {owner or 'unknown'}); stop it, or use another data_dir"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _refuse_remote(folder: Path) -> None:
    with suppress(OSError, ValueError, IndexError):
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
        inside = [(m[1], m[2]) for m in mounts if (str(folder.resolve()) + "/").startswith(m[1].rstrip("/") + "/")]
        _, kind = max(inside, key=lambda m: len(m[0]))
        if kind in _REMOTE_FILESYSTEMS:
            raise JournalRefused(
                f"{folder} is on {kind}: a journal needs a local file system (memory map, locks); set data_dir to one"
            )
