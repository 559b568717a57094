"""The routes for dead letters: look through them, run them again or drop them, many at once and first as a dry run."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from zq.client.filters import Condition, JobFilter
from zq.client.requests import JobIdLike
from zq.protocol import limits
from zq.protocol.job import State, format_id, parse_id
from zq.protocol.messages import Change, JobInfo
from zq.web import listing, views
from zq.web.answers import json_response
from zq.web.auth import Scope
from zq.web.bodies import read_json
from zq.web.jobs import PAGE, answer_page, changing
from zq.web.operations import Operation
from zq.web.problems import invalid
from zq.web.services import Services

CHANGED_MAX = 10_000
"""Jobs that one call changes."""
SCANNED_MAX = 200_000
SCAN_S = 20.0
SAMPLE_ROWS = 20
GROUPS_MAX = 50

_DEAD = (State.DEAD,)
_EXAMPLE = {"queue": "video_merge", "error": "disk", "dry_run": True}
_Text = Annotated[str, Meta(max_length=1024)]


class DeadFilter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which dead letters: all of these must fit. One that asks for nothing needs `all`."""

    queue: Annotated[str, Meta(max_length=limits.NAME_CHARS_MAX)] = ""
    task: Annotated[str, Meta(max_length=limits.NAME_CHARS_MAX)] = ""
    """* and ? stand for any characters."""
    error: _Text = ""
    """A part of the error, in any case of letters."""
    where: Annotated[dict[str, Any], Meta(max_length=listing.CONDITIONS_MAX)] = {}
    """Arguments and their values; 0, 1, … for positional ones."""
    ids: Annotated[list[str], Meta(max_length=1000)] = []
    """Only these jobs."""
    all: bool = False
    dry_run: bool = False
    """Change nothing: say how many it would be, with a sample."""
    limit: Annotated[int, Meta(ge=1, le=CHANGED_MAX)] = 1000
    """Change no more than so many; `complete` says whether there are others."""


class NotChanged(views.View, frozen=True):
    id: str
    code: str
    state: str | None


class ErrorGroup(views.View, frozen=True):
    """Dead letters of a task that died of the same."""

    task: str
    error: str
    """Its first line."""
    jobs: int


class DeadChanged(views.View, frozen=True):
    dry_run: bool
    matched: int
    """No more than `limit`."""
    changed: int
    not_changed: list[NotChanged]
    """At most 20: jobs that were changed by others meanwhile."""
    complete: bool
    """False if there are, or may be, more that fit: call again."""
    scanned: int
    groups: list[ErrorGroup]
    """What matched, by task and error; at most 50."""
    sample: list[views.JobRow]
    """The first that matched, at most 20."""


@dataclass
class _Chosen:
    ids: list[JobIdLike] = field(default_factory=list)
    sample: list[JobInfo] = field(default_factory=list)
    groups: Counter[tuple[str, str]] = field(default_factory=Counter)
    scanned: int = 0
    complete: bool = True

    def take(self, job: JobInfo) -> None:
        self.ids.append(job.id)
        if len(self.sample) < SAMPLE_ROWS:
            self.sample.append(job)
        self.groups[(job.task, first_line(job.error))] += 1


class DeadRoutes:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def list_dead(self, request: Request) -> Response:
        return await answer_page(self._services, request, _DEAD)

    async def retry_dead(self, request: Request) -> Response:
        return await self._change(request, self._services.client.retry)

    async def drop_dead(self, request: Request) -> Response:
        return await self._change(request, self._services.client.drop)

    async def _change(
        self, request: Request, change: Callable[[Sequence[JobIdLike]], Awaitable[list[Change]]]
    ) -> Response:
        web = self._services.config.web
        body = await read_json(request, DeadFilter, max_bytes=web.max_body_mib << 20, timeout_s=web.body_timeout_s)
        chosen = await self._choose(body, check_filter(body))
        changes: list[Change] = []
        if chosen.ids and not body.dry_run:
            changes = await changing(change(chosen.ids))
        left = [one for one in changes if one.code is not None]
        return json_response(
            DeadChanged(
                dry_run=body.dry_run,
                matched=len(chosen.ids),
                changed=len(changes) - len(left),
                not_changed=[not_changed(one) for one in left[:SAMPLE_ROWS]],
                complete=chosen.complete,
                scanned=chosen.scanned,
                groups=[
                    ErrorGroup(task=task, error=error, jobs=count)
                    for (task, error), count in chosen.groups.most_common(GROUPS_MAX)
                ],
                sample=[views.job_row(job) for job in chosen.sample],
            )
        )

    async def _choose(self, body: DeadFilter, ids: frozenset[bytes]) -> _Chosen:
        """All of them before any is changed: a list that changes under its reader leaves out some."""
        chosen = _Chosen()
        where = [Condition(name, _text(value), value) for name, value in body.where.items()]
        wanted = JobFilter(body.task, body.error, where)
        until_s = asyncio.get_running_loop().time() + SCAN_S
        async for looked_at, jobs in listing.matches(self._services.client, body.queue, _DEAD, wanted):
            chosen.scanned += looked_at
            for job in jobs:
                if ids and job.id not in ids:
                    continue
                if len(chosen.ids) == body.limit:
                    chosen.complete = False
                    return chosen
                chosen.take(job)
            if ids and len(chosen.ids) == len(ids):
                return chosen
            if chosen.scanned >= SCANNED_MAX or asyncio.get_running_loop().time() > until_s:
                chosen.complete = False
                return chosen
        return chosen

    def operations(self) -> list[Operation]:
        changed = ((200, DeadChanged),)
        errors = (400, 408, 413, 415, 422, 429, 503, 504)
        return [
            Operation(
                "GET", "/v1/dead", self.list_dead, "Dead letters, newest first in each queue", Scope.READ,
                answers=((200, views.JobList),), parameters=PAGE, errors=(422, 429, 503),
            ),
            Operation(
                "POST", "/v1/dead:retry", self.retry_dead, "Run dead letters again, their attempts forgotten",
                Scope.OPERATE, body=DeadFilter, example=_EXAMPLE, answers=changed, errors=errors,
            ),
            Operation(
                "POST", "/v1/dead:drop", self.drop_dead, "Forget dead letters for good", Scope.OPERATE,
                body=DeadFilter, example=_EXAMPLE, answers=changed, errors=errors,
            ),
        ]  # fmt: skip


def check_filter(body: DeadFilter) -> frozenset[bytes]:
    """The ids it names. Raises Problem for one that is none, and for a filter that would mean all without saying so."""
    narrow = bool(body.queue or body.task or body.error or body.where or body.ids)
    if narrow is body.all:
        both = "it has filters and `all`; leave one out"
        raise invalid("#/all", both if narrow else "no filter is given; to mean every dead letter, give `all` as true")
    found = set()
    for index, text in enumerate(body.ids):
        try:
            found.add(parse_id(text))
        except ValueError as error:
            raise invalid(f"#/ids/{index}", str(error)[:300]) from None
    return frozenset(found)


def first_line(error: str) -> str:
    """What went wrong; where comes after it."""
    return error.strip().partition("\n")[0].strip()


def _text(value: Any) -> str:
    """As it would be written in a query: 49 also finds "49"."""
    return value if isinstance(value, str) else json.dumps(value)


def not_changed(change: Change) -> NotChanged:
    state = change.state.label if change.state is not None else None
    return NotChanged(id=format_id(change.job_id), code=str(change.code), state=state)
