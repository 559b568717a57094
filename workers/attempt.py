"""One attempt in a slot, but for the running itself: from an assignment to a call, from what came of it to a result."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
import traceback
from typing import Any, Final

from zq import payload, registry
from zq.exceptions import LeaseLost, Reject, Retry, SoftTimeLimitExceeded
from zq.protocol import limits
from zq.registry import RegisteredTask
from zq.workers.channel import Assignment, AttemptResult, SlotOutcome, SlotUsage
from zq.workers.job_context import SlotJob
from zq.workers.process import living_below, send_signal

_FRAMES_SHOWN: Final = 20
_SUMMARY_CHARS: Final = 2048
_ENTRY_CHARS: Final = 1024
_LEFT_BEHIND_S: Final = 2.0
_SCANS_PAUSE_S: Final = 0.002
_logger = logging.getLogger("zq.workers")


def prepare(assignment: Assignment) -> tuple[RegisteredTask, list[Any], dict[str, Any]] | AttemptResult:
    """The task and its arguments; or, if the job can never run here, its result."""
    task = registry.lookup(assignment.task)
    if task is None:
        known = ", ".join(registry.names()[:10]) or "none"
        return rejected(
            assignment.seq,
            f"this worker has no task '{assignment.task}'; its task modules give: {known}."
            " List the module that holds it in the queue's `tasks`",
        )
    try:
        positional, keyword = payload.decode_arguments(assignment.arguments)
    except payload.PayloadError as error:
        return rejected(assignment.seq, str(error))
    return task, positional, keyword


def conclude(assignment: Assignment, value: Any) -> AttemptResult:
    """The result of a task that has returned `value`."""
    try:
        return AttemptResult(assignment.seq, SlotOutcome.DONE, payload.encode_result(value))
    except payload.PayloadError as error:
        # The work was done, and would be done again in vain: the same code would return the same kind of thing.
        return rejected(assignment.seq, f"task '{assignment.task}' returned what cannot be kept: {error}")


def rejected(seq: int, reason: str) -> AttemptResult:
    return AttemptResult(seq, SlotOutcome.REJECTED, error=bounded(reason))


def judge(error: BaseException, seq: int, job: SlotJob) -> AttemptResult:
    """What the exception that ended a task means for its job."""
    match error:
        case Reject():
            return rejected(seq, str(error) or "the task rejected the job without a reason")
        case Retry():
            after_s = error.after_s
            if not (isinstance(after_s, int | float) and math.isfinite(after_s)):
                after_s = None
            wait_s = None if after_s is None else max(0.0, float(after_s))
            return AttemptResult(seq, SlotOutcome.FAILED, error=bounded(str(error)), retry_after_s=wait_s)
        case LeaseLost():
            return AttemptResult(seq, SlotOutcome.NOT_OURS, error=bounded(str(error)))
        case SystemExit():
            text = f"the task called sys.exit({error.code!r}); a task ends by returning or raising"
        case SoftTimeLimitExceeded():
            text = f"{error}\n{trace(error)}"
        case _:
            text = trace(error)
    if job.failed_program:
        text = f"{bounded(text, limits.ERROR_CHARS_MAX // 2)}\n{job.failed_program}"
    return AttemptResult(seq, SlotOutcome.FAILED, error=bounded(text))


def trace(error: BaseException) -> str:
    """First what it was, then where it came from. An exception of a task may have any `__str__`, a raising one too."""
    name = type(error).__qualname__
    try:
        summary = f"{name}: {error}"
        lines = traceback.format_exception(error, limit=-_FRAMES_SHOWN)
    except Exception as second:
        return f"{name} (its text cannot be shown: {type(second).__qualname__})"
    # Each entry is cut, for the last one repeats the text, which may be megabytes and would push the frames out.
    return f"{summary[:_SUMMARY_CHARS]}\n{''.join(line[:_ENTRY_CHARS] for line in lines)}"


def bounded(text: str, chars_max: int = limits.ERROR_CHARS_MAX) -> str:
    """At most so many characters: the beginning, which says what happened, and the end, which says where."""
    text = text.encode("utf-8", "replace").decode("utf-8").strip()
    if len(text) <= chars_max:
        return text
    head = min(_SUMMARY_CHARS, chars_max // 4)
    gap = "\n[…]\n"
    return text[:head] + gap + text[len(text) - (chars_max - head - len(gap)) :]


def end_left_behind(assignment: Assignment | None) -> None:
    """Reap what has ended below this slot and end what has not: a job's processes end with the job, and its alarm."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    until_s = time.monotonic() + _LEFT_BEHIND_S
    ended = 0
    while _has_children_after_reaping() and time.monotonic() < until_s:
        for key in living_below(os.getpid()):
            ended += send_signal(key, signal.SIGKILL)
        time.sleep(_SCANS_PAUSE_S)
    if ended:
        whose = "the tasks of a slot" if assignment is None else f"job {assignment.job_id}: task {assignment.task}"
        _logger.warning("%s left %d processes running; they were ended", whose, ended)


def _has_children_after_reaping() -> bool:
    try:
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass
    except ChildProcessError:
        return False
    return True


def with_usage(result: AttemptResult, usage: SlotUsage) -> AttemptResult:
    return AttemptResult(result.seq, result.outcome, result.result, result.error, result.retry_after_s, usage)
