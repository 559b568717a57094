"""What a running task may ask of the worker around it: `zq.current_job()`.

The worker's slot implements `JobContext`; `zq.testing` implements it in memory. Tasks see just this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast


@dataclass(frozen=True)
class ProcessResult:
    """How a program that a task ran has ended. `returncode` is negative for a signal, as in subprocess."""

    returncode: int
    stderr_tail: str
    """The last 8 KiB of its standard error, undecodable bytes replaced."""
    peak_memory_bytes: int = 0
    """The most memory it had at once; not less than what its slot had when it was started."""
    cpu_s: float = 0.0
    """Processor time that it and what it waited for have used."""


@dataclass(frozen=True)
class ProcessLimits:
    """Bounds set on a program before it is executed. 0 means no bound."""

    memory_bytes: int = 0
    cpu_s: int = 0
    file_size_bytes: int = 0
    open_files: int = 0
    nice: int = 0
    idle_io: bool = False
    """Its disk work waits for everybody else's, where the kernel's I/O scheduler has such a class."""


class JobContext(Protocol):
    """The job a task is running for, and the worker's services to it."""

    @property
    def id(self) -> str: ...
    @property
    def attempt(self) -> int: ...
    @property
    def task(self) -> str: ...
    @property
    def queue(self) -> str: ...

    def progress(self, done: float, total: float, message: str = "") -> None:
        """Report progress; cheap, throttled by the worker, the last value is kept."""
        ...

    def check_soft_limit(self) -> None:
        """Raise SoftTimeLimitExceeded if the soft limit has passed (for code that swallowed the first one)."""
        ...

    def still_mine(self) -> None:
        """Ask the broker whether this attempt still holds the job; raise LeaseLost if not.

        When the broker is away this waits for it, up to the job's limits: nothing may be published on a guess.
        """
        ...

    def run_process(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        limits: ProcessLimits | None = None,
        on_stdout_line: Callable[[str], None] | None = None,
        feed_stdin: Sequence[Path] = (),
    ) -> ProcessResult:
        """Run a program under the worker's eyes: never through a shell, ended with its whole tree when the slot ends.

        At the soft limit it gets SIGTERM and SoftTimeLimitExceeded is raised here. `env` is the whole environment of
        the program (none is inherited when it is given, but zq's own marker). `feed_stdin` names files whose bytes
        are written to its standard input, one after the other; without it standard input is empty.
        """
        ...

    def publish(self, path: Path) -> AbstractContextManager[Path]:
        """Write a file that appears complete or not at all.

        Yields a temporary path in the same folder; on a clean exit it is fsynced, still_mine() is asked, and it is
        renamed to `path` and the folder fsynced. On an exception it is removed.
        """
        ...


class AsyncJobContext(JobContext, Protocol):
    """The same with what async tasks await; the plain forms would hold up their event loop, and are refused there."""

    async def still_mine_async(self) -> None:
        """`still_mine` for async tasks, as the other `…_async` methods are for theirs, which would hold up the loop."""
        ...

    async def run_process_async(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        limits: ProcessLimits | None = None,
        on_stdout_line: Callable[[str], None] | None = None,
        feed_stdin: Sequence[Path] = (),
    ) -> ProcessResult:
        """`run_process` for async tasks. A cancellation, too, ends the program before it is raised here."""
        ...

    def publish_async(self, path: Path) -> AbstractAsyncContextManager[Path]:
        """`publish` for async tasks."""
        ...


_current: ContextVar[JobContext | None] = ContextVar("zq_current_job", default=None)


def current_job() -> AsyncJobContext:
    """The job this code is running for. Raises RuntimeError outside of a task."""
    job = _current.get()
    if job is None:
        raise RuntimeError("zq.current_job() was called outside of a task")
    return cast(AsyncJobContext, job)


def current_job_or_none() -> JobContext | None:
    """The same; None outside of a task."""
    return _current.get()


def set_current_job(job: JobContext | None) -> None:
    """For the slot and for zq.testing: name the job that runs in this context from now on."""
    _current.set(job)
