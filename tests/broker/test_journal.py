"""One suite for every journal engine: what was committed is found again, by every index, also by the next broker."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest
from msgspec.structs import replace

from tests.broker.conftest import Reopen
from zq.broker.book import Book
from zq.broker.check import check
from zq.broker.hours import HOUR_MS
from zq.broker.journal import Journal, JournalError, JournalRefused, Step
from zq.broker.lmdb_journal import LmdbJournal
from zq.broker.records import AttemptRow, Index, JobRow, KeptResult, new_row, queue_prefix, ready_key, state_prefix
from zq.protocol.job import Cause, JobSpec, Outcome, State, digest, encode_spec, job_id_from
from zq.protocol.messages import Usage


def accept(number: int, *, queue: str = "q", key: str = "", priority: int = 5, delay_ms: int = 0) -> Step:
    spec = JobSpec(job_id_from(str(number)), "a.task", queue, key=key, priority=priority, delay_ms=delay_ms)
    data = encode_spec(spec)
    return Step(None, new_row(spec, len(data), digest(data), number, 1000), spec=data)


def row_of(step: Step) -> JobRow:
    assert step.after is not None
    return step.after


def run(row: JobRow, token: int = 77) -> JobRow:
    return replace(row, state=State.RUNNING, attempt=row.attempt + 1, token=token, worker="w", started_ms=2000)


def finish(row: JobRow) -> Step:
    after = replace(row, state=State.DONE, token=0, ended_ms=3000)
    attempt = AttemptRow(row.attempt, row.token, "w", 2000, 3000, Outcome.DONE, "", Usage(cpu_ms=5))
    return Step(row, after, attempts=(attempt,), result=KeptResult(b"\x01", 9000))


def ready(journal: Journal, queue: str = "q") -> list[bytes]:
    return [job_id for _, job_id in journal.scan(Index.READY, queue_prefix(queue), b"", 100)]


def in_state(journal: Journal, state: State, queue: str = "q") -> list[bytes]:
    return [job_id for _, job_id in journal.scan(Index.STATE, state_prefix(state, queue), b"", 100)]


def test_a_job_is_found_in_each_of_its_states_also_by_the_next_broker(reopen: Reopen) -> None:
    journal = reopen()
    step = accept(1, key="合并:1")
    row = row_of(step)
    journal.commit([step], 1000)
    journal = reopen()
    assert (journal.row(row.id), journal.spec(row.id)) == (row, step.spec)
    assert ready(journal) == [row.id]
    assert journal.key_holder("合并:1") == row.id
    running = run(row)
    journal.commit([Step(row, running)], 2000)
    journal = reopen()
    assert ready(journal) == []
    assert in_state(journal, State.RUNNING) == [row.id]
    end = finish(running)
    journal.commit([end], 3000)
    journal = reopen()
    assert in_state(journal, State.RUNNING) == []
    assert in_state(journal, State.DONE) == [row.id]
    assert journal.key_holder("合并:1") is None
    assert journal.attempts(row.id) == list(end.attempts)
    assert journal.result(row.id) == end.result
    journal.commit([Step(row_of(end), None)], 4000)
    journal = reopen()
    assert journal.row(row.id) is None
    assert journal.spec(row.id) is None
    assert journal.result(row.id) is None
    assert journal.attempts(row.id) == []
    assert in_state(journal, State.DONE) == []


def test_counts_are_kept_for_ever_and_balance(reopen: Reopen) -> None:
    journal = reopen()
    steps = [accept(n, queue="a" if n < 3 else "b") for n in range(1, 5)]
    journal.commit(steps, 1000)
    running = run(row_of(steps[0]))
    end = finish(running)
    journal.commit([Step(row_of(steps[0]), running)], 2000)
    journal.commit([end], 3000)
    journal.commit([Step(row_of(end), None)], 4000)
    counts = reopen().counts()
    assert {name: c.accepted for name, c in counts.items()} == {"a": 2, "b": 2}
    assert counts["a"].by_state[State.DONE] == 1
    assert counts["a"].by_state[State.READY] == 1
    assert all(c.balanced() for c in counts.values())


def test_jobs_are_counted_by_the_hour_of_their_acceptance_whatever_becomes_of_them(reopen: Reopen) -> None:
    journal = reopen()
    steps = [accept(n) for n in range(1, 4)]
    late = accept(4)
    late = Step(None, replace(row_of(late), accepted_ms=HOUR_MS + 5), spec=late.spec)
    journal.commit([*steps, late, accept(5, queue="other")], HOUR_MS + 5)
    running = run(row_of(steps[0]))
    journal.commit([Step(row_of(steps[0]), running)], HOUR_MS + 5)
    end = finish(running)
    journal.commit([end], HOUR_MS + 5)
    journal = reopen()
    journal.commit([Step(row_of(end), None)], HOUR_MS + 5)
    journal = reopen()
    hours = journal.hours("q", 0, 10)
    assert [(hour.start_ms, hour.accepted) for hour in hours] == [(0, 3), (HOUR_MS, 1)]
    assert {State(s): n for s, n in hours[0].by_state.items() if n} == {State.READY: 2, State.DONE: 1}
    assert journal.hours("q", 1, 10) == hours[1:]
    assert journal.hours("q", 0, 1) == hours[:1]
    assert check(journal) == []
    journal.forget_hours("q", 2 * HOUR_MS, 10)
    assert journal.hours("q", 0, 10) == hours, "hours with live jobs are kept"
    moved = [Step(row_of(s), replace(row_of(s), state=State.CANCELLED, ended_ms=9)) for s in steps[1:]]
    journal.commit(moved, HOUR_MS + 5)
    journal.forget_hours("q", HOUR_MS, 10)
    assert [hour.start_ms for hour in journal.hours("q", 0, 10)] == [HOUR_MS]
    assert len(journal.hours("other", 0, 10)) == 1


def test_epoch_sequence_and_time_go_on_with_the_next_broker(reopen: Reopen) -> None:
    journal = reopen()
    assert (journal.epoch, journal.seq) == (1, 0)
    journal.commit([accept(7)], 5000)
    journal.commit([], 4000)
    journal = reopen()
    assert (journal.epoch, journal.seq, journal.time_ms) == (2, 7, 5000)


def test_ready_jobs_are_in_the_order_of_dispatch(reopen: Reopen) -> None:
    journal = reopen()
    steps = {n: accept(n, priority=9 if n == 3 else 5) for n in (1, 2, 3)}
    journal.commit([steps[2], steps[3], steps[1], accept(4, queue="other")], 1000)
    assert ready(journal) == [row_of(steps[n]).id for n in (3, 1, 2)]


def test_scanning_goes_both_ways_page_by_page(reopen: Reopen) -> None:
    journal = reopen()
    steps = [accept(n, delay_ms=n) for n in range(1, 8)]
    journal.commit([*steps, accept(9, queue="x"), accept(10, queue="zz", delay_ms=1)], 1000)
    expected = [row_of(step).id for step in steps]
    for backwards in (False, True):
        found: list[bytes] = []
        after = b""
        while page := journal.scan(
            Index.STATE, state_prefix(State.SCHEDULED, "q"), after, 3, backwards=backwards
        ):
            assert len(page) <= 3
            found += [job_id for _, job_id in page]
            after = page[-1][0]
        assert found == (expected[::-1] if backwards else expected)
    assert len(journal.scan(Index.DUE, b"", b"", 100)) == 8


@pytest.mark.parametrize("seed", range(20))
def test_what_is_ready_is_the_same_whether_it_is_in_the_tables_or_in_the_log(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    journal = LmdbJournal(tmp_path / "journal", map_size_bytes=1 << 24)
    rows: list[JobRow] = []
    for number in range(1, 120):
        steps = []
        for _ in range(chance.randrange(4)):
            new = accept(1000 * number + len(rows), queue=chance.choice("ab"), priority=chance.randrange(10))
            new = Step(None, replace(row_of(new), seq=len(rows) + 1), spec=new.spec)
            steps.append(new)
            rows.append(row_of(new))
        taken = {row_of(step).id for step in steps}
        for index in chance.sample(range(len(rows)), min(len(rows), chance.randrange(4))):
            before = rows[index]
            if before.id in taken or before.state is State.DONE:
                continue
            steps.append(finish(before) if before.state is State.RUNNING else Step(before, run(before)))
            if before.state is State.RUNNING and chance.random() < 0.5:  # it is handed back
                steps[-1] = Step(before, replace(before, state=State.READY))
            rows[index] = row_of(steps[-1])
        journal.commit(steps, 1000 + number)
        prefix, after = queue_prefix(chance.choice("ab")), b""
        if held := journal.scan(Index.READY, prefix, b"", 100):
            after = chance.choice([b"", chance.choice(held)[0]])
        limit = chance.randrange(1, 40)
        from_both = journal.scan(Index.READY, prefix, after, limit)
        expected = [(ready_key(row), row.id) for row in rows if row.state is State.READY]
        assert from_both == sorted(e for e in expected if e[0].startswith(prefix) and e[0] > after)[:limit]
        if chance.random() < 0.1:
            journal.rows(b"", 1)  # puts what is in the log into the tables
            assert journal.scan(Index.READY, prefix, after, limit) == from_both
    journal.close()


def test_a_batch_larger_than_the_map_makes_the_map_larger(tmp_path: Path) -> None:
    journal = LmdbJournal(tmp_path / "journal", map_size_bytes=1 << 20)
    journal.commit([accept(n) for n in range(1, 8001)], 1000)
    assert len(journal.scan(Index.READY, queue_prefix("q"), b"", 10_000)) == 8000
    assert journal.counts()["q"].accepted == 8000
    journal.close()


def test_the_folder_and_its_files_are_private(tmp_path: Path) -> None:
    journal = LmdbJournal(tmp_path / "data" / "journal", map_size_bytes=1 << 20)
    journal.close()
    assert (tmp_path / "data" / "journal").stat().st_mode & 0o777 == 0o700
    assert all(f.stat().st_mode & 0o077 == 0 for f in (tmp_path / "data" / "journal").iterdir())


def test_one_broker_a_journal(tmp_path: Path) -> None:
    journal = LmdbJournal(tmp_path / "journal", map_size_bytes=1 << 20)
    program = (
        "import sys; from pathlib import Path; from zq.broker.lmdb_journal import LmdbJournal\n"
        "LmdbJournal(Path(sys.argv[1]), map_size_bytes=1 << 20)"
    )
    other = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "journal")], capture_output=True, text=True, check=False
    )
    assert "another broker has this journal" in other.stderr
    assert str(os.getpid()) in other.stderr
    journal.close()


@pytest.mark.parametrize("damage", [b"", b"not a database" * 1000])
def test_what_is_no_journal_is_refused_and_left_alone(tmp_path: Path, damage: bytes) -> None:
    folder = tmp_path / "journal"
    folder.mkdir(mode=0o700)
    (folder / "data.mdb").write_bytes(damage)
    if damage:
        with pytest.raises(JournalRefused, match="cannot be opened"):
            LmdbJournal(folder, map_size_bytes=1 << 20)
        assert (folder / "data.mdb").read_bytes() == damage
    else:
        with pytest.raises(JournalRefused, match="format none"):
            LmdbJournal(folder, map_size_bytes=1 << 20)


def test_a_journal_of_another_format_is_refused(tmp_path: Path) -> None:
    LmdbJournal(tmp_path / "journal", map_size_bytes=1 << 20).close()
    env = lmdb.open(str(tmp_path / "journal"), max_dbs=4, lib_version=0)
    with env.begin(write=True) as txn:
        txn.put(b"format", b"999", db=env.open_db(b"meta", txn=txn))
    env.close()
    with pytest.raises(JournalRefused, match="format 999"):
        LmdbJournal(tmp_path / "journal", map_size_bytes=1 << 20)


def test_a_crash_while_it_was_made_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    torn = tmp_path / "journal.new"
    torn.mkdir()
    (torn / "data.mdb").write_bytes(b"\0" * 4096)
    journal = LmdbJournal(tmp_path / "journal", map_size_bytes=1 << 20)
    assert journal.epoch == 1
    journal.close()


def test_rows_come_page_by_page_and_the_totals_agree(reopen: Reopen) -> None:
    journal = reopen()
    steps = [accept(n, key=f"k{n}" if n < 3 else "") for n in range(1, 8)]
    journal.commit(steps, 5000)
    running = run(row_of(steps[0]))
    journal.commit([Step(row_of(steps[0]), running)], 5000)
    journal.commit([finish(running)], 5000)
    journal = reopen()
    found: list[JobRow] = []
    while page := journal.rows(found[-1].id if found else b"", 3):
        assert len(page) <= 3
        found += page
    assert [row.id for row in found] == sorted(row_of(step).id for step in steps)
    totals = journal.totals()
    assert (totals.rows, totals.specs, totals.attempts, totals.results, totals.keys) == (7, 7, 1, 1, 1)
    assert totals.indexes == dict.fromkeys(Index, 0) | {Index.READY: 6, Index.STATE: 1}
    assert check(journal) == []


def test_a_disk_that_fails_while_it_is_opened_is_not_a_journal_to_give_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LmdbJournal(tmp_path / "journal", map_size_bytes=1 << 20).close()

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(lmdb, "open", full)
        with pytest.raises(JournalError, match="is full or fails"):
            LmdbJournal(tmp_path / "journal", map_size_bytes=1 << 20)
    LmdbJournal(tmp_path / "journal", map_size_bytes=1 << 20).close()


def test_pages_that_a_killed_reader_held_are_used_again(tmp_path: Path) -> None:
    journal = LmdbJournal(tmp_path / "journal", map_size_bytes=1 << 28, sync=False)
    journal.commit([accept(1)], 1000)
    journal.checkpoint()
    program = (
        "import sys, os, signal; from pathlib import Path; from zq.broker.lmdb_view import open_to_read\n"
        "with open_to_read(Path(sys.argv[1]), shared=True) as reader:\n"
        "    reader.rows(b'', 1); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "journal")], check=False)

    def grow() -> int:
        before = journal.size_bytes()
        for _ in range(300):
            journal.checkpoint()
        return journal.size_bytes() - before

    assert grow() > 100 * 4096, "the dead reader holds nothing: this test shows nothing"
    journal.drop_dead_readers()
    assert grow() < 10 * 4096
    journal.close()


def test_a_job_that_ends_and_is_forgotten_in_one_batch_keeps_its_count(reopen: Reopen) -> None:
    """One joined step could not say in which state it ended: forgetting waits for the next batch."""
    journal = reopen()
    book = Book(journal)
    spec = JobSpec(job_id_from("1"), "a.task", "q")
    row = book.accept(spec, encode_spec(spec), digest(encode_spec(spec)), 1000)
    journal.commit(book.steps, 1000)
    book.committed()
    ended = book.move(row, replace(row, state=State.CANCELLED, ended_ms=2000), Cause.CANCEL, 2000)
    book.forget(ended)
    journal.commit(book.steps, 2000)
    book.committed()
    assert check(journal) == []
    assert journal.row(ended.id) == ended
    book.forget(ended)
    journal.commit(book.steps, 3000)
    assert journal.row(ended.id) is None
    assert journal.counts()["q"].by_state[State.CANCELLED] == 1
    assert check(journal) == []
