"""The routes that stream: every step of jobs as server-sent events, with a number to resume from."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from zq.exceptions import Refused, Unavailable
from zq.protocol import limits
from zq.protocol.job import ENDED, Cause, State, format_id
from zq.protocol.messages import JobDetail
from zq.web import sse, views
from zq.web.answers import query
from zq.web.auth import Scope
from zq.web.event_feed import News
from zq.web.jobs import path_id
from zq.web.operations import Operation, Parameter
from zq.web.problems import Problem, invalid
from zq.web.services import Services

STREAMS_MAX: Final = 256
BEAT_S: Final = 15.0
PROGRESS_S: Final = 1.0
RETRY_MS: Final = 2_000
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""A proxy that gathers bytes before it passes them on would hold events back."""


class Gap(views.View, frozen=True):
    """Steps before this one have been forgotten, or the journal is another one: look at the whole again."""

    number: int
    """Where the stream goes on."""


class JobEnd(views.View, frozen=True):
    """The last event of a job's stream."""

    id: str
    state: str


class StreamRoutes:
    def __init__(self, services: Services) -> None:
        self._services = services
        # What is open for long must leave room for what is quick.
        self._streams_max = max(1, min(STREAMS_MAX, services.config.web.max_connections // 4))

    async def stream_events(self, request: Request) -> Response:
        queue = query(request, "queue") or ""
        if len(queue) > limits.NAME_CHARS_MAX:
            raise invalid("#/query/queue", f"queue is a name of at most {limits.NAME_CHARS_MAX} characters")
        number = _resume_number(request)
        self._check_room()
        if number is None:
            number = await self._services.events.newest()
        return self._response(request, self._events(number, queue))

    async def stream_job(self, request: Request) -> Response:
        job_id = path_id(request)
        seen = _resume_number(request) or 0
        self._check_room()
        # In this order: a step between the two is in the history, or comes after `newest`.
        newest = await self._services.events.newest()
        detail = await self._services.client.detail(job_id)
        if _state(detail) in ENDED and (not detail.history or detail.history[-1].number <= seen) and seen:
            # It has had all there is: the one answer after which a browser does not come again.
            return Response(status_code=204, headers=_HEADERS)
        return self._response(request, self._job(detail, seen, newest))

    def _check_room(self) -> None:
        if self._services.events.listeners >= self._streams_max:
            detail = f"{self._streams_max} streams are open, the bound set for this server; close one, or ask later"
            raise Problem(503, "busy", detail, retry_after_s=5)

    def _response(self, request: Request, parts: AsyncGenerator[bytes]) -> Response:
        headers = {**_HEADERS, "Content-Type": sse.CONTENT_TYPE}
        if request.method == "HEAD":
            return Response(headers=headers)
        return StreamingResponse(self._stream(parts), headers=headers)

    async def _stream(self, parts: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
        """Until it ends, its reader hangs up, or the server stops. A reader that does not take what it is sent is cut
        off by its connection's write deadline: nothing is gathered for it meanwhile."""
        async with self._services.events.listening(), contextlib.aclosing(parts):
            yield sse.start(RETRY_MS)
            async for part in parts:
                yield part

    async def _events(self, number: int, queue: str) -> AsyncGenerator[bytes]:
        now_s = asyncio.get_running_loop().time
        beat_s = now_s() + BEAT_S
        while not self._services.stopping.is_set():
            news = await self._news(number, queue, b"", beat_s - now_s())
            number = news.last
            part = _steps(news)
            if part or now_s() >= beat_s:
                yield part or sse.beat(number)
                beat_s = now_s() + BEAT_S

    async def _job(self, detail: JobDetail, seen: int, number: int) -> AsyncGenerator[bytes]:
        history = [event for event in detail.history if event.number > seen]
        if seen and history[:1] == detail.history[:1] and history and history[0].cause is not Cause.ACCEPT:
            # Its older history is not shown, and what the reader has may end in there.
            yield sse.event(Gap(number=history[0].number - 1), kind="gap")
        for event in history:
            yield sse.event(views.event_view(event), number=event.number)
        number = max([number, *(event.number for event in history[-1:])])
        now_s = asyncio.get_running_loop().time
        job_id, state, shown = detail.job.id, _state(detail), None
        beat_s, look_s = now_s() + BEAT_S, now_s()
        while state not in ENDED and not self._services.stopping.is_set():
            wake_s = min(beat_s, look_s) if state is State.RUNNING else beat_s
            news = await self._news(number, "", job_id, wake_s - now_s())
            number = news.last
            part = _steps(news)
            state = news.events[-1].state if news.events else state
            if state is State.RUNNING and now_s() >= look_s:
                progress = await self._progress(job_id)
                if progress is not None and progress != shown:
                    shown = progress
                    part += sse.event(progress, kind="progress")
                look_s = now_s() + PROGRESS_S
            if part or now_s() >= beat_s:
                yield part or sse.beat(number)
                beat_s = now_s() + BEAT_S
        if state in ENDED:
            yield sse.event(JobEnd(id=format_id(job_id), state=state.label), kind="end")

    async def _progress(self, job_id: bytes) -> views.ProgressView | None:
        """What the running attempt says of itself. It is not in the journal, so it is looked for."""
        try:
            return views.job_row((await self._services.client.detail(job_id)).job).progress
        except (Refused, Unavailable):
            return None

    async def _news(self, number: int, queue: str, job_id: bytes, within_s: float) -> News:
        """What comes next; nothing, when the time is over or the server stops."""
        asked = asyncio.ensure_future(self._services.events.after(number, queue, job_id))
        stop = asyncio.ensure_future(self._services.stopping.wait())
        try:
            await asyncio.wait([asked, stop], timeout=max(within_s, 0.0), return_when=asyncio.FIRST_COMPLETED)
            return asked.result() if asked.done() else News((), number)
        finally:
            for task in (asked, stop):
                task.cancel()
            await asyncio.gather(asked, stop, return_exceptions=True)

    def operations(self) -> list[Operation]:
        resume = (
            Parameter("Last-Event-ID", "`id:` of the last event that was read: the stream goes on after it", "header"),
            Parameter("after", "The same, for who cannot send headers", type=int),
        )
        queue = Parameter("queue", "Only of this queue; of all without it")
        return [
            Operation(
                "GET", "/v1/events", self.stream_events, "Every step of jobs from now on, or from a number (SSE)",
                Scope.READ, media_type=sse.CONTENT_TYPE, parameters=(queue, *resume), errors=(422, 429, 503),
            ),
            Operation(
                "GET", "/v1/jobs/{id}/events", self.stream_job, "A job's steps and progress until it ends (SSE)",
                Scope.READ, media_type=sse.CONTENT_TYPE, answers=((200, None), (204, None)), parameters=resume,
                errors=(404, 422, 429, 503),
            ),
        ]  # fmt: skip


def _resume_number(request: Request) -> int | None:
    """Raises Problem."""
    header = request.headers.get("last-event-id")
    where, text = ("#/header/last-event-id", header) if header else ("#/query/after", query(request, "after"))
    try:
        return sse.resume_number(text)
    except ValueError as error:
        raise invalid(where, str(error)) from None


def _state(detail: JobDetail) -> State:
    """As its history has it: the job itself may be a step ahead of what has been told of it."""
    return detail.history[-1].state if detail.history else detail.job.state


def _steps(news: News) -> bytes:
    parts = [sse.event(views.event_view(event), number=event.number) for event in news.events]
    if news.gap:
        gap = Gap(number=news.events[0].number - 1 if news.events else news.last)
        parts.insert(0, sse.event(gap, number=gap.number, kind="gap"))
    return b"".join(parts)
