"""What the power-fail workload does: batches of legal steps made from a seed, and what a journal has after each.

The steps are made by the broker's own `Book` on a memory journal, so the plan is the expected answer as well.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from zq.broker.book import Book
from zq.broker.journal import Counts, Step, View
from zq.broker.memory_journal import MemoryJournal
from zq.broker.records import AttemptRow, JobRow, KeptResult
from zq.protocol.job import ENDED, Cause, JobSpec, Outcome, State, digest, encode_spec, job_id_from

BATCH_MS = 1000
"""Broker time from one batch to the next, so that a journal's time says which batch was its last."""


@dataclass(frozen=True)
class Content:
    """All that a journal says of its jobs."""

    jobs: dict[bytes, tuple[JobRow, bytes | None, tuple[AttemptRow, ...], KeptResult | None]]
    counts: dict[str, Counts]


def content(view: View) -> Content:
    rows = view.rows(b"", 1_000_000)
    return Content(
        {row.id: (row, view.spec(row.id), tuple(view.attempts(row.id)), view.result(row.id)) for row in rows},
        view.counts(),
    )


@dataclass(frozen=True)
class Plan:
    batches: list[list[Step]]
    contents: list[Content]
    """contents[n]: after n batches."""

    def time_ms(self, batches: int) -> int:
        return batches * BATCH_MS


def make_plan(seed: int, batches: int) -> Plan:
    planner = _Planner(seed)
    plan = Plan([], [content(planner.journal)])
    for number in range(1, batches + 1):
        plan.batches.append(planner.batch(number * BATCH_MS))
        plan.contents.append(content(planner.journal))
    return plan


class _Planner:
    def __init__(self, seed: int) -> None:
        self.journal = MemoryJournal()
        self._book = Book(self.journal)
        self._seed = seed
        self._random = random.Random(seed)
        self._names = 0
        self._tokens = 0
        self._rows: dict[bytes, JobRow] = {}

    def batch(self, now_ms: int) -> list[Step]:
        for _ in range(self._random.choice((1, 1, 2, 5, 20))):
            self._step(now_ms)
        steps = self._book.steps
        self.journal.commit(steps, now_ms)
        self._book.committed()
        return steps

    def _step(self, now_ms: int) -> None:
        if not self._rows or self._random.random() < 0.35:
            self._accept(now_ms)
            return
        row = self._random.choice(list(self._rows.values()))
        if row.state in ENDED:
            self._book.forget(row)
            if self._book.row(row.id) is None:
                del self._rows[row.id]
            return
        steps: dict[State, list[Callable[[JobRow, int], JobRow]]] = {
            State.SCHEDULED: [self._due, self._due, self._cancel],
            State.READY: [self._dispatch, self._dispatch, self._dispatch, self._cancel],
            State.RUNNING: [self._finish, self._finish, self._fail],
        }
        self._rows[row.id] = self._random.choice(steps[row.state])(row, now_ms)

    def _accept(self, now_ms: int) -> None:
        self._names += 1
        key = self._random.choice(("", "", f"key-{self._names % 7}"))
        if key and self._book.key_holder(key) is not None:
            key = ""
        spec = JobSpec(
            job_id_from(str(self._seed), str(self._names)), "a.task", self._random.choice(("status", "合并")),
            # From a fraction of a page to several pages of their own.
            arguments=self._random.randbytes(self._random.choice((5, 200, 200, 3000, 20_000))),
            priority=self._random.randint(0, 9), delay_ms=self._random.choice((0, 0, 60_000)),
            expires_ms=self._random.choice((0, 0, 500_000)), key=key,
        )  # fmt: skip
        data = encode_spec(spec)
        self._rows[spec.id] = self._book.accept(spec, data, digest(data), now_ms)

    def _due(self, row: JobRow, now_ms: int) -> JobRow:
        return self._book.move(row, replace(row, state=State.READY, due_ms=0), Cause.DUE, now_ms)

    def _cancel(self, row: JobRow, now_ms: int) -> JobRow:
        after = replace(row, state=State.CANCELLED, due_ms=0, ended_ms=now_ms, error="不要了" * 300)
        return self._book.move(row, after, Cause.CANCEL, now_ms)

    def _dispatch(self, row: JobRow, now_ms: int) -> JobRow:
        self._tokens += 1
        after = replace(
            row, state=State.RUNNING, attempt=row.attempt + 1, token=self._tokens, worker="w", started_ms=now_ms
        )
        return self._book.move(row, after, Cause.DISPATCH, now_ms)

    def _finish(self, row: JobRow, now_ms: int) -> JobRow:
        size_bytes = self._random.choice((0, 10, 9000))
        result = KeptResult(self._random.randbytes(size_bytes), now_ms + 1000) if size_bytes else None
        after = replace(row, state=State.DONE, token=0, ended_ms=now_ms)
        attempt = self._attempt(row, Outcome.DONE, now_ms)
        return self._book.move(row, after, Cause.FINISH, now_ms, attempt=attempt, result=result)

    def _fail(self, row: JobRow, now_ms: int) -> JobRow:
        attempt = self._attempt(row, Outcome.FAILED, now_ms)
        if row.exhausted:
            after = replace(row, state=State.DEAD, token=0, ended_ms=now_ms)
            return self._book.move(row, after, Cause.EXHAUST, now_ms, attempt=attempt)
        after = replace(row, state=State.SCHEDULED, token=0, worker="", due_ms=now_ms + 5000, expires_at_ms=0)
        return self._book.move(row, after, Cause.FAIL, now_ms, attempt=attempt)

    def _attempt(self, row: JobRow, outcome: Outcome, now_ms: int) -> AttemptRow:
        return AttemptRow(row.attempt, row.token, row.worker, row.started_ms, now_ms, outcome, "x" * 50)
