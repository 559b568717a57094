"""The broker's decisions. No socket, no clock, no disk, no random number: it is given messages and the time, and says
which steps the journal must make durable and what to send once they are.

The server's duty, which the simulator does too, is one round after the other:

    core.receive(...)  for every message that is waiting, then core.advance(now)
    batch = core.batch()
    journal.commit(batch.steps, now, batch.notes)      durable, or the process ends
    more = core.committed(now)
    send batch.sends and more                          only now: replies and dispatches alike

Time is the broker's own, in milliseconds: it never goes backwards, and stands near Unix time (see server.Clock).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zq.broker.book import Book
from zq.broker.feed import Feed
from zq.broker.journal import Notes, Step, View
from zq.broker.leases import Lease, Leases
from zq.broker.orders import Orders
from zq.broker.queries import Facts, Queries
from zq.broker.records import Index, JobRow, state_prefix
from zq.broker.registers import Registers
from zq.broker.retention import Retention
from zq.broker.sessions import VERBS, Identity, Session, Sessions, SessionState, full_name
from zq.broker.submits import Submits
from zq.broker.waiters import Waiter, Waiters
from zq.broker.waiting import WaitingRoom
from zq.broker.why import why
from zq.protocol import codec, limits
from zq.protocol import messages as m
from zq.protocol.errors import Code
from zq.protocol.job import ENDED, State, valid_name
from zq.protocol.messages import BrokerMessage, PeerMessage, Role

FREEZE_MS = 5000
"""A longer gap between two calls of advance() means that the broker itself stood still; silence then proves nothing."""
CHECK_EVERY_MS = 200
"""How often silence is looked for."""
CLIENT_IDLE_MS = 600_000
"""A client's session is forgotten after this silence; its next message is answered by unknown_session."""
IDLE_MS_MAX = 60_000
IDLE_BEATS_MISSED = 3
"""So many BEATs of an idle worker may be missing before it counts as silent."""
_RUNNING_SCAN = 4096
_READY, _WORKER = State.READY, Role.WORKER  # as in `records`: looked up once


@dataclass(frozen=True)
class Settings:
    heartbeat_ms: int = 2000
    session_timeout_ms: int = 15_000
    idle_beats_per_s: int = 150
    """Of all workers together while they have nothing to do: in a large fleet each beats less often."""
    resume_grace_ms: int = 60_000
    retention_ms: int = 604_800_000
    retention_jobs: int = 2_000_000
    """Ended jobs kept at most; beyond, the oldest go before their time."""
    result_ttl_ms: int = 3_600_000


@dataclass(frozen=True)
class Batch:
    steps: list[Step]
    notes: Notes
    sends: list[tuple[bytes, BrokerMessage]]
    """(peer, message), in order."""


class Core:
    def __init__(self, view: View, epoch: int, now_ms: int, settings: Settings, facts: Facts | None = None) -> None:
        self.settings = settings
        self.epoch = epoch
        self.book = Book(view)
        self.room = WaitingRoom(self.book)
        self.queues = self.room.queues
        self.sessions = Sessions(epoch)
        self.leases = Leases(self.book, epoch, settings.result_ttl_ms, self.queues.headroom)
        self.submits = Submits(self.book, self.room)
        self.orders = Orders(self.book, self.room, self.leases)
        self.feed = Feed(self.book)
        self.registers = Registers(self.book)
        self.facts = facts if facts is not None else Facts(epoch=epoch, started_ms=now_ms)
        self.queries = Queries(self.book, self.queues, self.sessions, self.leases, self.feed, self.facts)
        self.waiters = Waiters()
        self._sends: list[tuple[bytes, BrokerMessage]] = []
        self._receipts: list[tuple[bytes, BrokerMessage]] = []
        """Go out last: whoever is to work is told before those who only have to know."""
        self._last_ms = now_ms
        self.retention = Retention(self.book, settings.retention_ms, settings.retention_jobs, now_ms)
        self._next_check_ms = now_ms
        self._again = False
        self._handlers: dict[type, Callable[[Session, Any, int], None]] = {
            m.Bye: self._bye, m.Beat: self._beat, m.Submit: self._submit, m.Credit: self._credit, m.Ack: self._ack,
            m.Resume: self._resume, m.Progress: self._progress, m.Hold: self._hold, m.Cancel: self._cancel,
            m.RetryEnded: self._retry, m.Wait: self._wait, m.AskQueues: self._ask_queues, m.AskJobs: self._ask_jobs,
            m.AskJob: self._ask_job, m.AskWorkers: self._ask_workers, m.AskBroker: self._ask_broker,
            m.Drop: self._drop, m.SetQueue: self._set_queue, m.AskWhy: self._ask_why, m.AskEvents: self._ask_events,
            m.AskHours: self._ask_hours, m.AskRegisters: self._ask_registers, m.SetRegister: self._set_register,
        }  # fmt: skip
        self._adopt_running(view, now_ms)

    def _adopt_running(self, view: View, now_ms: int) -> None:
        """What the journal has as running waits for its worker to claim it again: a restart costs no running job."""
        claim_by_ms = now_ms + self.settings.resume_grace_ms
        for name in view.counts():
            after = b""
            while page := view.scan(Index.STATE, state_prefix(State.RUNNING, name), after, _RUNNING_SCAN):
                for _, job_id in page:
                    row = view.row(job_id)
                    assert row is not None
                    self.leases.adopt(row, claim_by_ms)
                after = page[-1][0]

    # ------------------------------------------------------------------------------------------ a round

    def receive(self, peer: bytes, identity: Identity | None, message: PeerMessage, now_ms: int) -> None:
        """Take one message from a connection."""
        if isinstance(message, m.Hello):
            self._hello(peer, identity, message, now_ms)
            return
        request: int = getattr(message, "request", 0)
        session = self.sessions.by_id.get(message.session)
        if session is None or session.peer != peer or session.identity != identity:
            self._refuse(peer, request, Code.UNKNOWN_SESSION, "say HELLO again")
            return
        session.heard_ms = now_ms
        roles, states = VERBS[type(message)]
        if session.role not in roles:
            detail = f"who speaks as {session.role} may not send {type(message).__name__}"
            self._refuse(peer, request, Code.FORBIDDEN, detail)
        elif session.state in states:
            self._handlers[type(message)](session, message, now_ms)
        elif session.state is SessionState.JOINING:
            # Its RESUME did not arrive. It must begin anew, or it would stay connected and without work for ever.
            self.unreachable(peer)
            self._refuse(peer, request, Code.UNKNOWN_SESSION, "RESUME comes before anything else; say HELLO again")
        else:
            detail = f"{type(message).__name__} in a session that is {session.state.value}"
            self._refuse(peer, request, Code.UNEXPECTED, detail)

    def refuse(self, peer: bytes, code: Code, detail: str) -> None:
        """Answer a frame that could not be read."""
        self._refuse(peer, 0, code, detail)

    def advance(self, now_ms: int) -> None:
        """Let time pass: what is due becomes ready, the silent are dropped, and free credit is used."""
        gap_ms = now_ms - self._last_ms
        self._last_ms = now_ms
        if gap_ms > FREEZE_MS:
            self._forgive(gap_ms, now_ms)
        if now_ms >= self._next_check_ms:
            self._next_check_ms = now_ms + CHECK_EVERY_MS
            self._drop_silent(now_ms)
            self.queues.watch(now_ms)
            self.waiters.expire(now_ms)
        self.retention.turn(now_ms)
        self.room.promote(now_ms)
        for row in self.room.expire(now_ms):
            self._notify(row)
        self._dispatch(now_ms)

    def unreachable(self, peer: bytes) -> None:
        """Something could not be sent to this peer: its session is over. If it lives it will say HELLO again, and a
        worker's RESUME will tell which of its leases never reached it."""
        session = self.sessions.by_peer.get(peer)
        if session is not None:
            self.leases.orphan(session, self._last_ms + self.settings.resume_grace_ms)
            self._close_session(session)

    def batch(self) -> Batch:
        """What this round has come to. Call committed() when steps and notes are durable."""
        sends, self._sends = self._sends + self._receipts, []
        self._receipts = []
        return Batch(self.book.steps, self.book.notes, sends)

    def committed(self, now_ms: int) -> list[tuple[bytes, BrokerMessage]]:
        """The journal has it all. Returns what is to be sent after the batch's own: events, to those who wait."""
        self.book.committed()
        self._again = self.room.committed()
        return [(session.peer, events) for session, events in self.feed.committed(now_ms)]

    def wake_ms(self) -> int:
        """When advance() has something to do if no message comes: a broker time, at most a second ahead."""
        now_ms = self._last_ms
        if self._again:
            return now_ms
        return min(self.retention.next_ms, self.room.wake_ms(now_ms + 1000, now_ms))

    # ------------------------------------------------------------------------------------------ sessions

    def _hello(self, peer: bytes, identity: Identity | None, hello: m.Hello, now_ms: int) -> None:
        if not hello.version_min <= m.PROTOCOL_VERSION <= hello.version_max:
            detail = f"this broker speaks version {m.PROTOCOL_VERSION}; update the older of the two"
            self._refuse(peer, 0, Code.VERSION, detail)
            return
        names = [hello.instance, *(q.queue for q in hello.queues), *hello.tasks, *hello.tags]
        if not all(valid_name(name) for name in names):
            self._refuse(peer, 0, Code.INVALID, "a name has blanks or unprintable characters")
            return
        if identity is not None:
            queues = [q.queue for q in hello.queues if not identity.may_use(q.queue)]
            if not identity.may_be(hello.role) or queues:
                what = f"serve {', '.join(queues)}" if queues else f"speak as {hello.role}"
                self._refuse(peer, 0, Code.FORBIDDEN, f"key '{identity.name}' may not {what}")
                return
        self.unreachable(peer)  # an earlier session of this very connection
        if len(self.sessions.by_id) >= limits.SESSIONS_MAX:
            self._refuse(peer, 0, Code.BUSY, f"{limits.SESSIONS_MAX} sessions are open")
            return
        if not all(self.queues.has_room_for(q.queue) for q in hello.queues):
            self._refuse(peer, 0, Code.BUSY, f"there are {limits.QUEUES_MAX} queues already")
            return
        if hello.role is Role.WORKER:
            earlier = self.sessions.workers.get(full_name(identity, hello.instance))
            if earlier is not None:
                # The same process after a cut, or a new one in its place: its RESUME says what is left of it.
                self.leases.orphan(earlier, now_ms + self.settings.resume_grace_ms)
                self._close_session(earlier)
        session = self.sessions.open(peer, identity, hello, now_ms)
        welcome = m.Welcome(
            session.id, m.PROTOCOL_VERSION, self.epoch, self.settings.heartbeat_ms, self.settings.session_timeout_ms
        )
        self._send(session, welcome)

    def _resume(self, session: Session, message: m.Resume, now_ms: int) -> None:
        held, lost, missing = self.leases.claim(session, message.leases)
        session.state = SessionState.ACTIVE
        for lease in missing:
            self._lose(lease, "its worker came back without it", now_ms)
        self._send(session, m.Resumed(session.id, [lease.token for lease in held], lost))
        asked = [lease.token for lease in held if lease.row.cancel_asked]
        if asked:
            self._send(session, m.Revoke(session.id, asked, m.RevokeReason.CANCELLED))

    def _bye(self, session: Session, message: m.Bye, now_ms: int) -> None:
        self._lose_session(session, "its worker left without a word about it", now_ms)

    def _beat(self, session: Session, message: m.Beat, now_ms: int) -> None:
        for item in message.usage:
            self.leases.used(session, item, now_ms)
        named = set(message.leases)
        for lease in [x for x in session.leases.values() if x.number <= message.dispatches_seen]:
            if lease.token not in named:
                self._lose(lease, "its worker does not have it", now_ms)
        stale = sorted(named - session.leases.keys())
        if stale:
            self._send(session, m.Revoke(session.id, stale, m.RevokeReason.STALE))
        self._set_credit(session, message.credit, message.room)
        session.idle_ms = self._idle_ms()
        self._send(session, m.BeatOk(session.id, session.idle_ms))

    def _credit(self, session: Session, message: m.Credit, now_ms: int) -> None:
        self._set_credit(session, message.limits, message.room)

    def _set_credit(self, session: Session, credit: list[m.QueueSlots], room: m.Room | None) -> None:
        if room is not None:
            self.queues.headroom.said(session, room)
        named = {q.queue: q.slots for q in credit if q.queue in session.queues}
        if any(session.limits.get(name) != slots for name, slots in named.items()):
            self.queues.set_credit(session, {**session.limits, **named})

    def _idle_ms(self) -> int:
        fair_ms = len(self.sessions.workers) * 1000 // self.settings.idle_beats_per_s
        return min(max(self.settings.heartbeat_ms, fair_ms), IDLE_MS_MAX)

    def _patience_ms(self, session: Session) -> int:
        if session.role is not _WORKER:
            return CLIENT_IDLE_MS
        idle_ms = 0 if session.leases else session.idle_ms
        return max(self.settings.session_timeout_ms, IDLE_BEATS_MISSED * idle_ms)

    def _drop_silent(self, now_ms: int) -> None:
        by_id = self.sessions.by_id
        silent = [s for s in by_id.values() if now_ms - max(s.heard_ms, s.busy_ms) > self._patience_ms(s)]
        for session in silent:
            self._lose_session(session, "its worker fell silent", now_ms)
        for lease in self.leases.unclaimed(now_ms):
            self._lose(lease, "its worker did not come back", now_ms)

    def _forgive(self, gap_ms: int, now_ms: int) -> None:
        for session in self.sessions.by_id.values():
            session.heard_ms = now_ms
        self.leases.forgive(gap_ms, now_ms + self.settings.resume_grace_ms)

    def _lose_session(self, session: Session, reason: str, now_ms: int) -> None:
        for lease in list(session.leases.values()):
            self._lose(lease, reason, now_ms)
        self._close_session(session)

    def _close_session(self, session: Session) -> None:
        self.queues.leave(session)
        self.waiters.left(session)
        self.sessions.close(session)

    # ------------------------------------------------------------------------------------------ jobs

    def _submit(self, session: Session, message: m.Submit, now_ms: int) -> None:
        receipts = []
        for spec_bytes in message.jobs:
            receipt, replaced = self.submits.take(session, spec_bytes, now_ms)
            receipts.append(receipt)
            if replaced is not None:
                self._notify(replaced)
        self._receipts.append((session.peer, m.Receipts(message.request, receipts)))

    def _dispatch(self, now_ms: int) -> None:
        given: dict[int, tuple[Session, list[Lease]]] = {}
        for queue in self.queues.by_name.values():
            while (chosen := queue.next(now_ms)) is not None:
                row, session = chosen
                self.room.leave(row)
                lease = self.leases.grant(row, session, now_ms)
                queue.dispatched(session, now_ms)
                given.setdefault(session.id, (session, []))[1].append(lease)
        for session, leases in given.values():
            self._send_leases(session, leases)

    def _send_leases(self, session: Session, leases: list[Lease]) -> None:
        wire = []
        for lease in leases:
            spec = self.book.spec(lease.row.id)
            assert spec is not None
            wire.append(m.Lease(lease.row.id, lease.row.attempt, lease.token, spec))
        for part in codec.split(wire, [len(lease.spec) + 64 for lease in wire]):
            if len(session.leases) == len(leases):
                # It had nothing, and may not have been due to speak for a while: its silence counts from now.
                session.busy_ms = self._last_ms
            session.dispatches += 1
            for item in part:
                self.leases.by_token[item.token].number = session.dispatches
            self._send(session, m.Dispatch(session.id, session.dispatches, list(part)))

    def _ack(self, session: Session, message: m.Ack, now_ms: int) -> None:
        accepted, stale = [], []
        for word in message.results:
            lease = self.leases.current(session, word.job_id, word.token)
            if lease is None or lease.row.attempt != word.attempt:
                stale.append(word.token)
                continue
            accepted.append(word.token)
            before = lease.row
            self._after(before, self.leases.end(lease, word, now_ms))
            self.queues.get(before.queue).offer(session)
        self._send(session, m.Acked(session.id, accepted, stale))

    def _lose(self, lease: Lease, reason: str, now_ms: int) -> None:
        session, before = lease.session, lease.row
        self._after(before, self.leases.lose(lease, reason, now_ms))
        if session is not None:
            self.queues.get(before.queue).offer(session)

    def _after(self, before: JobRow, row: JobRow) -> None:
        """An attempt has ended: the job waits again, or somebody waits for it."""
        if row.state is not _READY:  # one that was handed back is still let in by its concurrency key
            self.room.concurrency.left(before)
        if row.state in ENDED:
            self._notify(row)
        else:
            self.room.enter(row)

    def _progress(self, session: Session, message: m.Progress, now_ms: int) -> None:
        for item in message.items:
            lease = self.leases.current(session, item.job_id, item.token)
            if lease is not None:
                lease.progress = item

    def _hold(self, session: Session, message: m.Hold, now_ms: int) -> None:
        lease = self.leases.current(session, message.job_id, message.token)
        self._send(session, m.Held(message.request, lease is not None and not lease.row.cancel_asked))

    def _cancel(self, session: Session, message: m.Cancel, now_ms: int) -> None:
        changes = []
        for job_id in message.ids:
            change, ended, lease = self.orders.cancel(session, job_id, now_ms)
            changes.append(change)
            if ended is not None:
                self._notify(ended)
            if lease is not None and lease.session is not None:
                revoke = m.Revoke(lease.session.id, [lease.token], m.RevokeReason.CANCELLED)
                self._send(lease.session, revoke)
        self._send(session, m.Changed(message.request, changes))

    def _retry(self, session: Session, message: m.RetryEnded, now_ms: int) -> None:
        changes = [self.orders.retry(session, job_id, now_ms) for job_id in message.ids]
        self._send(session, m.Changed(message.request, changes))

    def _drop(self, session: Session, message: m.Drop, now_ms: int) -> None:
        changes = [self.orders.drop(session, job_id) for job_id in message.ids]
        self._send(session, m.Changed(message.request, changes))

    def _set_queue(self, session: Session, message: m.SetQueue, now_ms: int) -> None:
        if not valid_name(message.queue):
            self._refuse(session.peer, message.request, Code.INVALID, "no name of a queue")
        elif not self.queues.has_room_for(message.queue):
            self._refuse(session.peer, message.request, Code.BUSY, f"there are {limits.QUEUES_MAX} queues already")
        else:
            self.orders.set_queue(session, message, now_ms)
            self._send(session, m.QueueSet(message.request, self.queries.queue(message.queue, now_ms)))

    def _ask_hours(self, session: Session, message: m.AskHours, now_ms: int) -> None:
        self._send(session, self.queries.hours(message))

    def _ask_registers(self, session: Session, message: m.AskRegisters, now_ms: int) -> None:
        self._send(session, self.registers.read(message))

    def _set_register(self, session: Session, message: m.SetRegister, now_ms: int) -> None:
        answer = self.registers.set(message)
        if isinstance(answer, tuple):
            self._refuse(session.peer, message.request, *answer)
        else:
            self._send(session, answer)

    # ------------------------------------------------------------------------------------------ answers

    def _wait(self, session: Session, message: m.Wait, now_ms: int) -> None:
        row = self.book.row(message.job_id)
        if row is None:
            self._refuse(session.peer, message.request, Code.NOT_FOUND, "no such job, or its retention is over")
        elif row.state in ENDED:
            self._send(session, self._ended(row, message.request))
        elif not self.waiters.add(Waiter(session, message.request, row.id, now_ms + message.timeout_ms)):
            self._refuse(session.peer, message.request, Code.BUSY, "too many are waiting for jobs")

    def _notify(self, row: JobRow) -> None:
        for waiter in self.waiters.ended(row.id):
            self._send(waiter.session, self._ended(row, waiter.request))

    def _ended(self, row: JobRow, request: int) -> m.Ended:
        result, kept = self.queries.result(row, self._last_ms)
        return m.Ended(request, row.id, row.state, result, kept, row.error)

    def _ask_queues(self, session: Session, message: m.AskQueues, now_ms: int) -> None:
        self._send(session, self.queries.queues(message.request, now_ms))

    def _ask_jobs(self, session: Session, message: m.AskJobs, now_ms: int) -> None:
        try:
            self._send(session, self.queries.jobs(message))
        except ValueError as error:
            self._refuse(session.peer, message.request, Code.INVALID, str(error))

    def _ask_job(self, session: Session, message: m.AskJob, now_ms: int) -> None:
        detail = self.queries.job(message, now_ms)
        # A task asks about what its worker may serve; of the rest it does not learn whether there is any.
        bound = session.identity if session.role is Role.TASK else None
        if detail is None or (bound is not None and not bound.may_use(detail.job.queue)):
            self._refuse(session.peer, message.request, Code.NOT_FOUND, "no such job, or its retention is over")
        else:
            self._send(session, detail)

    def _ask_why(self, session: Session, message: m.AskWhy, now_ms: int) -> None:
        row = self.book.row(message.job_id)
        if row is None:
            self._refuse(session.peer, message.request, Code.NOT_FOUND, "no such job, or its retention is over")
        else:
            self._send(session, why(message.request, row, self.room, self.leases.by_token.get(row.token), now_ms))

    def _ask_events(self, session: Session, message: m.AskEvents, now_ms: int) -> None:
        answer = self.feed.ask(session, message, now_ms)
        if answer is not None:
            self._send(session, answer)

    def _ask_workers(self, session: Session, message: m.AskWorkers, now_ms: int) -> None:
        self._send(session, self.queries.workers(message.request, now_ms))

    def _ask_broker(self, session: Session, message: m.AskBroker, now_ms: int) -> None:
        self._send(session, self.queries.broker(message.request, now_ms, self.submits.closed is None))

    def _send(self, session: Session, message: BrokerMessage) -> None:
        self._sends.append((session.peer, message))

    def _refuse(self, peer: bytes, request: int, code: Code, detail: str) -> None:
        self.facts.refused[code] = self.facts.refused.get(code, 0) + 1
        self._sends.append((peer, m.Refusal(request, code, detail[: limits.MESSAGE_CHARS_MAX])))
