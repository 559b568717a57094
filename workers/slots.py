"""The parent's side of the keeper and its slots: one file descriptor to poll, and events to read.

Nothing here waits, but for `Keeper.close` and the cleaning up after a keeper that died. The parent polls
`Keeper.fileno()` (readable when something has happened) and calls `receive()` then, and at least once a second.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from zq.workers import channel
from zq.workers.channel import DOORBELL, Assignment, AttemptResult
from zq.workers.keeper_fork import ForkedKeeper, fork_keeper
from zq.workers.process import STUCK_AFTER_S, become_subreaper, child_pids, living_below, send_signal
from zq.workers.sweep import MARKER, Marker, sweep_generation

UNSENT_BYTES_MAX: Final = 8 << 20
"""What may wait for a slot that does not read; `Slot.send` refuses more."""
_READ_BYTES: Final = 64 << 10
_READS_MAX: Final = 8
_CONTROL_BYTES: Final = 256 << 10
_FDS_MAX: Final = 4
_KEEPER_SLACK_S: Final = 3.0
"""A keeper that is so late with the end of a tree is itself ended."""
_CLEAN_UP_S: Final = 1.0
_EXIT_S: Final = 0.2
_logger = logging.getLogger("zq.workers")


class SlotState(Enum):
    OPENING = auto()
    OPEN = auto()
    ENDING = auto()
    """Retired, or its tree is being ended. Its results still count if they come."""
    ENDED = auto()


@dataclass(frozen=True, slots=True)
class Ready:
    """The task modules are imported."""

    tasks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """A task module cannot be imported; KeeperEnded follows. A restart does not mend it."""

    error: str


@dataclass(frozen=True, slots=True)
class Opened:
    slot: Slot


@dataclass(frozen=True, slots=True)
class Finished:
    slot: Slot
    results: tuple[AttemptResult, ...]


@dataclass(frozen=True, slots=True)
class Progressed:
    slot: Slot
    progress: channel.Progress


@dataclass(frozen=True, slots=True)
class StillMineAsked:
    """To be answered by `Slot.answer_still_mine`, once the broker has said."""

    slot: Slot
    seq: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The slot is gone and nothing lives of its tree, but for `stuck` processes that even KILL could not end."""

    slot: Slot
    status: int
    """As in subprocess: an exit code, or minus the signal."""
    unfinished: tuple[int, ...]
    """What it had begun and not answered, by `seq`: one at most."""
    untouched: tuple[int, ...]
    """What it had not begun, in order."""
    stuck: int
    reason: str
    """In words: how it ended, and why if it was ended for a fault."""


@dataclass(frozen=True, slots=True)
class KeeperEnded:
    """The keeper is gone, and every slot with it (an Ended for each came before). Start another."""

    status: int
    strays: tuple[int, ...]
    """Pids that could not be ended within a second."""


Event = Ready | LoadFailed | Opened | Finished | Progressed | StillMineAsked | Ended | KeeperEnded


class Slot:
    """One slot. Made by `Keeper.open_slot`; usable from its Opened event on."""

    def __init__(self, keeper: Keeper, number: int, concurrency: int = 1) -> None:
        self.number = number
        self.concurrency = concurrency
        """Async tasks that it runs at once; results then come in any order."""
        self.state = SlotState.OPENING
        self.pid = 0
        self.jobs_done = 0
        """For recycling: attempts that this process has run."""
        self.weigh_s = 0.0
        """When its size is to be looked at again."""
        self.fault = ""
        self.end_by_s: float | None = None
        self._keeper = keeper
        self._sock: socket.socket | None = None
        self._pidfd = -1
        self._tickets_out = -1
        self._tickets_in = -1
        self._reader = channel.FrameReader()
        self._outbox = bytearray()
        self._ring_after_flush = False
        self._writing = False
        """Whether the keeper's poll also waits until the slot reads."""
        self._assigned: deque[int] = deque()

    @property
    def assigned(self) -> tuple[int, ...]:
        """What it was sent and has not answered, by `seq`, in order. The first is the one that runs."""
        return tuple(self._assigned)

    def send(self, jobs: Sequence[Assignment]) -> None:
        """Hand over jobs, to be run one after the other. Raises RuntimeError if the slot is not open, or does not
        read: what is unsent is bounded by UNSENT_BYTES_MAX.
        """
        if self.state is not SlotState.OPEN:
            raise RuntimeError(f"slot {self.number} is {self.state.name.lower()}; jobs go to open slots")
        if len(self._outbox) + sum(len(job.arguments) for job in jobs) > UNSENT_BYTES_MAX:
            raise RuntimeError(f"slot {self.number} does not read: {len(self._outbox)} bytes wait for it")
        if len(self._assigned) + len(jobs) > channel.TICKETS_MAX:
            raise RuntimeError(f"slot {self.number} has {len(self._assigned)} jobs, and at most {channel.TICKETS_MAX}")
        for part in channel.split_jobs(jobs):
            self._outbox += channel.frame(channel.Run(part))
        self._assigned.extend(job.seq for job in jobs)
        self.flush()
        self._allow([job.seq for job in jobs])

    def _allow(self, seqs: Sequence[int]) -> None:
        # There is room, and a reader, ourselves: the pipe neither blocks nor breaks.
        os.write(self._tickets_in, b"".join(map(channel.TICKET.pack, seqs)))

    def take_back(self, *, first: bool = False) -> tuple[int, ...]:
        """Take back what the slot has not begun, by `seq`, in order: the slot will not begin it. The first of all that
        it was sent is left to it, unless `first`.
        """
        if self._tickets_out < 0:
            return ()
        try:
            data = os.read(self._tickets_out, channel.TICKET.size * channel.TICKETS_MAX)
        except BlockingIOError:
            return ()
        seqs = tuple(seq for (seq,) in channel.TICKET.iter_unpack(data))
        if not first and seqs and seqs[0] == self._assigned[0]:
            self._allow(seqs[:1])
            seqs = seqs[1:]
        for _ in seqs:
            self._assigned.pop()
        return seqs

    def answer_still_mine(self, seq: int, held: bool) -> None:
        """Answer a StillMineAsked; ignored by the slot if that attempt has ended."""
        if self.state is SlotState.OPEN:
            self._outbox += channel.frame(channel.StillMineAnswer(seq, held))
            self.flush()

    def soft_limit(self, reason: str, seq: int | None = None) -> None:
        """Raise SoftTimeLimitExceeded(reason) in the running task; a program that it runs gets TERM first. A task that
        has stopped itself goes on: it could not act on it otherwise.
        """
        if self.state is SlotState.OPEN and self._assigned:
            self._outbox += channel.frame(channel.SoftLimit(self._assigned[0] if seq is None else seq, reason))
            self._ring_after_flush = True
            self.flush()

    def end_attempt(self, seq: int) -> None:
        """Cancel one of several tasks that run at once. Its result follows, if the task lets itself be cancelled."""
        if self.state is SlotState.OPEN:
            self._outbox += channel.frame(channel.EndAttempt(seq))
            self.flush()

    def retire(self) -> None:
        """Let an idle slot exit. Raises RuntimeError if it has work: `end` is for that."""
        if self._assigned:
            raise RuntimeError(f"slot {self.number} still has {len(self._assigned)} jobs; end it, or wait")
        if self.state is SlotState.OPEN and self._sock is not None:
            self.state = SlotState.ENDING
            self.end_by_s = time.monotonic() + STUCK_AFTER_S + _KEEPER_SLACK_S
            self._sock.shutdown(socket.SHUT_WR)

    def end(self, grace_s: float, reason: str = "") -> None:
        """End the whole tree: TERM to all below the slot, `grace_s` later KILL, until nothing lives. Ended follows.

        For the hard limit, a cancel, a memory limit, a lost lease. The task runs no further instruction.
        """
        if self.state is SlotState.ENDED:
            return
        self.state = SlotState.ENDING
        self.fault = self.fault or reason
        self.end_by_s = time.monotonic() + grace_s + 2 * STUCK_AFTER_S + _KEEPER_SLACK_S
        self._keeper.tell(channel.EndSlot(self.number, grace_s))
        self._keeper.wake()

    # ------------------------------------------------------------------------------------- for the keeper's handle

    def opened(self, pid: int, fds: Sequence[int]) -> None:
        """`fds` as they travel with SlotOpened."""
        sock_fd, self._pidfd, self._tickets_out, self._tickets_in = fds
        self.pid, self._sock = pid, socket.socket(fileno=sock_fd)
        self._sock.setblocking(False)
        if self.state is SlotState.OPENING:
            self.state = SlotState.OPEN

    def fileno(self) -> int:
        return self._sock.fileno() if self._sock is not None else -1

    def flush(self) -> None:
        """Write what the slot takes now; the rest when it is writable."""
        while self._outbox and self._sock is not None:
            try:
                sent = self._sock.send(self._outbox)
            except BlockingIOError:
                break
            except OSError:  # it has died; Ended follows
                self._outbox.clear()
                break
            del self._outbox[:sent]
        # Only when it changes: the slot has the job, and its ticket must not be late.
        if self._sock is not None and bool(self._outbox) is not self._writing:
            self._writing = not self._writing
            self._keeper.watch(self, writing=self._writing)
        if self._ring_after_flush and not self._outbox:
            self._ring_after_flush = False
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, DOORBELL)
                signal.pidfd_send_signal(self._pidfd, signal.SIGCONT)

    def receive(self) -> list[Event]:
        """What the slot has said. A slot that speaks nonsense, or falls silent, is ended."""
        events: list[Event] = []
        for _ in range(_READS_MAX):
            if self._sock is None:
                break
            try:
                data = self._sock.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self._hang_up()
                break
            try:
                for body in self._reader.feed(data):
                    events.append(self._understand(channel.decode(channel.from_slot, body)))
            except channel.ChannelError as error:
                self.end(0.0, f"it sent what cannot be understood: {error}")
                self._hang_up()
                break
            if len(data) < _READ_BYTES:
                break
        return events

    def _understand(self, message: channel.FromSlotMessage) -> Event:
        match message:
            case channel.Finished(results):
                for result in results:
                    self._answered(result.seq)
                return Finished(self, tuple(results))
            case channel.Progress():
                return Progressed(self, message)
            case channel.StillMineAsk(seq):
                return StillMineAsked(self, seq)
            case channel.Started():
                return Opened(self)

    def _answered(self, seq: int) -> None:
        if self._assigned and self._assigned[0] == seq:
            self._assigned.popleft()
        elif self.concurrency > 1 and seq in self._assigned:
            self._assigned.remove(seq)
        else:
            raise channel.ChannelError(f"a result for attempt {seq}, which is not its turn")
        self.jobs_done += 1

    def _hang_up(self) -> None:
        """Its channel has ended: it has died, or closed it, and is of no more use."""
        if self._sock is not None:
            self._keeper.unwatch(self)
            self._sock.close()
            self._sock = None
        if self.state is not SlotState.ENDING:
            self.end(0.0)

    def ended(self, status: int, stuck: int) -> list[Event]:
        """The last words, and that it is gone."""
        events = self.receive() if self._sock is not None else []
        if self._sock is not None:
            self._keeper.unwatch(self)
            self._sock.close()
            self._sock = None
        untouched = self.take_back(first=True)
        for fd in (self._pidfd, self._tickets_out, self._tickets_in):
            if fd >= 0:
                os.close(fd)
        self._pidfd = self._tickets_out = self._tickets_in = -1
        self.state = SlotState.ENDED
        reason = describe_status(status) + (f"; {self.fault}" if self.fault else "")
        events.append(Ended(self, status, self.assigned, untouched, stuck, reason))
        return events

    def kill(self) -> None:
        """KILL the slot process alone: for when its keeper is gone."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


def describe_status(status: int) -> str:
    """How a process ended, in words, from a status as in subprocess."""
    if status >= 0:
        return f"slot ended with exit code {status}"
    try:
        return f"slot died: signal {-status} ({signal.Signals(-status).name})"
    except ValueError:
        return f"slot died: signal {-status}"


def _spawn(control: socket.socket, arguments: Sequence[str], marker: Marker) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "zq.workers.keeper", str(control.fileno()), *arguments],
        stdin=subprocess.DEVNULL,
        pass_fds=[control.fileno()],
        env={**os.environ, MARKER: marker.format()},
        start_new_session=True,  # out of reach of signals to the worker's process group
    )


class Keeper:
    """The keeper process and its slots. `adopts_orphans` makes this process a subreaper and its own children, but for
    keepers, strays: right for a worker's parent, which starts nothing else; wrong for a process with other children.
    """

    _living_pids: set[int] = set()  # noqa: RUF012 - of all keepers of this process, on purpose

    def __init__(
        self, modules: Sequence[str], marker: Marker, *, adopts_orphans: bool, log_level: str = "info",
        log_json: bool = False, fork: bool = False,
    ) -> None:  # fmt: skip
        """Start it, as a program of its own or by `fork` (see `keeper_fork`); Ready or LoadFailed follows.

        Raises OSError if the process cannot be started.
        """
        self._marker = marker
        self._adopts_orphans = adopts_orphans
        if adopts_orphans:
            become_subreaper()
        self._slots: dict[int, Slot] = {}
        self._next_number = 1
        self._tasks: list[str] = []
        self._hooks = False
        self._commands: deque[bytes] = deque()
        """At most two for each slot."""
        self._ended = False
        self._epoll = select.epoll()
        log_format = "json" if log_json else "text"
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            arguments = [log_level, log_format, *modules]
            self._process: subprocess.Popen[bytes] | ForkedKeeper
            self._process = fork_keeper(theirs.fileno(), arguments) if fork else _spawn(theirs, arguments, marker)
        ours.setblocking(False)
        self._control = ours
        self._pidfd = os.pidfd_open(self._process.pid)
        self._epoll.register(self._control, select.EPOLLIN)
        self._epoll.register(self._pidfd, select.EPOLLIN)
        self._living_pids.add(self._process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Those that have not ended."""
        return tuple(self._slots.values())

    def fileno(self) -> int:
        """Readable when `receive()` has something to do. It may be polled by another poller."""
        return self._epoll.fileno()

    def open_slot(self, concurrency: int = 1) -> Slot:
        """Ask for one more slot; Opened follows when its hooks have run, or Ended if no process could be made. May be
        called before Ready.
        """
        slot = Slot(self, self._next_number, concurrency)
        self._next_number += 1
        self._slots[slot.number] = slot
        self.tell(channel.OpenSlot(slot.number, concurrency))
        return slot

    def receive(self) -> list[Event]:
        """What has happened, without waiting. At most some megabytes are read at a time."""
        events: list[Event] = []
        if self._ended:
            return events
        by_fd = {slot.fileno(): slot for slot in self._slots.values()}
        keeper_news = False
        for fd, mask in self._epoll.poll(0):
            slot = by_fd.get(fd)
            if slot is None:
                keeper_news = True
                continue
            if mask & select.EPOLLOUT:
                slot.flush()
            if mask & ~select.EPOLLOUT:
                events.extend(slot.receive())
        if keeper_news:
            self._flush_commands()
            events.extend(self._receive_from_keeper())
        self._check_keeper(time.monotonic())
        return events

    def retire_all(self, within_s: float) -> None:
        """If slots have hooks, let the idle ones exit and wait for it, so that their on_stop hooks run."""
        until_s = time.monotonic() + within_s
        if not self._hooks or self._ended:
            return
        for slot in self.slots:
            if slot.state is SlotState.OPEN and not slot.assigned:
                slot.retire()
        while any(slot.state is SlotState.ENDING for slot in self.slots) and not self._ended:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                _logger.warning("the on_stop hooks of some slots take more than %g s; the slots are ended", within_s)
                return
            select.select([self._epoll], [], [], min(left_s, 0.5))
            self.receive()

    def close(self, within_s: float = 5.0) -> list[Event]:
        """End the keeper and everything below it, and wait for that. The last events."""
        if self._ended:
            return []
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(within_s)
        return self._after_end()

    # --------------------------------------------------------------------------------------------- for the slots

    def tell(self, message: channel.ToKeeperMessage) -> None:
        self._commands.append(channel.encode(message))
        self._flush_commands()

    def wake(self) -> None:
        """A task may have stopped the keeper."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGCONT)

    def _flush_commands(self) -> None:
        """Hand over what the keeper takes now; while it still imports the task modules that may be less than all."""
        try:
            while self._commands:
                self._control.send(self._commands[0])
                self._commands.popleft()
        except BlockingIOError:
            pass
        except OSError:  # it has died; receive() will see it
            self._commands.clear()
            return
        self._epoll.modify(self._control, select.EPOLLIN | (select.EPOLLOUT if self._commands else 0))

    def watch(self, slot: Slot, *, writing: bool) -> None:
        self._epoll.modify(slot.fileno(), select.EPOLLIN | (select.EPOLLOUT if writing else 0))

    def unwatch(self, slot: Slot) -> None:
        self._epoll.unregister(slot.fileno())

    # ------------------------------------------------------------------------------------------------- the keeper

    def _receive_from_keeper(self) -> list[Event]:
        events: list[Event] = []
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._control, _CONTROL_BYTES, _FDS_MAX, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                break
            except OSError:
                data, fds = b"", []
            if not data:
                return events + self._after_end()
            try:
                events.extend(self._understand(channel.decode(channel.from_keeper, data), fds))
            except channel.ChannelError as error:
                _logger.error("the keeper (pid %d) sent what cannot be understood: %s; it is ended", self.pid, error)
                self._process.kill()
                return events + self._after_end()
        return events

    def _understand(self, message: channel.FromKeeperMessage, fds: list[int]) -> list[Event]:
        match message:
            case channel.Loaded(tasks, more, hooks):
                self._tasks.extend(tasks)
                self._hooks = hooks
                return [] if more else [Ready(tuple(self._tasks))]
            case channel.LoadFailed(error):
                return [LoadFailed(error)]
            case channel.SlotOpened(number, pid):
                slot = self._slots[number]
                slot.opened(pid, fds)
                self._epoll.register(slot.fileno(), select.EPOLLIN)
                return [Opened(slot)] if slot.state is SlotState.OPEN and not self._hooks else []
            case channel.SlotEnded(number, status, stuck):
                return self._slots.pop(number).ended(status, stuck)

    def _check_keeper(self, now_s: float) -> None:
        late = [s for s in self._slots.values() if s.end_by_s is not None and now_s >= s.end_by_s]
        if late and not self._ended:
            _logger.error("the keeper (pid %d) did not end slot %d; it is ended itself", self.pid, late[0].number)
            self._process.kill()

    def _after_end(self) -> list[Event]:
        """The keeper is dead or dying: see that nothing of it lives. Waits up to a second or two."""
        self._ended = True
        try:
            status = self._process.wait(_EXIT_S)  # its socket closes a moment before it has exited
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._living_pids.discard(self._process.pid)
        events: list[Event] = []
        for slot in self._slots.values():
            slot.kill()
        if self._adopts_orphans:
            self._end_adopted(time.monotonic() + _CLEAN_UP_S)
        strays = sweep_generation(self._marker, _CLEAN_UP_S)
        for slot in self._slots.values():
            slot.fault = slot.fault or "its keeper died"
            events.extend(slot.ended(-signal.SIGKILL, 0))
        self._slots.clear()
        self._control.close()
        os.close(self._pidfd)
        self._epoll.close()
        events.append(KeeperEnded(status, tuple(strays)))
        return events

    def _end_adopted(self, until_s: float) -> None:
        """End and reap what became this process's own when the keeper and its slots died."""
        own = os.getpid()
        while time.monotonic() < until_s:
            adopted = [pid for pid in child_pids(own) if pid not in self._living_pids]
            if not adopted:
                return
            for key in living_below(own, without=self._living_pids):
                send_signal(key, signal.SIGKILL)
            for pid in adopted:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.002)
