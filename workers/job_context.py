"""`zq.current_job()` inside a slot: what a running task may ask of its worker."""

from __future__ import annotations

import contextlib
import math
import os
import stat
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zq.context import ProcessLimits, ProcessResult
from zq.exceptions import LeaseLost, SoftTimeLimitExceeded
from zq.protocol import limits as bounds
from zq.workers.channel import Assignment, Progress, StillMineAsk
from zq.workers.line import Line
from zq.workers.program import run_forked, run_program, run_program_async
from zq.workers.sweep import MARKER, SYSTEM_MARK
from zq.workers.task_logs import program_logger

if TYPE_CHECKING:
    import asyncio

PROGRESS_INTERVAL_S: Final = 0.2
_SUFFIX_BYTES_MAX: Final = 32


class SlotJob:
    """The job of one assignment. Lives as long as its attempt."""

    def __init__(self, assignment: Assignment, line: Line) -> None:
        self._assignment = assignment
        self._line = line
        self._pid = os.getpid()
        self._progress_lock = threading.Lock()
        self._progress: Progress | None = None
        self._progress_sent_s = -math.inf
        self._failed_program = ""
        self.soft_passed = ""
        """Why an async task should stop; empty while it may go on."""
        self._asking: asyncio.Future[bool] | None = None

    @property
    def seq(self) -> int:
        return self._assignment.seq

    @property
    def id(self) -> str:
        return self._assignment.job_id

    @property
    def attempt(self) -> int:
        return self._assignment.attempt

    @property
    def task(self) -> str:
        return self._assignment.task

    @property
    def queue(self) -> str:
        return self._assignment.queue

    @property
    def failed_program(self) -> str:
        """How the last program that failed has ended, with the tail of its standard error; for the job's error."""
        return self._failed_program

    def progress(self, done: float, total: float, message: str = "") -> None:
        """See JobContext. From any thread of the slot; at most five a second are sent, and the last one always is."""
        self._refuse_forked("progress")
        done, total = float(done), float(total)
        if not (math.isfinite(done) and math.isfinite(total)):
            raise ValueError(f"progress({done}, {total}): both must be finite numbers")
        text = str(message)[: bounds.MESSAGE_CHARS_MAX].encode("utf-8", "replace").decode("utf-8")
        with self._line.shield(), self._progress_lock:
            self._progress = Progress(self._assignment.seq, done, total, text)
            if time.monotonic() - self._progress_sent_s >= PROGRESS_INTERVAL_S:
                self._send_progress()

    def flush_progress(self) -> None:
        """Send the last progress if it was held back."""
        if self._progress is None:
            return
        with self._line.shield(), self._progress_lock:
            self._send_progress()

    def _send_progress(self) -> None:
        if self._progress is not None and self._line.send_if_free(self._progress):
            self._progress = None
            self._progress_sent_s = time.monotonic()

    def check_soft_limit(self) -> None:
        """See JobContext. Raises each time it is called after the limit."""
        self._refuse_forked("check_soft_limit")
        self._line.raise_if_due()
        reason = self.soft_passed or self._line.soft_reason
        if reason:
            raise SoftTimeLimitExceeded(reason)

    def still_mine(self) -> None:
        """See JobContext."""
        self._refuse_elsewhere("still_mine")
        with self._line.reading():
            self._line.send(StillMineAsk(self._assignment.seq))
            held = self._line.wait_answer(self._assignment.seq)
        if held is None:
            # Not told when we left `reading`: an outer shield, publish's, is still up. This is a safe place for it.
            self.check_soft_limit()
        if not held:
            raise self._lost()

    def _lost(self) -> LeaseLost:
        return LeaseLost(f"job {self.id}, attempt {self.attempt}: the broker gave the job to somebody else")

    async def still_mine_async(self) -> None:
        """See JobContext."""
        self._refuse_forked("still_mine_async")
        if self._asking is None:
            import asyncio

            self._asking = asyncio.get_running_loop().create_future()
            self._line.send(StillMineAsk(self._assignment.seq))
        asking = self._asking
        await _until_done(asking)
        if not asking.result():
            raise self._lost()

    def answered(self, held: bool) -> None:
        """The broker's answer to `still_mine_async` has come."""
        asking, self._asking = self._asking, None
        if asking is not None and not asking.done():
            asking.set_result(held)

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
        """See JobContext. Raises OSError if the program cannot be started."""
        self._refuse_elsewhere("run_process")
        self._line.raise_if_due()
        with self._line.reading():
            result = run_program(
                argv,
                cwd=cwd,
                env=None if env is None else {**env, **_marker()},
                limits=limits or ProcessLimits(),
                on_stdout_line=on_stdout_line,
                on_stderr_line=program_logger(argv[0] if argv else ""),
                feed_stdin=feed_stdin,
                bell=self._line,
                kill_grace_s=self._assignment.kill_grace_s,
            )
        if result is None:
            self.check_soft_limit()
            raise AssertionError("a program was ended for a soft limit that has not passed")
        self._note_failure(argv, result)
        return result

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
        """See JobContext. Raises OSError if the program cannot be started."""
        self._refuse_other_thread("run_process_async")
        result = await run_program_async(
            argv,
            cwd=cwd,
            env=None if env is None else {**env, **_marker()},
            limits=limits or ProcessLimits(),
            on_stdout_line=on_stdout_line,
            on_stderr_line=program_logger(argv[0] if argv else ""),
            feed_stdin=feed_stdin,
            kill_grace_s=self._assignment.kill_grace_s,
        )
        self._note_failure(argv, result)
        return result

    def _note_failure(self, argv: Sequence[str], result: ProcessResult) -> None:
        if result.returncode != 0:
            self._failed_program = f"{argv[0]} ended with {result.returncode}\n{result.stderr_tail}"

    def run_forked(
        self,
        function: Callable[[], int],
        *,
        cwd: Path,
        limits: ProcessLimits,
        on_stdout_line: Callable[[str], None],
    ) -> ProcessResult:
        """As `run_process`, for a function in a copy of this process; see `program.run_forked`."""
        self._refuse_elsewhere("run_forked")
        self._line.raise_if_due()
        with self._line.reading():
            result = run_forked(
                function,
                cwd=cwd,
                limits=limits,
                on_stdout_line=on_stdout_line,
                bell=self._line,
                kill_grace_s=self._assignment.kill_grace_s,
            )
        if result is None:
            self.check_soft_limit()
            raise AssertionError("a process was ended for a soft limit that has not passed")
        return result

    def publish(self, path: Path) -> AbstractContextManager[Path]:
        """See JobContext. The temporary name keeps the suffix of `path`: many programs go by it.

        Raises FileNotFoundError if nothing was written, and LeaseLost instead of publishing what is no longer ours.
        """
        self._refuse_elsewhere("publish")
        return self._publish(Path(path))

    def publish_async(self, path: Path) -> AbstractAsyncContextManager[Path]:
        """See JobContext, and `publish`."""
        self._refuse_other_thread("publish_async")
        return self._publish_async(Path(path))

    @contextlib.asynccontextmanager
    async def _publish_async(self, path: Path) -> AsyncIterator[Path]:
        import asyncio

        part = self._part_of(path)
        try:
            yield part
            await asyncio.to_thread(_sync_file, part)
            await self.still_mine_async()
            os.replace(part, path)
            await asyncio.to_thread(_sync_folder, path.parent)
        finally:
            part.unlink(missing_ok=True)

    def _part_of(self, path: Path) -> Path:
        suffix = path.suffix if len(os.fsencode(path.suffix)) <= _SUFFIX_BYTES_MAX else ""
        if self.attempt > 1:
            self._remove_earlier_parts(path.parent)
        return path.with_name(f".zq-{self.id}-{self.attempt}-{os.urandom(4).hex()}.part{suffix}")

    @contextlib.contextmanager
    def _publish(self, path: Path) -> Iterator[Path]:
        part = self._part_of(path)
        try:
            yield part
            with self._line.shield():
                _sync_file(part)
                self.still_mine()
                os.replace(part, path)
                _sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)

    def _remove_earlier_parts(self, folder: Path) -> None:
        """An attempt that was killed could not remove what it had begun. One that still runs can no longer publish."""
        for name in os.listdir(folder):
            words = name.removeprefix(f".zq-{self.id}-").split("-")
            if words[0] != name and words[0].isdecimal() and int(words[0]) < self.attempt:
                (folder / name).unlink(missing_ok=True)

    def _refuse_forked(self, what: str) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(f"{what}() was called in a process that the task has forked; call it in the task itself")

    def _refuse_elsewhere(self, what: str) -> None:
        self._refuse_other_thread(what)
        if _in_event_loop():
            raise RuntimeError(f"{what}() would hold up the event loop: in an async task it is {what}_async()")

    def _refuse_other_thread(self, what: str) -> None:
        self._refuse_forked(what)
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(f"{what}() was called in another thread; call it in the thread that runs the task")


def _in_event_loop() -> bool:
    loops = sys.modules.get("asyncio")  # who has not loaded it is in none
    return loops is not None and loops._get_running_loop() is not None


async def _until_done(future: asyncio.Future[bool]) -> None:
    """Also where another waiter of the same future is cancelled."""
    import asyncio

    await asyncio.wait([future])


def _marker() -> dict[str, str]:
    return {name: os.environ[name] for name in (MARKER, SYSTEM_MARK) if name in os.environ}


def _sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(f"{path} is not a regular file; only those are published")
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
