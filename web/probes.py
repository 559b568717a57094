"""The routes that machines ask: alive, ready, and the description of the API itself."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from zq.exams.errors import ExamError
from zq.exceptions import Refused, Unavailable
from zq.web import docs_page, views
from zq.web.answers import json_response
from zq.web.auth import Scope
from zq.web.operations import Operation
from zq.web.problems import BROKER_RETRY_AFTER_S
from zq.web.services import Services

READY_S = 2.0
"""A broker that has not answered by then is away, as far as a load balancer is concerned."""


_SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; font-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class ProbeRoutes:
    def __init__(self, services: Services, document: Callable[[], dict[str, Any]]) -> None:
        self._services = services
        self._document = document
        self._docs = functools.cache(lambda: docs_page.page(document()).encode())

    async def healthz(self, request: Request) -> Response:
        return json_response(views.Health(status="ok"))

    async def readyz(self, request: Request) -> Response:
        try:
            async with asyncio.timeout(READY_S):
                broker, queues = await asyncio.gather(self._services.client.broker(), self._services.client.queues())
        except (Unavailable, Refused, TimeoutError) as error:
            reason = str(error) or f"the broker has not answered within {READY_S:g} s"
            body = views.Health(status="unavailable", reasons=[reason])
            return json_response(body, 503, {"Retry-After": f"{BROKER_RETRY_AFTER_S:.0f}"})
        reasons = views.unserved(queues)
        if not broker.accepting:
            reasons.append("the broker accepts no jobs: look at its disk and its log")
        try:
            async with asyncio.timeout(READY_S):
                await asyncio.to_thread(self._ask_store)
        except (ExamError, TimeoutError) as error:
            reasons.append(f"exams cannot be served: {str(error) or 'the database does not answer'}")
        return json_response(views.Health(status="degraded" if reasons else "ok", reasons=reasons))

    def _ask_store(self) -> None:
        if not self._services.late_store.rests():
            self._services.store.list_exams(limit=1)

    async def openapi(self, request: Request) -> Response:
        return Response(msgspec.json.encode(self._document()), media_type="application/json")

    async def docs(self, request: Request) -> Response:
        return Response(self._docs(), 200, _SECURITY, "text/html")

    def operations(self) -> list[Operation]:
        return [
            Operation(
                "GET", "/healthz", self.healthz, "This process lives", Scope.PUBLIC, answers=((200, views.Health),)
            ),
            Operation(
                "GET", "/readyz", self.readyz, "The broker answers; degraded says what is wrong all the same",
                Scope.READ, answers=((200, views.Health), (503, views.Health)),
            ),
            Operation(
                "GET", "/docs", self.docs, "The same for people, on one page of its own", Scope.READ,
                media_type="text/html",
            ),
            Operation("GET", "/openapi.json", self.openapi, "This description", Scope.READ),
        ]  # fmt: skip
