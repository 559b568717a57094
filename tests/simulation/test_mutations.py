"""The simulator can fail: with each of these defects built in, it finds a broken promise in a few seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

import zq.protocol.messages as m
from tests.simulation.faults import ALL_FAULTS
from tests.simulation.test_simulation import play
from tests.simulation.world import World
from zq.broker.book import Book
from zq.broker.core import Core
from zq.broker.headroom import Headroom
from zq.broker.lanes import Head, Lane
from zq.broker.leases import Lease, Leases
from zq.broker.records import JobRow
from zq.broker.sessions import Session
from zq.broker.submits import Submits
from zq.protocol.job import ENDED

SEEDS = range(60)


def without_fence(patch: pytest.MonkeyPatch) -> None:
    """Any worker's word about a job counts, whatever token it has."""

    def current(self: Leases, session: Session, job_id: bytes, token: int) -> Lease | None:
        return next((lease for lease in self.by_token.values() if lease.row.id == job_id), None)

    ack = Core._ack

    def believing(self: Core, session: Session, message: m.Ack, now_ms: int) -> None:
        results = []
        for word in message.results:
            lease = self.leases.current(session, word.job_id, word.token)
            results.append(replace(word, attempt=lease.row.attempt) if lease is not None else word)
        ack(self, session, m.Ack(message.session, results), now_ms)

    patch.setattr(Leases, "current", current)
    patch.setattr(Core, "_ack", believing)


def attempts_counted_at_failure(patch: pytest.MonkeyPatch) -> None:
    """An attempt whose worker is lost was never counted."""
    close = Leases._close

    def forgetting(self: Leases, lease: Lease, after: JobRow, cause: Any, attempt: Any, result: Any = None) -> JobRow:
        if cause.name == "LOSE":
            after = replace(after, uncounted=after.uncounted + 1)
        return close(self, lease, after, cause, attempt, result)

    patch.setattr(Leases, "_close", forgetting)


def credit_not_enforced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Session, "free", lambda self, queue: 100 - self.held.get(queue, 0))


def ended_jobs_not_remembered(patch: pytest.MonkeyPatch) -> None:
    """No dedupe window: an id that has ended is taken for a new one."""
    row = Book.row

    def forgetful(self: Book, job_id: bytes) -> JobRow | None:
        found = row(self, job_id)
        return None if found is not None and found.state in ENDED else found

    patch.setattr(Book, "row", forgetful)


def lost_leases_forgotten(patch: pytest.MonkeyPatch) -> None:
    """BEAT and RESUME are not compared with what the broker has given."""
    patch.setattr(Leases, "claim", lambda self, session, claims: ([], [claim.token for claim in claims], []))


def needs_not_kept(patch: pytest.MonkeyPatch) -> None:
    """What a running job needs is given away again."""
    patch.setattr(Headroom, "hold", lambda self, row, session: None)


def needs_forgotten_by_a_restart(patch: pytest.MonkeyPatch) -> None:
    """Jobs that ran before the broker's start need nothing until they are claimed."""
    hold = Headroom.hold

    def forgetful(self: Headroom, row: JobRow, session: Session | None) -> None:
        if session is not None and session.room is not None:
            hold(self, row, session)

    patch.setattr(Headroom, "hold", forgetful)


def latest_first(patch: pytest.MonkeyPatch) -> None:
    """Of those who ask the same, the last to come goes first."""
    head = Lane.head

    def hasty(self: Lane, book: Book) -> Head | None:
        first = head(self, book)
        if first is None:
            return None
        rows = [book.row(job_id) for job_id in self.windows[first[2].priority].ids.values()]
        return first[0], first[1], max((row for row in rows if row is not None), key=lambda row: row.seq)

    patch.setattr(Lane, "head", hasty)


def a_low_disk_is_no_reason(patch: pytest.MonkeyPatch) -> None:
    """New jobs are taken as ever while the disk is low."""
    patch.setattr(Submits, "closed", property(lambda self: None, lambda self, code: None), raising=False)


def play_all(*, speaks_first: bool = False) -> None:
    for seed in SEEDS:
        play(World(seed, ALL_FAULTS, speaks_first=speaks_first))


@pytest.mark.parametrize(
    ("defect", "finding"),
    [
        (without_fence, "I5"),
        (attempts_counted_at_failure, "I4"),
        (credit_not_enforced, "I8"),
        (ended_jobs_not_remembered, "I3: a job was accepted twice"),
        (lost_leases_forgotten, r"I7|I8"),
        (needs_not_kept, "headroom"),
        (needs_forgotten_by_a_restart, "headroom"),
        (latest_first, "I9"),
        (a_low_disk_is_no_reason, "I14"),
    ],
)
def test_a_defect_is_found(
    defect: Callable[[pytest.MonkeyPatch], None], finding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    defect(monkeypatch)
    with pytest.raises(AssertionError, match=finding):
        play_all()


def test_speaking_before_the_commit_is_found() -> None:
    with pytest.raises(AssertionError, match=r"I1|I4|I13"):
        play_all(speaks_first=True)
