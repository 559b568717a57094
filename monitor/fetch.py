"""Asking the broker: one snapshot at a time, with the little that has to be remembered between two."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from zq.client.arguments import arguments_of
from zq.exceptions import Refused
from zq.monitor.model import Query, Snapshot
from zq.monitor.units import size
from zq.protocol.job import State
from zq.protocol.messages import BrokerInfo, Change, JobDetail, JobInfo, QueueInfo, Why, WorkerInfo

JOBS_SHOWN_MAX = 200
"""Of the job pane's page: more than a screen holds, and little to send every second."""
ARGUMENTS_KEPT_MAX = 2_000
SPECS_PER_SNAPSHOT = 16
"""Specifications asked for at once; a full page is known after some seconds."""
SPEC_BYTES_MAX = 32 << 10
"""Specifications that are larger are not fetched for the sake of one line."""


class Page(Protocol):
    @property
    def jobs(self) -> Sequence[JobInfo]: ...
    @property
    def next(self) -> bytes: ...


class Asks(Protocol):
    """The part of `zq.AsyncClient` that a monitor needs. Raises Unavailable and Refused."""

    async def broker(self) -> BrokerInfo: ...
    async def queues(self) -> list[QueueInfo]: ...
    async def workers(self) -> list[WorkerInfo]: ...
    async def jobs(self, queue: str = "", state: State = ..., after: bytes = b"", limit: int = 100) -> Page: ...
    async def detail(self, id: bytes) -> JobDetail: ...
    async def cancel(self, ids: Sequence[bytes]) -> list[Change]: ...
    async def retry(self, ids: Sequence[bytes]) -> list[Change]: ...
    async def why(self, id: bytes) -> Why: ...
    async def set_queue(self, queue: str, *, paused: bool) -> QueueInfo: ...
    async def close(self) -> None: ...


class Source(Protocol):
    """Where the screen gets its data and sends its orders."""

    async def snapshot(self, query: Query) -> Snapshot: ...
    async def detail(self, job_id: bytes) -> JobDetail: ...
    async def why(self, job_id: bytes) -> Why: ...
    async def change(self, verb: Literal["cancel", "retry"], job_id: bytes) -> Change: ...
    async def pause(self, queue: str, paused: bool) -> QueueInfo: ...
    async def close(self) -> None: ...


class Fetcher:
    """A Source on the broker. `actor` makes the client that may change jobs; it is made when it is first needed.

    Two clients, because a key of the monitor role may look and not touch.
    """

    def __init__(
        self, reader: Asks, actor: Callable[[], Asks] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._reader = reader
        self._make_actor = actor
        self._actor: Asks | None = None
        self._clock = clock
        self._arguments: dict[bytes, str] = {}

    async def snapshot(self, query: Query) -> Snapshot:
        """All four answers, or the error of the first that failed."""
        broker, queues, workers, page = await asyncio.gather(
            self._reader.broker(),
            self._reader.queues(),
            self._reader.workers(),
            self._reader.jobs(query.queue, query.state, limit=JOBS_SHOWN_MAX),
        )
        taken_s = self._clock()
        await self._learn(page.jobs)
        known = {job.id: self._arguments[job.id] for job in page.jobs if job.id in self._arguments}
        return Snapshot(taken_s, broker, queues, workers, query, page.jobs, bool(page.next), known)

    async def _learn(self, jobs: Sequence[JobInfo]) -> None:
        """Ask for the specifications of a few jobs that have no key to be told by and are not known yet."""
        unknown = [job for job in jobs if not job.key and job.id not in self._arguments][:SPECS_PER_SNAPSHOT]
        small = [job for job in unknown if job.size_bytes <= SPEC_BYTES_MAX]
        for job in unknown:
            if job.size_bytes > SPEC_BYTES_MAX:
                self._keep(job.id, f"({size(job.size_bytes)} of arguments)")
        found = await asyncio.gather(*(self._reader.detail(job.id) for job in small), return_exceptions=True)
        for job, answer in zip(small, found, strict=True):
            if isinstance(answer, JobDetail):
                self._keep(job.id, arguments_of(answer.spec))
            elif not isinstance(answer, Refused):  # a job that is gone meanwhile is no trouble; silence is
                raise answer

    def _keep(self, job_id: bytes, arguments: str) -> None:
        while len(self._arguments) >= ARGUMENTS_KEPT_MAX:
            del self._arguments[next(iter(self._arguments))]
        self._arguments[job_id] = arguments

    async def detail(self, job_id: bytes) -> JobDetail:
        return await self._reader.detail(job_id)

    async def why(self, job_id: bytes) -> Why:
        return await self._reader.why(job_id)

    async def change(self, verb: Literal["cancel", "retry"], job_id: bytes) -> Change:
        actor = self._acting()
        changes = await (actor.cancel([job_id]) if verb == "cancel" else actor.retry([job_id]))
        return changes[0]

    async def pause(self, queue: str, paused: bool) -> QueueInfo:
        return await self._acting().set_queue(queue, paused=paused)

    def _acting(self) -> Asks:
        if self._actor is None:
            self._actor = self._make_actor() if self._make_actor is not None else self._reader
        return self._actor

    async def close(self) -> None:
        await self._reader.close()
        if self._actor is not None and self._actor is not self._reader:
            await self._actor.close()
