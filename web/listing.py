"""Pages of jobs, with or without a filter: the broker's pages are looked through, within a bound that the answer tells.

The broker's cursors stand between two of its pages. Where a page of ours ends inside one of them, that page is asked
for once more, as long as it was used: its cursor is ours.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from starlette.requests import Request

from zq.client.aio import AsyncClient
from zq.client.filters import JobFilter, condition
from zq.exceptions import Invalid
from zq.protocol import limits
from zq.protocol.job import State
from zq.protocol.messages import JobInfo
from zq.web.answers import QUERY_CHARS_MAX, query
from zq.web.problems import invalid

SCANNED_MAX = 10_000
"""Jobs that are looked at for one page."""
SCAN_S = 5.0
CONDITIONS_MAX = 8
ALL = JobFilter()


@dataclass(frozen=True)
class Position:
    """Where a list goes on: after the broker's cursor `after` in the first of `states`."""

    states: Sequence[State]
    after: bytes = b""


@dataclass
class Found:
    jobs: list[JobInfo] = field(default_factory=list)
    next: Position | None = None
    """None at the end of the list."""
    scanned: int = 0
    specs: list[bytes] = field(default_factory=list)
    """As many as `jobs`, if they were asked for."""


@dataclass(frozen=True)
class _Page:
    jobs: Sequence[JobInfo]
    specs: Sequence[bytes]
    fitting: Sequence[int]
    """The places of those that fit."""
    here: Position
    following: Position | None


async def page_of(
    client: AsyncClient, queue: str, position: Position, wanted: JobFilter, limit: int, *, with_specs: bool = False
) -> Found:
    """At most `limit` jobs that fit. There may be fewer and still a `next`: the scan has a bound."""
    found = Found(next=position)
    loop = asyncio.get_running_loop()
    until_s = loop.time() + SCAN_S
    while found.next is not None and found.scanned < SCANNED_MAX and loop.time() < until_s:
        rows = limits.PAGE_ROWS_MAX if wanted != ALL else limit - len(found.jobs)
        page = await _page(client, queue, found.next, rows, wanted, with_specs=with_specs)
        for index in page.fitting:
            found.jobs.append(page.jobs[index])
            if with_specs:
                found.specs.append(page.specs[index])
            if len(found.jobs) == limit and index + 1 < len(page.jobs):
                found.scanned += index + 1
                found.next = await _inside(client, queue, page, index + 1)
                return found
        found.scanned += len(page.jobs)
        found.next = page.following
        if len(found.jobs) == limit:
            break
    return found


async def matches(
    client: AsyncClient, queue: str, states: Sequence[State], wanted: JobFilter
) -> AsyncIterator[tuple[int, list[JobInfo]]]:
    """The whole list, page by page: how many jobs a page had, and those that fit. It is for the caller to stop."""
    here: Position | None = Position(states)
    while here is not None:
        page = await _page(client, queue, here, limits.PAGE_ROWS_MAX, wanted)
        yield len(page.jobs), [page.jobs[index] for index in page.fitting]
        here = page.following


async def _page(
    client: AsyncClient, queue: str, here: Position, rows: int, wanted: JobFilter, *, with_specs: bool = False
) -> _Page:
    page = await client.jobs(queue, here.states[0], here.after, rows, with_specs=with_specs or wanted.needs_specs)
    following = None
    if page.next:
        following = Position(here.states, page.next)
    elif len(here.states) > 1:
        following = Position(here.states[1:])
    specs = page.specs or [b""] * len(page.jobs)
    fitting = {index for index, job in enumerate(page.jobs) if wanted.matches(job, specs[index])}
    # A listing has only the beginning of an error: where that does not tell, the whole is asked for.
    cut = [index for index, job in enumerate(page.jobs) if index not in fitting and wanted.is_open(job, specs[index])]
    for index, detail in zip(cut, await client.details([page.jobs[index].id for index in cut]), strict=True):
        if detail is not None and wanted.matches(page.jobs[index], specs[index], detail.job.error):
            fitting.add(index)
    return _Page(page.jobs, specs, sorted(fitting), here, following)


async def _inside(client: AsyncClient, queue: str, page: _Page, used: int) -> Position:
    """The position behind the first `used` jobs of a page. If these have changed meanwhile, its beginning: better a job
    twice than never."""
    again = await client.jobs(queue, page.here.states[0], page.here.after, used)
    if again.next and [job.id for job in again.jobs] == [job.id for job in page.jobs[:used]]:
        return Position(page.here.states, again.next)
    return page.here


def cursor_text(position: Position | None) -> str | None:
    if position is None:
        return None
    return base64.urlsafe_b64encode(bytes([position.states[0]]) + position.after).rstrip(b"=").decode()


def read_cursor(text: str) -> tuple[State, bytes]:
    """Raises Problem for what no page has given out."""
    try:
        raw = base64.b64decode(text.encode() + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return State(raw[0]), raw[1:513]
    except (binascii.Error, ValueError, IndexError):
        raise invalid("#/query/cursor", "the cursor is not one that a page has given as `next`") from None


def position_of(states: Sequence[State], cursor: str | None) -> Position:
    """Raises Problem for a cursor of another list."""
    if not cursor:
        return Position(states)
    at, after = read_cursor(cursor)
    if at not in states:
        raise invalid("#/query/cursor", "the cursor belongs to a list of another state; leave it out to begin anew")
    return Position(states[states.index(at) :], after)


def filter_of(request: Request) -> JobFilter:
    """`task`, `error` and `where` of a query. Raises Problem."""
    texts = request.query_params.getlist("where")
    if any(len(text) > QUERY_CHARS_MAX for text in texts):
        raise invalid("#/query/where", f"where has more than {QUERY_CHARS_MAX} characters")
    if len(texts) > CONDITIONS_MAX:
        raise invalid("#/query/where", f"where is given {len(texts)} times; at most {CONDITIONS_MAX}")
    try:
        where = [condition(text) for text in texts]
    except Invalid:
        raise invalid("#/query/where", f"where is one of {texts!r:.200}; write name=value, as in exam_id=49") from None
    return JobFilter(query(request, "task") or "", query(request, "error") or "", where)
