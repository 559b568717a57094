"""Handles: a job that was submitted, or is known by its id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar, cast

from zq.client.requests import JobIdLike
from zq.protocol.job import State, format_id
from zq.protocol.messages import Change, EventInfo, JobDetail, Receipt, ReceiptStatus, Why

R = TypeVar("R")


class _Asks(Protocol):
    def detail(self, id: JobIdLike) -> JobDetail: ...
    def result(self, id: JobIdLike, timeout_s: float | None = None) -> Any: ...
    def cancel(self, ids: Sequence[JobIdLike]) -> list[Change]: ...
    def why(self, id: JobIdLike) -> Why: ...


class _AsksAsync(Protocol):
    async def detail(self, id: JobIdLike) -> JobDetail: ...
    async def result(self, id: JobIdLike, timeout_s: float | None = None) -> Any: ...
    async def cancel(self, ids: Sequence[JobIdLike]) -> list[Change]: ...
    async def why(self, id: JobIdLike) -> Why: ...


class JobHandle:
    """What both kinds of handles are: a job's id, and the receipt if this process submitted it."""

    def __init__(self, raw_id: bytes, receipt: Receipt | None = None) -> None:
        self.raw_id = raw_id
        self.receipt = receipt

    @property
    def id(self) -> str:
        return format_id(self.raw_id)

    @property
    def deduplicated(self) -> bool:
        """The submit found a live job with the same key: this is that job."""
        return self.receipt is not None and self.receipt.status is ReceiptStatus.KEY_TAKEN

    @property
    def warnings(self) -> list[str]:
        """What the broker found odd about the submit, such as a queue that no worker serves."""
        return list(self.receipt.warnings) if self.receipt is not None else []

    def __repr__(self) -> str:
        return f"<zq job {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JobHandle) and other.raw_id == self.raw_id

    def __hash__(self) -> int:
        return hash(self.raw_id)


class Job(JobHandle, Generic[R]):
    """A job, asked about through a `Client`."""

    def __init__(self, client: _Asks, raw_id: bytes, receipt: Receipt | None = None) -> None:
        super().__init__(raw_id, receipt)
        self._client = client

    def state(self) -> State:
        return self.detail().job.state

    def detail(self) -> JobDetail:
        """All that the broker knows of it: attempts, progress, usage, error."""
        return self._client.detail(self.raw_id)

    def history(self) -> list[EventInfo]:
        """Every step of it, with time, worker, attempt and reason, oldest first, as far as they are kept."""
        return self.detail().history

    def why(self) -> Why:
        """The first thing that keeps it from running."""
        return self._client.why(self.raw_id)

    def result(self, timeout_s: float | None = None) -> R:
        """What the task returned, waiting for it. Raises ResultTimeout, JobFailed, Unavailable, Refused(NOT_FOUND)."""
        return cast(R, self._client.result(self.raw_id, timeout_s))

    def cancel(self) -> Change:
        return self._client.cancel([self.raw_id])[0]


class AsyncJob(JobHandle, Generic[R]):
    """A job, asked about through an `AsyncClient`."""

    def __init__(self, client: _AsksAsync, raw_id: bytes, receipt: Receipt | None = None) -> None:
        super().__init__(raw_id, receipt)
        self._client = client

    async def state(self) -> State:
        return (await self.detail()).job.state

    async def detail(self) -> JobDetail:
        """All that the broker knows of it: attempts, progress, usage, error."""
        return await self._client.detail(self.raw_id)

    async def history(self) -> list[EventInfo]:
        """Every step of it, with time, worker, attempt and reason, oldest first, as far as they are kept."""
        return (await self.detail()).history

    async def why(self) -> Why:
        """The first thing that keeps it from running."""
        return await self._client.why(self.raw_id)

    async def result(self, timeout_s: float | None = None) -> R:
        """What the task returned, waiting for it. Raises ResultTimeout, JobFailed, Unavailable, Refused(NOT_FOUND)."""
        return cast(R, await self._client.result(self.raw_id, timeout_s))

    async def cancel(self) -> Change:
        return (await self._client.cancel([self.raw_id]))[0]
