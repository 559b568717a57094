"""The journal on disk: a write-ahead log that makes each commit durable, and LMDB tables that it is worked into.

    commit    one record in the log (wal.py), one fdatasync: durable
    settle    the steps since, one joined step for each job, go into the tables, in LMDB's open write transaction
    checkpoint    that transaction is committed, and the log begins anew

So what has to be waited for is one small write; what is put into the tables is less than what has happened, since most
jobs come and go between two checkpoints; and what a power failure leaves is the tables as of a checkpoint, and a log of
all that was said since, which the next start works in before it says a word.

What was measured and is relied on of LMDB: a commit writes the data pages, calls fdatasync, then writes the meta page
through an O_DSYNC descriptor, so what `commit()` returned from survives a power failure; `sync` and `metasync` stay on,
and `writemap` stays off (a full disk would be SIGBUS). LMDB does not remember a failed fsync: after any error here the
process must end. The environment belongs to one thread of one process and is never carried over a fork.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import lmdb

from zq.broker.hours import hour_key
from zq.broker.journal import Counts, JournalRefused, Notes, Step
from zq.broker.journal_folder import (
    LOG_FILE,
    begin_new,
    explained,
    failed,
    lock,
    make_parents,
    put_in_place,
    refuse_remote,
    sync_folder,
)
from zq.broker.lmdb_view import (
    DATA_FORMAT,
    DATABASES_MAX,
    LOG_TAG,
    READERS_MAX,
    TABLES,
    LmdbView,
    refuse_format,
)
from zq.broker.log_entry import UNREADABLE, decode_entry, encode_entry
from zq.broker.pages import refuse_cut_short
from zq.broker.records import FORMAT, EventRow, HourRow, Index, JobRow, KeptResult
from zq.broker.unsettled import Unsettled
from zq.broker.upgrade import upgrade
from zq.broker.wal import SIZE_BYTES, TAG_BYTES, LogDamaged, WriteAheadLog, make_log
from zq.protocol import limits

SETTLE_JOBS = 2048
"""Jobs whose steps wait in memory at most: bounds it, and the time of one settling."""
CHECKPOINT_STEPS = 16_384
"""Steps between two checkpoints at most: bounds the pages that LMDB's transaction holds in memory."""
SETTLE_AT_REST_JOBS = 64
"""So many are put into the tables when nobody waits; of fewer, one that comes and goes is still written once."""
BURST_STEPS = 512
BURST_MS = 200
"""After a burst, one of so many steps, it is worked in as soon as nobody waits, at most five times a second: the longer
it stands, the likelier somebody comes meanwhile."""
CHECKPOINT_AFTER_MS = 1000
"""The log is worked in when nobody waits after so long, for those who read the tables beside the broker."""
CHECKPOINT_LATE_MS = 2000
"""And after so long in any case."""


class LmdbJournal(LmdbView):
    """See `journal.Journal`. Opening locks the folder for the life of the process and begins a new epoch.

    Raises JournalRefused if another process has the journal, if it is of another format, on a remote file system, or
    if it cannot be read; JournalError if the disk is full or fails, which a later start may find mended.
    """

    def __init__(
        self, folder: Path, *, map_size_bytes: int, log_size_bytes: int = SIZE_BYTES, sync: bool = True
    ) -> None:
        self.folder = folder
        self._pid = os.getpid()
        self._commits_us: list[int] = []
        self.commits = 0
        self._unsettled = Unsettled()
        self._too_large: list[bytes] = []
        """A commit that the log has no room for, until it is in the tables."""
        self._txn: lmdb.Transaction | None = None
        self._changed = False
        self._steps_since = 0
        self._log_since_ms = 0
        with explained(folder):
            make_parents(folder)
            refuse_remote(folder.parent)
            self._lock = lock(folder)
            try:
                if not folder.exists():
                    _create(folder, map_size_bytes, log_size_bytes)
                self._open(_environment(folder, map_size_bytes, sync=sync), log_size_bytes, sync=sync)
            except BaseException:
                os.close(self._lock)
                raise

    def _open(self, env: lmdb.Environment, log_size_bytes: int, *, sync: bool) -> None:
        try:
            refuse_cut_short(env, self.folder)
            env.reader_check()
            with env.begin(write=True) as txn:
                tables = {name: env.open_db(name.encode(), txn=txn) for name in TABLES}
                upgrade(txn, tables, txn.get(b"format", db=tables["meta"]))
                refuse_format(self.folder, txn.get(b"format", db=tables["meta"]))
                self._tag = txn.get(LOG_TAG, db=tables["meta"])
            super().__init__(env, tables)
            self._log = self._open_log(log_size_bytes, sync=sync)
            try:
                self._recover()
            except BaseException:
                self._log.close()
                raise
        except BaseException:
            env.close()
            raise

    def _open_log(self, size_bytes: int, *, sync: bool) -> WriteAheadLog:
        path = self.folder / LOG_FILE
        if self._tag is None:  # made or restored just now, or of a format without a log
            make_log(path, size_bytes)
            sync_folder(self.folder)
        elif not path.exists():
            raise JournalRefused(
                f"{path} is missing, and with it the newest jobs; put it back, or restore a backup (zq journal restore)"
            )
        return WriteAheadLog(path, sync=sync)

    # ------------------------------------------------------------------------------------------ beginning

    def _recover(self) -> None:
        """Work in what the last broker left in the log, and begin an epoch; durable before it is told."""
        self._load()
        try:
            self._replay()
        except (LogDamaged, *UNREADABLE) as error:
            raise JournalRefused(
                f"the log of the journal in {self.folder} is damaged: {error}. Nothing was changed. Restore a backup "
                "(zq journal restore), or move the log away and accept that the newest jobs are lost"
            ) from error
        self._epoch += 1
        self.checkpoint()

    def _load(self) -> None:
        """Take over where the tables end."""
        self._epoch = super().epoch
        self._seq = super().seq
        self._time_ms = super().time_ms
        self._last_event = super().last_event
        self._unsettled.counts = super().counts()

    def _replay(self) -> None:
        """Take the commits since the tables' checkpoint again."""
        if self._tag is None:
            return
        for data in (*self._log.read(self._tag), *self._too_large):
            entry = decode_entry(data)
            self._take(entry.steps_from(self.row), entry.time_ms, entry.notes)

    # ------------------------------------------------------------------------------------------ committing

    def commit(self, steps: Sequence[Step], now_ms: int, notes: Notes | None = None) -> None:
        assert os.getpid() == self._pid, "the journal was carried over a fork"
        begun_ns = time.perf_counter_ns()
        notes = notes or Notes()
        entry = encode_entry(steps, now_ms, notes)
        try:
            logged = self._log.append(entry)
            if not logged:
                self.checkpoint()
                logged = self._log.append(entry)
        except OSError as error:
            raise failed(self.folder, error) from error
        self._take(steps, now_ms, notes)
        if not logged:  # larger than the whole log: it becomes durable in the tables
            self._too_large = [entry]
            self.checkpoint()
            self._too_large = []
        self.commits += 1
        self._note_duration((time.perf_counter_ns() - begun_ns) // 1000)

    def _take(self, steps: Sequence[Step], now_ms: int, notes: Notes) -> None:
        """What the log has and the tables do not have yet."""
        unsettled = self._unsettled
        unsettled.add(steps, notes)
        for step in steps:
            if step.spec is not None and step.after is not None and step.after.seq > self._seq:
                self._seq = step.after.seq
        if unsettled.events:
            self._last_event = max(self._last_event, unsettled.events[-1].number)
        self._time_ms = max(self._time_ms, now_ms)
        self._steps_since += len(steps)
        self._log_since_ms = self._log_since_ms or now_ms

    def tend(self, now_ms: int) -> None:
        """Do what cannot be put off of settling and checkpoints. Call it when everything has been said."""
        if len(self._unsettled.pending.steps) >= SETTLE_JOBS:
            self._settle()
        overdue = self._log_since_ms and now_ms - self._log_since_ms >= CHECKPOINT_LATE_MS
        if overdue or self._steps_since >= CHECKPOINT_STEPS or self._log.half_full:
            self.checkpoint()

    def rest(self, now_ms: int) -> None:
        """Do what is due, and let go of the pages that mere reading has pinned. Call it when nobody waits: else the
        first who asks for what only an index can say would wait for what a burst has left."""
        if len(self._unsettled.pending.steps) >= SETTLE_AT_REST_JOBS:
            self._settle()
        after_ms = BURST_MS if self._steps_since >= BURST_STEPS else CHECKPOINT_AFTER_MS
        if self._log_since_ms and now_ms - self._log_since_ms >= after_ms:
            self.checkpoint()
        if not self._changed:
            self._drop_txn()

    # ------------------------------------------------------------------------------------------ the tables

    def checkpoint(self) -> None:
        """Make the tables durable as of now; the log begins anew. Raises JournalError."""
        tag = os.urandom(TAG_BYTES)

        def finish() -> None:
            self._settle()
            txn = self._writer()
            for name, value in (
                (b"epoch", self._epoch), (b"seq", self._seq), (b"last_event", self._last_event),
                (b"time_ms", self._time_ms),
            ):  # fmt: skip
                txn.put(name, str(value).encode(), db=self._tables["meta"])
            txn.put(LOG_TAG, tag, db=self._tables["meta"])
            self._txn = None
            txn.commit()

        self._in_tables(finish)
        self._changed = False
        self._tag = tag
        self._log.begin(tag)
        self._steps_since = self._log_since_ms = 0

    def _settle(self) -> None:
        """Put what is only in the log into the tables' open transaction."""
        if self._unsettled:
            self._in_tables(self._put_all)
            self._unsettled.clear()

    def _in_tables(self, work: Callable[[], None]) -> None:
        """Run `work`, which changes the tables; if the map is too small for it, in a larger one, from the log again."""
        self._changed = True
        while True:
            try:
                work()
                return
            except lmdb.MapFullError:
                self._grow()
            except (lmdb.Error, OSError) as error:
                raise failed(self.folder, error) from error

    def _grow(self) -> None:
        """The map is address space; the disk's own bound is guarded before a submit is accepted."""
        self._drop_txn()
        self._env.set_mapsize(self._env.info()["map_size"] * 2)
        epoch = self._epoch
        self._unsettled.clear()
        self._load()
        self._replay()
        self._epoch = epoch

    def _put_all(self) -> None:
        self._unsettled.put(self._writer(), self._tables)
        # As many events as come may go, and then some: a million are kept, however many come in a second.
        surplus = int(self._writer().stat(self._tables["event"])["entries"]) - limits.EVENTS_KEPT_MAX
        if surplus > 0:
            self._drop_events(min(surplus, 2 * len(self._unsettled.events)))

    def forget_events(self, kept_max: int, limit: int) -> None:
        """See Journal. It is not logged: a crash before the next checkpoint only brings old events back."""
        surplus = int(self._read().stat(self._tables["event"])["entries"]) - kept_max
        if surplus > 0:
            self._in_tables(lambda: self._drop_events(min(surplus, limit)))
            self._log_since_ms = self._log_since_ms or self._time_ms

    def forget_hours(self, queue: str, before_ms: int, limit: int) -> None:
        """See Journal. Not logged either."""
        over = [row for row in self.hours(queue, 0, limit) if row.start_ms < before_ms and not row.live]
        if over:
            self._in_tables(lambda: self._drop_hours(over))
            self._log_since_ms = self._log_since_ms or self._time_ms

    def _drop_hours(self, rows: Sequence[HourRow]) -> None:
        for row in rows:
            self._writer().delete(hour_key(row.queue, row.start_ms), db=self._tables["hour"])

    def _drop_events(self, count: int) -> None:
        cursor = self._writer().cursor(db=self._tables["event"])
        for _ in range(count):
            if not cursor.first():
                break
            cursor.delete()

    # ------------------------------------------------------------------------------------------ looking up

    def _writer(self) -> lmdb.Transaction:
        """The open transaction of the tables: what was settled since the checkpoint is in it."""
        if self._txn is None:
            self._txn = self._env.begin(write=True)
        return self._txn

    def _drop_txn(self) -> None:
        if self._txn is not None:
            self._txn.abort()
            self._txn = None

    def _read(self) -> lmdb.Transaction:
        self._settle()
        return self._writer()

    def row(self, job_id: bytes) -> JobRow | None:
        step = self._unsettled.pending.steps.get(job_id)
        return step.after if step is not None else self._row_in(self._writer(), job_id)

    def spec(self, job_id: bytes) -> bytes | None:
        step = self._unsettled.pending.steps.get(job_id)
        if step is None or (step.after is not None and step.spec is None):
            return self._spec_in(self._writer(), job_id)
        return step.spec if step.after is not None else None

    def result(self, job_id: bytes) -> KeptResult | None:
        step = self._unsettled.pending.steps.get(job_id)
        if step is not None and (step.result is not None or step.before is None):
            return step.result
        return super().result(job_id)

    def key_holder(self, key: str) -> bytes | None:
        keys = self._unsettled.pending.keys
        return keys[key] if key in keys else self._key_holder_in(self._writer(), key)

    def scan(
        self, index: Index, prefix: bytes, after: bytes, limit: int, *, backwards: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """See View. What a queue has ready is asked for all the time while it is worked off: there, what is only in the
        log stays there, so that most jobs come to the tables once, when they are done."""
        if index is not Index.READY or backwards:
            return super().scan(index, prefix, after, limit, backwards=backwards)
        left, come = self._unsettled.pending.ready(prefix, after)
        stay = (entry for entry in self._entries_in(self._writer(), index, prefix, after) if entry[0] not in left)
        return sorted([*itertools.islice(stay, limit), *come])[:limit]

    def events(self, after: int, limit: int) -> list[EventRow]:
        fresh = self._unsettled.events
        if fresh and after >= fresh[0].number - 1:
            return fresh[after + 1 - fresh[0].number :][:limit]
        return super().events(after, limit)

    def counts(self) -> dict[str, Counts]:
        return {name: counts.copy() for name, counts in self._unsettled.counts.items()}

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

    def _note_duration(self, duration_us: int) -> None:
        self._commits_us.append(duration_us)
        if len(self._commits_us) > 2048:
            del self._commits_us[:1024]

    def commit_p99_us(self) -> int:
        """Of the last one or two thousand commits, in microseconds; 0 before the first."""
        ordered = sorted(self._commits_us)
        return ordered[len(ordered) * 99 // 100] if ordered else 0

    def drop_dead_readers(self) -> None:
        """Free what the readers of killed processes have pinned; call it now and then."""
        self._env.reader_check()

    def close(self) -> None:
        if not self._log.empty:
            self.checkpoint()
        self.abandon()

    def abandon(self) -> None:
        """Let go of everything as it is, as a killed process would. What was committed is in the log."""
        self._drop_txn()
        self._log.close()
        self._env.close()
        os.close(self._lock)


def _environment(folder: Path, map_size_bytes: int, *, sync: bool = True) -> lmdb.Environment:
    # Without thread-local reader slots: the one thread's transactions are objects of ours. The mode is for the
    # files; the folder has been made 0700 before (py-lmdb would give it the files' mode).
    return lmdb.open(
        str(folder), map_size=map_size_bytes, max_dbs=DATABASES_MAX, mode=0o600, subdir=True, create=True, sync=sync,
        metasync=True, writemap=False, max_readers=READERS_MAX, lib_version=DATA_FORMAT,
    )  # fmt: skip


def _create(folder: Path, map_size_bytes: int, log_size_bytes: int) -> None:
    """Make an empty journal under another name and rename it: a crash in LMDB's own creation leaves a broken file."""
    new = begin_new(folder)
    env = _environment(new, map_size_bytes)
    with env.begin(write=True) as txn:
        meta, *_ = [env.open_db(name.encode(), txn=txn) for name in TABLES]
        txn.put(b"format", str(FORMAT).encode(), db=meta)
        txn.put(b"created_ms", str(int(time.time() * 1000)).encode(), db=meta)
        txn.put(LOG_TAG, os.urandom(TAG_BYTES), db=meta)
    env.sync(True)
    env.close()
    make_log(new / LOG_FILE, log_size_bytes)
    put_in_place(new, folder)


def bring_up(folder: Path, epochs_skipped: int, map_size_bytes: int) -> None:
    """Make a copy of a journal's tables fit to go on from: in today's format, past the epochs of other brokers, and
    without the log that the original has.

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
            txn.delete(LOG_TAG, db=meta)
    finally:
        env.close()
