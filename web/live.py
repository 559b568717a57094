"""The routes that the page alone uses: its live picture, the points of its charts, what a job has used.

They are no part of the API: they may change with the page.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from zq.exceptions import Refused, Unavailable
from zq.protocol import limits
from zq.protocol.job import State, format_id
from zq.web import sse, views
from zq.web.answers import json_response, query, whole_number
from zq.web.auth import Scope
from zq.web.history import ALL, KEPT_MS, STEP_MS
from zq.web.job_usage import UsagePoint
from zq.web.jobs import path_id
from zq.web.operations import Operation
from zq.web.problems import Problem, invalid
from zq.web.services import Services, now_ms
from zq.web.streams import STREAMS_MAX
from zq.web.watch import Watch

AT_MOST_EVERY_S: Final = 1.0
AT_LEAST_EVERY_S: Final = 5.0
"""Ages grow though nothing happens."""
RETRY_MS: Final = 2_000
SPAN_S_DEFAULT: Final = 3600
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class JobUsageView(views.View, frozen=True):
    id: str
    attempt: int
    """0 if nothing has been seen of it since this server's start."""
    points: list[UsagePoint]


class LiveRoutes:
    def __init__(self, services: Services, watch: Watch) -> None:
        self._services = services
        self._watch = watch
        self._streams_max = max(1, min(STREAMS_MAX, services.config.web.max_connections // 4))

    async def live(self, request: Request) -> Response:
        if self._services.events.listeners >= self._streams_max:
            detail = f"{self._streams_max} streams are open, the bound set for this server; close a page, or wait"
            raise Problem(503, "busy", detail, retry_after_s=5)
        headers = {**_HEADERS, "Content-Type": sse.CONTENT_TYPE}
        if request.method == "HEAD":
            return Response(headers=headers)
        return StreamingResponse(self._pictures(), headers=headers)

    async def _pictures(self) -> AsyncIterator[bytes]:
        """A new picture when something has happened, at most once a second, and every five seconds anyway."""
        stopping = self._services.stopping
        time_s = asyncio.get_running_loop().time
        number: int | None = None
        async with self._services.events.listening():
            yield sse.start(RETRY_MS)
            if self._watch.newest is not None:
                yield sse.event(self._watch.newest, kind="picture")
            while not stopping.is_set():
                began_s = time_s()
                if number is None:
                    with contextlib.suppress(Unavailable, Refused):
                        number = await self._services.events.newest()
                yield sse.event(await self._watch.picture(began_s), kind="picture")
                shown_s = time_s()
                number = await self._until_news(number)
                rest_s = AT_MOST_EVERY_S - (time_s() - shown_s)
                if rest_s > 0:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(stopping.wait(), rest_s)

    async def _until_news(self, number: int | None) -> int | None:
        stop = asyncio.ensure_future(self._services.stopping.wait())
        waited: list[asyncio.Future[Any]] = [stop]
        asked = None
        if number is not None:
            asked = asyncio.ensure_future(self._services.events.after(number))
            waited.append(asked)
        try:
            await asyncio.wait(waited, timeout=AT_LEAST_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
            return asked.result().last if asked is not None and asked.done() else number
        finally:
            for task in waited:
                task.cancel()
            await asyncio.gather(*waited, return_exceptions=True)

    async def chart(self, request: Request) -> Response:
        queue = query(request, "queue") or ALL
        if len(queue) > limits.NAME_CHARS_MAX:
            raise invalid("#/query/queue", f"queue is a name of at most {limits.NAME_CHARS_MAX} characters")
        span_s = whole_number(request, "span_s", SPAN_S_DEFAULT, 2 * STEP_MS // 1000, KEPT_MS // 1000)
        return json_response(self._watch.history.series(queue, now_ms(), span_s * 1000))

    async def job_usage(self, request: Request) -> Response:
        """Being asked for is being looked at: a running job is sampled at once."""
        job_id = path_id(request)
        job = (await self._services.client.detail(job_id)).job
        if job.state is State.RUNNING:
            self._watch.usage.observe(job, now_ms())
        attempt, points = self._watch.usage.points(job_id)
        return json_response(JobUsageView(id=format_id(job_id), attempt=attempt, points=points))

    def operations(self) -> list[Operation]:
        return [
            Operation("GET", "/page/live", self.live, "The page's picture (SSE)", Scope.READ),
            Operation("GET", "/page/chart", self.chart, "Points of a chart", Scope.READ),
            Operation("GET", "/page/jobs/{id}/usage", self.job_usage, "What a job has used", Scope.READ),
        ]
