"""The routes for queues and workers."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from zq.exceptions import Unavailable
from zq.protocol import limits
from zq.protocol.messages import QueueInfo
from zq.web import views
from zq.web.answers import json_response
from zq.web.auth import Scope
from zq.web.bodies import read_json
from zq.web.operations import Operation
from zq.web.problems import invalid, outcome_unknown
from zq.web.services import Services


class QueueChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is null or left out stays as it is."""

    paused: bool | None = None
    """A paused queue takes jobs and starts none."""
    rate_per_s: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    """Starts a second, evenly; 0 takes the limit away."""
    running_max: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    """Jobs that run at once, on all workers together; 0 takes the limit away."""
    length_max: Annotated[int, Meta(ge=0, le=limits.LIVE_JOBS_PER_QUEUE_MAX)] | None = None
    """Jobs that wait; more are refused with 429. 0 takes the limit away."""


class QueueRoutes:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def list_queues(self, request: Request) -> Response:
        queues = await self._services.client.queues()
        return json_response(views.QueueList(queues=[views.queue_view(queue) for queue in queues]))

    async def pause_queue(self, request: Request) -> Response:
        return await self._set(request, QueueChange(paused=True))

    async def resume_queue(self, request: Request) -> Response:
        return await self._set(request, QueueChange(paused=False))

    async def change_queue(self, request: Request) -> Response:
        web = self._services.config.web
        change = await read_json(
            request, QueueChange, max_bytes=web.max_body_mib << 20, timeout_s=web.body_timeout_s
        )
        if change == QueueChange():
            raise invalid("#", f"nothing to change; give any of {', '.join(QueueChange.__struct_fields__)}")
        return await self._set(request, change)

    async def _set(self, request: Request, change: QueueChange) -> Response:
        name: str = request.path_params["queue"]
        try:
            queue: QueueInfo = await self._services.client.set_queue(
                name,
                paused=change.paused,
                rate_per_s=change.rate_per_s,
                running_max=change.running_max,
                length_max=change.length_max,
            )
        except Unavailable as error:
            raise outcome_unknown(f"{error}; the same call again is safe") from None
        return json_response(views.queue_view(queue))

    async def list_workers(self, request: Request) -> Response:
        workers = await self._services.client.workers()
        return json_response(views.WorkerList(workers=[views.worker_view(worker) for worker in workers]))

    def operations(self) -> list[Operation]:
        asking = (429, 503)
        queue = "/v1/queues/{queue:anything}"
        one = ((200, views.QueueView),)
        return [
            Operation(
                "GET", "/v1/queues", self.list_queues, "All queues", Scope.READ,
                answers=((200, views.QueueList),), errors=asking,
            ),
            Operation(
                "POST", f"{queue}:pause", self.pause_queue, "Start no more of its jobs; it still takes them",
                Scope.OPERATE, answers=one, errors=(422, *asking, 504),
            ),
            Operation(
                "POST", f"{queue}:resume", self.resume_queue, "Start its jobs again", Scope.OPERATE,
                answers=one, errors=(422, *asking, 504),
            ),
            Operation(
                "PATCH", queue, self.change_queue, "Change what a queue may do; kept over restarts", Scope.OPERATE,
                body=QueueChange,
                example={"running_max": 4}, answers=one, errors=(400, 408, 413, 415, 422, *asking, 504),
            ),
            Operation(
                "GET", "/v1/workers", self.list_workers, "All workers", Scope.READ,
                answers=((200, views.WorkerList),), errors=asking,
            ),
        ]  # fmt: skip
