"""A slot: the process in which tasks run, one at a time, in its main thread.

Forked by the keeper, with the task modules already imported. It is a session of its own and a child subreaper, so
everything a task starts, however it detaches itself, stays below it and is found there. It dies with the keeper.
Between jobs it reads the next from its channel; when an attempt has ended, what its task left running is ended too.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn

from zq import registry
from zq.context import set_current_job
from zq.workers import task_logs
from zq.workers.attempt import conclude, end_left_behind, judge, prepare, with_usage
from zq.workers.channel import Assignment, AttemptResult, Finished, SlotUsage, Started
from zq.workers.job_context import SlotJob
from zq.workers.line import Line
from zq.workers.process import become_subreaper, die_with_parent, name_process

if TYPE_CHECKING:
    from zq.workers.task_loop import TaskLoop

EXIT_HOOK_FAILED: Final = 71
_RESET_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2)
_logger = logging.getLogger("zq.workers")


def run_slot(sock: socket.socket, tickets: int, keeper_pid: int, concurrency: int = 1) -> NoReturn:
    """Be a slot until the parent closes the channel. Called in the child right after the fork.

    With a `concurrency` above one it runs async tasks alone, so many at once.
    """
    die_with_parent(signal.SIGKILL)
    if os.getppid() != keeper_pid:
        os._exit(0)
    os.setsid()
    name_process("zq-slot")
    become_subreaper()
    for signum in _RESET_SIGNALS:
        signal.signal(signum, signal.SIG_DFL)
    line = Line(sock, tickets)
    task_logs.begin_slot(line)
    peak = _Peak()
    os.register_at_fork(after_in_child=line.close)
    _start(line)
    if concurrency > 1:
        task_loop(line).serve(concurrency)
    peak.forget()
    home_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    while True:
        # Each result at once, in a batch too: nobody knows how long the next job takes.
        line.send(Finished([_attempt(line.next_job(), line)]))
        peak.forget()
        with contextlib.suppress(OSError):  # its folder was removed: stay where the task went
            os.fchdir(home_fd)


def _start(line: Line) -> None:
    """Call the hooks of the task modules; the parent waits with jobs until it is told."""
    starts, stops = registry.hooks("start"), registry.hooks("stop")
    if stops:
        line.on_close = lambda: _stop(line)
    if not (starts or stops):
        return
    for hook in starts:
        try:
            _run_hook(hook, line)
        except BaseException:
            _logger.exception("the on_start hook %s raised; this slot is given up", hook.__qualname__)
            os._exit(EXIT_HOOK_FAILED)
    line.send(Started())


def _stop(line: Line) -> None:
    for hook in reversed(registry.hooks("stop")):
        try:
            _run_hook(hook, line)
        except BaseException:
            _logger.exception("the on_stop hook %s raised", hook.__qualname__)


def _run_hook(hook: Callable[[], Any], line: Line) -> None:
    if inspect.iscoroutinefunction(hook):
        task_loop(line).call(hook)
    else:
        hook()


def _attempt(assignment: Assignment, line: Line) -> AttemptResult:
    meter = _Meter()
    job = SlotJob(assignment, line)
    slot_pid = os.getpid()
    set_current_job(job)
    task_logs.set_only_job(job)
    try:
        try:
            line.begin(assignment.seq)
            result = _call(assignment, job, line)
        finally:
            # The limit may come after the task's last line, in ours: it is raised at most once, and caught below.
            line.end()
    except BaseException as error:
        result = judge(error, assignment.seq, job)
    if os.getpid() != slot_pid:
        os._exit(0)  # a fork of the task has returned from the task: it is no slot
    task_logs.set_only_job(None)
    set_current_job(None)
    job.flush_progress()
    end_left_behind(assignment)
    return with_usage(result, meter.usage())


def _call(assignment: Assignment, job: SlotJob, line: Line) -> AttemptResult:
    prepared = prepare(assignment)
    if isinstance(prepared, AttemptResult):
        return prepared
    task, positional, keyword = prepared
    if task.is_async:
        value: Any = task_loop(line).run(task.function, job, *positional, **keyword)
    else:
        value = task.function(*positional, **keyword)
    return conclude(assignment, value)


@functools.cache
def task_loop(line: Line) -> TaskLoop:
    """The event loop of this slot, made when the first async task or hook comes: asyncio is 3 MiB."""
    from zq.workers.task_loop import TaskLoop

    return TaskLoop(line)


class _Peak:
    """The kernel's record of this process's largest size, which is to be forgotten between attempts. (Not directly
    before one: its task waits.)"""

    def __init__(self) -> None:
        self._fd = -1
        with contextlib.suppress(OSError):
            self._fd = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)

    def forget(self) -> None:
        """Where that is forbidden, what is reported is the largest of all attempts so far."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.write(self._fd, b"5")


class _Meter:
    """What an attempt uses, from the kernel's own counters: exact, for everything that is reaped by its end."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._own = resource.getrusage(resource.RUSAGE_SELF)
        self._below = resource.getrusage(resource.RUSAGE_CHILDREN)

    def usage(self) -> SlotUsage:
        own, own_before = resource.getrusage(resource.RUSAGE_SELF), self._own
        below, below_before = resource.getrusage(resource.RUSAGE_CHILDREN), self._below
        own_s = own.ru_utime + own.ru_stime - own_before.ru_utime - own_before.ru_stime
        below_s = below.ru_utime + below.ru_stime - below_before.ru_utime - below_before.ru_stime
        peak_kib = own.ru_maxrss
        if below.ru_maxrss > below_before.ru_maxrss:  # the kernel keeps the largest child of all time
            peak_kib = max(peak_kib, below.ru_maxrss)
        return SlotUsage(
            max(0.0, own_s + below_s),
            peak_kib * 1024,
            512 * (own.ru_inblock - own_before.ru_inblock + below.ru_inblock - below_before.ru_inblock),
            512 * (own.ru_oublock - own_before.ru_oublock + below.ru_oublock - below_before.ru_oublock),
            time.monotonic() - self._started_s,
        )
