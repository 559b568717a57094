"""The jobs as they stand now: what the journal has committed, and the steps taken since.

Every change of a job in the whole broker goes through `accept`, `move` or `forget` here, so the transition table is
applied in one place, and what is to be committed is exactly what has happened. Steps of one job are joined: a job
that is accepted and dispatched in one batch costs the journal one step.
"""

from __future__ import annotations

from msgspec.structs import force_setattr, replace

from zq.broker.journal import Counts, Notes, Step, View, apply_counts
from zq.broker.pending import Pending
from zq.broker.records import RESULT_DROPPED, AttemptRow, EventRow, JobRow, KeptResult, new_row
from zq.protocol.job import ENDED, Cause, JobSpec, State, check_transition

NO_JOB = bytes(16)
_ACCEPT = Cause.ACCEPT  # as in `records`: looked up once
_DETAIL_CHARS = 200
"""Of an error in an event; the attempt has all of it."""


class Book:
    def __init__(self, view: View) -> None:
        self.view = view
        self.seq = view.seq
        self.last_event = view.last_event
        self.facts: dict[str, bytes] = {}
        """Settings that wait for the commit."""
        self._loose_events: list[EventRow] = []
        self.counts: dict[str, Counts] = view.counts()
        self._pending = Pending()
        self._steps = self._pending.steps

    # ------------------------------------------------------------------------------------------ looking up

    def row(self, job_id: bytes) -> JobRow | None:
        step = self._steps.get(job_id)
        return step.after if step is not None else self.view.row(job_id)

    def spec(self, job_id: bytes) -> bytes | None:
        step = self._steps.get(job_id)
        if step is not None and step.spec is not None:
            return step.spec
        return self.view.spec(job_id)

    def attempts(self, job_id: bytes) -> list[AttemptRow]:
        step = self._steps.get(job_id)
        return self.view.attempts(job_id) + (list(step.attempts) if step is not None else [])

    def result(self, job_id: bytes) -> KeptResult | None:
        step = self._steps.get(job_id)
        if step is not None and step.result is not None:
            return step.result
        return self.view.result(job_id)

    def key_holder(self, key: str) -> bytes | None:
        """The live job that has this key."""
        keys = self._pending.keys
        return keys[key] if key in keys else self.view.key_holder(key)

    # ------------------------------------------------------------------------------------------ changing

    def accept(self, spec: JobSpec, spec_bytes: bytes, digest: bytes, now_ms: int) -> JobRow:
        """Take a job in. The caller has checked that its id is new and its key is free."""
        self.seq += 1
        row = new_row(spec, len(spec_bytes), digest, self.seq, now_ms)
        check_transition(None, _ACCEPT, row.state)
        event = self._event(row, 0, _ACCEPT, now_ms, "")
        self._record(Step(None, row, spec=spec_bytes, events=(event,)))
        return row

    def move(
        self,
        before: JobRow,
        after: JobRow,
        cause: Cause,
        now_ms: int,
        *,
        detail: str = "",
        attempt: AttemptRow | None = None,
        result: KeptResult | None = None,
    ) -> JobRow:
        """One legal step of a job. Raises IllegalTransition for any other, and changes nothing then."""
        check_transition(before.state, cause, after.state)
        event = self._event(after, before.event, cause, now_ms, detail)
        attempts = (attempt,) if attempt is not None else ()
        self._record(Step(before, after, attempts=attempts, result=result, events=(event,)))
        return after

    def drop_result(self, row: JobRow) -> None:
        """Forget a done job's result, whose time is over; the job stays."""
        assert row.result_until_ms > 0
        self._record(Step(row, replace(row, result_until_ms=RESULT_DROPPED)))

    def admit(self, row: JobRow) -> JobRow:
        """Let a waiting job in under its concurrency key: no step of its life, so no event."""
        assert row.state is State.READY
        assert not row.admitted
        after = replace(row, admitted=True)
        self._record(Step(row, after))
        return after

    def _event(self, row: JobRow, before: int, cause: Cause, now_ms: int, detail: str) -> EventRow:
        self.last_event += 1
        # The row was made for this very step and nobody has seen it yet; a second copy would cost a microsecond.
        force_setattr(row, "event", self.last_event)
        return EventRow(
            self.last_event, before, now_ms, row.id, row.queue, row.task, cause, row.state, row.attempt, row.worker,
            detail[:_DETAIL_CHARS],
        )  # fmt: skip

    def note_queue(self, queue: str, cause: Cause, now_ms: int, detail: str) -> None:
        """An event of a queue, not of a job: its job id is all zeros."""
        self.last_event += 1
        event = EventRow(self.last_event, 0, now_ms, NO_JOB, queue, "-", cause, State.READY, 0, "", detail)
        self._loose_events.append(event)

    def forget(self, row: JobRow) -> bool:
        """Drop an ended job. False, and nothing done, if it has changed in this very batch: a later one may."""
        assert row.state in ENDED
        if row.id in self._steps:
            return False
        self._record(Step(row, None))
        return True

    def _record(self, step: Step) -> None:
        apply_counts(self.counts, step)
        self._pending.add(step)

    # ------------------------------------------------------------------------------------------ committing

    @property
    def steps(self) -> list[Step]:
        """What is to be committed."""
        return list(self._steps.values())

    @property
    def notes(self) -> Notes:
        """What is to be committed beside the steps."""
        return Notes(dict(self.facts), tuple(self._loose_events))

    def committed(self) -> None:
        """The journal has it all: its view is current again."""
        self._pending.clear()
        self.facts.clear()
        self._loose_events.clear()
