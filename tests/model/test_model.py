"""The broker's core does what a small model says, and the model finds what is wrong with one that does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

import zq.protocol.messages as m
from tests.broker.harness import Harness
from tests.model.machine import SETTINGS, LmdbMachine, Machine, run
from tests.simulation.test_mutations import (
    attempts_counted_at_failure,
    credit_not_enforced,
    ended_jobs_not_remembered,
    lost_leases_forgotten,
    needs_not_kept,
    without_fence,
)
from zq.broker import orders
from zq.broker.concurrency import Concurrency
from zq.broker.leases import Lease, Leases
from zq.broker.queues import Queue, QueueSettings, settings_fact
from zq.broker.records import JobRow
from zq.broker.retention import Retention
from zq.broker.waiting import WaitingRoom
from zq.protocol.job import Outcome, State, job_id_from


def test_the_core_does_what_the_model_says() -> None:
    run(Machine, 120, 40)


def test_the_core_on_lmdb_does_what_the_model_says() -> None:
    run(LmdbMachine, 40, 40)


def test_a_lease_that_was_resumed_and_is_then_not_named_is_lost() -> None:
    """Found here: the lease kept the number of its DISPATCH in the earlier session, which BEATs did not reach again."""
    zq = Harness(SETTINGS)
    worker = zq.worker()
    zq.submit("a")
    worker.ack(worker.lease())
    zq.submit("b")
    lease = worker.lease()
    again = zq.worker(claims=[m.LeaseClaim(lease.job_id, lease.attempt, lease.token)])
    assert again.resumed is not None
    assert again.resumed.held == [lease.token]
    again.beat(seen=0)
    assert zq.row(job_id_from("b")).attempt == 2, "it went to nobody again"
    assert [row.outcome for row in zq.journal.attempts(job_id_from("b"))] == [Outcome.LOST]


def hand_backs_count(patch: pytest.MonkeyPatch) -> None:
    """A job that is handed back on its last attempt is dead."""
    end = Leases.end

    def counting(self: Leases, lease: Lease, word: m.Result, now_ms: int) -> JobRow:
        if word.outcome is Outcome.HANDED_BACK and lease.row.exhausted:
            word = replace(word, outcome=Outcome.FAILED)
        return end(self, lease, word, now_ms)

    patch.setattr(Leases, "end", counting)


def cancelling_is_forgotten_at_a_restart(patch: pytest.MonkeyPatch) -> None:
    adopt = Leases.adopt

    def forgetting(self: Leases, row: JobRow, claim_by_ms: int) -> None:
        adopt(self, replace(row, cancel_asked=False), claim_by_ms)

    patch.setattr(Leases, "adopt", forgetting)


def expiry_holds_after_a_failure(patch: pytest.MonkeyPatch) -> None:
    close = Leases._close

    def keeping(self: Leases, lease: Lease, after: JobRow, *rest: Any) -> JobRow:
        if after.state is State.SCHEDULED:
            after = replace(after, expires_at_ms=lease.row.expires_at_ms)
        return close(self, lease, after, *rest)

    patch.setattr(Leases, "_close", keeping)


def concurrency_keys_are_not_given_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Concurrency, "left", lambda self, before: None)


def concurrency_keys_have_room_for_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Concurrency, "_count", lambda self, key: self._admitted.setdefault(key, 0) and 0)


def a_pause_does_not_outlive_the_broker(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(orders, "settings_fact", lambda queue, settings: settings_fact(queue, QueueSettings()))


def queue_settings_hold_nothing_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Queue, "held_by_settings", lambda self, now_ms: self.settings.paused)


def replaced_jobs_stay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WaitingRoom, "end", lambda self, row, state, cause, detail, now_ms: row)


def rescheduling_forgets_the_time(patch: pytest.MonkeyPatch) -> None:
    move_time = WaitingRoom.move_time
    patch.setattr(WaitingRoom, "move_time", lambda self, row, due_ms, now_ms: move_time(self, row, now_ms, now_ms))


def results_are_kept_for_ever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Retention, "_drop_results", lambda self, now_ms: 0)


@pytest.mark.parametrize(
    "defect",
    [
        cancelling_is_forgotten_at_a_restart, without_fence, attempts_counted_at_failure, credit_not_enforced,
        ended_jobs_not_remembered, lost_leases_forgotten, concurrency_keys_are_not_given_back,
        concurrency_keys_have_room_for_all, replaced_jobs_stay,
        # Few sequences show these: it takes hundreds to meet one.
        *(
            pytest.param(defect, marks=pytest.mark.long)
            for defect in (
                hand_backs_count, expiry_holds_after_a_failure, a_pause_does_not_outlive_the_broker,
                queue_settings_hold_nothing_back, rescheduling_forgets_the_time, results_are_kept_for_ever,
                needs_not_kept,
            )
        ),
    ],
)  # fmt: skip
def test_a_defect_is_found(defect: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The model can fail."""
    defect(monkeypatch)
    with pytest.raises(AssertionError):
        run(Machine, 1000, 40, shrink=False)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("machine", [Machine, LmdbMachine])
def test_the_core_does_what_the_model_says_for_long(machine: type[Machine]) -> None:
    run(machine, 1500, 80, seeded=False)
