"""A slot's end of its channel to the parent, and when a running task may be interrupted.

The task owns the main thread, so nobody reads the channel while it runs. The parent therefore rings: it writes a
message and sends the doorbell signal; the handler reads what has come and, if it is the soft limit, raises
SoftTimeLimitExceeded right there, in the task's own code. While the slot's code is at work inside a task (`shield`),
nothing is raised; it is raised when that code is done. A task that sits in C code which never returns to Python
is not interrupted: the hard limit is for that.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import NoReturn, Protocol

from zq.exceptions import SoftTimeLimitExceeded
from zq.workers import channel
from zq.workers.channel import DOORBELL, TICKET

EXIT_NONSENSE = 70
"""Exit code when the parent's words cannot be understood (EX_SOFTWARE in sysexits(3)): a defect of ours."""
_READ_BYTES = 64 << 10
"""Beyond 128 KiB malloc(3) would ask the kernel for memory, and give it back, at every read."""


class LineClosed(Exception):
    """The parent has closed the channel."""


class Listener(Protocol):
    def heard(self, message: channel.ToSlotMessage) -> None: ...


class Shield:
    """See `Line.shield`. May be entered again inside itself."""

    __slots__ = ("_line",)

    def __init__(self, line: Line) -> None:
        self._line = line

    def __enter__(self) -> None:
        self._line.enter_shield()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._line.leave_shield(clean=kind is None)


class Line:
    """The channel as the slot sees it. Sending is for any thread; everything else for the main thread."""

    def __init__(self, sock: socket.socket, tickets: int) -> None:
        """`tickets`: the reading end of the pipe that says which job may begin; it does not block."""
        sock.setblocking(False)
        self._sock = sock
        self._tickets = tickets
        self._reader = channel.FrameReader()
        self._outbox = bytearray()
        self._send_lock = threading.Lock()
        self._runs: deque[channel.Assignment] = deque()
        self._answers: dict[int, bool] = {}
        self._current_seq: int | None = None
        self._soft_reason: str | None = None
        self._soft_told = False
        self._shields = 0
        self._shield = Shield(self)
        self._main_thread = threading.get_ident()
        self._reading = False
        self._rung = False
        self.listener: Listener | None = None
        """Who hears what is said to running tasks, instead of the one task that runs."""
        self.on_close: Callable[[], None] | None = None
        """Called when the parent closes the channel of an idle slot."""
        self.tells_close = False
        """`take` raises LineClosed then, instead of ending the process."""

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        """In a process that the task has forked: it must neither hold the channel nor speak on it. Again in one that
        such a process forks, where the numbers may be those of its own files.
        """
        if self._tickets >= 0:
            self._sock.close()
            os.close(self._tickets)
            self._tickets = -1

    # ------------------------------------------------------------------------------------------- the task's time

    def begin(self, seq: int) -> None:
        """From now on the task of `seq` runs and may be interrupted."""
        self._soft_reason = None
        self._soft_told = False
        self._answers.clear()
        # Again for each job: the last task may have taken the signal for itself, or blocked signals.
        signal.signal(DOORBELL, self._on_doorbell)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self._current_seq = seq

    def end(self) -> None:
        self._current_seq = None

    @property
    def soft_reason(self) -> str | None:
        """Why the running task should stop; None while it may go on."""
        return self._soft_reason

    def soft_limit_due(self) -> bool:
        """Whether the soft limit has passed and the task has not been told yet."""
        return self._current_seq is not None and self._soft_reason is not None and not self._soft_told

    def raise_if_due(self) -> None:
        """Tell the task, once, if nothing of ours is in the middle of something."""
        if self._shields == 0 and self.soft_limit_due():
            self._soft_told = True
            raise SoftTimeLimitExceeded(self._soft_reason or "")

    def shield(self) -> Shield:
        """No SoftTimeLimitExceeded inside; one that became due is raised on a clean exit."""
        return self._shield

    def enter_shield(self) -> None:
        if threading.get_ident() == self._main_thread:  # signal handlers, and so the exception, are its alone
            self._shields += 1

    def leave_shield(self, *, clean: bool) -> None:
        if threading.get_ident() == self._main_thread:
            self._shields -= 1
            if clean:
                self.raise_if_due()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """The caller watches `fileno()` and calls `take`; the doorbell leaves the channel alone meanwhile."""
        with self.shield():
            self._reading = True
            try:
                self.take()
                yield
            finally:
                self._reading = False
                if self._rung:
                    self._on_doorbell(DOORBELL, None)

    def _on_doorbell(self, _signum: int, _frame: object) -> None:
        self._rung = True
        if self._reading:
            return
        self._reading = True
        try:
            while self._rung:
                self._rung = False
                self.take()
        finally:
            self._reading = False
        self.raise_if_due()

    # ---------------------------------------------------------------------------------------------- receiving

    def next_job(self) -> channel.Assignment:
        """Wait for the next job. Ends the process when the parent has closed the channel."""
        while (seq := self.take_ticket()) is None:
            ready, _, _ = select.select([self._sock.fileno(), self._tickets], [], [])
            if self._sock.fileno() in ready:
                self.take()
        while True:
            while self._runs:
                job = self._runs.popleft()
                if job.seq == seq:
                    return job
                # Its ticket was taken back.
            select.select([self._sock], [], [])
            self.take()

    def tickets_fileno(self) -> int:
        return self._tickets

    def taken_jobs(self) -> Iterator[channel.Assignment]:
        """The jobs that have come; each may begin when its ticket is there too."""
        while self._runs:
            yield self._runs.popleft()

    def take_ticket(self) -> int | None:
        """From here on the job is ours: the parent can no longer take it back."""
        try:
            data = os.read(self._tickets, TICKET.size)
        except BlockingIOError:
            return None
        if not data:
            os._exit(0)  # the parent is gone
        seq: int = TICKET.unpack(data)[0]
        return seq

    def wait_answer(self, seq: int) -> bool | None:
        """Wait for the answer to `still mine?`; None if the soft limit came first. Inside `reading`."""
        while seq not in self._answers:
            if self.soft_limit_due():
                return None
            select.select([self._sock], [], [])
            self.take()
        return self._answers.pop(seq)

    def take(self) -> None:
        """Read what has come, without waiting. Ends the process if the parent is gone or speaks nonsense."""
        while True:
            try:
                data = self._sock.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                self._leave()
            try:
                for body in self._reader.feed(data):
                    self._understand(channel.decode(channel.to_slot, body))
            except channel.ChannelError:
                os._exit(EXIT_NONSENSE)
            if len(data) < _READ_BYTES:
                return

    def _leave(self) -> NoReturn:
        if self.tells_close:
            raise LineClosed
        if self._current_seq is None and self.on_close is not None:
            self.on_close()
        os._exit(0)

    def _understand(self, message: channel.ToSlotMessage) -> None:
        if self.listener is not None and not isinstance(message, channel.Run):
            self.listener.heard(message)
            return
        match message:
            case channel.Run(jobs):
                self._runs.extend(jobs)
            case channel.SoftLimit(seq, reason):
                if seq == self._current_seq:
                    self._soft_reason = reason
            case channel.StillMineAnswer(seq, held):
                if seq == self._current_seq:
                    self._answers[seq] = held

    # ------------------------------------------------------------------------------------------------ sending

    def send(self, message: channel.FromSlotMessage) -> None:
        """Send, waiting for room."""
        with self.shield(), self._send_lock:
            self._outbox += channel.frame(message)
            while not self._flush():
                select.select([], [self._sock], [])

    def send_if_free(self, message: channel.FromSlotMessage) -> bool:
        """Send without waiting; False, and nothing sent, if an earlier message still waits for room."""
        with self.shield(), self._send_lock:
            if not self._flush():
                return False
            self._outbox += channel.frame(message)
            self._flush()
            return True

    def _flush(self) -> bool:
        while self._outbox:
            try:
                sent = self._sock.send(self._outbox)
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                os._exit(0)
            del self._outbox[:sent]
        return True
