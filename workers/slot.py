"""A slot: the process in which tasks run, one at a time, in its main thread.

Forked by the keeper, with the task modules already imported. It is a session of its own and a child subreaper, so
everything a task starts, however it detaches itself, stays below it and is found there. It dies with the keeper.
Between jobs it reads the next from its channel; when an attempt has ended, what its task left running is ended too.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import resource
import signal
import socket
import time
import traceback
from typing import Any, Final, NoReturn

from zq import payload, registry
from zq.context import set_current_job
from zq.exceptions import LeaseLost, Reject, Retry, SoftTimeLimitExceeded
from zq.protocol import limits
from zq.workers.channel import Assignment, AttemptResult, Finished, SlotOutcome, SlotUsage
from zq.workers.job_context import SlotJob
from zq.workers.line import Line
from zq.workers.process import become_subreaper, die_with_parent, living_below, send_signal

_FRAMES_SHOWN: Final = 20
_SUMMARY_CHARS: Final = 2048
_ENTRY_CHARS: Final = 1024
_LEFT_BEHIND_S: Final = 2.0
_SCANS_PAUSE_S: Final = 0.002
_RESET_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2)
_logger = logging.getLogger("zq.workers")


def run_slot(sock: socket.socket, tickets: int, keeper_pid: int) -> NoReturn:
    """Be a slot until the parent closes the channel. Called in the child right after the fork."""
    die_with_parent(signal.SIGKILL)
    if os.getppid() != keeper_pid:
        os._exit(0)
    os.setsid()
    become_subreaper()
    for signum in _RESET_SIGNALS:
        signal.signal(signum, signal.SIG_DFL)
    line = Line(sock, tickets)
    peak = _Peak()
    os.register_at_fork(after_in_child=line.close)
    home_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    while True:
        # Each result at once, in a batch too: nobody knows how long the next job takes.
        line.send(Finished([_attempt(line.next_job(), line, peak)]))
        with contextlib.suppress(OSError):  # its folder was removed: stay where the task went
            os.fchdir(home_fd)


def _attempt(assignment: Assignment, line: Line, peak: _Peak) -> AttemptResult:
    meter = _Meter(peak)
    job = SlotJob(assignment, line)
    slot_pid = os.getpid()
    set_current_job(job)
    try:
        try:
            line.begin(assignment.seq)
            result = _call(assignment)
        finally:
            # The limit may come after the task's last line, in ours: it is raised at most once, and caught below.
            line.end()
    except BaseException as error:
        result = _judge(error, assignment.seq, job)
    if os.getpid() != slot_pid:
        os._exit(0)  # a fork of the task has returned from the task: it is no slot
    set_current_job(None)
    job.flush_progress()
    _end_left_behind(assignment)
    return _with_usage(result, meter.usage())


def _call(assignment: Assignment) -> AttemptResult:
    task = registry.lookup(assignment.task)
    if task is None:
        known = ", ".join(registry.names()[:10]) or "none"
        return _rejected(
            assignment.seq,
            f"this worker has no task '{assignment.task}'; its task modules give: {known}."
            " List the module that holds it in the queue's `tasks`",
        )
    try:
        positional, keyword = payload.decode_arguments(assignment.arguments)
    except payload.PayloadError as error:
        return _rejected(assignment.seq, str(error))
    value: Any = task.function(*positional, **keyword)
    try:
        return AttemptResult(assignment.seq, SlotOutcome.DONE, payload.encode_result(value))
    except payload.PayloadError as error:
        # The work was done, and would be done again in vain: the same code would return the same kind of thing.
        return _rejected(assignment.seq, f"task '{assignment.task}' returned what cannot be kept: {error}")


def _rejected(seq: int, reason: str) -> AttemptResult:
    return AttemptResult(seq, SlotOutcome.REJECTED, error=_bounded(reason))


def _judge(error: BaseException, seq: int, job: SlotJob) -> AttemptResult:
    """What the exception that ended a task means for its job."""
    match error:
        case Reject():
            return _rejected(seq, str(error) or "the task rejected the job without a reason")
        case Retry():
            after_s = error.after_s
            if not (isinstance(after_s, int | float) and math.isfinite(after_s)):
                after_s = None
            wait_s = None if after_s is None else max(0.0, float(after_s))
            return AttemptResult(seq, SlotOutcome.FAILED, error=_bounded(str(error)), retry_after_s=wait_s)
        case LeaseLost():
            return AttemptResult(seq, SlotOutcome.NOT_OURS, error=_bounded(str(error)))
        case SystemExit():
            text = f"the task called sys.exit({error.code!r}); a task ends by returning or raising"
        case SoftTimeLimitExceeded():
            text = f"{error}\n{_trace(error)}"
        case _:
            text = _trace(error)
    if job.failed_program:
        text = f"{_bounded(text, limits.ERROR_CHARS_MAX // 2)}\n{job.failed_program}"
    return AttemptResult(seq, SlotOutcome.FAILED, error=_bounded(text))


def _trace(error: BaseException) -> str:
    """First what it was, then where it came from. An exception of a task may have any `__str__`, a raising one too."""
    name = type(error).__qualname__
    try:
        summary = f"{name}: {error}"
        lines = traceback.format_exception(error, limit=-_FRAMES_SHOWN)
    except Exception as second:
        return f"{name} (its text cannot be shown: {type(second).__qualname__})"
    # Each entry is cut, for the last one repeats the text, which may be megabytes and would push the frames out.
    return f"{summary[:_SUMMARY_CHARS]}\n{''.join(line[:_ENTRY_CHARS] for line in lines)}"


def _bounded(text: str, chars_max: int = limits.ERROR_CHARS_MAX) -> str:
    """At most so many characters: the beginning, which says what happened, and the end, which says where."""
    text = text.encode("utf-8", "replace").decode("utf-8").strip()
    if len(text) <= chars_max:
        return text
    head = min(_SUMMARY_CHARS, chars_max // 4)
    gap = "\n[…]\n"
    return text[:head] + gap + text[len(text) - (chars_max - head - len(gap)) :]


def _end_left_behind(assignment: Assignment) -> None:
    """Reap what has ended below this slot and end what has not: a job's processes end with the job."""
    until_s = time.monotonic() + _LEFT_BEHIND_S
    ended = 0
    while _has_children_after_reaping() and time.monotonic() < until_s:
        for key in living_below(os.getpid()):
            ended += send_signal(key, signal.SIGKILL)
        time.sleep(_SCANS_PAUSE_S)
    if ended:
        _logger.warning(
            "job %s: task %s left %d processes running; they were ended",
            assignment.job_id,
            assignment.task,
            ended,
        )


def _has_children_after_reaping() -> bool:
    try:
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass
    except ChildProcessError:
        return False
    return True


class _Peak:
    """The kernel's record of this process's largest size, which is to be forgotten before each attempt."""

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

    def __init__(self, peak: _Peak) -> None:
        self._started_s = time.monotonic()
        peak.forget()
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


def _with_usage(result: AttemptResult, usage: SlotUsage) -> AttemptResult:
    return AttemptResult(result.seq, result.outcome, result.result, result.error, result.retry_after_s, usage)
