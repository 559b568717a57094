"""For tests of your own tasks: no broker process, no worker process, no waiting.

    def test_thumbnail(tmp_path):
        assert zq.testing.run(thumbnail, str(tmp_path / "a.png"), width_px=64) == "…"

    def test_upload_submits_a_thumbnail():
        with zq.testing.memory(app) as broker:
            upload("a.png")                            # calls thumbnail.delay(…) somewhere inside
            assert broker.queues()[0].ready == 1
            broker.run_all()
            assert broker.queues()[0].done == 1

What runs here is what runs in production: the broker's own core on its memory journal, and the worker's own job
context, so `publish` writes files and `run_process` runs programs. What is not here: separate processes, time limits
and the network. The clock jumps: a delay or a retry's backoff is over as soon as nothing else is left to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import msgspec

from zq import payload, registry
from zq.app import App, Task
from zq.broker.core import Core, Settings
from zq.broker.memory_journal import MemoryJournal
from zq.client.blocking import BlockingCalls
from zq.client.session import GivenUp, Question
from zq.config import Config
from zq.context import JobContext, current_job, set_current_job
from zq.exceptions import LeaseLost, Reject, Retry, SoftTimeLimitExceeded
from zq.protocol import limits, messages
from zq.protocol.job import Outcome, decode_spec, format_id, new_job_id
from zq.protocol.messages import BrokerMessage, PeerMessage
from zq.workers.channel import Assignment, FromSlotMessage
from zq.workers.job_context import SlotJob
from zq.workers.line import Line

P = ParamSpec("P")
R = TypeVar("R")

RUNS_MAX = 10_000
"""Attempts of one `run_all`: a task that submits itself for ever ends here."""


class _MemoryLine(Line):
    """The slot's channel with its parent played here. Nothing is ever read from the socket; programs poll it."""

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        super().__init__(self._near, tickets=-1)  # no batches here, so no tickets
        self.mine = True
        self.soft_limit_passed = False

    def close(self) -> None:
        self._near.close()
        self._far.close()

    @property
    def soft_reason(self) -> str | None:
        return "the soft limit has passed" if self.soft_limit_passed else None

    def soft_limit_due(self) -> bool:
        return self.soft_limit_passed

    def raise_if_due(self) -> None:
        if self._shields == 0 and self.soft_limit_passed:
            raise SoftTimeLimitExceeded("the soft limit has passed")

    def send(self, message: FromSlotMessage) -> None:
        pass

    def send_if_free(self, message: FromSlotMessage) -> bool:
        return True

    def wait_answer(self, seq: int) -> bool | None:
        return self.mine


class TestJob(SlotJob):
    """The job a task under test runs for: what it reported, and switches for what may happen to it."""

    __test__ = False  # pytest: this is no test class

    def __init__(self, assignment: Assignment, line: _MemoryLine) -> None:
        super().__init__(assignment, line)
        self._memory_line = line
        self.reported: list[tuple[float, float, str]] = []
        """Every call of `progress`: (done, total, message)."""

    def progress(self, done: float, total: float, message: str = "") -> None:
        super().progress(done, total, message)
        self.reported.append((float(done), float(total), message))

    async def still_mine_async(self) -> None:
        if not self._memory_line.mine:
            raise self._lost()

    def pass_soft_limit(self) -> None:
        """From now on `check_soft_limit` raises, and a program that runs is ended."""
        self._memory_line.soft_limit_passed = True

    def lose_lease(self) -> None:
        """From now on `still_mine` and `publish` raise LeaseLost."""
        self._memory_line.mine = False


@contextlib.contextmanager
def job(task: str = "test", queue: str = "test", attempt: int = 1, id: str | None = None) -> Iterator[TestJob]:
    """In this block `zq.current_job()` is the job that is yielded. In the main thread, as in a worker."""
    line = _MemoryLine()
    assignment = Assignment(1, id or format_id(new_job_id()), attempt, task, queue, b"", 1500.0, 2.0)
    current = TestJob(assignment, line)
    try:
        before: JobContext | None = current_job()
    except RuntimeError:
        before = None
    set_current_job(current)
    try:
        yield current
    finally:
        set_current_job(before)
        line.close()


def run(task: Task[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a task once as a worker would, and return or raise what it does.

    Arguments and result go through their encoding: what could not travel raises PayloadError, tuples become lists.
    """
    positional, keyword = payload.decode_arguments(payload.encode_arguments(args, kwargs))
    with job(task.name, task.options.queue):
        value = _value(task.function, positional, keyword)
    result: R = payload.decode_result(payload.encode_result(value))
    return result


async def run_async(task: Task[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """The same from a test that is async itself."""
    positional, keyword = payload.decode_arguments(payload.encode_arguments(args, kwargs))
    with job(task.name, task.options.queue):
        value: Any = task.function(*positional, **keyword)
        if inspect.isawaitable(value):
            value = await value
    result: R = payload.decode_result(payload.encode_result(value))
    return result


def _value(function: Callable[..., Any], positional: Sequence[Any], keyword: Mapping[str, Any]) -> Any:
    if inspect.iscoroutinefunction(function):
        return asyncio.run(function(*positional, **keyword))
    return function(*positional, **keyword)


@contextlib.contextmanager
def memory(*apps: App) -> Iterator[MemoryBroker]:
    """In this block these apps submit to a broker in memory, which is yielded."""
    broker = MemoryBroker()
    with contextlib.ExitStack() as stack:
        for app in apps:
            stack.enter_context(app.using(broker))
        yield broker


class MemoryBroker(BlockingCalls):
    """A broker, a worker that knows every task this process has imported, and the client to both: all of `zq.Client`.

    Jobs run when `run_all` is called, and while `result()` or `wait()` waits. Not for several threads.
    """

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config if config is not None else Config())
        self.ran: list[TestJob] = []
        """Every attempt that was run, in order."""
        self._journal = MemoryJournal()
        self._skipped_ms = 0
        self._core = Core(self._journal, 1, self.now_ms(), Settings())
        self._heard: dict[bytes, list[BrokerMessage]] = {}
        """What the core has said to each of our connections."""
        self._connections = 0
        self._tags: dict[str, None] = {}
        """What jobs have asked for, in the order in which it was first asked; the worker here has it all."""

    def now_ms(self) -> int:
        """The broker's time: the real one, plus what was skipped."""
        return int(time.time() * 1000) + self._skipped_ms

    def advance(self, seconds: float) -> None:
        """Let time pass for the broker: delays, expiries, retention."""
        self._skipped_ms += int(seconds * 1000)
        self._round([])

    def run_all(self) -> int:
        """Run what is due, then skip to what is due next, until no job waits; the number of attempts."""
        return self._run_until(lambda: False, float("inf"))

    def close(self) -> None:
        """Nothing to close; here so that it can stand where a client does."""

    # ------------------------------------------------------------------------------------------ the client's side

    def _exchange(self, questions: Iterable[Question], limit_s: float) -> list[BrokerMessage | GivenUp]:
        """On a connection of its own: a task that runs meanwhile may ask and submit too."""
        with self._connected(messages.Role.ADMIN) as (peer, session):
            return [self._ask(peer, session, number, one, limit_s) for number, one in enumerate(questions, 1)]

    def _ask(
        self, peer: bytes, session: int, number: int, question: Question, limit_s: float
    ) -> BrokerMessage | GivenUp:
        def answer() -> BrokerMessage | None:
            return next((one for one in self._heard[peer] if getattr(one, "request", 0) == number), None)

        if isinstance(question, messages.Submit):
            self._tags |= dict.fromkeys(tag for spec in question.jobs for tag in decode_spec(spec).tags)
        self._say(peer, msgspec.structs.replace(question, session=session, request=number))
        self._run_until(lambda: answer() is not None, limit_s)
        if answer() is None and isinstance(question, messages.AskEvents):
            self.advance(question.wait_ms / 1000)  # nothing more will happen: the time of the wait is over
        return answer() or GivenUp(number, in_contact=True)

    # ------------------------------------------------------------------------------------------ the worker's side

    def _run_until(self, done: Callable[[], bool], limit_s: float) -> int:
        give_up_ms = self.now_ms() + limit_s * 1000
        runs = 0
        while not done() and runs < RUNS_MAX:
            if self._run_one():
                runs += 1
                continue
            due_ms = min([*(row.due_ms for row in self._scheduled()), *self._rates_due()], default=None)
            if due_ms is None or due_ms > give_up_ms:
                break
            self._skipped_ms += max(int(due_ms) - self.now_ms(), 0) + 1
        return runs

    def _scheduled(self) -> Sequence[messages.JobInfo]:
        return self.jobs("", "scheduled", limit=limits.PAGE_ROWS_MAX).jobs

    def _rates_due(self) -> list[float]:
        """When queues with a rate, whose next job has to wait for it, may start that."""
        now_ms = self.now_ms()
        queues = [self._core.queues.get(info.name) for info in self.queues() if info.ready and not info.paused]
        return [q.next_dispatch_ms for q in queues if q.settings.rate_per_s and q.next_dispatch_ms > now_ms]

    def _run_one(self) -> bool:
        """Take one lease as a worker with one slot does, run it, acknowledge it."""
        queues = [messages.QueueSlots(queue.name, 1) for queue in self.queues() if queue.ready or queue.scheduled]
        for slots in queues[: limits.QUEUES_PER_WORKER_MAX]:
            with self._connected(messages.Role.WORKER, [slots]) as (peer, session):
                self._say(peer, messages.Resume(session, []))
                self._say(peer, messages.Credit(session, [slots]))
                given = [message for message in self._heard[peer] if isinstance(message, messages.Dispatch)]
                if given:
                    self._say(peer, messages.Ack(session, [self._attempt(given[0].leases[0])]))
                    return True
        return False

    def _attempt(self, lease: messages.Lease) -> messages.Result:
        spec = decode_spec(lease.spec)
        with job(spec.task, spec.queue, lease.attempt, format_id(lease.job_id)) as current:
            self.ran.append(current)
            outcome, result, error, after_ms = _run(spec.task, spec.arguments)
        return messages.Result(lease.job_id, lease.attempt, lease.token, outcome, result, error, after_ms)

    # ------------------------------------------------------------------------------------------ the core's side

    @contextlib.contextmanager
    def _connected(
        self, role: messages.Role, queues: Sequence[messages.QueueSlots] = ()
    ) -> Iterator[tuple[bytes, int]]:
        self._connections += 1
        name = f"memory-{self._connections}"
        peer = name.encode()
        self._heard[peer] = []
        version = messages.PROTOCOL_VERSION
        tags = list(self._tags)[-limits.WORKER_TAGS_MAX :] if role is messages.Role.WORKER else []
        self._say(peer, messages.Hello(version, version, role, name, os.urandom(16), list(queues), tags=tags))
        welcome = self._heard[peer][0]
        assert isinstance(welcome, messages.Welcome)
        try:
            yield peer, welcome.session
        finally:
            self._say(peer, messages.Bye(welcome.session))
            del self._heard[peer]

    def _say(self, peer: bytes, message: PeerMessage) -> None:
        self._round([(peer, message)])

    def _round(self, said: Sequence[tuple[bytes, PeerMessage]]) -> None:
        now_ms = self.now_ms()
        for peer, message in said:
            self._core.receive(peer, None, message, now_ms)
        self._core.advance(now_ms)
        batch = self._core.batch()
        if batch.steps or batch.notes:
            self._journal.commit(batch.steps, now_ms, batch.notes)
        events = self._core.committed(now_ms)
        for peer, answer in [*batch.sends, *events]:
            if peer in self._heard:
                self._heard[peer].append(answer)


def _run(task: str, arguments: bytes) -> tuple[Outcome, bytes, str, int]:
    """One attempt: its outcome, result, error, and the retry delay that the task asked for (−1: none)."""
    known = registry.lookup(task)
    if known is None:
        names = ", ".join(registry.names()) or "none"
        return Outcome.REJECTED, b"", f"no task '{task}' was imported here; there are: {names}", -1
    try:
        positional, keyword = payload.decode_arguments(arguments)
        value = _value(known.function, positional, keyword)
    except Reject as error:
        return Outcome.REJECTED, b"", str(error), -1
    except Retry as error:
        after_ms = -1 if error.after_s is None else max(round(error.after_s * 1000), 0)
        return Outcome.FAILED, b"", str(error), after_ms
    except LeaseLost as error:
        return Outcome.FAILED, b"", f"LeaseLost: {error}", -1
    except Exception as error:
        text = f"{type(error).__qualname__}: {error}\n{traceback.format_exc()}"
        return Outcome.FAILED, b"", text[: limits.ERROR_CHARS_MAX], -1
    try:
        return Outcome.DONE, payload.encode_result(value), "", -1
    except payload.PayloadError as error:
        return Outcome.REJECTED, b"", f"task '{task}' returned what cannot be kept: {error}", -1
