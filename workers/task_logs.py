"""What tasks log, print and have their programs print: every line with its job, task and attempt, in the worker's log.

A slot writes to the worker's own standard error, a line at a time, in the worker's format; `zq logs ID` finds the lines
there. What a program writes that the task has started without `run_process` is passed through as it is.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable
from typing import Final, TextIO

from zq import logs
from zq.context import JobContext, current_job_or_none
from zq.workers.line import Line

PROGRAM_LINES_MAX: Final = 200
"""Of one program's standard error; the tail of it is in the job's error anyway."""
_PARTIAL_CHARS_MAX: Final = 16_384
_printed_to: Final = {"stdout": logging.INFO, "stderr": logging.WARNING}
_program_log = logging.getLogger("zq.task.program")


class _Attribution(logging.Filter):
    """Adds the job to what is logged while it runs."""

    only_job: JobContext | None = None
    """In a slot that runs one job at a time: also for the threads that it has started."""

    def filter(self, record: logging.LogRecord) -> bool:
        job = current_job_or_none() or self.only_job
        if job is not None and not hasattr(record, "job_id"):
            record.job_id, record.task, record.attempt = job.id, job.task, job.attempt
        return True


_attribution = _Attribution()


class _SlotHandler(logging.StreamHandler[TextIO]):
    """No soft limit is raised while a line is written: logging would swallow it."""

    line: Line | None = None

    def handle(self, record: logging.LogRecord) -> bool:
        if self.line is None:
            return bool(super().handle(record))
        with self.line.shield():
            return bool(super().handle(record))


_handler: _SlotHandler | None = None


def configure(level: str, json: bool) -> None:
    """In the keeper, before it imports task modules; its slots inherit it."""
    global _handler
    logs.configure(level, json)
    (plain,) = logging.getLogger().handlers
    _handler = _SlotHandler(sys.stderr)
    _handler.setFormatter(plain.formatter)
    _handler.addFilter(_attribution)
    logging.getLogger().handlers[:] = [_handler]


def begin_slot(line: Line) -> None:
    """In a slot: from now on what is printed is logged."""
    if _handler is not None:
        _handler.line = line
        sys.stdout = _Printed("stdout", sys.__stdout__)
        sys.stderr = _Printed("stderr", sys.__stderr__)


def set_only_job(job: JobContext | None) -> None:
    """The one job of this slot has begun or ended: half a line that it has printed is a line then."""
    if job is None and _attribution.only_job is not None:
        end_lines_of(_attribution.only_job)
    _attribution.only_job = job


def end_lines_of(job: JobContext) -> None:
    """Log what it has printed without an end of line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, _Printed) and stream.partial:
            stream.end_line(job)


class _Printed(io.TextIOBase):
    """sys.stdout or sys.stderr of a slot: lines become log lines of the job that prints them."""

    def __init__(self, name: str, original: TextIO | None) -> None:
        self._log = logging.getLogger(f"zq.task.{name}")
        self._level = _printed_to[name]
        self._original = original
        self.partial: dict[str, str] = {}
        """What each job has printed of a line."""

    def write(self, text: str) -> int:
        job = current_job_or_none() or _attribution.only_job
        if job is None:
            return self._original.write(text) if self._original is not None else len(text)
        whole = self.partial.pop(job.id, "") + text
        *lines, rest = whole.split("\n")
        for line in lines:
            self._emit(line)
        if len(rest) >= _PARTIAL_CHARS_MAX:
            self._emit(rest)
        elif rest:
            self.partial[job.id] = rest
        return len(text)

    def end_line(self, job: JobContext) -> None:
        rest = self.partial.pop(job.id, "")
        if rest:
            self._log.log(self._level, "%s", rest, extra={"job_id": job.id, "task": job.task, "attempt": job.attempt})

    def _emit(self, line: str) -> None:
        if line:
            self._log.log(self._level, "%s", line.rstrip("\r"))

    def flush(self) -> None:
        if self._original is not None:
            self._original.flush()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        if self._original is None:
            raise OSError("there is no such stream")
        return self._original.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def buffer(self) -> object:
        """Bytes pass by: nobody can say whose they are."""
        return getattr(self._original, "buffer", None)


def program_logger(program: str) -> Callable[[str], None]:
    """Logs the lines of a program's standard error, the first PROGRAM_LINES_MAX of them."""
    count = 0

    def log_line(line: str) -> None:
        nonlocal count
        count += 1
        if count <= PROGRAM_LINES_MAX:
            _program_log.info("%s", line, extra={"program": program})
        elif count == PROGRAM_LINES_MAX + 1:
            _program_log.info("it goes on, and is no longer logged", extra={"program": program})

    return log_line
