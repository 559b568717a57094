"""A worker's side of the dialog with the broker: credit, leases, results, drain. Pure.

The shell gives every message of the broker and every event of its slots to `handle`, calls `turn` once per loop (and
no later than `wake_ms`), and carries out the effects of both in their order. Time is the shell's monotonic clock in
milliseconds.

    WORKING ──asked──► DRAINING ──asked again, time up──► HANDING_BACK ──empty, asked again, time up──► LEFT
                          └───────────────empty────────────────────────────────────────────────────────┘

The link (see `uplink`) comes and goes beside this: jobs run on while the broker is away, and their results are held.
Nothing is ended because the broker cannot be reached.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from logging import INFO, WARNING
from typing import Any

import msgspec

from zq.protocol import codec, limits
from zq.protocol import messages as m
from zq.protocol.job import Outcome, decode_spec, format_id
from zq.protocol.messages import BrokerMessage, RevokeReason
from zq.workers import session_io as io
from zq.workers.leases import (
    LEASES_MAX,
    Doom,
    HeldLease,
    LeaseBook,
    Phase,
    Step,
    clean_text,
    larger_usage,
    make_result,
    size_bytes,
)
from zq.workers.session_slots import SessionSlots
from zq.workers.stages import WORK_STEPS, Push, Work
from zq.workers.uplink import Uplink

SLOTS_MAX = LEASES_MAX // 4
RESEND_MS = 5_000
"""Results and questions without an answer are sent again after this time."""
PROGRESS_MS = 200
RETURN_MS = 50
"""A lease that no slot takes for so long, because the jobs before it turned out slow, goes back to the broker."""
DELIVERY_MS = 5_000
"""When a drain's time is up: how much longer the last results may take to be acknowledged."""


class Settings(msgspec.Struct, frozen=True):
    instance: str
    incarnation: bytes
    """16 random bytes, new with every process; also the seed of the back-off's jitter."""
    queues: dict[str, int]
    """queue → slots."""
    tasks: tuple[str, ...] = ()
    drain_ms: int = 30_000
    kill_grace_ms: int = 2_000
    software: str = ""
    tags: tuple[str, ...] = ()
    """What this worker has, for jobs that require it."""


class Session:
    def __init__(self, settings: Settings, now_ms: int) -> None:
        if not settings.queues or sum(settings.queues.values()) > SLOTS_MAX:
            raise ValueError(f"a worker has at least one queue, and at most {SLOTS_MAX} slots in all")
        self._settings = settings
        self._out: list[io.Effect] = []
        self.work = Work.WORKING
        self.uplink = Uplink(_hello(settings), now_ms)
        self.book = LeaseBook()
        self.slots = SessionSlots(settings.queues)
        self.ignored: Counter[str] = Counter()
        """Messages and events that did not fit, by kind."""
        self._work_until_ms: int | None = None
        self._barrier: int | None = None
        self._announced: dict[str, int] = {}
        self._most_announced: dict[str, int] = {}
        """In this session: a broker that has not read the last CREDIT yet may still give so many."""
        self._return_ms: int | None = None
        self._request = 0
        self._holds: dict[int, int] = {}
        self._hold_resend_ms = now_ms
        self._progress: dict[int, m.JobProgress] = {}
        self._progress_ms = now_ms
        self._handlers: dict[type, Callable[[Any, int], None]] = {
            m.Welcome: self._on_welcome, m.Refusal: self._on_refusal, m.Dispatch: self._on_dispatch,
            m.Acked: self._on_acked, m.Resumed: self._on_resumed, m.BeatOk: self._on_beat_ok, m.Held: self._on_held,
            m.Revoke: self._on_revoke, io.SlotUp: self._on_slot_up, io.SlotClosing: self._on_slot_closing,
            io.SlotGone: self._on_slot_gone, io.NotStarted: self._on_not_started, io.TakenBack: self._on_taken_back,
            io.Reported: self._on_reported,
            io.Progressed: self._on_progressed, io.HoldAsked: self._on_hold_asked, io.Sampled: self._on_sampled,
            io.Overrun: self._on_overrun, io.LinkBroken: self._on_link_broken, io.DrainAsked: self._on_drain_asked,
        }  # fmt: skip

    # ------------------------------------------------------------------------------------------ the shell's side

    def handle(self, event: BrokerMessage | io.Event, now_ms: int) -> list[io.Effect]:
        """Take one message of the broker or one event. A message that does not fit now is counted and ignored."""
        handler = self._handlers.get(type(event))
        if handler is None or self.work is Work.LEFT:
            self.ignored[type(event).__name__] += 1
            return []
        if not isinstance(event, io.Event):
            if not self.uplink.is_for_us(event):
                self.ignored[type(event).__name__] += 1
                return []
            self.uplink.heard(now_ms)
        handler(event, now_ms)
        return self._take()

    def turn(self, now_ms: int) -> list[io.Effect]:
        """Do what is due: open the link, beat, send what has gathered, end a drain. To be called once per loop."""
        if self.work is Work.LEFT:
            return []
        self._turn_work(now_ms)
        self._turn_slots(now_ms)
        why = self.uplink.silent_for_too_long(now_ms)
        if why:
            self._lose_link(why, now_ms)
        self._out += self.uplink.greet_if_due(now_ms)
        if self.uplink.ready:
            self._flush(now_ms)
        self._leave_if_empty()
        return self._take()

    def wake_ms(self) -> int:
        """When `turn` has something to do, if nothing happens before."""
        times = [self.uplink.wake_ms()]
        for time_ms in (self._work_until_ms, self._return_ms, self.slots.look_ms(), self._idle_ms()):
            if time_ms is not None:
                times.append(time_ms)
        if self.uplink.ready:
            oldest_ms = self.book.oldest_sent_ms()
            if oldest_ms is not None:
                times.append(oldest_ms + RESEND_MS)
            if self._holds:
                times.append(self._hold_resend_ms)
            if self._progress:
                times.append(self._progress_ms)
        return min(times)

    def _take(self) -> list[io.Effect]:
        out, self._out = self._out, []
        return out

    # ------------------------------------------------------------------------------------------ the link

    def _lose_link(self, why: str, now_ms: int) -> None:
        self._out += self.uplink.lose(why, now_ms, len(self.book))
        self._link_lost()

    def _link_lost(self) -> None:
        self._announced, self._most_announced = {}, {}
        self._barrier = None
        self.book.forget_sending()

    def _on_link_broken(self, event: io.LinkBroken, now_ms: int) -> None:
        self._lose_link(event.why, now_ms)

    def _on_refusal(self, refusal: m.Refusal, now_ms: int) -> None:
        self._out += self.uplink.refused(refusal, now_ms, len(self.book))
        if not self.uplink.ready:
            self._link_lost()

    def _on_welcome(self, welcome: m.Welcome, now_ms: int) -> None:
        if self.uplink.welcome(welcome, now_ms):
            self._hold_resend_ms = now_ms
            claims = self.book.claims()
            # First of all. CREDIT and the held results follow it in this loop's turn, on the same connection.
            self._send(m.Resume(welcome.session, claims))
            self._out.append(self.uplink.connected_text(welcome, len(claims)))

    def _on_beat_ok(self, message: m.BeatOk, now_ms: int) -> None:
        self.uplink.beat_answered()

    # ------------------------------------------------------------------------------------------ leases come and go

    def _on_dispatch(self, dispatch: m.Dispatch, now_ms: int) -> None:
        is_next = self.uplink.take_dispatch(dispatch.number)
        if is_next is None:
            # What is missing was never seen here; RESUME of the next session lets the broker find out.
            self._lose_link(f"dispatch {self.uplink.dispatches_seen + 1} is missing", now_ms)
        if not is_next:
            self.ignored["Dispatch"] += 1
            return
        queues: dict[str, int] = {}
        for lease in dispatch.leases:
            held = self._accept(lease, now_ms)
            if held is not None:
                assert held.spec is not None
                queues[held.queue] = max(queues.get(held.queue, 0), len(held.spec.arguments))
        for queue, size in queues.items():
            used_up = 2 * self.book.all_in(queue) > self._announced.get(queue, 0)
            self.slots.paces[queue].dispatched(size, used_up=used_up, now_ms=now_ms)
        self._assign(now_ms)

    def _accept(self, lease: m.Lease, now_ms: int) -> HeldLease | None:
        """The lease, if it now waits for a slot."""
        if lease.token in self.book:
            return None
        if len(self.book) >= LEASES_MAX:
            # Only a broker that does not count can do this. BEAT does not list the lease, so it goes elsewhere.
            self.ignored["Lease"] += 1
            return None
        try:
            spec = decode_spec(lease.spec)
        except ValueError as error:
            held = HeldLease(lease, "", None)
            self.book.add(held)
            self._finish(held, Outcome.REJECTED, error=f"the job cannot be read: {error}")
            return None
        held = HeldLease(lease, spec.queue, spec)
        there, slots = self.book.open_in(spec.queue), self.slots.total(spec.queue)
        self.book.add(held)
        if spec.queue not in self._settings.queues:
            queues = ", ".join(self._settings.queues)
            self._finish(held, Outcome.FAILED, error=f"queue {spec.queue!r} came to a worker that serves {queues}")
            return None
        if self.work is not Work.WORKING or there >= max(slots, self._most_announced.get(spec.queue, 0)):
            self._finish(held, Outcome.HANDED_BACK)
            return None
        if there >= slots:
            self._return_soon(held, now_ms)
        self.slots.wait(held)
        return held

    def _return_soon(self, lease: HeldLease, now_ms: int) -> None:
        lease.return_ms = now_ms + RETURN_MS
        if self._return_ms is None:
            self._return_ms = lease.return_ms

    def _assign(self, now_ms: int) -> None:
        if not self.slots.anything_waits:
            return
        for hand, lease in self.slots.match(self.book.job_occupied):
            assert lease.spec is not None
            self.book.occupy(lease, hand.slot)
            lease.return_ms = None
            if len(hand.leases) == 1:
                self._start(lease, now_ms)
            else:
                self.book.step(lease, Step.HAND)
            self._out.append(io.StartJob(hand.slot, lease.token, lease.attempt, lease.spec))

    def _start(self, lease: HeldLease, now_ms: int) -> None:
        self.book.step(lease, Step.START)
        lease.started_ms = now_ms
        if lease.doom is Doom.CANCEL:
            self._end(lease, Outcome.CANCELLED, "cancelled")
        elif lease.doom is Doom.ABANDON:
            self._abandon(lease, "the job is no longer ours")

    def _leave_slot(self, lease: HeldLease, now_ms: int) -> None:
        """The lease is no longer in its slot, whose next job runs now."""
        follower = self.slots.drop(lease)
        self.book.vacate(lease)
        if follower is not None and follower.phase is Phase.HANDED:
            self._start(follower, now_ms)

    def _turn_slots(self, now_ms: int) -> None:
        """Nothing waits behind a slow job, and nothing is kept from other workers."""
        for hand in self.slots.held_up(now_ms):
            self._out.append(io.TakeBack(hand.slot))
        if self._return_ms is not None and now_ms >= self._return_ms:
            self._return_ms = None
            for lease in self.slots.overdue(now_ms):
                self._finish(lease, Outcome.HANDED_BACK)
            self._return_ms = self.slots.return_ms()
        for queue, pace in self.slots.paces.items():
            if pace.idle(now_ms) and not self.book.open_in(queue):
                pace.begin_again()

    def _idle_ms(self) -> int | None:
        times = [
            idle_ms
            for queue, pace in self.slots.paces.items()
            if (idle_ms := pace.idle_ms()) is not None and not self.book.open_in(queue)
        ]
        return min(times, default=None)

    def _finish(
        self, lease: HeldLease, outcome: Outcome, *, result: bytes = b"", error: str = "", retry_after_ms: int = -1
    ) -> None:
        """No process of the attempt is left: its result waits for the broker."""
        self._drop_extras(lease)
        lease.result = make_result(lease, outcome, result=result, error=error, retry_after_ms=retry_after_ms)
        self.book.step(lease, Step.REPORT)

    def _drop_extras(self, lease: HeldLease) -> None:
        self._progress.pop(lease.token, None)
        if lease.hold_request is not None:
            self._holds.pop(lease.hold_request, None)
            lease.hold_request = None

    def _end(self, lease: HeldLease, outcome: Outcome, error: str) -> None:
        """End the running attempt's tree; the result, decided now, is reported when the tree is gone."""
        assert lease.slot is not None
        self._drop_extras(lease)
        lease.result = make_result(lease, outcome, error=error)
        self.book.step(lease, Step.END)
        self._end_slot(lease.slot, error or outcome.name.lower().replace("_", " "))

    def _end_slot(self, slot: int, why: str) -> None:
        self.slots.end(slot)
        hand = self.slots.get(slot)
        if hand is not None and len(hand.leases) > 1:
            self._out.append(io.TakeBack(slot))
        self._out.append(io.EndSlot(slot, why))

    def _abandon(self, lease: HeldLease, why: str) -> None:
        """The job is no longer ours: stop working on it, report nothing."""
        self._drop_extras(lease)
        if lease.phase is Phase.ABANDONED:
            return
        if lease.phase is Phase.HANDED:
            self._doom(lease, Doom.ABANDON)
            return
        if lease.phase is Phase.WAITING:
            self.slots.stop_waiting(lease)
        if lease.phase is Phase.RUNNING:
            assert lease.slot is not None
            self._end_slot(lease.slot, why)
        self.book.step(lease, Step.ABANDON)

    def _doom(self, lease: HeldLease, doom: Doom) -> None:
        """Behind others in a slot: done when it is taken back, or found to run."""
        assert lease.slot is not None
        if lease.doom is not Doom.ABANDON:
            lease.doom = doom
        self._out.append(io.TakeBack(lease.slot))

    def _on_acked(self, acked: m.Acked, now_ms: int) -> None:
        for token in (*acked.accepted, *acked.stale):
            lease = self.book.get(token)
            if lease is not None and lease.phase is Phase.ENDED:
                self.book.step(lease, Step.ACKED)
        if acked.stale:
            self._say(WARNING, f"{len(acked.stale)} results came too late: their jobs had gone elsewhere or ended")

    def _on_resumed(self, resumed: m.Resumed, now_ms: int) -> None:
        for token in resumed.lost:
            lease = self.book.get(token)
            if lease is not None:
                self._say(WARNING, f"lost job {format_id(lease.job_id)}, attempt {lease.attempt}: it is not ours now")
                self._abandon(lease, "the broker gave the job to somebody else")

    def _on_revoke(self, revoke: m.Revoke, now_ms: int) -> None:
        for token in revoke.tokens:
            lease = self.book.get(token)
            if lease is None:
                continue
            if revoke.reason is RevokeReason.STALE:
                self._abandon(lease, "the job is no longer ours")
            elif lease.phase is Phase.WAITING:
                self.slots.stop_waiting(lease)
                self._finish(lease, Outcome.CANCELLED)
            elif lease.phase is Phase.HANDED:
                self._doom(lease, Doom.CANCEL)
            elif lease.phase is Phase.RUNNING:
                self._end(lease, Outcome.CANCELLED, "cancelled")
            # Otherwise its end is decided, and the result on its way.

    # ------------------------------------------------------------------------------------------ slots and tasks

    def _on_slot_up(self, event: io.SlotUp, now_ms: int) -> None:
        self.slots.add(event.slot, event.queue, event.jobs_max)
        self._assign(now_ms)

    def _on_slot_closing(self, event: io.SlotClosing, now_ms: int) -> None:
        self.slots.close(event.slot)

    def _on_slot_gone(self, event: io.SlotGone, now_ms: int) -> None:
        hand = self.slots.remove(event.slot)
        for lease in hand.leases if hand is not None else ():
            self.book.vacate(lease)
            if lease.phase in (Phase.RUNNING, Phase.HANDED):
                if lease.phase is Phase.HANDED:
                    self.book.step(lease, Step.START)
                if lease.doom is Doom.ABANDON:
                    self.book.step(lease, Step.ABANDON)
                    self.book.step(lease, Step.GONE)
                elif hand is not None and hand.ended:
                    # Ended for the sake of the job before it, just when this one began.
                    self._finish(lease, Outcome.HANDED_BACK)
                else:
                    self._finish(lease, Outcome.FAILED, error=event.why)
            else:
                if lease.result is not None:
                    lease.result = msgspec.structs.replace(lease.result, usage=lease.usage)
                self.book.step(lease, Step.GONE)
        self._assign(now_ms)

    def _on_not_started(self, event: io.NotStarted, now_ms: int) -> None:
        lease = self.book.get(event.token)
        if lease is None or lease.phase not in (Phase.RUNNING, Phase.HANDED) or lease.slot is None:
            return
        self.slots.close(lease.slot)
        self.slots.drop(lease)
        self._unstart([lease], now_ms)

    def _on_taken_back(self, event: io.TakenBack, now_ms: int) -> None:
        leases = [lease for token in event.tokens if (lease := self.book.get(token)) is not None]
        taken = [lease for lease in leases if lease.phase is Phase.HANDED and lease.slot == event.slot]
        for lease in reversed(taken):
            self.slots.drop(lease)
        self._unstart(taken, now_ms)

    def _unstart(self, leases: list[HeldLease], now_ms: int) -> None:
        """They are in no slot any more, and have not begun."""
        waiting: list[HeldLease] = []
        for lease in leases:
            self.book.vacate(lease)
            self.book.step(lease, Step.UNSTART)
            doom, lease.doom = lease.doom, None
            if doom is Doom.ABANDON:
                self.book.step(lease, Step.ABANDON)
            elif doom is Doom.CANCEL:
                self._finish(lease, Outcome.CANCELLED)
            elif self.work is not Work.WORKING:
                self._finish(lease, Outcome.HANDED_BACK)
            else:
                if self.book.open_in(lease.queue) > self.slots.total(lease.queue):
                    self._return_soon(lease, now_ms)
                waiting.append(lease)
        self.slots.wait_first(waiting)
        self._assign(now_ms)

    def _on_reported(self, event: io.Reported, now_ms: int) -> None:
        lease = self.book.get(event.token)
        if lease is None:
            return
        lease.usage = larger_usage(lease.usage, event.usage)
        if lease.phase is Phase.ENDING and event.outcome is Outcome.DONE:
            # Finished while its tree was being ended: what is done is done, and need not be done again.
            lease.result = make_result(lease, Outcome.DONE, result=event.result)
        if lease.phase is Phase.HANDED:
            # The one before it was being ended, and had finished all the same.
            self.book.step(lease, Step.START)
        if lease.phase is not Phase.RUNNING or lease.slot is None:
            return
        ran_ms = now_ms - lease.started_ms if event.ran_ms is None else event.ran_ms
        self.slots.paces[lease.queue].ended(ran_ms, now_ms)
        error, outcome = event.error, event.outcome
        if outcome is None:
            error, outcome = error or "the task gave up: its lease was lost", Outcome.FAILED
        self._finish(lease, outcome, result=event.result, error=error, retry_after_ms=event.retry_after_ms)
        self._leave_slot(lease, now_ms)
        self._assign(now_ms)

    def _on_progressed(self, event: io.Progressed, now_ms: int) -> None:
        lease = self.book.get(event.token)
        if lease is not None and lease.phase is Phase.RUNNING:
            message = clean_text(event.message, limits.MESSAGE_CHARS_MAX)
            self._progress[event.token] = m.JobProgress(
                lease.job_id, event.token, event.done, event.total, message
            )  # the newest, however many came

    def _on_hold_asked(self, event: io.HoldAsked, now_ms: int) -> None:
        lease = self.book.get(event.token)
        if lease is None or lease.phase is not Phase.RUNNING or lease.hold_request is not None:
            return
        self._request += 1
        lease.hold_request = self._request
        if not self._holds:
            self._hold_resend_ms = now_ms + RESEND_MS
        self._holds[self._request] = event.token
        if self.uplink.ready:
            self._send(m.Hold(self.uplink.session, self._request, lease.job_id, lease.token))

    def _on_held(self, held: m.Held, now_ms: int) -> None:
        token = self._holds.pop(held.request, None)
        lease = self.book.get(token) if token is not None else None
        if lease is not None and lease.slot is not None:
            lease.hold_request = None
            self._out.append(io.AnswerHold(lease.slot, lease.token, held.held))

    def _on_sampled(self, event: io.Sampled, now_ms: int) -> None:
        lease = self.book.get(event.token)
        if lease is not None:
            lease.usage = larger_usage(lease.usage, event.usage)

    def _on_overrun(self, event: io.Overrun, now_ms: int) -> None:
        lease = self.book.get(event.token)
        if lease is not None and lease.phase is Phase.RUNNING:
            self._end(lease, Outcome.FAILED, event.error)

    # ------------------------------------------------------------------------------------------ what gathers

    def _send(self, message: m.PeerMessage) -> None:
        self._out.append(io.Send(message))

    def _say(self, level: int, text: str) -> None:
        self._out.append(io.Say(level, text))

    def _credit(self) -> dict[str, int]:
        """Slots that are up, more while jobs are tiny; nothing while draining, or while too many results wait."""
        pressed = self.book.held_bytes > limits.RESEND_BYTES_MAX or len(self.book) > LEASES_MAX // 2
        if self.work is not Work.WORKING or pressed:
            return dict.fromkeys(self._settings.queues, 0)
        return {queue: self.slots.credit(queue) for queue in self._settings.queues}

    def _flush(self, now_ms: int) -> None:
        credit = self._credit()
        if credit != self._announced:
            self._announced = credit
            for queue, count in credit.items():
                self._most_announced[queue] = max(count, self._most_announced.get(queue, 0))
            self._send(m.Credit(self.uplink.session, [m.QueueSlots(queue, n) for queue, n in credit.items()]))
        self._send_results(self.book.to_send(now_ms - RESEND_MS), now_ms)
        if self._holds and now_ms >= self._hold_resend_ms:
            self._hold_resend_ms = now_ms + RESEND_MS
            for request, token in self._holds.items():
                lease = self.book.get(token)
                if lease is not None:
                    self._send(m.Hold(self.uplink.session, request, lease.job_id, token))
        if self._progress and now_ms >= self._progress_ms:
            self._progress_ms = now_ms + PROGRESS_MS
            items, self._progress = list(self._progress.values()), {}
            for part in codec.split(items, [4 * len(item.message) + 64 for item in items]):
                self._send(m.Progress(self.uplink.session, list(part)))
        at_once = self.work is not Work.WORKING and self._barrier is None
        if self.uplink.take_beat(now_ms, at_once=at_once):
            usage = [
                m.LeaseUsage(lease.token, lease.usage, min(now_ms - lease.started_ms, limits.DURATION_MS_MAX))
                for lease in self.book.in_phase(Phase.RUNNING, Phase.ENDING)
            ]
            limits_now = [m.QueueSlots(queue, n) for queue, n in credit.items()]
            self._send(m.Beat(self.uplink.session, self.uplink.dispatches_seen, self.book.tokens(), usage, limits_now))
            if at_once:
                self._barrier = self.uplink.beats

    def _send_results(self, leases: Sequence[HeldLease], now_ms: int) -> None:
        results = [lease.result for lease in leases if lease.result is not None]
        for part in codec.split(results, [size_bytes(result) for result in results]):
            self._send(m.Ack(self.uplink.session, list(part)))
        for lease in leases:
            self.book.sent(lease, now_ms)

    # ------------------------------------------------------------------------------------------ drain

    def _push(self, push: Push) -> bool:
        after = WORK_STEPS.get((self.work, push))
        if after is None:
            return False
        self.work = after
        return True

    def _on_drain_asked(self, event: io.DrainAsked, now_ms: int) -> None:
        if self._push(Push.ASKED):
            self._enter_stage(now_ms)

    def _enter_stage(self, now_ms: int) -> None:
        if self.work is Work.LEFT:
            self._leave()
            return
        running = self.book.in_phase(Phase.RUNNING)
        for lease in self.book.in_phase(Phase.WAITING):
            self.slots.stop_waiting(lease)
            self._finish(lease, Outcome.HANDED_BACK)
        for slot in {lease.slot for lease in self.book.in_phase(Phase.HANDED) if lease.slot is not None}:
            self._out.append(io.TakeBack(slot))
        if self.work is Work.DRAINING:
            self._work_until_ms = now_ms + self._settings.drain_ms
            seconds = self._settings.drain_ms / 1000
            self._say(INFO, f"draining: no new jobs, {len(running)} running ones may take {seconds:g} s more")
            return
        for lease in running:
            self._end(lease, Outcome.HANDED_BACK, "")
        self._work_until_ms = now_ms + self._settings.kill_grace_ms + DELIVERY_MS
        if running:
            self._say(WARNING, f"handing back {len(running)} running jobs; the attempts do not count")

    def _turn_work(self, now_ms: int) -> None:
        if self._work_until_ms is None or now_ms < self._work_until_ms:
            return
        if self._push(Push.TIME_UP):
            self._enter_stage(now_ms)

    def _leave_if_empty(self) -> None:
        if self.work not in (Work.DRAINING, Work.HANDING_BACK):
            return
        if self.book.in_phase(Phase.WAITING, Phase.HANDED, Phase.RUNNING, Phase.ENDING, Phase.ABANDONED):
            return
        # The answer to the BEAT that followed CREDIT 0 comes after every dispatch that had crossed it.
        answered = self._barrier is not None and self.uplink.beats_answered >= self._barrier
        empty = not len(self.book) and (answered or not self.uplink.ready)
        if empty and self._push(Push.EMPTY):
            self._leave()

    def _leave(self) -> None:
        left = len(self.book)
        if left:
            self._say(WARNING, f"{left} results could not be delivered, the broker does not answer: the jobs run again")
        if self.uplink.ready:
            self._send(m.Bye(self.uplink.session))
        self._out.append(io.Leave(left))


def _hello(settings: Settings) -> m.Hello:
    return m.Hello(
        version_min=m.PROTOCOL_VERSION,
        version_max=m.PROTOCOL_VERSION,
        role=m.Role.WORKER,
        instance=settings.instance,
        incarnation=settings.incarnation,
        queues=[m.QueueSlots(queue, slots) for queue, slots in settings.queues.items()],
        tasks=list(settings.tasks),
        software=settings.software,
        tags=list(settings.tags),
    )
