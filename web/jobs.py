"""The routes for jobs that are there: look, list, ask why, cancel, retry."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable
from http import HTTPStatus
from itertools import repeat
from typing import Annotated, Literal

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from zq.client.arguments import arguments_of
from zq.exceptions import Refused, Unavailable
from zq.protocol import limits
from zq.protocol.errors import Code
from zq.protocol.job import State, format_id, parse_id
from zq.protocol.messages import Change
from zq.web import listing, views
from zq.web.answers import json_response, query, whole_number
from zq.web.auth import Scope
from zq.web.operations import Operation, Parameter
from zq.web.problems import from_code, invalid, outcome_unknown
from zq.web.services import Services

WAIT_S_MAX = 60.0
PAGE_ROWS = 100
LISTED = (
    State.RUNNING, State.READY, State.SCHEDULED, State.DEAD, State.EXPIRED, State.CANCELLED, State.DONE
)  # fmt: skip
"""The order of states in a list of all: what is under way first."""
WAITING = frozenset({State.SCHEDULED, State.READY})

PAGE = (
    Parameter("queue", "Name of a queue; all queues without it"),
    Parameter("task", "Only jobs of this task; * and ? stand for any characters"),
    Parameter("error", "Only jobs whose error has this in it, in any case of letters"),
    Parameter(
        "where",
        f"name=value: only jobs with this argument; 0, 1, … for positional ones; up to {listing.CONDITIONS_MAX} times."
        f" With a filter a page looks at no more than {listing.SCANNED_MAX} jobs: `scanned` says how many, and there is"
        " more as long as `next` is not null",
        type=list[str],
    ),
    Parameter(
        "arguments", "Each row has its arguments on one line, cut where they are long", type=Literal["true", "false"]
    ),
    Parameter("cursor", "`next` of the page before"),
    Parameter(
        "limit", f"Rows of a page, at most {limits.PAGE_ROWS_MAX}",
        type=Annotated[int, Meta(ge=1, le=limits.PAGE_ROWS_MAX)],
    ),
)


class JobChanged(views.View, frozen=True):
    id: str
    state: str | None


class JobRoutes:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def get_job(self, request: Request) -> Response:
        job_id = path_id(request)
        wait_s = _wait_s(request)
        client = self._services.client
        if wait_s > 0:
            # A wait that got no answer is over, no more: whether the broker is away is told by the next question.
            with contextlib.suppress(Unavailable):
                await self._services.until_gone(request, client.wait(job_id, wait_s))
        detail = await client.detail(job_id)
        why = None
        if detail.job.state in WAITING:
            with contextlib.suppress(Refused, Unavailable):  # the job is worth more than why it waits
                why = views.why_view(await client.why(job_id))
        return json_response(views.job_view(detail, why))

    async def explain_job(self, request: Request) -> Response:
        return json_response(views.why_view(await self._services.client.why(path_id(request))))

    async def cancel_job(self, request: Request) -> Response:
        (change,) = await changing(self._services.client.cancel([path_id(request)]))
        return _changed(change, "only a job that has not ended can be cancelled")

    async def retry_job(self, request: Request) -> Response:
        (change,) = await changing(self._services.client.retry([path_id(request)]))
        return _changed(change, "only a dead, cancelled or expired job can be retried")

    async def list_jobs(self, request: Request) -> Response:
        text = query(request, "state")
        states = LISTED if not text else (_state(text),)
        return await answer_page(self._services, request, states)

    def operations(self) -> list[Operation]:
        asking = (429, 503)
        looking = (404, 422, *asking)
        changing = (404, 409, 422, 503, 504)
        state = Parameter(
            "state", "Only jobs in this state; all states without it",
            type=Literal["scheduled", "ready", "running", "done", "dead", "cancelled", "expired"],
        )  # fmt: skip
        wait = Parameter(
            "wait_s", f"Answer when the job ends, or after so long (at most {WAIT_S_MAX:g} s)",
            type=Annotated[float, Meta(ge=0, le=WAIT_S_MAX)],
        )  # fmt: skip
        return [
            Operation(
                "GET", "/v1/jobs", self.list_jobs, "Jobs, by queue, state and arguments", Scope.READ,
                answers=((200, views.JobList),), parameters=(state, *PAGE), errors=(422, *asking),
            ),
            Operation(
                "POST", "/v1/jobs/{id}:retry", self.retry_job, "Run an ended job again", Scope.OPERATE,
                answers=((202, JobChanged),), errors=changing,
            ),
            Operation(
                "GET", "/v1/jobs/{id}", self.get_job, "One job: its attempts, history, result, and why it waits",
                Scope.READ, answers=((200, views.JobView),), parameters=(wait,), errors=looking,
            ),
            Operation(
                "GET", "/v1/jobs/{id}/why", self.explain_job, "The first thing that holds this job", Scope.READ,
                answers=((200, views.WhyView),), errors=looking,
            ),
            Operation(
                "DELETE", "/v1/jobs/{id}", self.cancel_job, "Cancel a job; a running one is ended", Scope.OPERATE,
                answers=((202, JobChanged),), errors=changing,
            ),
        ]  # fmt: skip


async def answer_page(services: Services, request: Request, states: tuple[State, ...]) -> Response:
    """One page of the jobs in `states` that the query asks for."""
    wanted = listing.filter_of(request)
    limit = whole_number(request, "limit", PAGE_ROWS, 1, limits.PAGE_ROWS_MAX)
    position = listing.position_of(states, query(request, "cursor"))
    arguments = _told(request, "arguments")
    queue = query(request, "queue") or ""
    found = await listing.page_of(services.client, queue, position, wanted, limit, with_specs=arguments)
    said = map(arguments_of, found.specs) if arguments else repeat(None)
    rows = [views.job_row(job, text) for job, text in zip(found.jobs, said, strict=False)]
    return json_response(views.JobList(jobs=rows, next=listing.cursor_text(found.next), scanned=found.scanned))


async def changing(asked: Awaitable[list[Change]]) -> list[Change]:
    """What has changed. An answer that did not come is a Problem of its own: it may have been done."""
    try:
        return await asked
    except Unavailable as error:
        raise outcome_unknown(f"{error}; the same call again is safe") from None


def path_id(request: Request) -> bytes:
    """The job id in the path. Raises Problem."""
    try:
        return parse_id(request.path_params["id"])
    except ValueError as error:
        raise invalid("#/path/id", str(error)[:300]) from None


def _state(text: str) -> State:
    try:
        return State[text.upper()]
    except KeyError:
        known = ", ".join(state.label for state in State)
        raise invalid("#/query/state", f"{text!r:.40} is no state; known: {known}") from None


def _told(request: Request, name: str) -> bool:
    text = query(request, name)
    if text not in (None, "true", "false"):
        raise invalid(f"#/query/{name}", f"{name} is {text!r:.40}; give true or false")
    return text == "true"


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
