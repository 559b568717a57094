"""The parent's side of the slots: what each was given, and the events in which slots and keeper tell what has happened.

Nothing here waits. Whose slots they are, and what is polled, is in `keeper_handle`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol

from zq.workers import channel
from zq.workers.channel import DOORBELL, Assignment, AttemptResult
from zq.workers.process import STUCK_AFTER_S

UNSENT_BYTES_MAX: Final = 8 << 20
"""What may wait for a slot that does not read; `Slot.send` refuses more."""
_READ_BYTES: Final = 64 << 10
_READS_MAX: Final = 8
_KEEPER_SLACK_S: Final = 3.0
"""A keeper that is so late with the end of a tree is itself ended."""


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


class SlotKeeper(Protocol):
    """What a slot asks of who keeps it."""

    def tell(self, message: channel.ToKeeperMessage) -> None: ...
    def watch(self, slot: Slot, *, writing: bool) -> None: ...
    def unwatch(self, slot: Slot) -> None: ...


class Slot:
    """One slot. Made by `KeeperHandle.open_slot`; usable from its Opened event on."""

    def __init__(self, keeper: SlotKeeper, number: int, concurrency: int = 1) -> None:
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
