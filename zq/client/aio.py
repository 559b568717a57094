"""The client for asyncio: one connection, any number of questions under way, no task and no thread behind it.

The socket's descriptor is watched with `loop.add_reader`; whatever it brings resolves futures. Submits that are made in
the same turn of the loop travel in one SUBMIT, so that a thousand `gather`ed submits cost one commit, not a thousand.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, TypeVar

from zq import config as configuration
from zq.client import answers, verbs
from zq.client.blocking import IN_FLIGHT_MAX, NO_LIMIT_S
from zq.client.follow import AsyncFollow
from zq.client.job import AsyncJob
from zq.client.link import make_link
from zq.client.requests import Encoded, JobIdLike, JobRequest, KeyPolicyName, encode, encode_all, raw_id
from zq.client.session import GivenUp, Question
from zq.client.wire import Outcome, Wire
from zq.config import Config
from zq.exceptions import Invalid, Unavailable, ZqError
from zq.protocol import limits, messages
from zq.protocol.job import State, new_job_id
from zq.protocol.messages import (
    BrokerInfo,
    BrokerMessage,
    Change,
    Events,
    HourInfo,
    JobDetail,
    QueueInfo,
    Receipt,
    Register,
    RegisterSet,
    Role,
    Why,
)

T = TypeVar("T")


class AsyncClient:
    """`zq.Client` for asyncio: the same names, to be awaited. Belongs to the loop it is first used in.

    Cancelling a call forgets its answer; a job that was submitted may be accepted all the same.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        broker: str | None = None,
        key: str | os.PathLike[str] | None = None,
        timeout_s: float | None = None,
        role: Role | str | None = None,
        instance: str | None = None,
    ) -> None:
        self.config = config if config is not None else configuration.load()
        self.timeout_s = timeout_s if timeout_s is not None else self.config.client.timeout_s
        self._link = make_link(self.config, broker, key, role, instance)
        self._wire: Wire | None = None
        self._closed = False
        self._batch: list[tuple[Encoded, asyncio.Future[Receipt]]] = []

    @property
    def address(self) -> str:
        return self._link.address

    async def submit(
        self,
        task: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        queue: str,
        id: JobIdLike | None = None,
        priority: int = limits.PRIORITY_DEFAULT,
        countdown: float | None = None,
        eta: datetime | None = None,
        expires_s: float | None = None,
        max_retries: int = 3,
        backoff_s: float = 60.0,
        soft_time_limit_s: float | None = None,
        time_limit_s: float | None = None,
        key: str = "",
        trace: str = "",
        key_policy: KeyPolicyName = "refuse",
        concurrency_key: str = "",
        concurrency_limit: int = 1,
        tags: Sequence[str] = (),
        disk_bytes: int = 0,
        memory_bytes: int = 0,
        memory_limit_bytes: int = 0,
        stall_after_s: float | None = None,
    ) -> AsyncJob[Any]:
        """As `Client.submit`. Raises Invalid, Unavailable, Refused, Conflict."""
        return await self.submit_request(
            JobRequest(
                task=task,
                queue=queue,
                args=args,
                kwargs=kwargs,
                id=id if id is not None else new_job_id(),
                priority=priority,
                countdown=countdown,
                eta=eta,
                expires_s=expires_s,
                max_retries=max_retries,
                backoff_s=backoff_s,
                soft_time_limit_s=soft_time_limit_s,
                time_limit_s=time_limit_s,
                key=key,
                trace=trace,
                key_policy=key_policy,
                concurrency_key=concurrency_key,
                concurrency_limit=concurrency_limit,
                tags=tags,
                disk_bytes=disk_bytes,
                memory_bytes=memory_bytes,
                memory_limit_bytes=memory_limit_bytes,
                stall_after_s=stall_after_s,
            )
        )

    async def submit_request(self, request: JobRequest) -> AsyncJob[Any]:
        """As `submit`. The same request again is the same job."""
        encoded = encode(request, self.config.worker)
        wire = self._open_wire()
        future: asyncio.Future[Receipt] = wire.loop.create_future()
        if not self._batch:
            wire.loop.call_soon(self._send_batch)
        self._batch.append((encoded, future))
        try:
            receipt = await future
        except Unavailable as error:
            raise Unavailable(f"{error}{answers.unknown_outcome(encoded.id)}") from None
        return AsyncJob(self, answers.check_receipt(receipt).job_id, receipt)

    async def submit_many(self, requests: Iterable[JobRequest]) -> list[Receipt]:
        """As `Client.submit_many`: one receipt each, in their order."""
        return await self._call(verbs.submit(encode_all(requests, self.config.worker)))

    def job(self, id: JobIdLike) -> AsyncJob[Any]:
        """A handle; nothing is asked yet."""
        return AsyncJob(self, raw_id(id))

    async def queues(self) -> list[QueueInfo]:
        return await self._call(verbs.queues())

    async def set_queue(
        self,
        queue: str,
        *,
        paused: bool | None = None,
        rate_per_s: float | None = None,
        running_max: int | None = None,
        length_max: int | None = None,
    ) -> QueueInfo:
        """As `Client.set_queue`: None leaves a setting as it is, 0 takes a limit away. Needs the role "admin"."""
        return await self._call(verbs.set_queue(queue, paused, rate_per_s, running_max, length_max))

    async def pause(self, queue: str) -> QueueInfo:
        return await self.set_queue(queue, paused=True)

    async def resume(self, queue: str) -> QueueInfo:
        return await self.set_queue(queue, paused=False)

    async def hours(self, queue: str, since_ms: int = 0, limit: int = 100) -> list[HourInfo]:
        """As `Client.hours`."""
        return await self._call(verbs.hours(queue, since_ms, limit))

    async def registers(self, prefix: str = "") -> list[Register]:
        """As `Client.registers`."""
        return await self._call(verbs.registers(prefix))

    async def set_registers(self, registers: Sequence[Register]) -> list[RegisterSet]:
        """As `Client.set_registers`: each only as the revision after the one that is there."""
        return await self._call(verbs.set_registers(registers))

    async def jobs(
        self,
        queue: str = "",
        state: State | str = State.READY,
        after: bytes = b"",
        limit: int = 100,
        with_specs: bool = False,
    ) -> verbs.JobPage:
        """One page of the jobs in a state; of all queues without `queue`. `with_specs` brings their arguments too."""
        return await self._call(verbs.jobs(queue, state, after, limit, with_specs))

    async def detail(self, id: JobIdLike) -> JobDetail:
        """Raises Refused(NOT_FOUND) for a job that never was or is not kept any more."""
        return await self._call(verbs.detail(id))

    async def details(self, ids: Sequence[JobIdLike]) -> list[JobDetail | None]:
        """Several at once; None for each that never was or is not kept any more."""
        return await self._call(verbs.details(ids))

    async def why(self, id: JobIdLike) -> Why:
        """The first thing that keeps this job from running. Raises Refused(NOT_FOUND)."""
        return await self._call(verbs.why(id))

    async def events(
        self, after: int = 0, queue: str = "", job_id: JobIdLike | None = None, wait_s: float = 0.0, limit: int = 500
    ) -> Events:
        """As `Client.events`."""
        return await self._call(verbs.events(after, queue, job_id, wait_s, limit), wait_s)

    def follow(self, after: int | None = None, queue: str = "", job_id: JobIdLike | None = None) -> AsyncFollow:
        """As `Client.follow`, for `async for`."""
        verbs.events(after or 0, queue, job_id, 0.0, 1)
        return AsyncFollow(self, after, queue, job_id)

    async def workers(self) -> verbs.WorkerList:
        return await self._call(verbs.workers())

    async def broker(self) -> BrokerInfo:
        return await self._call(verbs.broker())

    async def cancel(self, ids: Sequence[JobIdLike]) -> list[Change]:
        """One change each. A running job is told to stop; its state changes when it has."""
        return await self._call(verbs.cancel(ids))

    async def retry(self, ids: Sequence[JobIdLike]) -> list[Change]:
        """Run dead, cancelled or expired jobs again, their attempts forgotten."""
        return await self._call(verbs.retry(ids))

    async def drop(self, ids: Sequence[JobIdLike]) -> list[Change]:
        """Forget ended jobs now, with their results and errors. Needs the role "admin". One change each."""
        return await self._call(verbs.drop(ids))

    async def wait(self, id: JobIdLike, timeout_s: float | None = None) -> messages.Ended | None:
        """As `Client.wait`: how the job ended; None if it has not within `timeout_s`."""
        if timeout_s is not None and timeout_s <= 0:
            return verbs.ended_from(await self.detail(id))
        limit_s = min(timeout_s if timeout_s is not None else NO_LIMIT_S, NO_LIMIT_S)
        call = verbs.wait(id, limit_s)
        [question] = call.questions
        outcome = await self._ask(question, limit_s)
        if isinstance(outcome, GivenUp):
            return None
        return call.read([outcome])

    async def result(self, id: JobIdLike, timeout_s: float | None = None) -> Any:
        """What the job returned. Raises ResultTimeout, JobFailed, Unavailable, Refused(NOT_FOUND)."""
        ended = await self.wait(id, timeout_s)
        if ended is None:
            raise answers.not_ended(raw_id(id), timeout_s or 0)
        return answers.value_of(ended)

    async def close(self) -> None:
        """Idempotent. Calls that are under way raise Unavailable. Takes at most half a second."""
        self._closed = True
        if self._wire is not None:
            wire, self._wire = self._wire, None
            wire.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<zq.AsyncClient {self._link.address}>"

    async def _call(self, call: verbs.Call[T], takes_s: float = 0.0) -> T:
        found: list[BrokerMessage] = []
        asked: deque[asyncio.Future[Outcome]] = deque()
        try:
            for question in call.questions:
                if asked:
                    await asyncio.sleep(0)  # the one before goes out, and the loop's other tasks get their turn
                if len(asked) >= IN_FLIGHT_MAX:
                    found.append(_no_wait(await asked.popleft()))
                asked.append(self._ask(question, self.timeout_s + takes_s))
            while asked:
                found.append(_no_wait(await asked.popleft()))
        finally:
            for answer in asked:
                if not answer.cancel():
                    answer.exception()  # looked at: asyncio complains of those that nobody does
        return call.read(found)

    def _ask(self, question: Question, limit_s: float) -> asyncio.Future[Outcome]:
        return self._open_wire().ask(question, limit_s, min(self.timeout_s, limit_s))

    def _open_wire(self) -> Wire:
        if self._closed:
            raise Invalid("this client is closed; make another one")
        loop = asyncio.get_running_loop()
        if self._wire is None:
            self._wire = Wire(self._link, loop)
        elif self._wire.loop is not loop:
            raise Invalid("this AsyncClient belongs to another event loop; make one for each loop")
        return self._wire

    def _send_batch(self) -> None:
        """Send the submits of this turn of the loop together."""
        batch = [(encoded, future) for encoded, future in self._batch if not future.done()]
        self._batch = []
        futures = iter([future for _, future in batch])
        for ids, question in verbs.submit_parts(encoded for encoded, _ in batch):
            waiting = list(itertools.islice(futures, len(ids)))
            try:
                wire = self._open_wire()
                wire.ask_then(question, self.timeout_s, self.timeout_s, functools.partial(_deliver, ids, waiting))
            except ZqError as error:
                _fail(waiting, error)
            else:
                wire.turn()


def _no_wait(outcome: Outcome) -> BrokerMessage:
    assert not isinstance(outcome, GivenUp)  # that is for WAITs
    return outcome


def _deliver(ids: Sequence[bytes], futures: Sequence[asyncio.Future[Receipt]], answer: Outcome | Unavailable) -> None:
    if isinstance(answer, Unavailable):
        _fail(futures, answer)
        return
    for future, receipt in zip(futures, verbs.receipts_of(ids, answer), strict=True):
        if not future.done():
            future.set_result(receipt)


def _fail(futures: Sequence[asyncio.Future[Receipt]], error: ZqError) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
