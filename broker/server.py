"""The shell around the core: one ROUTER socket, one journal, one loop, one thread.

A round: take what is waiting (bounded), let the core decide, commit once with fsync, then send. While the commit is
under way new messages gather in the socket, so batches grow with the load by themselves, and a single message on an
idle broker waits for nothing but its own commit. The thread that runs the loop is the one that owns LMDB: handing a
batch to another thread and back would cost each submit more than it could win.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import zmq

from zq.broker.access import Access
from zq.broker.ballast import Ballast
from zq.broker.clock import Clock, sharpen
from zq.broker.core import Core, Settings
from zq.broker.hours import KEPT_MS as HOURS_KEPT_MS
from zq.broker.journal import JournalError
from zq.broker.lmdb_journal import LmdbJournal
from zq.broker.memory import Returns
from zq.broker.outbox import Outbox
from zq.broker.queries import Facts
from zq.broker.resident import let_go
from zq.broker.sessions import Identity
from zq.config import Config
from zq.protocol import codec, limits
from zq.protocol.errors import Code, WireError
from zq.protocol.messages import BrokerMessage, Refusal
from zq.protocol.transport import guard, readable, watch

log = logging.getLogger("zq.broker")

GC_EVERY = 50_000
"""Objects between two looks of the collector; its default of 700 cost eight per cent of a drain."""
ROUND_MESSAGES = 1000
"""Messages of one round: bounds a batch, and with it the time of a commit and of an answer."""
ROUND_BYTES = 4 << 20
"""Their size, but for the last one's: a batch fits into the journal's log, and is several times as large in memory."""
MESSAGES_WAITING_MAX = 32
"""Of one peer: what more it sends waits at its end. They may be a megabyte each; a larger bound is no faster."""
ANSWERS_UNREAD_MAX = 1000
"""Of one peer, for libzmq; see `outbox` for more of them. As many of the largest are half of the memory limit."""
RETRY_S = 0.001
"""Before what a peer has not taken is offered to it again."""
LOOK_AROUND_MS = 1000
WATCH_S = 0.000_2
"""Before the thread goes to sleep after a change, and instead of the last moments of a sleep until something is due: to
be woken up costs a processor that has gone to sleep, too, a large part of what a round costs."""
FORGET_EVENTS = 5000
"""Old events dropped in one go: more than that many a second come only in bursts."""
FORGET_HOURS = 100
EXIT_JOURNAL = 74
"""EX_IOERR of sysexits(3): the journal failed, and what is on disk decides at the next start."""


class Server:
    """Opens everything when made (JournalRefused, ConfigError and zmq.ZMQError come from there); `run` serves."""

    def __init__(self, config: Config, *, software: str = "") -> None:
        section = config.broker
        self._config = config
        self._ballast = Ballast(config.data_path / "journal.ballast", section.ballast_mib << 20)
        if config.data_path.exists():
            # Opening the journal writes to it.
            self._ballast.drop(self._free_bytes(), section.disk_reserve_mib << 20)
        self._journal = LmdbJournal(config.data_path / "journal", map_size_bytes=section.map_size_gib << 30)
        self._clock = Clock(self._journal.time_ms)
        now_ms = self._clock.now_ms()
        self._facts = Facts(epoch=self._journal.epoch, started_ms=now_ms, software=software)
        self.core = Core(self._journal, self._journal.epoch, now_ms, settings(config), self._facts)
        self._returns = Returns()
        self._stopping = False
        self._next_look_ms = 0
        self._hours_turn = 0
        self._wakeup, self._wakeup_end = socket.socketpair()
        for end in (self._wakeup, self._wakeup_end):
            end.setblocking(False)
        try:
            self._access = Access(config)
            self._context = zmq.Context(io_threads=1)
            self._access.begin(self._context)
            self._router = self._bind(section.bind)
            self._outbox = Outbox(self._router)
        except BaseException:
            self._journal.close()
            raise
        self.address: str = self._router.getsockopt_string(zmq.LAST_ENDPOINT)

    def _bind(self, address: str) -> zmq.Socket[bytes]:
        router: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        guard(router)
        router.setsockopt(zmq.RCVHWM, MESSAGES_WAITING_MAX)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.SNDHWM, ANSWERS_UNREAD_MAX)
        router.setsockopt(zmq.LINGER, 1000)
        router.setsockopt(zmq.BACKLOG, 1024)
        router.setsockopt(zmq.HANDSHAKE_IVL, 5000)
        self._access.secure(router)
        try:
            router.bind(address)
        except zmq.ZMQError:
            router.close(linger=0)
            self._access.end()
            self._context.term()
            raise
        return router

    # ------------------------------------------------------------------------------------------ the loop

    def run(self, ready: Callable[[], None] = lambda: None) -> int:
        """Serve until SIGTERM or SIGINT; the process's exit code. `ready` is called when submits are answered."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(self._wakeup_end.fileno(), warn_on_full_buffer=False)
        # What stands now stands for ever, and what a round makes is freed with it: the collector has little to find.
        sharpen()
        gc.freeze()
        gc.set_threshold(GC_EVERY, 20, 50)
        try:
            self._look_around()
            ready()
            while not self._stopping:
                moved = self._round()
                self._wait(self._clock.seconds_until(self.core.wake_ms()), watchful=moved)
            self.core.submits.closed = Code.STOPPING
            self._round()
            self._journal.checkpoint()
        except JournalError:
            # What is on disk is unknown: not one more word may be said, and the next start reads what there is.
            log.critical("the journal failed; the broker ends at once", exc_info=True)
            logging.shutdown()
            os._exit(EXIT_JOURNAL)
        finally:
            signal.set_wakeup_fd(-1)
        self.close()
        return 0

    def _wait(self, timeout_s: float, *, watchful: bool) -> None:
        """Until a message or a signal comes, or `timeout_s` are over. What is due is waited for by the microsecond,
        which zmq_poll(3) cannot; so the sockets' descriptors are polled, which tell only of what has come since
        ZMQ_EVENTS was read. `watchful`: something has just happened, and what follows from it may be near."""
        sockets = [sock for sock in (self._router, self._access.zap) if sock is not None]
        if timeout_s <= 0 or any(map(readable, sockets)):
            return
        if self._outbox:
            timeout_s = min(timeout_s, RETRY_S)
        due_s = time.monotonic() + timeout_s
        if watchful and watch(self._router, min(due_s, time.monotonic() + WATCH_S)):
            return
        self._journal.rest(self._clock.now_ms())
        asleep_s = due_s - WATCH_S - time.monotonic()
        if asleep_s > 0:
            descriptors = [self._wakeup.fileno(), *(sock.fileno() for sock in sockets)]
            if any(select.select(descriptors, [], [], asleep_s)):
                return
        watch(self._router, due_s)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        log.info("stopping", extra={"signal": signal.Signals(number).name})
        self._stopping = True

    def _round(self) -> bool:
        """Whether anything has changed."""
        now_ms = self._clock.now_ms()
        self._access.answer()
        if self._outbox:
            for peer in self._outbox.retry():
                self.core.unreachable(peer)
        router, copy = self._router, not self._access.curve
        messages = size_bytes = 0
        while messages < ROUND_MESSAGES and size_bytes < ROUND_BYTES and readable(router):
            parts = router.recv_multipart(zmq.DONTWAIT, copy=copy)
            self._receive(parts, now_ms)
            messages += 1
            size_bytes += len(parts[-1])
        self.core.advance(now_ms)
        batch = self.core.batch()
        if batch.steps or batch.notes:
            self._journal.commit(batch.steps, now_ms, batch.notes)
        events = self.core.committed(now_ms)
        for peer, message in batch.sends:
            self._send(peer, message)
        for peer, message in events:
            self._send(peer, message)
        # Nobody waits for what follows.
        self._journal.tend(now_ms)
        if now_ms >= self._next_look_ms:
            self._next_look_ms = now_ms + LOOK_AROUND_MS
            self._look_around()
        return bool(batch.steps)

    def _receive(self, parts: list[bytes] | list[zmq.Frame], now_ms: int) -> None:
        identity: Identity | None = None
        peer = _bytes(parts[0])
        if self._access.curve:
            identity = self._access.identity(parts[-1])
            if identity is None:
                self.core.refuse(peer, Code.FORBIDDEN, "this key is not known (any more)")
                return
        if len(parts) != 2:
            self.core.refuse(peer, Code.MALFORMED, f"a message is one frame, not {len(parts) - 1}")
            return
        try:
            message = codec.decode_from_peer(_bytes(parts[1]))
        except WireError as error:
            self.core.refuse(peer, error.code, error.detail)
            return
        self.core.receive(peer, identity, message, now_ms)

    def _send(self, peer: bytes, message: BrokerMessage) -> None:
        try:
            frame = codec.encode(message)
        except ValueError as error:  # a page or detail that is larger than its bounds foresee
            log.error("an answer was too large", extra={"answer": type(message).__name__})
            frame = codec.encode(Refusal(getattr(message, "request", 0), Code.TOO_LARGE, str(error)))
        if not self._outbox.send(peer, frame):
            # Its session is over. What it holds is decided by its return or by time.
            self.core.unreachable(peer)

    # ------------------------------------------------------------------------------------------ once a second

    def _look_around(self) -> None:
        """Measure what bounds us, and refuse new jobs before the disk is full; acknowledgements then still fit."""
        self._access.reload()
        self._journal.drop_dead_readers()
        facts = self._facts
        facts.disk_free_bytes = self._free_bytes()
        facts.journal_bytes = self._journal.size_bytes()
        facts.commits = self._journal.commits
        facts.commit_p99_us = self._journal.commit_p99_us()
        let_go(self._journal.folder / "data.mdb")
        self._returns.turn()
        self._journal.forget_events(limits.EVENTS_KEPT_MAX, FORGET_EVENTS)
        self._forget_hours()
        reserve_bytes = self._config.broker.disk_reserve_mib << 20
        self._ballast.adjust(facts.disk_free_bytes, reserve_bytes)
        low = facts.disk_free_bytes < reserve_bytes
        was_low = self.core.submits.closed is Code.DISK_LOW
        if low and not was_low:
            log.error("disk is low: no new jobs are taken", extra={"free_bytes": facts.disk_free_bytes})
        elif was_low and not low:
            log.info("disk has room again: new jobs are taken")
        if not self._stopping:
            self.core.submits.closed = Code.DISK_LOW if low else None

    def _forget_hours(self) -> None:
        """One queue a second: hours pass slowly."""
        names = sorted(self.core.book.counts)
        if names:
            self._hours_turn = (self._hours_turn + 1) % len(names)
            before_ms = max(0, self._journal.time_ms - HOURS_KEPT_MS)
            self._journal.forget_hours(names[self._hours_turn], before_ms, FORGET_HOURS)

    def _free_bytes(self) -> int:
        disk = os.statvfs(self._config.data_path)
        return disk.f_bavail * disk.f_frsize

    def close(self) -> None:
        self._router.close()
        self._access.end()
        self._context.term()
        self._journal.close()
        self._wakeup.close()
        self._wakeup_end.close()


def _bytes(part: bytes | zmq.Frame) -> bytes:
    return part.bytes if isinstance(part, zmq.Frame) else part


def settings(config: Config) -> Settings:
    section = config.broker
    return Settings(
        heartbeat_ms=round(section.heartbeat_s * 1000),
        session_timeout_ms=round(section.session_timeout_s * 1000),
        resume_grace_ms=round(section.resume_grace_s * 1000),
        retention_ms=round(section.retention_s * 1000),
        retention_jobs=section.retention_jobs,
        result_ttl_ms=round(section.result_ttl_s * 1000),
    )

