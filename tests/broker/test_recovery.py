"""The LMDB journal's log and tables together: whatever is settled, checkpointed, killed or grown in between, the
journal says what a journal in memory says, and its tables agree with each other."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.broker.test_journal import accept, finish, row_of, run
from tests.durability.plan import content, make_plan
from zq.broker.check import check
from zq.broker.journal import JournalRefused, Notes, Step
from zq.broker.journal_folder import LOG_FILE
from zq.broker.lmdb_journal import BURST_MS, BURST_STEPS, SETTLE_AT_REST_JOBS, LmdbJournal
from zq.broker.pending import joined


def opened(folder: Path, map_size_bytes: int = 1 << 26) -> LmdbJournal:
    return LmdbJournal(folder, map_size_bytes=map_size_bytes, log_size_bytes=1 << 18)


@pytest.mark.parametrize("seed", range(6))
def test_it_says_what_a_journal_in_memory_says(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    plan = make_plan(100 + seed, 60)
    # A map that is too small for what comes, too.
    journal = opened(tmp_path / "journal", map_size_bytes=rng.choice((1 << 18, 1 << 26)))
    for number, steps in enumerate(plan.batches, 1):
        now_ms = plan.time_ms(number)
        journal.commit(steps, now_ms)
        what = rng.random()
        if what < 0.2:
            journal.abandon()
            journal = opened(tmp_path / "journal")
        elif what < 0.3:
            journal.checkpoint()
        elif what < 0.4:
            journal.tend(now_ms)
        elif what < 0.5:
            journal.rest(now_ms)
        elif what < 0.7:
            assert content(journal) == plan.contents[number]
    assert content(journal) == plan.contents[-1]
    assert check(journal) == []
    journal.abandon()
    journal = opened(tmp_path / "journal")
    assert content(journal) == plan.contents[-1]
    assert check(journal) == []
    journal.close()


def test_at_rest_it_puts_what_a_burst_has_left_into_the_tables_and_leaves_the_rest(tmp_path: Path) -> None:
    journal = opened(tmp_path / "journal")
    journal.commit([accept(number) for number in range(1, SETTLE_AT_REST_JOBS)], 1000)
    journal.rest(1000)
    assert len(journal._unsettled.pending.steps) == SETTLE_AT_REST_JOBS - 1
    journal.commit([accept(SETTLE_AT_REST_JOBS)], 1000)
    journal.rest(1000)
    assert not journal._unsettled.pending.steps
    assert len(journal.rows(b"", 1000)) == SETTLE_AT_REST_JOBS
    journal.close()


def test_after_a_burst_the_log_is_worked_in_as_soon_as_nobody_waits(tmp_path: Path) -> None:
    journal = opened(tmp_path / "journal")
    journal.commit([accept(number) for number in range(1, BURST_STEPS)], 1000)
    journal.rest(1000 + BURST_MS)
    assert journal._log_since_ms
    journal.commit([accept(BURST_STEPS)], 1000 + BURST_MS - 1)
    journal.rest(1000 + BURST_MS - 1)
    assert journal._log_since_ms
    journal.rest(1000 + BURST_MS)
    assert not journal._log_since_ms
    journal.close()


def test_every_answer_is_of_the_newest_commit_before_anything_is_settled(tmp_path: Path) -> None:
    journal = opened(tmp_path / "journal")
    step = accept(1, key="合并")
    row = row_of(step)
    journal.commit([step], 1000, Notes({"queue:q": b"x"}))
    assert (journal.row(row.id), journal.spec(row.id), journal.key_holder("合并")) == (row, step.spec, row.id)
    running = run(row)
    journal.commit([Step(row, running)], 2000)
    end = finish(running)
    journal.commit([end], 3000)
    assert journal.row(row.id) == end.after
    assert journal.result(row.id) == end.result
    assert journal.key_holder("合并") is None
    assert journal.facts() == {"queue:q": b"x"}
    assert journal.attempts(row.id) == list(end.attempts)
    journal.close()


def test_a_job_id_that_is_used_again_at_once_leaves_nothing_of_the_old_job(tmp_path: Path) -> None:
    first = accept(1)
    running = run(row_of(first))
    end = finish(running)
    for settle in (False, True):
        journal = opened(tmp_path / f"journal-{settle}")
        journal.commit([first], 1000)
        journal.commit([Step(row_of(first), running)], 2000)
        journal.commit([end], 3000)
        if settle:
            journal.checkpoint()
        again = accept(1, priority=9)
        journal.commit([joined(Step(end.after, None), again)], 4000)
        for _ in range(2):
            assert journal.row(row_of(first).id) == again.after
            assert journal.attempts(row_of(first).id) == []
            assert journal.result(row_of(first).id) is None
            assert journal.counts()["q"].accepted == 2
            journal.abandon()
            journal = opened(tmp_path / f"journal-{settle}")
        assert check(journal) == []
        journal.close()


@pytest.mark.parametrize("resting", [True, False])
def test_a_reader_beside_it_waits_for_what_is_only_in_the_log(tmp_path: Path, *, resting: bool) -> None:
    """LMDB opens a file once in a process, so the reader has one of its own."""
    journal = opened(tmp_path / "journal")
    journal.commit([accept(1)], 1000)
    program = (
        "import sys; from pathlib import Path; from zq.broker.lmdb_view import has_log, open_to_read\n"
        "folder = Path(sys.argv[1]); print(has_log(folder), flush=True)\n"
        "with open_to_read(folder, shared=True) as reader: print(len(reader.rows(b'', 9)))"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "journal")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "True\n"
        if resting:
            journal.rest(1999)
            assert journal._log_since_ms
            journal.rest(2000)
        else:
            journal.tend(2999)
            assert journal._log_since_ms
            journal.tend(3000)
        assert not journal._log_since_ms
        assert reader.stdout.read() == "1\n"
    journal.close()


def test_a_journal_without_its_log_is_refused(tmp_path: Path) -> None:
    opened(tmp_path / "journal").close()
    (tmp_path / "journal" / LOG_FILE).unlink()
    with pytest.raises(JournalRefused, match="is missing, and with it the newest jobs"):
        opened(tmp_path / "journal")


def test_a_damaged_log_is_refused_and_left_alone(tmp_path: Path) -> None:
    journal = opened(tmp_path / "journal")
    for number in range(1, 4):
        journal.commit([accept(number)], 1000)
    journal.abandon()
    log = tmp_path / "journal" / LOG_FILE
    damaged = bytearray(log.read_bytes())
    damaged[4096 + 60] ^= 1
    log.write_bytes(damaged)
    for _ in range(2):
        with pytest.raises(JournalRefused, match="record 1 of the log cannot be read, and there are later ones"):
            opened(tmp_path / "journal")
        assert log.read_bytes() == damaged
