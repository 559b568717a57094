"""The application: every route under one gate, every failure as a problem."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote_to_bytes

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from zq import __version__
from zq.exams.errors import ExamError
from zq.exceptions import Invalid, Refused, Unavailable
from zq.web import auth, openapi, problems
from zq.web.dead import DeadRoutes
from zq.web.exams import ExamRoutes
from zq.web.jobs import JobRoutes
from zq.web.metrics import MetricRoutes
from zq.web.operations import Operation
from zq.web.page import PageRoutes
from zq.web.probes import ProbeRoutes
from zq.web.problems import Problem
from zq.web.queues import QueueRoutes
from zq.web.recordings import RecordingRoutes
from zq.web.schedules import ScheduleRoutes
from zq.web.services import Services
from zq.web.streams import StreamRoutes
from zq.web.submissions import SubmissionRoutes
from zq.web.uploads import UploadRoutes

log = logging.getLogger("zq.web")


class _Anything(Convertor[str]):
    """The rest of a path, slashes and line breaks included: its reader says what is wrong with it."""

    regex = r"(?s:.+)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("anything", _Anything())


def create_app(services: Services) -> Starlette:
    """An ASGI application over `services`, which it opens and closes with its lifespan."""
    responses: Counter[int] = Counter()
    described: list[Operation] = []
    document = functools.cache(lambda: openapi.document(described, __version__))
    probes = ProbeRoutes(services, document)
    for routes in (
        SubmissionRoutes(services), JobRoutes(services), DeadRoutes(services), QueueRoutes(services),
        ScheduleRoutes(services), StreamRoutes(services), ExamRoutes(services), UploadRoutes(services),
        RecordingRoutes(services), probes, MetricRoutes(services, responses),
    ):  # fmt: skip
        described += routes.operations()
    operations = described + PageRoutes(services).operations()

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with services.running():
            yield

    app = Starlette(routes=_routes(operations, services.gate, responses), lifespan=lifespan)
    app.router.redirect_slashes = False
    app.router.default = _Guarded(_Path({}, services.gate), responses)
    return app


def _routes(operations: Sequence[Operation], gate: auth.Gate, responses: Counter[int]) -> list[BaseRoute]:
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    # Starlette takes the first path that fits: `{id}:retry` before `{id}`.
    paths = sorted(by_path, key=lambda path: (path.count("/"), "{" in path, -len(path)))
    return [Route(path, _Guarded(_Path(by_path[path], gate), responses)) for path in paths]


class _Path:
    """The operations of one path. Who may not call any is told nothing of what is there."""

    def __init__(self, operations: dict[str, Operation], gate: auth.Gate) -> None:
        self._operations = operations
        self._gate = gate
        methods = {*operations, *(["HEAD"] if "GET" in operations else [])}
        self._allow = ", ".join(sorted(methods))

    async def __call__(self, request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        operation = self._operations.get(method)
        scope = operation.scope if operation is not None else auth.Scope.READ
        scopes = self._gate.scopes(request.headers.get("authorization"), request.cookies.get(auth.COOKIE))
        if scope not in scopes:
            if auth.Scope.READ not in scopes:
                raise unauthorised()
            raise Problem(403, "forbidden", f"this needs the scope '{scope}'; the page's cookie can only read")
        if not self._operations:
            raise Problem(404, "not-found", "nothing is at this path; /openapi.json lists what is there")
        if operation is None:
            detail = f"{request.method:.20} is not for this path; {self._allow} are"
            raise Problem(405, "method-not-allowed", detail, headers={"Allow": self._allow})
        return await operation.handler(request)


class _Guarded:
    """An ASGI application around an answer: failures become problems, and nothing else gets out."""

    def __init__(self, inner: Any, responses: Counter[int]) -> None:
        self._inner = inner
        self._responses = responses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive, send)
        try:
            _check_path(scope)
            response: ASGIApp = await self._inner(request)
        except ClientDisconnect:
            return
        except Exception as error:
            response = problem_of(error, request).response()
        assert isinstance(response, Response)
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        self._responses[response.status_code] += 1
        await response(scope, receive, send)


def unauthorised() -> Problem:
    """The same for no token, a wrong one, and an expired one."""
    return Problem(
        401,
        "unauthorised",
        "send the token: Authorization: Bearer …; it is in the file 'token' of the data folder, and `zq up` shows it",
        headers={"WWW-Authenticate": 'Bearer realm="zq"'},
    )


def problem_of(error: Exception, request: Request) -> Problem:
    """What went wrong, as the client may know it. What nobody expected is logged, with its traceback, and is a 500."""
    match error:
        case Problem():
            return error
        case ExamError():
            return problems.exam_refused(error)
        case Refused():
            return problems.refused(error)
        case Unavailable():
            return problems.broker_away(str(error))
        case Invalid():
            return problems.invalid("#", str(error)[:1000])
        case _:
            log.exception("a request failed", exc_info=error, extra={"method": request.method, "path": request["path"]})
            return Problem(500, "defect", "this is a defect of zq, not of the request; the server's log says more")


def _check_path(scope: Scope) -> None:
    """The server decodes with replacement marks: two different names must not become one."""
    try:
        unquote_to_bytes(scope.get("raw_path") or b"").decode("utf-8")
    except UnicodeDecodeError:
        raise Problem(400, "malformed", "the path is not percent-encoded UTF-8") from None
