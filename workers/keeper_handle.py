"""The parent's side of the keeper: one file descriptor to poll, and events of all its slots to read.

Nothing here waits, but for `close` and the cleaning up after a keeper that died. The parent polls `fileno()` (readable
when something has happened) and calls `receive()` then, and at least once a second.
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
from typing import Final

from zq.workers import channel
from zq.workers.keeper_fork import ForkedKeeper, fork_keeper
from zq.workers.process import become_subreaper, child_pids, living_below, send_signal
from zq.workers.slots import Event, KeeperEnded, LoadFailed, Opened, Ready, Slot, SlotState
from zq.workers.sweep import MARKER, Marker, sweep_generation

_CONTROL_BYTES: Final = 256 << 10
_FDS_MAX: Final = 4
_CLEAN_UP_S: Final = 1.0
_EXIT_S: Final = 0.2
_logger = logging.getLogger("zq.workers")


def _spawn(control: socket.socket, arguments: Sequence[str], marker: Marker) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "zq.workers.keeper", str(control.fileno()), *arguments],
        stdin=subprocess.DEVNULL,
        pass_fds=[control.fileno()],
        env={**os.environ, MARKER: marker.format()},
        start_new_session=True,  # out of reach of signals to the worker's process group
    )


class KeeperHandle:
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
        self._wake()

    def _wake(self) -> None:
        """A task may have stopped the keeper."""
        if not self._ended:
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
