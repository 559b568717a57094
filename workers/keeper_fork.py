"""A worker's first keeper is a fork of the worker: what both have imported, most of it, is in memory once.

A fork carries the environment that its parent was started with, as `/proc/PID/environ` shows it, and the marker must be
there for the sweep to find what a dead worker has left. So a worker begins itself anew, once, with its marker in its
environment (`begin_marked`), before it has opened anything. The fork is made while it has neither threads nor sockets
of ZeroMQ; the keepers that follow, should the first one die, are programs of their own.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Final, NoReturn

from zq.workers import keeper
from zq.workers.process import name_process
from zq.workers.sweep import MARKER, Marker, own_marker, parse_marker

_EXIT_DEFECT: Final = 70


def begin_marked(instance: str) -> None:
    """Begin this very command again with the marker of worker `instance`, unless that has been done."""
    wanted = own_marker(instance, 1)
    carried = parse_marker(os.environ.get(MARKER, ""))
    if carried is not None and carried.owner == wanted.owner:
        return
    os.environ[MARKER] = wanted.format()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def can_fork(marker: Marker) -> bool:
    """Whether a keeper with this marker may be a fork of this process."""
    return os.environ.get(MARKER) == marker.format() and threading.active_count() == 1


class ForkedKeeper:
    """What `subprocess.Popen` is for a program of its own."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """As Popen.wait; raises subprocess.TimeoutExpired."""
        if self._status is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                if not select.select([pidfd], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired("the keeper", timeout or 0.0)
            finally:
                os.close(pidfd)
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def kill(self) -> None:
        if self._status is None:  # not reaped, so the pid is certainly its own
            os.kill(self.pid, signal.SIGKILL)


def fork_keeper(control_fd: int, arguments: Sequence[str]) -> ForkedKeeper:
    """Fork it; `arguments` as its command line has them after the descriptor."""
    gc.collect()
    gc.freeze()  # or the collector would touch, and so copy, every page that both share
    pid = os.fork()
    if pid:
        return ForkedKeeper(pid)
    code = _EXIT_DEFECT
    try:
        _be_keeper(control_fd, arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else _EXIT_DEFECT
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _be_keeper(control_fd: int, arguments: Sequence[str]) -> NoReturn:
    """What exec would have done. The worker's objects stay, untouched: nobody unwinds this stack."""
    signal.set_wakeup_fd(-1)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_DFL)
    os.setsid()  # out of reach of signals to the worker's process group
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != control_fd:
            with contextlib.suppress(OSError):
                os.close(int(name))
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # `zq worker` has not got it there, `python -m` has
    name_process("zq-keeper")
    keeper.main([str(control_fd), *arguments])
