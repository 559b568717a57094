"""The journal on LMDB: one write transaction a batch, one commit with fsync, then it is durable.

What was measured and is relied on: a commit writes the data pages, calls fdatasync, then writes the meta page through
an O_DSYNC descriptor, so what `commit()` returned from survives a power failure; `sync` and `metasync` stay on, and
`writemap` stays off (a full disk would be SIGBUS). LMDB does not remember a failed fsync: after any error here the
process must end. The environment belongs to one thread of one process and is never carried over a fork.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import lmdb

from zq.broker.journal import Counts, JournalError, JournalRefused, Notes, Step, apply_counts
from zq.broker.lmdb_view import (
    DATA_FORMAT,
    DATABASES_MAX,
    READERS_MAX,
    TABLES,
    CountsRow,
    LmdbView,
    encode,
    refuse_format,
)
from zq.broker.records import FORMAT, drops_result, holds_key, index_keys, key_digest
from zq.broker.upgrade import upgrade

_REMOTE_FILESYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs"})
"""No memory map with working locks there."""

_DISK_ERRORS = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What may have gone when the next broker starts. LMDB calls a full disk EIO as often as ENOSPC."""


class LmdbJournal(LmdbView):
    """See `journal.Journal`. Opening locks the folder for the life of the process and begins a new epoch.

    Raises JournalRefused if another process has the journal, if it is of another format, on a remote file system, or
    if it cannot be read; JournalError if the disk is full or fails, which a later start may find mended.
    """

    def __init__(self, folder: Path, *, map_size_bytes: int, sync: bool = True) -> None:
        self.folder = folder
        self._pid = os.getpid()
        self._commits_us: list[int] = []
        self.commits = 0
        with _explained(folder):
            _make_parents(folder)
            _refuse_remote(folder.parent)
            self._lock = lock(folder)
            try:
                if not folder.exists():
                    _create(folder, map_size_bytes)
                self._open(_environment(folder, map_size_bytes, sync=sync))
            except BaseException:
                os.close(self._lock)
                raise

    def _open(self, env: lmdb.Environment) -> None:
        try:
            env.reader_check()
            with env.begin(write=True) as txn:
                tables = {name: env.open_db(name.encode(), txn=txn) for name in TABLES}
                meta = tables["meta"]
                upgrade(txn, tables, txn.get(b"format", db=meta))
                refuse_format(self.folder, txn.get(b"format", db=meta))
                super().__init__(env, tables)
                self._reader = txn
                self._epoch = super().epoch + 1
                self._seq = super().seq
                self._time_ms = super().time_ms
                self._last_event = super().last_event
                self._counts = super().counts()
                self._reader = None
                txn.put(b"epoch", str(self._epoch).encode(), db=meta)
        except BaseException:
            env.close()
            raise

    # ------------------------------------------------------------------------------------------ writing

    def commit(self, steps: Sequence[Step], now_ms: int, notes: Notes | None = None) -> None:
        assert os.getpid() == self._pid, "the journal was carried over a fork"
        self.end_reading()
        begun_ns = time.perf_counter_ns()
        while True:
            try:
                counts = self._write(steps, now_ms, notes or Notes())
                break
            except lmdb.MapFullError:
                # The batch as a whole is tried again in a larger map; it is address space, the disk's own bound is
                # guarded before a submit is accepted.
                self._env.set_mapsize(self._env.info()["map_size"] * 2)
            except lmdb.Error as error:
                raise JournalError(f"commit failed: {error}") from error
        self._counts.update(counts)
        self._time_ms = max(self._time_ms, now_ms)
        self.commits += 1
        self._note_duration((time.perf_counter_ns() - begun_ns) // 1000)

    def _write(self, steps: Sequence[Step], now_ms: int, notes: Notes) -> dict[str, Counts]:
        """Put a batch on disk; the new counts of the queues it has changed."""
        touched = {step.after.queue for step in steps if step.after is not None}
        counts = {name: self._counts[name].copy() for name in touched if name in self._counts}
        tables = self._tables
        seq = self._seq
        last_event = self._last_event
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
                put(job_id, encode(after), db=rows)
                for index, key in index_keys(after):
                    put(key, job_id, db=tables[index])
                if holds_key(after):
                    put(key_digest(after.key), job_id, db=keyed)
                if step.spec is not None:
                    put(job_id, step.spec, db=specs)
                    seq = max(seq, after.seq)
                for attempt in step.attempts:
                    put(job_id + attempt.number.to_bytes(4, "big"), encode(attempt), db=tables["attempt"])
                for event in step.events:
                    put(event.number.to_bytes(8, "big"), encode(event), db=tables["event"])
                    last_event = max(last_event, event.number)
                if step.result is not None:
                    put(job_id, encode(step.result), db=tables["result"])
                if drops_result(before, after):
                    delete(job_id, db=tables["result"])
                apply_counts(counts, step)
            for queue, now in counts.items():
                row = CountsRow(queue, now.accepted, {int(s): n for s, n in now.by_state.items()})
                put(key_digest(queue), encode(row), db=tables["counts"])
            for event in notes.events:
                put(event.number.to_bytes(8, "big"), encode(event), db=tables["event"])
                last_event = max(last_event, event.number)
            for name, value in notes.facts.items():
                put(name.encode(), value, db=tables["fact"])
            put(b"seq", str(seq).encode(), db=tables["meta"])
            put(b"last_event", str(last_event).encode(), db=tables["meta"])
            put(b"time_ms", str(max(now_ms, self._time_ms)).encode(), db=tables["meta"])
        self._seq = seq
        self._last_event = last_event
        return counts

    def forget_events(self, kept_max: int, limit: int) -> None:
        """See Journal. A transaction of its own: it is small, and nothing depends on it."""
        table = self._tables["event"]
        surplus = int(self._read().stat(table)["entries"]) - kept_max
        if surplus <= 0:
            return
        self.end_reading()
        try:
            with self._env.begin(write=True) as txn:
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

    def counts(self) -> dict[str, Counts]:
        return {name: counts.copy() for name, counts in self._counts.items()}

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def seq(self) -> int:
        return self._seq

    @property
    def time_ms(self) -> int:
        return self._time_ms

    @property
    def last_event(self) -> int:
        return self._last_event

    # ------------------------------------------------------------------------------------------ the rest

    def commit_p99_us(self) -> int:
        """Of the last one or two thousand commits, in microseconds; 0 before the first."""
        ordered = sorted(self._commits_us)
        return ordered[len(ordered) * 99 // 100] if ordered else 0

    def drop_dead_readers(self) -> None:
        """Free what the readers of killed processes have pinned; call it now and then."""
        self._env.reader_check()

    def close(self) -> None:
        self.end_reading()
        self._env.close()
        os.close(self._lock)


def _environment(folder: Path, map_size_bytes: int, *, sync: bool = True) -> lmdb.Environment:
    # Without thread-local reader slots: the one thread's transactions are objects of ours. The mode is for the
    # files; the folder has been made 0700 before (py-lmdb would give it the files' mode).
    return lmdb.open(
        str(folder), map_size=map_size_bytes, max_dbs=DATABASES_MAX, mode=0o600, subdir=True, create=True, sync=sync,
        metasync=True, writemap=False, max_readers=READERS_MAX, lib_version=DATA_FORMAT,
    )  # fmt: skip


def _create(folder: Path, map_size_bytes: int) -> None:
    """Make an empty journal under another name and rename it: a crash in LMDB's own creation leaves a broken file."""
    new = begin_new(folder)
    env = _environment(new, map_size_bytes)
    with env.begin(write=True) as txn:
        meta, *_ = [env.open_db(name.encode(), txn=txn) for name in TABLES]
        txn.put(b"format", str(FORMAT).encode(), db=meta)
        txn.put(b"created_ms", str(int(time.time() * 1000)).encode(), db=meta)
    env.sync(True)
    env.close()
    put_in_place(new, folder)


def bring_up(folder: Path, epochs_skipped: int, map_size_bytes: int) -> None:
    """Make a copy of a journal fit to go on from: in today's format, and past the epochs of other brokers.

    Nobody has it open. Raises JournalRefused for a format that this zq cannot read.
    """
    env = _environment(folder, map_size_bytes)
    try:
        with env.begin(write=True) as txn:
            tables = {name: env.open_db(name.encode(), txn=txn) for name in TABLES}
            meta = tables["meta"]
            upgrade(txn, tables, txn.get(b"format", db=meta))
            refuse_format(folder, txn.get(b"format", db=meta))
            txn.put(b"epoch", str(int(txn.get(b"epoch", b"0", db=meta)) + epochs_skipped).encode(), db=meta)
    finally:
        env.close()


def begin_new(folder: Path) -> Path:
    """An empty private folder beside `folder`, in which a journal can be made; what was left in it is gone."""
    new = folder.with_name(folder.name + ".new")
    if new.exists():
        for file in new.iterdir():
            file.unlink()
    new.mkdir(mode=0o700, exist_ok=True)
    return new


def put_in_place(new: Path, folder: Path) -> None:
    """Give the finished journal in `new` its name, durably."""
    sync_folder(new)
    new.rename(folder)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(folder: Path) -> int:
    """Lock the journal in `folder` for one broker, since LMDB itself would let two write in turn; the descriptor.

    The lock ends with the process or when the descriptor is closed. Raises JournalRefused if another has it.
    """
    path = folder.with_name(folder.name + ".lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 64, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise JournalRefused(
            f"another broker has this journal ({path}: pid {owner or 'unknown'}); stop it, or use another data_dir"
        ) from None
    # For people only: on a full disk the lock is taken without it.
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """What goes wrong when a journal is opened, as one of the two errors that a broker knows."""
    try:
        yield
    except (lmdb.Error, OSError) as error:
        number = error.code if isinstance(error, lmdb.Error) else error.errno
        if number in _DISK_ERRORS:
            raise JournalError(f"the disk under {folder} is full or fails: {error}") from error
        raise JournalRefused(
            f"the journal in {folder} cannot be opened: {error}. Nothing was changed. Restore a backup (zq journal "
            "restore), or move the folder away to begin with an empty journal"
        ) from error


def _make_parents(folder: Path) -> None:
    """Make the folder's parents, private, in such a way that a power failure takes none of them away again."""
    missing = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for parent in reversed(missing):
        sync_folder(parent.parent)


def _refuse_remote(folder: Path) -> None:
    with suppress(OSError, ValueError, IndexError):
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
        inside = [(m[1], m[2]) for m in mounts if (str(folder.resolve()) + "/").startswith(m[1].rstrip("/") + "/")]
        _, kind = max(inside, key=lambda m: len(m[0]))
        if kind in _REMOTE_FILESYSTEMS:
            raise JournalRefused(
                f"{folder} is on {kind}: a journal needs a local file system (memory map, locks); set data_dir to one"
            )
