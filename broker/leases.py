"""Leases: which attempt of which job is with which worker, and how each of them ends.

A lease has a token that grows with every dispatch, over all jobs and all restarts of the broker: a fencing token.
A worker's word counts only under the token of the current lease, in the session that holds it. A lease ends with its
worker's word or with its worker, never because time has passed over the job.

A lease whose session is gone, or that was found running in the journal at the start, is an orphan until its worker
claims it by RESUME or its time to do so is over.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from zq.broker.book import Book
from zq.broker.headroom import Headroom
from zq.broker.records import AttemptRow, JobRow, KeptResult
from zq.broker.retry import backoff_ms
from zq.broker.sessions import Session
from zq.protocol import limits
from zq.protocol import messages as m
from zq.protocol.job import Cause, Outcome, State

_NO_USAGE = m.Usage()
# As in `records`: what each job goes through, looked up once.
_RUNNING, _DONE, _DISPATCH, _FINISH = State.RUNNING, State.DONE, Cause.DISPATCH, Cause.FINISH
_SAID_DONE = Outcome.DONE


@dataclass(eq=False, slots=True)
class Lease:
    token: int
    row: JobRow
    """The RUNNING row, always the current one."""
    session: Session | None
    number: int = 0
    """The DISPATCH of its session that carried it."""
    claim_by_ms: int = 0
    """Orphans: when the wait for the worker is over."""
    progress: m.JobProgress | None = None
    usage: m.Usage = _NO_USAGE
    quiet_ms: int = 0
    """Since its last sign of life, as its worker last said."""
    stalled: bool = False


class Leases:
    def __init__(self, book: Book, epoch: int, result_ttl_ms: int, headroom: Headroom) -> None:
        self._book = book
        self._headroom = headroom
        self._next_token = epoch << 40
        self._result_ttl_ms = result_ttl_ms
        self.by_token: dict[int, Lease] = {}
        self._orphans: dict[str, dict[int, Lease]] = {}
        """By the name of their worker."""

    def adopt(self, row: JobRow, claim_by_ms: int) -> None:
        """A job that the journal has as running, at the broker's start."""
        lease = Lease(row.token, row, None, claim_by_ms=claim_by_ms)
        self.by_token[row.token] = lease
        self._headroom.hold(row, None)
        self._orphans.setdefault(row.worker, {})[row.token] = lease

    # ------------------------------------------------------------------------------------------ beginning

    def grant(self, row: JobRow, session: Session, now_ms: int) -> Lease:
        """Dispatch: the attempt is counted now, before anything is sent."""
        assert not row.exhausted, "more dispatches than 1 + retries"
        assert session.free(row.queue) > 0, "more leases than credit"
        self._next_token += 1
        after = replace(
            row,
            state=_RUNNING,
            attempt=row.attempt + 1,
            token=self._next_token,
            worker=session.instance,
            started_ms=now_ms,
            due_ms=0,
        )
        self._book.move(row, after, _DISPATCH, now_ms)
        lease = Lease(after.token, after, None)
        self.by_token[lease.token] = lease
        self._bind(lease, session)
        self._headroom.hold(after, session)
        return lease

    def _bind(self, lease: Lease, session: Session) -> None:
        lease.session = session
        session.leases[lease.token] = lease
        session.held[lease.row.queue] = session.held.get(lease.row.queue, 0) + 1

    def _unbind(self, lease: Lease) -> None:
        session = lease.session
        if session is not None:
            del session.leases[lease.token]
            session.held[lease.row.queue] -= 1
            lease.session = None
        else:
            orphans = self._orphans[lease.row.worker]
            del orphans[lease.token]
            if not orphans:
                del self._orphans[lease.row.worker]

    # ------------------------------------------------------------------------------------------ claiming

    def current(self, session: Session, job_id: bytes, token: int) -> Lease | None:
        """The lease, if this session holds it under this token."""
        lease = self.by_token.get(token)
        if lease is None or lease.session is not session or lease.row.id != job_id:
            return None
        return lease

    def orphan(self, session: Session, claim_by_ms: int) -> None:
        """The session is gone but its worker may come back: its leases wait for a RESUME."""
        for lease in list(session.leases.values()):
            self._unbind(lease)
            lease.claim_by_ms = claim_by_ms
            self._orphans.setdefault(lease.row.worker, {})[lease.token] = lease

    def claim(self, session: Session, claims: list[m.LeaseClaim]) -> tuple[list[Lease], list[int], list[Lease]]:
        """A worker's RESUME: (leases it holds again, tokens it no longer holds, orphans of its that it lacks)."""
        held: list[Lease] = []
        lost: list[int] = []
        orphans = self._orphans.get(session.instance, {})
        for claim in claims:
            lease = orphans.get(claim.token)
            if lease is not None and (lease.row.id, lease.row.attempt) == (claim.job_id, claim.attempt):
                self._unbind(lease)
                self._bind(lease, session)
                self._headroom.hold(lease.row, session)
                lease.number = 0  # the DISPATCH was an earlier session's; the worker has it, so any BEAT must name it
                held.append(lease)
            else:
                lost.append(claim.token)
        return held, lost, list(self._orphans.get(session.instance, {}).values())

    def orphans(self) -> list[Lease]:
        return [lease for orphans in self._orphans.values() for lease in orphans.values()]

    def unclaimed(self, now_ms: int) -> list[Lease]:
        """Orphans whose worker has not come back in time."""
        return [lease for lease in self.orphans() if lease.claim_by_ms <= now_ms]

    def forgive(self, gap_ms: int, latest_ms: int) -> None:
        """The broker itself was not there for so long: that was nobody's silence."""
        for lease in self.orphans():
            lease.claim_by_ms = min(lease.claim_by_ms + gap_ms, latest_ms)

    # ------------------------------------------------------------------------------------------ ending

    def end(self, lease: Lease, word: m.Result, now_ms: int) -> JobRow:
        """The worker's word about the current lease. Returns the job's new row."""
        row = lease.row
        outcome = word.outcome
        if outcome is _SAID_DONE:
            attempt = self._attempt(lease, outcome, word.error, word.usage, now_ms)
            kept = KeptResult(word.result, now_ms + self._result_ttl_ms) if word.result else None
            after = _ended(row, _DONE, "", now_ms)
            if kept is not None:
                after = replace(after, result_until_ms=kept.expires_ms)
            return self._close(lease, after, _FINISH, attempt, kept)
        if outcome is Outcome.LOST or (outcome is Outcome.CANCELLED and not row.cancel_asked):
            outcome = Outcome.FAILED
        attempt = self._attempt(lease, outcome, word.error, word.usage, now_ms)
        if row.cancel_asked:
            return self._close(lease, _ended(row, State.CANCELLED, word.error, now_ms), Cause.CANCEL, attempt)
        if outcome is Outcome.HANDED_BACK:
            after = replace(row, state=State.READY, token=0, worker="", uncounted=row.uncounted + 1)
            return self._close(lease, after, Cause.HAND_BACK, attempt)
        if outcome is Outcome.REJECTED or row.exhausted:
            return self._close(lease, _ended(row, State.DEAD, word.error, now_ms), Cause.EXHAUST, attempt)
        delay_ms = word.retry_after_ms if word.retry_after_ms >= 0 else backoff_ms(row)
        after = _scheduled(row, now_ms + delay_ms, word.error)
        return self._close(lease, after, Cause.FAIL, attempt)

    def lose(self, lease: Lease, reason: str, now_ms: int) -> JobRow:
        """The worker is gone, or says it does not have this lease. The attempt counts."""
        row = lease.row
        attempt = self._attempt(lease, Outcome.LOST, reason, lease.usage, now_ms)
        if row.cancel_asked:
            return self._close(lease, _ended(row, State.CANCELLED, reason, now_ms), Cause.CANCEL, attempt)
        if row.exhausted:
            return self._close(lease, _ended(row, State.DEAD, reason, now_ms), Cause.EXHAUST, attempt)
        return self._close(lease, _scheduled(row, now_ms, reason), Cause.LOSE, attempt)

    def ask_cancel(self, lease: Lease, by: str, now_ms: int) -> None:
        if not lease.row.cancel_asked:
            after = replace(lease.row, cancel_asked=True)
            lease.row = self._book.move(lease.row, after, Cause.CANCEL_ASKED, now_ms, detail=by)

    def used(self, session: Session, item: m.LeaseUsage, now_ms: int) -> None:
        """A worker's account of a running attempt. That it has stalled is an event; that it wakes again is none."""
        lease = session.leases.get(item.token)
        if lease is None:
            return
        if item.stalled and not lease.stalled:
            detail = f"no sign of life for {item.quiet_ms / 1000:g} s"
            lease.row = self._book.move(lease.row, replace(lease.row), Cause.STALL, now_ms, detail=detail)
        lease.usage, lease.quiet_ms, lease.stalled = item.usage, item.quiet_ms, item.stalled

    def _attempt(self, lease: Lease, outcome: Outcome, error: str, usage: m.Usage, now_ms: int) -> AttemptRow:
        row, last = lease.row, lease.progress
        text = error[: limits.ERROR_CHARS_MAX]
        progress = (last.done, last.total, last.message) if last is not None else ()
        return AttemptRow(row.attempt, row.token, row.worker, row.started_ms, now_ms, outcome, text, usage, *progress)

    def _close(
        self, lease: Lease, after: JobRow, cause: Cause, attempt: AttemptRow, result: KeptResult | None = None
    ) -> JobRow:
        self._book.move(lease.row, after, cause, attempt.ended_ms, detail=attempt.error, attempt=attempt, result=result)
        self._unbind(lease)
        del self.by_token[lease.token]
        self._headroom.release(lease.token)
        return after


def _ended(row: JobRow, state: State, error: str, now_ms: int) -> JobRow:
    return replace(row, state=state, token=0, ended_ms=now_ms, error=error)


def _scheduled(row: JobRow, due_ms: int, error: str) -> JobRow:
    # An expiry is for the first start: a job that has started once is not dropped for being late.
    return replace(
        row, state=State.SCHEDULED, token=0, worker="", due_ms=due_ms, error=error, expires_at_ms=0,
        admitted=not row.concurrency_key,
    )  # fmt: skip
