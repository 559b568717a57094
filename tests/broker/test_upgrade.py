"""A journal of format 1, as the first version wrote it, opened by today's broker."""

from __future__ import annotations

from pathlib import Path

import lmdb
import pytest
from msgspec.structs import replace

from tests.broker.test_journal import accept, finish, ready, row_of, run
from zq.broker.backup import EPOCHS_SKIPPED, restore
from zq.broker.check import check
from zq.broker.journal import JournalRefused, Step
from zq.broker.lmdb_journal import LmdbJournal
from zq.broker.lmdb_view import encode, open_to_read
from zq.broker.records import JobRow, queue_prefix


def old_ready_key(row: JobRow) -> bytes:
    """Format 1: queue, priority, acceptance; no lanes."""
    return queue_prefix(row.queue) + bytes((9 - row.priority,)) + row.seq.to_bytes(8, "big")


@pytest.fixture
def old(tmp_path: Path) -> tuple[Path, list[JobRow]]:
    """A journal with ready jobs and one that is done, taken back to format 1."""
    folder = tmp_path / "journal"
    journal = LmdbJournal(folder, map_size_bytes=1 << 22)
    steps = [accept(number, priority=9 if number == 3 else 5) for number in range(1, 5)]
    journal.commit(steps, 1000)
    running = run(row_of(steps[3]))
    journal.commit([Step(row_of(steps[3]), running)], 2000)
    journal.commit([finish(running)], 3000)
    rows = [row_of(step) for step in steps[:3]]
    done = journal.row(running.id)
    assert done is not None
    journal.close()
    env = lmdb.open(str(folder), max_dbs=32, lib_version=0, map_size=1 << 22)
    with env.begin(write=True) as txn:
        index = env.open_db(b"ready", txn=txn)
        txn.drop(index, delete=False)
        for row in rows:
            txn.put(old_ready_key(row), row.id, db=index)
        # As the first version wrote it: an array that ends before the newer fields.
        fields = [getattr(replace(done, result_until_ms=0), name) for name in JobRow.__struct_fields__]
        txn.put(done.id, encode(fields[:22]), db=env.open_db(b"row", txn=txn))
        for name in ("event", "fact", "parked", "admitted", "result_until"):
            txn.drop(env.open_db(name.encode(), txn=txn), delete=True)
        txn.put(b"format", b"1", db=env.open_db(b"meta", txn=txn))
    env.close()
    return folder, rows


def test_an_old_journal_is_brought_up_when_it_is_opened(old: tuple[Path, list[JobRow]]) -> None:
    folder, rows = old
    journal = LmdbJournal(folder, map_size_bytes=1 << 22)
    assert ready(journal) == [rows[2].id, rows[0].id, rows[1].id]
    assert check(journal) == []
    journal.close()
    again = LmdbJournal(folder, map_size_bytes=1 << 22)
    assert again.epoch == 3
    again.close()


def test_a_reader_says_what_to_do_with_an_old_journal(old: tuple[Path, list[JobRow]]) -> None:
    with pytest.raises(JournalRefused, match="start a broker of this version once"), open_to_read(old[0], shared=True):
        pass


def test_a_backup_of_an_old_journal_is_brought_up_when_it_is_restored(
    old: tuple[Path, list[JobRow]], tmp_path: Path
) -> None:
    backup, rows = old
    before = (backup / "data.mdb").read_bytes()
    assert restore(backup, tmp_path / "restored", force=False, map_size_bytes=1 << 22) is None
    with open_to_read(tmp_path / "restored", shared=False) as reader:
        assert (check(reader), reader.epoch) == ([], 1 + EPOCHS_SKIPPED)
    assert (backup / "data.mdb").read_bytes() == before
    journal = LmdbJournal(tmp_path / "restored", map_size_bytes=1 << 22)
    assert ready(journal) == [rows[2].id, rows[0].id, rows[1].id]
    journal.close()


def test_a_backup_of_a_format_to_come_is_refused(old: tuple[Path, list[JobRow]], tmp_path: Path) -> None:
    env = lmdb.open(str(old[0]), max_dbs=32, lib_version=0)
    with env.begin(write=True) as txn:
        txn.put(b"format", b"99", db=env.open_db(b"meta", txn=txn))
    env.close()
    with pytest.raises(JournalRefused, match="has format 99"):
        restore(old[0], tmp_path / "restored", force=False, map_size_bytes=1 << 22)
    assert not (tmp_path / "restored").exists()
    assert not (tmp_path / "restored.new").exists()
