"""The routes for jobs, queues and workers."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from zq.exceptions import Conflict, Unavailable
from zq.protocol import limits
from zq.protocol.errors import Code
from zq.protocol.job import State, format_id, job_id_from, new_job_id, parse_id
from zq.protocol.messages import Change, JobInfo, ReceiptStatus
from zq.web import views
from zq.web.answers import json_response, query, whole_number
from zq.web.auth import Scope
from zq.web.bodies import read_json
from zq.web.operations import Operation, Parameter
from zq.web.problems import Problem, from_code, invalid, outcome_unknown
from zq.web.services import Services

WAIT_S_MAX = 60.0
PAGE_ROWS = 100
IDEMPOTENCY_KEY_CHARS_MAX = 255
LISTED = (
    State.RUNNING, State.READY, State.SCHEDULED, State.DEAD, State.EXPIRED, State.CANCELLED, State.DONE
)  # fmt: skip
"""The order of states in a list of all: what is under way first."""

_Name = Annotated[str, Meta(min_length=1, max_length=limits.NAME_CHARS_MAX)]
_Duration = Annotated[float, Meta(ge=0, le=limits.DURATION_MS_MAX / 1000)]


class JobSubmission(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job by the name of its task."""

    task: _Name
    queue: _Name
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    priority: Annotated[int, Meta(ge=limits.PRIORITY_MIN, le=limits.PRIORITY_MAX)] = limits.PRIORITY_DEFAULT
    countdown_s: _Duration | None = None
    """Not before so many seconds from now."""
    eta: Annotated[datetime, Meta(tz=True)] | None = None
    """Not before this time (RFC 3339 with an offset)."""
    expires_s: _Duration | None = None
    """Not started by then: expired."""
    max_retries: Annotated[int, Meta(ge=0, le=limits.RETRIES_MAX)] = 3
    backoff_s: _Duration = 60.0
    soft_time_limit_s: _Duration | None = None
    time_limit_s: _Duration | None = None
    key: Annotated[str, Meta(max_length=limits.KEY_CHARS_MAX)] = ""
    """At most one live job has this key."""


class JobChanged(views.View, frozen=True):
    id: str
    state: str | None


class JobRoutes:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def submit_job(self, request: Request) -> Response:
        web = self._services.config.web
        body = await read_json(
            request, JobSubmission, max_bytes=web.max_body_mib << 20, timeout_s=web.body_timeout_s
        )
        key = idempotency_key(request.headers.get("idempotency-key"))
        job_id = new_job_id() if key is None else job_id_from("http", key)
        try:
            job = await self._services.client.submit(
                body.task,
                tuple(body.args),
                body.kwargs,
                queue=body.queue,
                id=job_id,
                priority=body.priority,
                countdown=body.countdown_s,
                eta=body.eta,
                expires_s=body.expires_s,
                max_retries=body.max_retries,
                backoff_s=body.backoff_s,
                soft_time_limit_s=body.soft_time_limit_s,
                time_limit_s=body.time_limit_s,
                key=body.key,
            )
        except Conflict:
            detail = "this Idempotency-Key was used for another job; a new job needs a new key"
            raise Problem(422, "idempotency-key-reused", detail) from None
        except Unavailable as error:
            raise _not_submitted(error, job_id, with_key=key is not None) from None
        receipt = job.receipt
        assert receipt is not None
        state, queue = receipt.state or State.READY, body.queue
        if job.deduplicated:
            # The live job that has the key may stand in another queue.
            found = (await job.detail()).job
            state, queue = found.state, found.queue
        accepted = views.JobAccepted(
            id=job.id,
            state=state.label,
            queue=queue,
            deduplicated=receipt.status is not ReceiptStatus.ACCEPTED,
            warnings=job.warnings,
        )
        return json_response(accepted, HTTPStatus.ACCEPTED, {"Location": f"/v1/jobs/{job.id}"})

    async def get_job(self, request: Request) -> Response:
        job_id = path_id(request)
        wait_s = _wait_s(request)
        if wait_s > 0:
            await self._services.until_gone(request, self._services.client.wait(job_id, wait_s))
        return json_response(views.job_view(await self._services.client.detail(job_id)))

    async def cancel_job(self, request: Request) -> Response:
        (change,) = await self._changing(self._services.client.cancel([path_id(request)]))
        return _changed(change, "only a job that has not ended can be cancelled")

    async def retry_job(self, request: Request) -> Response:
        (change,) = await self._changing(self._services.client.retry([path_id(request)]))
        return _changed(change, "only a dead, cancelled or expired job can be retried")

    async def _changing(self, asked: Any) -> list[Change]:
        try:
            changes: list[Change] = await asked
        except Unavailable as error:
            raise outcome_unknown(f"{error}; the same call again is safe") from None
        return changes

    async def list_jobs(self, request: Request) -> Response:
        queue = query(request, "queue") or ""
        limit = whole_number(request, "limit", PAGE_ROWS, 1, limits.PAGE_ROWS_MAX)
        states, after = _position(query(request, "state"), query(request, "cursor"))
        jobs: list[JobInfo] = []
        following: str | None = None
        for index, state in enumerate(states):
            page = await self._services.client.jobs(queue, state=state, after=after, limit=limit - len(jobs))
            jobs += page.jobs
            after = page.next
            if after:
                following = cursor_text(state, after)
                break
            if len(jobs) >= limit and index + 1 < len(states):
                following = cursor_text(states[index + 1], b"")
                break
        return json_response(views.JobList(jobs=[views.job_row(job) for job in jobs], next=following))

    async def list_queues(self, request: Request) -> Response:
        queues = await self._services.client.queues()
        return json_response(views.QueueList(queues=[views.queue_view(queue) for queue in queues]))

    async def list_workers(self, request: Request) -> Response:
        workers = await self._services.client.workers()
        return json_response(views.WorkerList(workers=[views.worker_view(worker) for worker in workers]))

    def operations(self) -> list[Operation]:
        asking = (429, 503)
        changing = (404, 409, 422, 503, 504)
        page = (
            Parameter("queue", "Name of a queue; all queues without it"),
            Parameter("state", f"One of {', '.join(state.label for state in State)}; all states without it"),
            Parameter("cursor", "`next` of the page before"),
            Parameter("limit", f"Rows of a page, at most {limits.PAGE_ROWS_MAX}", type=int),
        )
        key = Parameter("Idempotency-Key", "The same key with the same body is the same job", "header")
        wait = Parameter("wait_s", f"Answer when the job ends, or after so long (at most {WAIT_S_MAX:g} s)", type=float)
        return [
            Operation(
                "POST", "/v1/jobs", self.submit_job, "Submit a job; 202 once it is durable", Scope.SUBMIT,
                body=JobSubmission, answers=((202, views.JobAccepted),), parameters=(key,),
                errors=(400, 408, 413, 415, 422, *asking, 504),
            ),
            Operation(
                "GET", "/v1/jobs", self.list_jobs, "Jobs, by queue and state", Scope.READ,
                answers=((200, views.JobList),), parameters=page, errors=(422, *asking),
            ),
            Operation(
                "POST", "/v1/jobs/{id}:retry", self.retry_job, "Run an ended job again", Scope.OPERATE,
                answers=((202, JobChanged),), errors=changing,
            ),
            Operation(
                "GET", "/v1/jobs/{id}", self.get_job, "One job, with its attempts and result", Scope.READ,
                answers=((200, views.JobView),), parameters=(wait,), errors=(404, 422, *asking),
            ),
            Operation(
                "DELETE", "/v1/jobs/{id}", self.cancel_job, "Cancel a job; a running one is ended", Scope.OPERATE,
                answers=((202, JobChanged),), errors=changing,
            ),
            Operation(
                "GET", "/v1/queues", self.list_queues, "All queues", Scope.READ,
                answers=((200, views.QueueList),), errors=asking,
            ),
            Operation(
                "GET", "/v1/workers", self.list_workers, "All workers", Scope.READ,
                answers=((200, views.WorkerList),), errors=asking,
            ),
        ]  # fmt: skip


def path_id(request: Request) -> bytes:
    """The job id in the path. Raises Problem."""
    try:
        return parse_id(request.path_params["id"])
    except ValueError as error:
        raise invalid("#/path/id", str(error)[:300]) from None


def idempotency_key(header: str | None) -> str | None:
    """The key, with or without the quotes of a structured header. Raises Problem."""
    if header is None:
        return None
    key = header.strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not key or len(key) > IDEMPOTENCY_KEY_CHARS_MAX or not (key.isascii() and key.isprintable()):
        bound = f"1 to {IDEMPOTENCY_KEY_CHARS_MAX} printable ASCII characters"
        raise Problem(400, "malformed", f"the Idempotency-Key is not {bound}; a UUID is a good one")
    return key


def cursor_text(state: State, after: bytes) -> str:
    return base64.urlsafe_b64encode(bytes([state]) + after).rstrip(b"=").decode()


def read_cursor(text: str) -> tuple[State, bytes]:
    """Raises Problem for what no page has given out."""
    try:
        raw = base64.b64decode(text.encode() + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return State(raw[0]), raw[1:513]
    except (binascii.Error, ValueError, IndexError):
        raise invalid("#/query/cursor", "the cursor is not one that a page has given as `next`") from None


def _position(state: str | None, cursor: str | None) -> tuple[tuple[State, ...], bytes]:
    """The states to list, and where in the first of them to go on."""
    states = LISTED if not state else (_state(state),)
    if not cursor:
        return states, b""
    at, after = read_cursor(cursor)
    if at not in states:
        raise invalid("#/query/cursor", "the cursor belongs to a list of another state; leave it out to begin anew")
    return states[states.index(at) :], after


def _state(text: str) -> State:
    try:
        return State[text.upper()]
    except KeyError:
        known = ", ".join(state.label for state in State)
        raise invalid("#/query/state", f"{text!r:.40} is no state; known: {known}") from None


def _wait_s(request: Request) -> float:
    text = query(request, "wait_s")
    if text is None:
        return 0.0
    try:
        wait_s = float(text)
    except ValueError:
        wait_s = -1.0
    if not 0 <= wait_s <= WAIT_S_MAX:
        raise invalid("#/query/wait_s", f"wait_s is {text!r:.40}; give seconds from 0 to {WAIT_S_MAX:g}")
    return wait_s


def _changed(change: Change, rule: str) -> Response:
    if change.code is Code.NOT_FOUND:
        raise from_code(change.code, f"no job {format_id(change.job_id)}")
    state = change.state.label if change.state is not None else None
    if change.code is not None:
        raise from_code(change.code, f"the job is {state}; {rule}" if state else rule)
    return json_response(JobChanged(id=format_id(change.job_id), state=state), HTTPStatus.ACCEPTED)


def _not_submitted(error: Unavailable, job_id: bytes, *, with_key: bool) -> Problem:
    location = f"/v1/jobs/{format_id(job_id)}"
    again = "send it again with the same Idempotency-Key" if with_key else f"later, GET {location} tells"
    problem = outcome_unknown(f"whether the job was accepted is unknown; {again}. {error}")
    problem.headers["Location"] = location
    return problem
