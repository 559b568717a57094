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
from zq.workers.floor import Floor
from zq.workers.headroom import Headroom
from zq.workers.leases import (
    LEASES_MAX,
    Doom,
    HeldLease,
    LeaseBook,
    Phase,
    Step,
    size_bytes,
)
from zq.workers.questions import RESEND_MS, Questions
from zq.workers.session_slots import SessionSlots
from zq.workers.stages import WORK_STEPS, Push, Work
from zq.workers.uplink import Uplink

SLOTS_MAX = limits.SLOTS_PER_WORKER_MAX
_ENDED, _ACKED, _WORKING = Phase.ENDED, Step.ACKED, Work.WORKING  # as in `leases`: looked up once
DELIVERY_MS = 5_000
"""When a drain's time is up: how much longer the last results may take to be acknowledged."""


class Settings(msgspec.Struct, frozen=True):
    instance: str
    incarnation: bytes
    """16 random bytes, new with every process; also the seed of the back-off's jitter."""
    queues: dict[str, int]
    """queue → slots."""
    single: frozenset[str] = frozenset()
    """Those whose slots are never given a second job, not even a tiny one."""
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
        self.slots = SessionSlots(settings.queues, settings.single)
        self.ignored: Counter[str] = Counter()
        """Messages and events that did not fit, by kind."""
        self._work_until_ms: int | None = None
        self._barrier: int | None = None
        self._announced: dict[str, int] = {}
        self._most_announced: dict[str, int] = {}
        """In this session: a broker that has not read the last CREDIT yet may still give so many."""
        self.questions = Questions(self.book, self.uplink, self._out, now_ms)
        self.floor = Floor(self.book, self.slots, self.questions, self._out)
        self.headroom = Headroom(self.book)
        self._handlers: dict[type, Callable[[Any, int], None]] = {
            m.Welcome: self._on_welcome, m.Refusal: self._on_refusal, m.Dispatch: self._on_dispatch,
            m.Acked: self._on_acked, m.Resumed: self._on_resumed, m.BeatOk: self._on_beat_ok,
            m.Held: self.questions.held, m.Revoke: self._on_revoke, io.SlotUp: self.floor.slot_up,
            io.SlotClosing: self.floor.slot_closing,
            io.SlotGone: self.floor.slot_gone, io.NotStarted: self.floor.not_started,
            io.TakenBack: self.floor.taken_back, io.Reported: self.floor.reported,
            io.Progressed: self.questions.progressed, io.HoldAsked: self.questions.hold_asked,
            io.Sampled: self.floor.sampled, io.RoomMeasured: self.headroom.measured,
            io.Overrun: self.floor.overrun, io.LinkBroken: self._on_link_broken, io.DrainAsked: self._on_drain_asked,
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
        self.floor.turn(now_ms)
        why = self.uplink.silent_for_too_long(now_ms)
        if why:
            self._lose_link(why, now_ms)
        self._out += self.uplink.greet_if_due(now_ms)
        if self.uplink.ready:
            self._flush(now_ms)
        self._leave_if_empty()
        return self._take()

    def wants_room(self, now_ms: int) -> bool:
        """Whether the shell is to measure what is free (RoomMeasured) before this loop's `turn`."""
        return self.headroom.unknown or (self.uplink.ready and (self.book.needs_freed or self.uplink.beat_due(now_ms)))

    def wake_ms(self) -> int:
        """When `turn` has something to do, if nothing happens before."""
        times = [self.uplink.wake_ms()]
        times += self.floor.wake_ms()
        if self._work_until_ms is not None:
            times.append(self._work_until_ms)
        if self.uplink.ready:
            oldest_ms = self.book.oldest_sent_ms()
            if oldest_ms is not None:
                times.append(oldest_ms + RESEND_MS)
            times += self.questions.wake_ms()
        return min(times)

    def _take(self) -> list[io.Effect]:
        out = list(self._out)
        self._out.clear()
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
            self.questions.welcomed(now_ms)
            claims = self.book.claims()
            # First of all. CREDIT and the held results follow it in this loop's turn, on the same connection.
            self._send(m.Resume(welcome.session, claims))
            self._out.append(self.uplink.connected_text(welcome, len(claims)))

    def _on_beat_ok(self, message: m.BeatOk, now_ms: int) -> None:
        self.uplink.beat_answered(message.idle_ms)

    # ------------------------------------------------------------------------------------------ leases come and go

    def _on_dispatch(self, dispatch: m.Dispatch, now_ms: int) -> None:
        is_next = self.uplink.take_dispatch(dispatch.number)
        if is_next is None:
            # What is missing was never seen here; RESUME of the next session lets the broker find out.
            self._lose_link(f"dispatch {self.uplink.dispatches_seen + 1} is missing", now_ms)
        if not is_next:
            self.ignored["Dispatch"] += 1
            return
        self.uplink.busy(now_ms)
        queues: dict[str, int] = {}
        for lease in dispatch.leases:
            held = self._accept(lease, now_ms)
            if held is not None:
                assert held.spec is not None
                queues[held.queue] = max(queues.get(held.queue, 0), len(held.spec.arguments))
        for queue, size in queues.items():
            used_up = 2 * self.book.all_in(queue) > self._announced.get(queue, 0)
            self.slots.paces[queue].dispatched(size, used_up=used_up, now_ms=now_ms)
        self.floor.assign(now_ms)

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
            self.floor.finish(held, Outcome.REJECTED, error=f"the job cannot be read: {error}")
            return None
        held = HeldLease(lease, spec.queue, spec)
        there, slots = self.book.open_in(spec.queue), self.slots.total(spec.queue)
        self.book.add(held)
        if spec.queue not in self._settings.queues:
            queues = ", ".join(self._settings.queues)
            self.floor.finish(held, Outcome.FAILED, error=f"queue {spec.queue!r} came to a worker that serves {queues}")
            return None
        if self.work is not _WORKING or there >= max(slots, self._most_announced.get(spec.queue, 0)):
            self.floor.finish(held, Outcome.HANDED_BACK)
            return None
        self.floor.wait(held, now_ms, extra=there >= slots)
        return held

    def _on_acked(self, acked: m.Acked, now_ms: int) -> None:
        for token in (*acked.accepted, *acked.stale):
            lease = self.book.get(token)
            if lease is not None and lease.phase is _ENDED:
                self.book.step(lease, _ACKED)
        if acked.stale:
            self._say(WARNING, f"{len(acked.stale)} results came too late: their jobs had gone elsewhere or ended")

    def _on_resumed(self, resumed: m.Resumed, now_ms: int) -> None:
        for token in resumed.lost:
            lease = self.book.get(token)
            if lease is not None:
                self._say(WARNING, f"lost job {format_id(lease.job_id)}, attempt {lease.attempt}: it is not ours now")
                self.floor.abandon(lease, "the broker gave the job to somebody else")

    def _on_revoke(self, revoke: m.Revoke, now_ms: int) -> None:
        for token in revoke.tokens:
            lease = self.book.get(token)
            if lease is None:
                continue
            if revoke.reason is RevokeReason.STALE:
                self.floor.abandon(lease, "the job is no longer ours")
            elif lease.phase is Phase.WAITING:
                self.slots.stop_waiting(lease)
                self.floor.finish(lease, Outcome.CANCELLED)
            elif lease.phase is Phase.HANDED:
                self.floor.doom_handed(lease, Doom.CANCEL)
            elif lease.phase is Phase.RUNNING:
                self.floor.end(lease, Outcome.CANCELLED, "cancelled")
            # Otherwise its end is decided, and the result on its way.

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
        # What is free is told before the results: with them the broker takes it that the job's needs are over.
        if credit != self._announced or self.book.needs_freed:
            self._announced = credit
            self.book.needs_freed = False
            for queue, count in credit.items():
                self._most_announced[queue] = max(count, self._most_announced.get(queue, 0))
            limits_now = [m.QueueSlots(queue, n) for queue, n in credit.items()]
            self._send(m.Credit(self.uplink.session, limits_now, self.headroom.room()))
        self._send_results(self.book.to_send(now_ms - RESEND_MS), now_ms)
        self._out += [io.Send(message) for message in self.questions.due(now_ms)]
        barrier = self.work is not Work.WORKING and self._barrier is None
        if self.uplink.take_beat(now_ms, idle=not len(self.book), at_once=barrier or self.floor.stall_news):
            self.floor.stall_news = False
            usage = [
                m.LeaseUsage(
                    lease.token,
                    lease.usage,
                    min(now_ms - lease.started_ms, limits.DURATION_MS_MAX),
                    min(lease.quiet_ms, limits.DURATION_MS_MAX),
                    lease.stalled,
                )
                for lease in self.book.in_phase(Phase.RUNNING, Phase.ENDING)
            ]
            limits_now = [m.QueueSlots(queue, n) for queue, n in credit.items()]
            seen, room = self.uplink.dispatches_seen, self.headroom.room()
            self._send(m.Beat(self.uplink.session, seen, self.book.tokens(), usage, limits_now, room))
            if barrier:
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
        self.floor.working = False
        return True

    def _on_drain_asked(self, event: io.DrainAsked, now_ms: int) -> None:
        if self._push(Push.ASKED):
            self._enter_stage(now_ms)

    def _enter_stage(self, now_ms: int) -> None:
        if self.work is Work.LEFT:
            self._leave()
            return
        running = self.book.in_phase(Phase.RUNNING)
        self.floor.hand_back_waiting()
        if self.work is Work.DRAINING:
            self._work_until_ms = now_ms + self._settings.drain_ms
            seconds = self._settings.drain_ms / 1000
            self._say(INFO, f"draining: no new jobs, {len(running)} running ones may take {seconds:g} s more")
            return
        for lease in running:
            self.floor.end(lease, Outcome.HANDED_BACK, "")
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
