"""Async tasks in a slot: one event loop for the life of the process, so that pools opened by one job serve the next.

A slot runs one async task at a time like any other task (`TaskLoop.run`), or, where its queue has a `concurrency`,
many at once (`TaskLoop.serve`). In both the loop watches the channel itself, so the doorbell signal interrupts nothing:
a soft limit is a cancellation that arrives in the task as SoftTimeLimitExceeded, at the place where it awaits.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, NoReturn

from zq import registry
from zq.context import set_current_job
from zq.exceptions import SoftTimeLimitExceeded
from zq.workers import channel, task_logs
from zq.workers.attempt import conclude, end_left_behind, judge, prepare, rejected, with_usage
from zq.workers.channel import DOORBELL, Assignment, AttemptResult, Finished, SlotUsage
from zq.workers.job_context import SlotJob
from zq.workers.line import Line, LineClosed
from zq.workers.process import resident_bytes

_NOT_ASYNC: Final = (
    "task '{}' is not async, and queue '{}' has a concurrency, which is for async tasks alone; give it another queue"
)


_logger = logging.getLogger("zq.workers")


class Running:
    """One attempt of an async task."""

    def __init__(self, seq: int, job: SlotJob) -> None:
        self.seq = seq
        self.job = job
        self.task: asyncio.Task[Any] | None = None
        self.soft_told = False
        self.cpu_s = 0.0
        self.started_s = time.monotonic()

    def tell(self, reason: str) -> None:
        """The soft limit has passed: SoftTimeLimitExceeded, once, where the task awaits."""
        self.job.soft_passed = reason
        if self.task is not None and not self.soft_told:
            self.task.cancel()

    def end(self) -> None:
        if self.task is not None:
            self.soft_told = True
            self.task.cancel()


_running: ContextVar[Running | None] = ContextVar("zq_running", default=None)


class _Steps(Coroutine[Any, Any, Any]):
    """A coroutine whose steps are metered; in the task's own, a cancellation for the soft limit is named as such."""

    def __init__(self, inner: Coroutine[Any, Any, Any], running: Running, *, own: bool) -> None:
        self._inner = inner
        self._running = running
        self._own = own

    def send(self, value: Any) -> Any:
        return self._step(self._inner.send, value)

    def throw(self, kind: Any, value: Any = None, trace: Any = None) -> Any:
        error = kind if value is None else value
        running = self._running
        cancelled = self._own and isinstance(error, asyncio.CancelledError)
        if cancelled and running.job.soft_passed and not running.soft_told:
            running.soft_told = True
            current = asyncio.current_task()
            if current is not None:
                current.uncancel()
            error = SoftTimeLimitExceeded(running.job.soft_passed)
        return self._step(self._inner.throw, error)

    def _step(self, step: Callable[[Any], Any], value: Any) -> Any:
        began_s = time.thread_time()
        try:
            return step(value)
        except SystemExit as error:
            # It would end the loop, and with it what else runs there.
            text = f"the task called sys.exit({error.code!r}); a task ends by returning or raising"
            raise RuntimeError(text) from None
        finally:
            self._running.cpu_s += time.thread_time() - began_s

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._inner.__await__()


def _make_task(
    loop: asyncio.AbstractEventLoop, work: Any, *, context: Context | None = None, **options: Any
) -> asyncio.Task[Any]:
    """Whatever a task starts in the loop is metered for its job."""
    running = (context or copy_context()).get(_running)
    if running is not None and not isinstance(work, _Steps):
        work = _Steps(work, running, own=False)
    return asyncio.Task(work, loop=loop, context=context, **options)


class TaskLoop:
    def __init__(self, line: Line) -> None:
        self._line = line
        self._loop = asyncio.new_event_loop()
        self._loop.set_task_factory(_make_task)
        self._by_seq: dict[int, Running] = {}
        self._given: dict[int, Assignment] = {}
        self._allowed: deque[int] = deque()
        self._leaving: asyncio.Task[NoReturn] | None = None

    # ------------------------------------------------------------------------------------------ one at a time

    def run(self, function: Callable[..., Coroutine[Any, Any, Any]], job: SlotJob, *args: Any, **kwargs: Any) -> Any:
        """Run it to its end and return or raise what it does. What it has left running in the loop is cancelled."""
        running = self._by_seq[job.seq] = Running(job.seq, job)
        line = self._line
        line.listener = self
        try:
            with line.reading():
                self._loop.add_reader(line.fileno(), line.take)
                try:
                    return self._loop.run_until_complete(self._begin(running, function(*args, **kwargs)))
                finally:
                    self._loop.remove_reader(line.fileno())
                    self._cancel_rest()
        finally:
            line.listener = None
            del self._by_seq[job.seq]

    def call(self, function: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Run a hook, outside of any job."""
        return self._loop.run_until_complete(function())

    def _begin(self, running: Running, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        context = copy_context()
        context.run(set_current_job, running.job)
        context.run(_running.set, running)
        running.task = self._loop.create_task(_Steps(coroutine, running, own=True), context=context)
        if running.job.soft_passed:
            running.task.cancel()
        return running.task

    def _cancel_rest(self) -> None:
        """Tasks that the job started and did not wait for must not act during the next one."""
        rest = asyncio.all_tasks(self._loop)
        for task in rest:
            task.cancel()
        if rest:
            self._loop.run_until_complete(asyncio.wait(rest, timeout=1.0))

    # ------------------------------------------------------------------------------------------ many at once

    def serve(self, concurrency: int) -> NoReturn:
        """Be a slot that runs up to `concurrency` tasks at once, until the parent closes the channel."""
        self._line.listener = self
        self._line.tells_close = True
        # It is rung for what the loop reads anyway.
        signal.signal(DOORBELL, lambda _signum, _frame: None)
        self._loop.add_reader(self._line.fileno(), self._read_line)
        self._loop.add_reader(self._line.tickets_fileno(), self._read_tickets)
        self._read_line()
        self._read_tickets()
        self._loop.run_forever()
        raise AssertionError("the loop of a slot was stopped")

    def _read_line(self) -> None:
        try:
            self._line.take()
        except LineClosed:
            self._loop.remove_reader(self._line.fileno())
            self._loop.remove_reader(self._line.tickets_fileno())
            self._leaving = self._loop.create_task(self._leave())
            return
        for job in self._line.taken_jobs():
            self._given[job.seq] = job
        self._start_allowed()

    def _read_tickets(self) -> None:
        while (seq := self._line.take_ticket()) is not None:
            self._allowed.append(seq)
        self._start_allowed()

    async def _leave(self) -> NoReturn:
        """The hooks run in this loop, which a hook may not be run in from a callback."""
        if not self._by_seq:
            for hook in reversed(registry.hooks("stop")):
                try:
                    made = hook()
                    if asyncio.iscoroutine(made):
                        await made
                except BaseException:
                    _logger.exception("the on_stop hook %s raised", hook.__qualname__)
        os._exit(0)

    def _start_allowed(self) -> None:
        while self._allowed and self._allowed[0] in self._given:
            self._start(self._given.pop(self._allowed.popleft()))

    def _start(self, assignment: Assignment) -> None:
        prepared = prepare(assignment)
        if isinstance(prepared, AttemptResult):
            self._line.send(Finished([prepared]))
            return
        task, positional, keyword = prepared
        if not task.is_async:
            text = _NOT_ASYNC.format(assignment.task, assignment.queue)
            self._line.send(Finished([rejected(assignment.seq, text)]))
            return
        running = self._by_seq[assignment.seq] = Running(assignment.seq, SlotJob(assignment, self._line))
        try:
            coroutine = task.function(*positional, **keyword)
        except BaseException as error:  # arguments that the function does not take
            self._finish(running, judge(error, assignment.seq, running.job))
            return
        self._begin(running, coroutine).add_done_callback(lambda done: self._done(running, assignment, done))

    def _done(self, running: Running, assignment: Assignment, done: asyncio.Task[Any]) -> None:
        try:
            result = conclude(assignment, done.result())
        except BaseException as error:
            result = judge(error, assignment.seq, running.job)
        self._finish(running, result)

    def _finish(self, running: Running, result: AttemptResult) -> None:
        del self._by_seq[running.seq]
        task_logs.end_lines_of(running.job)
        running.job.flush_progress()
        if not self._by_seq:
            end_left_behind(None)
        running_s = time.monotonic() - running.started_s
        usage = SlotUsage(running.cpu_s, resident_bytes(os.getpid()), 0, 0, running_s)
        self._line.send(Finished([with_usage(result, usage)]))

    # ------------------------------------------------------------------------------------------ what the parent says

    def heard(self, message: channel.ToSlotMessage) -> None:
        """Called by the line for everything but new jobs."""
        match message:
            case channel.SoftLimit(seq, reason):
                if (running := self._by_seq.get(seq)) is not None:
                    running.tell(reason)
            case channel.EndAttempt(seq):
                if (running := self._by_seq.get(seq)) is not None:
                    running.end()
            case channel.StillMineAnswer(seq, held):
                if (running := self._by_seq.get(seq)) is not None:
                    running.job.answered(held)
            case _:
                pass
