"""The application: every route under one gate, every failure as a problem."""

from __future__ import annotations

import functools
import ipaddress
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
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
from zq.web.bulk import BulkRoutes
from zq.web.callers import CALLER, check_queue, client_ip
from zq.web.cors import Cors
from zq.web.dead import DeadRoutes
from zq.web.exam_clients import ExamClientRoutes
from zq.web.exams import ExamRoutes
from zq.web.jobs import JobRoutes
from zq.web.live import LiveRoutes
from zq.web.metrics import MetricRoutes
from zq.web.operations import Handler, Operation
from zq.web.page import PageRoutes
from zq.web.probes import ProbeRoutes
from zq.web.problems import Problem
from zq.web.queues import QueueRoutes
from zq.web.quota import Quotas
from zq.web.recordings import RecordingRoutes
from zq.web.schedules import ScheduleRoutes
from zq.web.services import Services
from zq.web.streams import StreamRoutes
from zq.web.submissions import SubmissionRoutes
from zq.web.uploads import UploadRoutes
from zq.web.watch import Watch

log = logging.getLogger("zq.web")

REQUEST_ID_CHARS_MAX = 128


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
    watch = Watch(services)
    document = functools.cache(lambda: openapi.document(described, __version__))
    probes = ProbeRoutes(services, document)
    exams = ExamRoutes(services)
    for routes in (
        SubmissionRoutes(services), JobRoutes(services), DeadRoutes(services), BulkRoutes(services, watch),
        QueueRoutes(services), ScheduleRoutes(services), StreamRoutes(services), exams, UploadRoutes(services),
        RecordingRoutes(services), ExamClientRoutes(services, exams), probes, MetricRoutes(services, responses),
    ):  # fmt: skip
        described += routes.operations()
    pages = PageRoutes(services)
    operations = [*described, *LiveRoutes(services, watch).operations(), *pages.operations()]

    cors = Cors(services.config.web.cors_origins)
    door = _Door(services, cors)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with services.running(), watch.running():
            yield

    app = Starlette(routes=_routes(operations, door, cors, responses), lifespan=lifespan)
    app.router.redirect_slashes = False
    app.router.default = _Guarded(_Path({}, door, pages.lost), cors, responses)
    return app


def _routes(
    operations: Sequence[Operation], door: _Door, cors: Cors, responses: Counter[int]
) -> list[BaseRoute]:
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    # Starlette takes the first path that fits: `{id}:retry` before `{id}`.
    often = {operation.path for operation in operations if operation.often}
    paths = sorted(by_path, key=lambda path: (path not in often, path.count("/"), "{" in path, -len(path)))
    return [Route(path, _Guarded(_Path(by_path[path], door), cors, responses)) for path in paths]


_EXAM_CLIENT = auth.NOBODY | {auth.Scope.SUBMIT}


class _Door:
    """Who may come in, and how often."""

    def __init__(self, services: Services, cors: Cors) -> None:
        web = services.config.web
        self._cors = cors
        self._gate = services.gate
        self._quotas = Quotas()
        self._per_minute = web.requests_per_minute
        self._networks = [ipaddress.ip_network(text) for text in web.exam_client_networks]

    def admit(self, request: Request, operation: Operation | None) -> None:
        """Puts the caller into the request's scope. Raises Problem: 401, 403, 429."""
        caller = self._gate.caller(request.headers.get("authorization"), request.cookies.get(auth.COOKIE))
        if operation is not None and operation.tokenless and self._is_exam_client(request):
            caller = auth.Caller(f"exam client {client_ip(request)}", _EXAM_CLIENT, (operation.queue,))
        request.scope[CALLER] = caller
        _check_scope(caller, operation, request)
        if caller.name:
            left = self._quotas.take(
                caller.name, caller.requests_per_minute or self._per_minute, time.monotonic()
            )
            request.scope[_QUOTA] = left.headers()
            if left.wait_s:
                detail = f"{left.per_minute} requests a minute are this caller's bound (web.requests_per_minute)"
                raise Problem(429, "too-many-requests", detail, retry_after_s=left.wait_s)

    def _is_exam_client(self, request: Request) -> bool:
        """Without a token, from a network of exam clients, and not sent by a page of somebody else's in a browser."""
        if not self._networks or "authorization" in request.headers:
            return False
        origin = request.headers.get("origin")
        own = origin is None or origin.partition("://")[2] == request.headers.get("host")
        if not (own or self._cors.allows(origin)):
            return False
        try:
            address = ipaddress.ip_address(client_ip(request))
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._networks)


def _check_scope(caller: auth.Caller, operation: Operation | None, request: Request) -> None:
    scope = operation.scope if operation is not None else auth.Scope.READ
    if scope is auth.Scope.PUBLIC:
        return
    if caller.student is not None:
        if operation is None or not operation.own:
            raise Problem(403, "forbidden", "an upload token opens what is its student's own, and this is not")
        ids = request.path_params
        if "student_id" in ids and (ids["exam_id"], ids["student_id"]) != caller.student:
            raise Problem(403, "forbidden", "this upload token is another student's")
        return
    if scope in caller.scopes:
        if operation is not None and operation.queue and scope is auth.Scope.SUBMIT:
            check_queue(caller, operation.queue)
        return
    if not caller.name:
        raise unauthorised()
    raise Problem(403, "forbidden", f"this needs the scope '{scope}', which the token that was sent does not have")


class _Path:
    """The operations of one path. Who may not call any is told nothing of what is there."""

    def __init__(self, operations: dict[str, Operation], door: _Door, lost: Handler | None = None) -> None:
        self._operations = operations
        self._door = door
        self._lost = lost
        methods = {*operations, *(["HEAD"] if "GET" in operations else [])}
        self._allow = ", ".join(sorted(methods))

    async def __call__(self, request: Request) -> Response:
        operation = self._operations.get("GET" if request.method == "HEAD" else request.method)
        if self._lost is not None and _is_reading(request):
            return await self._lost(request)
        self._door.admit(request, operation)
        if not self._operations:
            raise Problem(404, "not-found", "nothing is at this path; /docs lists what is there")
        if operation is None:
            detail = f"{request.method:.20} is not for this path; {self._allow} are"
            raise Problem(405, "method-not-allowed", detail, headers={"Allow": self._allow})
        return await operation.handler(request)


def _is_reading(request: Request) -> bool:
    """Somebody with a browser, who has mistyped an address of the page."""
    of_programs = request.url.path.startswith(("/v1/", "/api/", "/page/", "/static/"))
    return request.method == "GET" and not of_programs and "text/html" in request.headers.get("accept", "")


_QUOTA = "zq.quota"


class _Guarded:
    """An ASGI application around an answer: failures become problems, and nothing else gets out."""

    def __init__(self, inner: _Path, cors: Cors, responses: Counter[int]) -> None:
        self._inner = inner
        self._cors = cors
        self._responses = responses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive, send)
        try:
            _check_path(scope)
            response: ASGIApp = self._cors.preflight(request.method, request.headers) or await self._inner(request)
        except ClientDisconnect:
            return
        except Exception as error:
            response = problem_of(error, request).response()
        assert isinstance(response, Response)
        said = response.raw_headers
        said.append((b"x-content-type-options", b"nosniff"))
        for name, value in scope.get(_QUOTA, {}).items():
            said.append((name.lower().encode(), value.encode()))
        for name, value in self._cors.headers(request.headers.get("origin")).items():
            said.append((name.lower().encode(), value.encode("latin-1")))
        asked = request.headers.get("x-request-id")
        if asked and len(asked) <= REQUEST_ID_CHARS_MAX and asked.isascii() and asked.isprintable():
            said.append((b"x-request-id", asked.encode()))
        self._responses[response.status_code] += 1
        await response(scope, receive, send)


def unauthorised() -> Problem:
    """The same for no token, a wrong one, and an expired one."""
    return Problem(
        401,
        "unauthorised",
        "send a token: Authorization: Bearer …; the file 'token' in the data folder has one, `zq tokens` makes others",
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
            seen = {"method": request.method, "path": request["path"]}
            seen["request"] = request.headers.get("x-request-id", "")
            log.exception("a request failed", exc_info=error, extra=seen)
            return Problem(500, "defect", "this is a defect of zq, not of the request; the server's log says more")


def _check_path(scope: Scope) -> None:
    """The server decodes with replacement marks: two different names must not become one."""
    try:
        unquote_to_bytes(scope.get("raw_path") or b"").decode("utf-8")
    except UnicodeDecodeError:
        raise Problem(400, "malformed", "the path is not percent-encoded UTF-8") from None
