"""The check finds what it is for: each kind of damage, in either engine; and nothing in a journal that is whole."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from tests.broker.harness import Harness
from zq.broker.check import check
from zq.broker.memory_journal import MemoryJournal
from zq.broker.records import AttemptRow, Index, JobRow, KeptResult, index_keys, ready_key
from zq.protocol.job import Cause, Outcome, State, job_id_from


def filled() -> Harness:
    """A journal with jobs in every state, of two queues, with keys, attempts, results and forgotten jobs."""
    zq = Harness()
    zq.submit("forgotten", expires_ms=1000)
    for _ in range(30):
        zq.round(4000)
    zq.submit("ready", key="merge:1", priority=9, queue="other")
    zq.submit("waits", delay_ms=50_000, key="合并:2")
    zq.submit("expires", expires_ms=1000)
    zq.round(1500)
    worker = zq.worker(slots=1)
    for name, outcome in (("done", Outcome.DONE), ("failed", Outcome.FAILED), ("rejected", Outcome.REJECTED)):
        zq.submit(name)
        worker.ack(worker.lease(), outcome, result=b"\x01" if outcome is Outcome.DONE else b"")
    zq.submit("runs")
    zq.submit("cancelled")
    zq.submit("let in", concurrency_key="gpu", queue="other")
    zq.submit("parked", concurrency_key="gpu", queue="other")
    return zq


def row(journal: MemoryJournal, name: str) -> JobRow:
    found = journal.row(job_id_from(name))
    assert found is not None
    return found


def test_a_whole_journal_has_no_problem() -> None:
    zq = filled()
    journal = zq.journal
    assert isinstance(journal, MemoryJournal)
    assert check(journal) == []
    assert journal.row(job_id_from("forgotten")) is None
    assert journal.counts()["q"].by_state[State.EXPIRED] == 2
    states = {r.state for r in journal.rows(b"", 100)}
    assert states >= {State.SCHEDULED, State.READY, State.RUNNING, State.DONE, State.DEAD, State.EXPIRED}
    zq.restart()
    assert check(journal) == []


def change(name: str, **fields: Any) -> Callable[[MemoryJournal], None]:
    def damage(journal: MemoryJournal) -> None:
        journal._rows[job_id_from(name)] = replace(row(journal, name), **fields)

    return damage


def lose_row(journal: MemoryJournal) -> None:
    del journal._rows[job_id_from("ready")]


def lose_spec(journal: MemoryJournal) -> None:
    del journal._specs[job_id_from("ready")]


def flip_a_bit(journal: MemoryJournal) -> None:
    data = bytearray(journal._specs[job_id_from("waits")])
    data[-3] ^= 1
    journal._specs[job_id_from("waits")] = bytes(data)


def exchange_specs(journal: MemoryJournal) -> None:
    journal._rows[job_id_from("done")] = replace(
        row(journal, "done"), digest=row(journal, "runs").digest, size_bytes=row(journal, "runs").size_bytes
    )
    journal._specs[job_id_from("done")] = journal._specs[job_id_from("runs")]


def lose_index_entry(journal: MemoryJournal) -> None:
    journal._indexes[Index.READY].remove(ready_key(row(journal, "ready")))


def leave_index_entry(journal: MemoryJournal) -> None:
    journal._indexes[Index.READY].add(ready_key(row(journal, "runs")), job_id_from("runs"))


def leave_entry_of_nobody(journal: MemoryJournal) -> None:
    journal._indexes[Index.DUE].add(bytes(24), bytes(16))


def lose_key(journal: MemoryJournal) -> None:
    journal._keys.clear()


def leave_key(journal: MemoryJournal) -> None:
    journal._keys[b"old"] = job_id_from("done")


def lose_attempt(journal: MemoryJournal) -> None:
    journal._attempts[job_id_from("failed")].clear()


def repeat_a_token(journal: MemoryJournal) -> None:
    running = row(journal, "runs")
    journal._rows[running.id] = replace(running, attempt=2)
    journal._attempts[running.id] = {1: AttemptRow(1, running.token, "w", 1, 2, Outcome.LOST)}


def attempt_of_nobody(journal: MemoryJournal) -> None:
    journal._attempts[bytes(16)] = {1: AttemptRow(1, 1, "w", 1, 2, Outcome.LOST)}


def early_result(journal: MemoryJournal) -> None:
    journal._results[job_id_from("runs")] = KeptResult(b"\x01", 1)


def miscount(journal: MemoryJournal) -> None:
    journal._counts["q"].by_state[State.RUNNING] += 1


def lose_ended_count(journal: MemoryJournal) -> None:
    journal._counts["q"].by_state[State.DONE] = 0
    journal._counts["q"].by_state[State.DEAD] += 1


def lose_event(journal: MemoryJournal) -> None:
    del journal._events[row(journal, "failed").event]


def change_event(journal: MemoryJournal) -> None:
    number = row(journal, "failed").event
    journal._events[number] = replace(journal._events[number], cause=Cause.DUE)


def admit_too_many(journal: MemoryJournal) -> None:
    parked = row(journal, "parked")
    key = next(key for index, key in index_keys(parked) if index is Index.PARKED)
    journal._indexes[Index.PARKED].remove(key)
    journal._rows[parked.id] = after = replace(parked, admitted=True)
    for index, key in index_keys(after):
        journal._indexes[index].add(key, after.id)


def lose_counts(journal: MemoryJournal) -> None:
    del journal._counts["other"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lose_row, "names job .*, which is not there"),
        (lose_spec, "its body is missing"),
        (flip_a_bit, "its body is damaged"),
        (exchange_specs, "its body is another job's"),
        (lose_index_entry, "index ready does not have it"),
        (leave_index_entry, "where it does not stand"),
        (leave_entry_of_nobody, "which is not there"),
        (lose_key, "does not hold its key 'merge:1'"),
        (leave_key, "3 held keys, and the jobs account for 2"),
        (lose_attempt, r"its ended attempts are \[\], not 1 to 1"),
        (repeat_a_token, "its fencing tokens do not grow"),
        (attempt_of_nobody, "4 attempts, and the jobs account for 3"),
        (early_result, "it has a result and is not done"),
        (miscount, "accounted for"),
        (lose_ended_count, "0 counted as done, 1 are there"),
        (lose_event, "of its history is missing"),
        (change_event, "is no legal step"),
        (change("runs", event=1 << 40), "its newest event is 1099511627776"),
        (admit_too_many, "is one more than its concurrency key allows, 1"),
        (lose_counts, "queue 'other' has jobs and no counts"),
        (change("runs", token=0), "it runs without a fencing token"),
        (change("done", token=5), "it has a fencing token and does not run"),
        (change("runs", worker=""), "it runs on no worker"),
        (change("runs", due_ms=5), "its due time is 5"),
        (change("done", ended_ms=0), "its end is at 0"),
        (change("runs", attempt=9), "attempt 9, of which 0 do not count, with 3 retries"),
        (change("ready", seq=999), "acceptance number 999"),
        (change("done", started_ms=1 << 50), "later than the journal's"),
        (change("ready", state=State.DONE, ended_ms=5), "counted as ready"),
    ],
)
def test_damage_is_found(damage: Callable[[MemoryJournal], None], said: str) -> None:
    journal = filled().journal
    assert isinstance(journal, MemoryJournal)
    damage(journal)
    problems = check(journal)
    assert re.search(said, "\n".join(problems)), problems


def test_the_list_of_problems_is_bounded() -> None:
    journal = filled().journal
    assert isinstance(journal, MemoryJournal)
    journal._specs.clear()
    problems = check(journal, problems_max=3)
    assert len(problems) == 3
    assert problems[-1].endswith("(and there may be more)")
