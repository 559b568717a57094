"""The keeper: the process that forks a worker's slots, and ends everything below it when the worker dies.

    worker parent ──exec──▶ keeper ──fork──▶ slot ──▶ whatever the task starts

`python -m zq.workers.keeper FD LEVEL FORMAT MODULE…`: imports the task modules once, then serves the parent over the
socket FD. It has one thread and no ZeroMQ, so forking is safe; slots share its memory. It is a child subreaper above
the slots: when a slot dies, what was below it becomes the keeper's child, and is ended. When the socket ends, the
parent has died, of whatever cause: everything below the keeper is ended with KILL until there is nothing left, and it
exits. If the keeper itself is killed, its slots die by their parent-death signal and the parent sweeps the rest.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Final, NoReturn

from zq import registry
from zq.protocol import limits
from zq.workers import channel, task_logs
from zq.workers.process import (
    STUCK_AFTER_S,
    ProcessKey,
    TreeEnd,
    become_subreaper,
    child_pids,
    die_with_parent,
    key_of,
    living_below,
    send_signal,
)
from zq.workers.slot import run_slot

EXIT_LOAD_FAILED: Final = 78
_STEP_S: Final = 0.01
_CONTROL_BYTES: Final = 64 << 10
_NO_FORK_STATUS: Final = 71
_logger = logging.getLogger("zq.workers")


class _Kept:
    """A slot as the keeper sees it."""

    def __init__(self, number: int, key: ProcessKey) -> None:
        self.number = number
        self.key = key
        self.end: TreeEnd | None = None
        self.give_up_s = 0.0
        self.status: int | None = None
        """Set when it has been reaped."""


class Keeper:
    """One loop: commands, deaths, and the steps of trees that are being ended."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._pid = os.getpid()
        self._parent_pid = os.getppid()
        self._slots: dict[int, _Kept] = {}
        self._own_helpers: set[int] = set()
        """Processes that task modules started on import: they serve all slots and end with the keeper."""
        self._wake_out, self._wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def guard(self) -> None:
        """Take the signals: a dead parent ends everything; nothing else that is sent here ends the keeper."""
        signal.signal(signal.SIGTERM, self._on_term)
        for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            # Handlers, not SIG_IGN: that would be inherited by every program below.
            signal.signal(signum, lambda _signum, _frame: None)
        signal.set_wakeup_fd(self._wake_in, warn_on_full_buffer=False)

    def load(self, modules: Sequence[str]) -> None:
        """Import the task modules and tell the parent the tasks; exits if one cannot be imported."""
        for module in modules:
            try:
                importlib.import_module(module)
            except BaseException as error:
                text = f"task module '{module}' cannot be imported: {type(error).__name__}: {error}"
                trace = "".join(traceback.format_exception(error, limit=-10))
                text = f"{text[:1024]}\n{trace[-4096:]}".encode("utf-8", "replace").decode("utf-8")
                self._say(channel.LoadFailed(text[: limits.ERROR_CHARS_MAX]))
                sys.exit(EXIT_LOAD_FAILED)
        self.guard()  # again: a module may have taken a signal
        if threading.active_count() > 1:
            _logger.warning("a task module started threads on import; they do not exist in the slots")
        self._own_helpers = {key.pid for key in living_below(self._pid)}
        names = registry.names()
        hooks = bool(registry.hooks("start") or registry.hooks("stop"))
        step = channel.TASK_NAMES_PER_MESSAGE
        for start in range(0, max(1, len(names)), step):
            more = start + step < len(names)
            self._say(channel.Loaded(names[start : start + step], more=more, hooks=hooks))
        gc.collect()
        gc.freeze()  # the collector would otherwise touch, and so copy, every shared page in each slot

    def serve(self) -> NoReturn:
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        poller.register(self._wake_out, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll(_STEP_S * 1000 if self._is_busy() else None)}
            if self._wake_out in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_out, 4096)
            if self._control.fileno() in ready:
                self._obey()
            self._reap()
            self._end_trees()
            self._report_ended()

    def _is_busy(self) -> bool:
        return any(slot.end is not None or slot.status is not None for slot in self._slots.values())

    # ------------------------------------------------------------------------------------------------- commands

    def _obey(self) -> None:
        try:
            data = self._control.recv(_CONTROL_BYTES)
        except ConnectionResetError:
            data = b""
        if not data:
            self.end_everything()
        match channel.decode(channel.to_keeper, data):
            case channel.OpenSlot(number, concurrency):
                self._fork(number, concurrency)
            case channel.EndSlot(number, grace_s):
                self._begin_end(number, grace_s)

    def _say(self, message: channel.FromKeeperMessage, fds: Sequence[int] = ()) -> None:
        try:
            socket.send_fds(self._control, [channel.encode(message)], list(fds))
        except (BrokenPipeError, ConnectionResetError):
            self.end_everything()

    def _fork(self, number: int, concurrency: int) -> None:
        ours, theirs = socket.socketpair()
        tickets_out, tickets_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            pid = os.fork()
        except OSError as error:
            _logger.error("no new slot process: %s", error)
            ours.close()
            theirs.close()
            os.close(tickets_out)
            os.close(tickets_in)
            self._say(channel.SlotEnded(number, _NO_FORK_STATUS))
            return
        if pid == 0:
            os.close(tickets_in)
            self._become_slot(ours, theirs, tickets_out, concurrency)
        theirs.close()
        # Not reaped yet, so the pid is certainly the child's: nobody else can make this pidfd so safely.
        pidfd = os.pidfd_open(pid)
        key = key_of(pid)
        assert key is not None
        self._slots[number] = _Kept(number, key)
        self._say(channel.SlotOpened(number, pid), [ours.fileno(), pidfd, tickets_out, tickets_in])
        ours.close()
        for fd in (pidfd, tickets_out, tickets_in):
            os.close(fd)

    def _become_slot(self, ours: socket.socket, theirs: socket.socket, tickets: int, concurrency: int) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            ours.close()
            self._control.close()
            os.close(self._wake_in)
            os.close(self._wake_out)
            run_slot(theirs, tickets, self._pid, concurrency)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(70)

    # --------------------------------------------------------------------------------------------------- endings

    def _begin_end(self, number: int, grace_s: float) -> None:
        slot = self._slots.get(number)
        if slot is None or slot.status is not None:
            return
        now_s = time.monotonic()
        # Frozen first: the task is over, and must not act on the deaths of its programs.
        send_signal(slot.key, signal.SIGSTOP)
        slot.end = TreeEnd(now_s, grace_s)
        slot.give_up_s = now_s + grace_s + STUCK_AFTER_S

    def _end_trees(self) -> None:
        now_s = time.monotonic()
        for slot in self._slots.values():
            if slot.status is not None or slot.end is None:
                continue
            living = living_below(slot.key.pid)
            if not living or now_s >= slot.give_up_s:
                send_signal(slot.key, signal.SIGKILL)
            for key, signum in slot.end.step(living, now_s):
                send_signal(key, signum)
        self._reap()

    def _reap(self) -> None:
        by_pid = {slot.key.pid: slot for slot in self._slots.values() if slot.status is None}
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                slot = by_pid.get(pid)
                if slot is not None:
                    slot.status = os.waitstatus_to_exitcode(status)
                    slot.give_up_s = time.monotonic() + STUCK_AFTER_S
        except ChildProcessError:
            return

    def _report_ended(self) -> None:
        """Tell the parent of dead slots, when nothing of their trees lives any more."""
        dead = [slot for slot in self._slots.values() if slot.status is not None]
        if not dead:
            return
        orphans = self._end_orphans()
        now_s = time.monotonic()
        for slot in dead:
            if not orphans or now_s >= slot.give_up_s:
                assert slot.status is not None
                del self._slots[slot.number]
                self._say(channel.SlotEnded(slot.number, slot.status, len(orphans)))

    def _end_orphans(self) -> set[int]:
        """KILL what lives below the keeper, but below none of its living slots. Children that are left, zombies too:
        everything orphaned becomes a child of the keeper, so without any there is certainly nothing.
        """
        known = {slot.key.pid for slot in self._slots.values() if slot.status is None} | self._own_helpers
        for key in living_below(self._pid, without=known):
            send_signal(key, signal.SIGKILL)
        self._reap()
        return set(child_pids(self._pid)) - known

    def end_everything(self) -> NoReturn:
        """KILL all below, until the kernel says there is nothing; then exit."""
        while True:
            for key in living_below(self._pid):
                send_signal(key, signal.SIGKILL)
            try:
                while os.waitpid(-1, os.WNOHANG)[0] != 0:
                    pass
            except ChildProcessError:
                os._exit(0)
            time.sleep(0.002)

    def _on_term(self, _signum: int, _frame: object) -> None:
        if os.getpid() == self._pid and os.getppid() != self._parent_pid:
            self.end_everything()


def main(argv: Sequence[str]) -> NoReturn:
    control = socket.socket(fileno=int(argv[0]))
    control.set_inheritable(False)
    become_subreaper()
    keeper = Keeper(control)
    keeper.guard()
    # A second net under the end of the socket. TERM, not KILL: a killed keeper could not end what is below it. And
    # it only asks: the signal also comes when just the thread that started the keeper has ended.
    die_with_parent(signal.SIGTERM)
    level, form, *modules = argv[1:]
    task_logs.configure(level, json=form == "json")
    keeper.load(modules)
    keeper.serve()


if __name__ == "__main__":
    main(sys.argv[1:])
