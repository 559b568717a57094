"""What becomes of leases inside a worker: they wait, go to slots, are taken back, run, and end with a result. Pure.

`Session` says which leases there are and what the broker wants of them; this is its other half, which deals with slots.
Effects go into the list that both share.
"""

from __future__ import annotations

import msgspec

from zq.protocol.job import Outcome
from zq.workers import session_io as io
from zq.workers.leases import Doom, HeldLease, LeaseBook, Phase, Step, larger_usage, make_result
from zq.workers.questions import Questions
from zq.workers.session_slots import SessionSlots

# As in `leases`: what each job needs is looked up once.
_RUNNING, _HANDED, _ENDING = Phase.RUNNING, Phase.HANDED, Phase.ENDING
_START, _HAND, _REPORT = Step.START, Step.HAND, Step.REPORT
RETURN_MS = 50
"""A lease that no slot takes for so long, because the jobs before it turned out slow, goes back to the broker."""


class Floor:
    def __init__(self, book: LeaseBook, slots: SessionSlots, questions: Questions, out: list[io.Effect]) -> None:
        self._book = book
        self._slots = slots
        self._questions = questions
        self._out = out
        self._return_ms: int | None = None
        self.working = True
        """Jobs may begin; once not, what has not begun is handed back."""
        self.stall_news = False
        """A job has just stalled: the broker is to hear of it before it ends."""

    # ------------------------------------------------------------------------------------------ jobs go to slots

    def wait(self, lease: HeldLease, now_ms: int, *, extra: bool) -> None:
        """A new lease waits for a slot; `extra`: not every slot's first one, so it does not wait for long."""
        if extra:
            self._return_soon(lease, now_ms)
        self._slots.wait(lease)

    def hand_back_waiting(self) -> None:
        """All that has not begun, as far as is known without asking the slots; those are asked."""
        for lease in self._book.in_phase(Phase.WAITING):
            self._slots.stop_waiting(lease)
            self.finish(lease, Outcome.HANDED_BACK)
        for slot in {lease.slot for lease in self._book.in_phase(Phase.HANDED) if lease.slot is not None}:
            self._out.append(io.TakeBack(slot))

    def _return_soon(self, lease: HeldLease, now_ms: int) -> None:
        lease.return_ms = now_ms + RETURN_MS
        if self._return_ms is None:
            self._return_ms = lease.return_ms

    def assign(self, now_ms: int) -> None:
        if not self._slots.anything_waits:
            return
        for hand, lease in self._slots.match(self._book.job_occupied):
            assert lease.spec is not None
            self._book.occupy(lease, hand.slot)
            lease.return_ms = None
            if len(hand.leases) == 1:
                self._start(lease, now_ms)
            else:
                self._book.step(lease, _HAND)
            self._out.append(io.StartJob(hand.slot, lease.token, lease.attempt, lease.spec))

    def _start(self, lease: HeldLease, now_ms: int) -> None:
        self._book.step(lease, _START)
        lease.started_ms = now_ms
        if lease.doom is None:
            return
        if lease.doom is Doom.CANCEL:
            self.end(lease, Outcome.CANCELLED, "cancelled")
        else:
            self.abandon(lease, "the job is no longer ours")

    def _leave_slot(self, lease: HeldLease, now_ms: int) -> None:
        """The lease is no longer in its slot, whose next job runs now."""
        follower = self._slots.drop(lease)
        self._book.vacate(lease)
        if follower is not None and follower.phase is _HANDED:
            self._start(follower, now_ms)

    def turn(self, now_ms: int) -> None:
        """Nothing waits behind a slow job, and nothing is kept from other workers."""
        for hand in self._slots.held_up(now_ms):
            self._out.append(io.TakeBack(hand.slot))
        if self._return_ms is not None and now_ms >= self._return_ms:
            self._return_ms = None
            for lease in self._slots.overdue(now_ms):
                self.finish(lease, Outcome.HANDED_BACK)
            self._return_ms = self._slots.return_ms()
        for queue, pace in self._slots.paces.items():
            if pace.idle(now_ms) and not self._book.open_in(queue):
                pace.begin_again()

    def wake_ms(self) -> list[int]:
        """When `turn` may have something to do."""
        times = [self._return_ms, self._slots.look_ms()]
        for queue, pace in self._slots.paces.items():
            if pace.depth > 1 and not self._book.open_in(queue):
                times.append(pace.idle_ms())
        return [time_ms for time_ms in times if time_ms is not None]

    # ------------------------------------------------------------------------------------------ leases end

    def finish(
        self, lease: HeldLease, outcome: Outcome, *, result: bytes = b"", error: str = "", retry_after_ms: int = -1
    ) -> None:
        """No process of the attempt is left: its result waits for the broker."""
        self._questions.drop(lease)
        lease.result = make_result(lease, outcome, result=result, error=error, retry_after_ms=retry_after_ms)
        self._book.step(lease, _REPORT)

    def end(self, lease: HeldLease, outcome: Outcome, error: str) -> None:
        """End the running attempt's tree; the result, decided now, is reported when the tree is gone."""
        assert lease.slot is not None
        self._questions.drop(lease)
        lease.result = make_result(lease, outcome, error=error)
        self._book.step(lease, Step.END)
        self._end_slot(lease.slot, error or outcome.name.lower().replace("_", " "))

    def _end_slot(self, slot: int, why: str) -> None:
        self._slots.end(slot)
        hand = self._slots.get(slot)
        if hand is not None and len(hand.leases) > 1:
            self._out.append(io.TakeBack(slot))
        self._out.append(io.EndSlot(slot, why))

    def abandon(self, lease: HeldLease, why: str) -> None:
        """The job is no longer ours: stop working on it, report nothing."""
        self._questions.drop(lease)
        if lease.phase is Phase.ABANDONED:
            return
        if lease.phase is Phase.HANDED:
            self.doom_handed(lease, Doom.ABANDON)
            return
        if lease.phase is Phase.WAITING:
            self._slots.stop_waiting(lease)
        if lease.phase is Phase.RUNNING:
            assert lease.slot is not None
            self._end_slot(lease.slot, why)
        self._book.step(lease, Step.ABANDON)

    def doom_handed(self, lease: HeldLease, doom: Doom) -> None:
        """Behind others in a slot: done when it is taken back, or found to run."""
        assert lease.slot is not None
        if lease.doom is not Doom.ABANDON:
            lease.doom = doom
        self._out.append(io.TakeBack(lease.slot))

    # ------------------------------------------------------------------------------------------ what slots say

    def slot_up(self, event: io.SlotUp, now_ms: int) -> None:
        self._slots.add(event.slot, event.queue, event.jobs_max)
        self.assign(now_ms)

    def slot_closing(self, event: io.SlotClosing, now_ms: int) -> None:
        self._slots.close(event.slot)

    def slot_gone(self, event: io.SlotGone, now_ms: int) -> None:
        hand = self._slots.remove(event.slot)
        for lease in hand.leases if hand is not None else ():
            self._book.vacate(lease)
            if lease.phase in (Phase.RUNNING, Phase.HANDED):
                if lease.phase is Phase.HANDED:
                    self._book.step(lease, Step.START)
                if lease.doom is Doom.ABANDON:
                    self._book.step(lease, Step.ABANDON)
                    self._book.step(lease, Step.GONE)
                elif hand is not None and (hand.ended or event.innocent):
                    # Ended for the sake of the job before it, just when this one began.
                    self.finish(lease, Outcome.HANDED_BACK)
                else:
                    self.finish(lease, Outcome.FAILED, error=event.why)
            else:
                if lease.result is not None:
                    lease.result = msgspec.structs.replace(lease.result, usage=lease.usage)
                self._book.step(lease, Step.GONE)
        self.assign(now_ms)

    def not_started(self, event: io.NotStarted, now_ms: int) -> None:
        lease = self._book.get(event.token)
        if lease is None or lease.phase not in (Phase.RUNNING, Phase.HANDED) or lease.slot is None:
            return
        self._slots.close(lease.slot)
        self._slots.drop(lease)
        self._unstart([lease], now_ms)

    def taken_back(self, event: io.TakenBack, now_ms: int) -> None:
        leases = [lease for token in event.tokens if (lease := self._book.get(token)) is not None]
        taken = [lease for lease in leases if lease.phase is Phase.HANDED and lease.slot == event.slot]
        for lease in reversed(taken):
            self._slots.drop(lease)
        self._unstart(taken, now_ms)

    def _unstart(self, leases: list[HeldLease], now_ms: int) -> None:
        """They are in no slot any more, and have not begun."""
        waiting: list[HeldLease] = []
        for lease in leases:
            self._book.vacate(lease)
            self._book.step(lease, Step.UNSTART)
            doom, lease.doom = lease.doom, None
            if doom is Doom.ABANDON:
                self._book.step(lease, Step.ABANDON)
            elif doom is Doom.CANCEL:
                self.finish(lease, Outcome.CANCELLED)
            elif not self.working:
                self.finish(lease, Outcome.HANDED_BACK)
            else:
                if self._book.open_in(lease.queue) > self._slots.total(lease.queue):
                    self._return_soon(lease, now_ms)
                waiting.append(lease)
        self._slots.wait_first(waiting)
        self.assign(now_ms)

    def reported(self, event: io.Reported, now_ms: int) -> None:
        lease = self._book.get(event.token)
        if lease is None:
            return
        lease.usage = larger_usage(lease.usage, event.usage)
        if lease.phase is _ENDING and event.outcome is Outcome.DONE:
            # Finished while its tree was being ended: what is done is done, and need not be done again.
            lease.result = make_result(lease, Outcome.DONE, result=event.result)
        if lease.phase is _HANDED:
            # The one before it was being ended, and had finished all the same.
            self._book.step(lease, Step.START)
        if lease.phase is not _RUNNING or lease.slot is None:
            return
        ran_ms = now_ms - lease.started_ms if event.ran_ms is None else event.ran_ms
        self._slots.paces[lease.queue].ended(ran_ms, now_ms)
        error, outcome = event.error, event.outcome
        if outcome is None:
            error, outcome = error or "the task gave up: its lease was lost", Outcome.FAILED
        self.finish(lease, outcome, result=event.result, error=error, retry_after_ms=event.retry_after_ms)
        self._leave_slot(lease, now_ms)
        self.assign(now_ms)

    def sampled(self, event: io.Sampled, now_ms: int) -> None:
        lease = self._book.get(event.token)
        if lease is not None:
            lease.usage = larger_usage(lease.usage, event.usage)
            self.stall_news = self.stall_news or (event.stalled and not lease.stalled)
            lease.rss_bytes, lease.quiet_ms, lease.stalled = event.rss_bytes, event.quiet_ms, event.stalled

    def overrun(self, event: io.Overrun, now_ms: int) -> None:
        lease = self._book.get(event.token)
        if lease is not None and lease.phase is Phase.RUNNING:
            self.end(lease, Outcome.FAILED, event.error)
