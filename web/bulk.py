"""The routes that act on all jobs of a filter at once, in any state, and first as a dry run that counts them.

Dead letters of one kind of error are a group: errors that differ only in numbers and ids are the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from zq.client.filters import Condition, JobFilter
from zq.client.requests import JobIdLike
from zq.protocol import limits
from zq.protocol.job import ENDED, LIVE, State, parse_id
from zq.protocol.messages import Change, JobInfo
from zq.web import listing, views
from zq.web.answers import json_response, query
from zq.web.auth import Scope
from zq.web.bodies import read_json
from zq.web.dead import NotChanged, first_line, not_changed
from zq.web.jobs import changing
from zq.web.operations import Operation, Parameter
from zq.web.problems import invalid
from zq.web.services import Services
from zq.web.watch import Watch

CHANGED_MAX: Final = 10_000
"""Jobs that one call changes."""
SCANNED_MAX: Final = 200_000
SCAN_S: Final = 20.0
SAMPLE_ROWS: Final = 20
GROUPS_MAX: Final = 200
GROUP_SAMPLE_ROWS: Final = 5
TEMPLATE_CHARS_MAX: Final = 200

RETRIED: Final = (State.DEAD, State.EXPIRED, State.CANCELLED)
"""Those that a retry is for, as `State` says."""
_LIVE: Final = tuple(state for state in State if state in LIVE)
_ENDED: Final = tuple(state for state in State if state in ENDED)

# A run of hexadecimal digits with a digit in it, a UUID, a number: what tells one failure from its sister.
_VARIES: Final = re.compile(r"(?:0x)?(?=[a-f]*[0-9])[0-9a-f]{8,}(?:-[0-9a-f]{2,})*|\d+(?:[.,]\d+)*", re.IGNORECASE)

_Name = Annotated[str, Meta(max_length=limits.NAME_CHARS_MAX)]


class JobsFilter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which jobs: all of these must fit. One that asks for nothing but a state needs `all`."""

    state: Annotated[str, Meta(max_length=20)] = ""
    """Only jobs in it; without it, in all states that the call can change."""
    queue: _Name = ""
    task: _Name = ""
    """* and ? stand for any characters."""
    error: Annotated[str, Meta(max_length=1024)] = ""
    """A part of the error, in any case of letters."""
    where: Annotated[dict[str, Any], Meta(max_length=listing.CONDITIONS_MAX)] = {}
    """Arguments and their values; 0, 1, … for positional ones."""
    group: Annotated[str, Meta(max_length=64)] = ""
    """`key` of a group of `/v1/dead/groups`."""
    ids: Annotated[list[str], Meta(max_length=1000)] = []
    """Only these jobs."""
    all: bool = False
    dry_run: bool = False
    """Change nothing: say how many it would be, with a sample."""
    limit: Annotated[int, Meta(ge=1, le=CHANGED_MAX)] = 1000
    """Change no more than so many; `complete` says whether there are others."""


class JobsChanged(views.View, frozen=True):
    dry_run: bool
    matched: int
    """No more than `limit`."""
    changed: int
    not_changed: list[NotChanged]
    """At most 20: jobs that were changed by others meanwhile."""
    complete: bool
    """False if there are, or may be, more that fit: call again."""
    scanned: int
    states: dict[str, int]
    """What matched, by state."""
    sample: list[views.JobRow]
    """The first that matched, at most 20."""


class DeadGroup(views.View, frozen=True):
    key: str
    queue: str
    task: str
    error: str
    """Its first line; numbers and ids, in which its jobs differ, are …."""
    jobs: int
    oldest_at: str | None
    newest_at: str | None
    sample: list[views.JobRow]
    """The newest, at most 5."""


class DeadGroups(views.View, frozen=True):
    groups: list[DeadGroup]
    """The largest first, at most 200."""
    jobs: int
    """In all groups, those beyond the 200 too."""
    scanned: int
    complete: bool
    """False if there are more dead letters than were looked at."""


def template(error: str) -> str:
    """The first line of an error, without what varies."""
    text = _VARIES.sub("…", first_line(error))
    return text if len(text) <= TEMPLATE_CHARS_MAX else f"{text[: TEMPLATE_CHARS_MAX - 1].rstrip()}…"


def group_key(job: JobInfo) -> str:
    """The same for dead letters of one queue and task with the same kind of error."""
    words = "\0".join((job.queue, job.task, template(job.error)))
    return hashlib.blake2b(words.encode(), digest_size=12).hexdigest()


@dataclass
class _Chosen:
    ids: list[JobIdLike] = field(default_factory=list)
    sample: list[JobInfo] = field(default_factory=list)
    states: dict[str, int] = field(default_factory=dict)
    scanned: int = 0
    complete: bool = True

    def take(self, job: JobInfo) -> None:
        self.ids.append(job.id)
        if len(self.sample) < SAMPLE_ROWS:
            self.sample.append(job)
        self.states[job.state.label] = self.states.get(job.state.label, 0) + 1


@dataclass
class _Group:
    first: JobInfo
    jobs: int = 0
    oldest_ms: int = 0
    newest_ms: int = 0
    sample: list[JobInfo] = field(default_factory=list)

    def take(self, job: JobInfo) -> None:
        self.jobs += 1
        self.oldest_ms = min(self.oldest_ms or job.ended_ms, job.ended_ms)
        self.newest_ms = max(self.newest_ms, job.ended_ms)
        if len(self.sample) < GROUP_SAMPLE_ROWS:
            self.sample.append(job)


class BulkRoutes:
    def __init__(self, services: Services, watch: Watch) -> None:
        self._services = services
        self._watch = watch

    async def cancel_jobs(self, request: Request) -> Response:
        return await self._change(request, _LIVE, self._services.client.cancel)

    async def retry_jobs(self, request: Request) -> Response:
        return await self._change(request, RETRIED, self._services.client.retry)

    async def drop_jobs(self, request: Request) -> Response:
        try:
            return await self._change(request, _ENDED, self._services.client.drop)
        finally:
            self._watch.dead_letters_changed()

    async def list_groups(self, request: Request) -> Response:
        wanted = listing.filter_of(request)
        groups: dict[str, _Group] = {}
        scanned, complete = 0, True
        until_s = asyncio.get_running_loop().time() + SCAN_S
        pages = listing.matches(self._services.client, query(request, "queue") or "", (State.DEAD,), wanted)
        async for looked_at, jobs in pages:
            scanned += looked_at
            for job in jobs:
                groups.setdefault(group_key(job), _Group(job)).take(job)
            if scanned >= SCANNED_MAX or asyncio.get_running_loop().time() > until_s:
                complete = False
                break
        ranked = sorted(groups.items(), key=lambda item: (-item[1].jobs, -item[1].newest_ms))
        return json_response(
            DeadGroups(
                groups=[_group_view(key, group) for key, group in ranked[:GROUPS_MAX]],
                jobs=sum(group.jobs for group in groups.values()),
                scanned=scanned,
                complete=complete,
            )
        )

    async def _change(
        self,
        request: Request,
        states: Sequence[State],
        change: Callable[[Sequence[JobIdLike]], Awaitable[list[Change]]],
    ) -> Response:
        web = self._services.config.web
        body = await read_json(request, JobsFilter, max_bytes=web.max_body_mib << 20, timeout_s=web.body_timeout_s)
        chosen = await self._choose(body, _narrowed(body, states), _ids(body))
        changes: list[Change] = []
        if chosen.ids and not body.dry_run:
            changes = await changing(change(chosen.ids))
        left = [one for one in changes if one.code is not None]
        return json_response(
            JobsChanged(
                dry_run=body.dry_run,
                matched=len(chosen.ids),
                changed=len(changes) - len(left),
                not_changed=[not_changed(one) for one in left[:SAMPLE_ROWS]],
                complete=chosen.complete,
                scanned=chosen.scanned,
                states=chosen.states,
                sample=[views.job_row(job) for job in chosen.sample],
            )
        )

    async def _choose(self, body: JobsFilter, states: Sequence[State], ids: frozenset[bytes]) -> _Chosen:
        """All of them before any is changed: a list that changes under its reader leaves out some."""
        where = [Condition(name, _text(value), value) for name, value in body.where.items()]
        wanted = JobFilter(body.task, body.error, where)
        if ids and wanted == listing.ALL and not (body.queue or body.group):
            return await self._named(ids, states)
        chosen = _Chosen()
        until_s = asyncio.get_running_loop().time() + SCAN_S
        async for looked_at, jobs in listing.matches(self._services.client, body.queue, states, wanted):
            chosen.scanned += looked_at
            for job in jobs:
                if (ids and job.id not in ids) or (body.group and group_key(job) != body.group):
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

    async def _named(self, ids: frozenset[bytes], states: Sequence[State]) -> _Chosen:
        """Jobs that are asked for by nothing but their ids need no scan."""
        chosen = _Chosen(scanned=len(ids))
        for detail in await self._services.client.details(sorted(ids)):
            if detail is not None and detail.job.state in states:
                chosen.take(detail.job)
        return chosen

    def operations(self) -> list[Operation]:
        changed = ((200, JobsChanged),)
        errors = (400, 408, 413, 415, 422, 429, 503, 504)
        where = Parameter("where", "name=value: only jobs with this argument", type=list[str])
        filters = (
            Parameter("queue", "Name of a queue; all queues without it"),
            Parameter("task", "Only jobs of this task; * and ? stand for any characters"),
            Parameter("error", "Only jobs whose error has this in it, in any case of letters"),
            where,
        )
        return [
            Operation(
                "POST", "/v1/jobs:cancel", self.cancel_jobs, "Cancel all jobs of a filter; dry_run counts them",
                Scope.OPERATE, body=JobsFilter, answers=changed, errors=errors,
            ),
            Operation(
                "POST", "/v1/jobs:retry", self.retry_jobs, "Run dead, expired and cancelled jobs of a filter again",
                Scope.OPERATE, body=JobsFilter, answers=changed, errors=errors,
            ),
            Operation(
                "POST", "/v1/jobs:drop", self.drop_jobs, "Forget ended jobs of a filter for good", Scope.OPERATE,
                body=JobsFilter, answers=changed, errors=errors,
            ),
            Operation(
                "GET", "/v1/dead/groups", self.list_groups, "Dead letters by queue, task and kind of error",
                Scope.READ, answers=((200, DeadGroups),), parameters=filters, errors=(422, 429, 503),
            ),
        ]  # fmt: skip


def _narrowed(body: JobsFilter, states: Sequence[State]) -> Sequence[State]:
    """The states to look in. Raises Problem for one that the call cannot change, and for a filter that would mean all
    without saying so."""
    narrow = bool(body.queue or body.task or body.error or body.where or body.ids or body.group)
    if narrow is body.all:
        both = "it has filters and `all`; leave one out"
        raise invalid("#/all", both if narrow else "no filter is given; to mean every such job, give `all` as true")
    if not body.state:
        return states
    named = [state for state in states if state.label == body.state]
    if not named:
        known = ", ".join(state.label for state in states)
        raise invalid("#/state", f"{body.state!r:.40} is no state that this is for; those are: {known}")
    return named


def _ids(body: JobsFilter) -> frozenset[bytes]:
    found = set()
    for index, text in enumerate(body.ids):
        try:
            found.add(parse_id(text))
        except ValueError as error:
            raise invalid(f"#/ids/{index}", str(error)[:300]) from None
    return frozenset(found)


def _group_view(key: str, group: _Group) -> DeadGroup:
    return DeadGroup(
        key=key,
        queue=group.first.queue,
        task=group.first.task,
        error=template(group.first.error),
        jobs=group.jobs,
        oldest_at=views.when(group.oldest_ms),
        newest_at=views.when(group.newest_ms),
        sample=[views.job_row(job) for job in group.sample],
    )


def _text(value: Any) -> str:
    """As it would be written in a query: 49 also finds "49"."""
    return value if isinstance(value, str) else json.dumps(value)
