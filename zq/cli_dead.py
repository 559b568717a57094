"""`zq dead ls`, `zq dead retry`, `zq dead drop`: dead letters in bulk.

The broker never reads arguments, so jobs are filtered here: all dead ones are paged through, the matching ids
gathered, and then changed in batches. A job that meanwhile is no longer dead is refused by the broker, not changed.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

import click

from zq.cli_options import connected, json_option, open_client
from zq.cli_queues import chosen_queues, job_rows, require_known_queue
from zq.cli_text import job_json, local_zone, print_json, table
from zq.client.blocking import BlockingCalls
from zq.client.filters import JobFilter, condition
from zq.exceptions import Invalid, Refused
from zq.monitor.cells import clean
from zq.protocol import limits
from zq.protocol.errors import Code
from zq.protocol.job import State
from zq.protocol.messages import Change, JobInfo

_BATCH = 1000
_DETAILS = 100
"""Jobs whose whole error is asked for at once."""

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def dead() -> None:
    """List, retry or drop dead jobs: those that are out of attempts, or were rejected by their task.

    All filters that are given must hold. A job's error and arguments are shown by `zq show ID`.
    """


def _filters(command: F) -> F:
    for option in (
        click.option("--older-than", "older_than_s", type=click.FloatRange(0), metavar="S", help="Dead for so long."),
        click.option(
            "--where", "where", multiple=True, metavar="K=V",
            help="Keyword argument K is V (K may be the place of a positional one, from 0). Repeatable.",
        ),
        click.option("--error", default="", metavar="TEXT", help="The error has this text in it, in any case."),
        click.option("--task", default="", metavar="NAME", help="The task's name; * and ? are wildcards."),
        click.option("--queue", default="", metavar="QUEUE", help="Only of this queue."),
    ):  # fmt: skip
        command = option(command)
    return command


def _bulk(command: F) -> F:
    for option in (
        click.option("--yes", "-y", "yes", is_flag=True, help="Do not ask."),
        click.option("--dry-run", is_flag=True, help="Say which they are, and change nothing."),
    ):
        command = option(command)
    return _filters(json_option(connected(command)))


@dead.command("ls")
@_filters
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="At most so many.")
@json_option
@connected
def ls(limit: int, as_json: bool, config_path: str | None, broker: str | None, queue: str, **given: Any) -> None:
    """List dead jobs, the last to die first."""
    _, client = open_client(config_path, broker)
    with client:
        chosen = _filter(client, queue, **given)
        found = list(itertools.islice(_matching(client, queue, chosen), limit + 1))
    more = len(found) > limit
    found = found[:limit]
    if as_json:
        zone = local_zone()
        print_json([job_json(job, zone) for job in found])
        return
    click.echo(job_rows(found))
    if more:
        click.echo(f"zq: there are more; --limit shows more than {limit}", err=True)


@dead.command("retry")
@_bulk
def retry(**given: Any) -> None:
    """Run dead jobs again, their attempts forgotten."""
    _change_all("retry", lambda client: client.retry, **given)


@dead.command("drop")
@_bulk
def drop(**given: Any) -> None:
    """Forget dead jobs for ever, with their arguments and errors."""
    _change_all("drop", lambda client: client.drop, **given)


def _filter(
    client: BlockingCalls, queue: str, task: str, error: str, where: Sequence[str], older_than_s: float | None
) -> JobFilter:
    before_ms: int | None = None
    if older_than_s is not None:
        before_ms = client.broker().now_ms - round(older_than_s * 1000)
    conditions = [condition(one) for one in where]
    if queue:
        require_known_queue(client, queue)
    return JobFilter(task, error, conditions, before_ms)


def _matching(client: BlockingCalls, queue: str, chosen: JobFilter) -> Iterator[JobInfo]:
    """All dead jobs that match, page by page."""
    after = b""
    while True:
        page = client.jobs(queue, State.DEAD, after, limits.PAGE_ROWS_MAX, chosen.needs_specs)
        specs = page.specs if chosen.needs_specs else [b""] * len(page.jobs)
        pairs = list(zip(page.jobs, specs, strict=True))
        whole = _whole_errors(client, [job.id for job, spec in pairs if chosen.is_open(job, spec)])
        yield from (job for job, spec in pairs if chosen.matches(job, spec, whole.get(job.id)))
        after = page.next
        if not after:
            return


def _whole_errors(client: BlockingCalls, ids: Sequence[bytes]) -> dict[bytes, str]:
    errors: dict[bytes, str] = {}
    for start in range(0, len(ids), _DETAILS):
        for detail in client.details(ids[start : start + _DETAILS]):
            if detail is not None:
                errors[detail.job.id] = detail.job.error
    return errors


def _change_all(
    verb: str,
    changer: Callable[[BlockingCalls], Callable[[Sequence[bytes]], list[Change]]],
    *,
    queue: str,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    config_path: str | None,
    broker: str | None,
    **given: Any,
) -> None:
    if not (dry_run or yes or interactive()):
        raise Invalid(f"`zq dead {verb}` changes jobs: give --yes, or --dry-run to see which")
    _, client = open_client(config_path, broker, "admin" if verb == "drop" else None)
    with client:
        total = sum(info.dead for info in chosen_queues(client.queues(), [queue] if queue else []))
        with Progress("looked at", total) as progress:
            found = list(progress.count(_matching(client, queue, _filter(client, queue, **given))))
        changed: Counter[str] = Counter()
        if found and not dry_run:
            if not yes:
                of_queue = f" of queue {clean(queue)}" if queue else ""
                click.confirm(f"{verb} {_jobs(len(found))}{of_queue}?", abort=True, err=True)
            changed = _change(changer(client), [job.id for job in found], verb)
    _tell(verb, found, changed, dry_run, as_json)


def _change(change: Callable[[Sequence[bytes]], list[Change]], ids: Sequence[bytes], verb: str) -> Counter[str]:
    """How many came to which end: "done", or the broker's code."""
    ends: Counter[str] = Counter()
    with Progress(verb, len(ids)) as progress:
        for start in range(0, len(ids), _BATCH):
            part = ids[start : start + _BATCH]
            ends.update(str(one.code) if one.code is not None else "done" for one in change(part))
            progress.show(start + len(part))
    return ends


def _tell(verb: str, found: Sequence[JobInfo], changed: Counter[str], dry_run: bool, as_json: bool) -> None:
    kinds = Counter((job.queue, job.task) for job in found)
    refused = {code: count for code, count in sorted(changed.items()) if code != "done"}
    if as_json:
        print_json(
            {
                "matched": len(found),
                "dry_run": dry_run,
                "done": changed["done"],
                "refused": refused,
                "kinds": [{"queue": q, "task": t, "count": n} for (q, t), n in kinds.most_common()],
            }
        )
    else:
        if kinds:
            rows = [[q, t, str(count)] for (q, t), count in kinds.most_common()]
            click.echo(table(["queue", "task", "dead"], rows, right=frozenset({2})))
        if dry_run or not found:
            click.echo(f"{_jobs(len(found))} match{'es' if len(found) == 1 else ''}; nothing was changed")
        else:
            past = {"retry": "run again", "drop": "dropped"}[verb]
            click.echo(f"{changed['done']} of {_jobs(len(found))} {past}")
    if refused:
        said = ", ".join(f"{count} {code}" for code, count in refused.items())
        raise Refused(next(iter(refused)) if refused else Code.INVALID, f"not changed: {said}")


def _jobs(count: int) -> str:
    return "1 dead job" if count == 1 else f"{count} dead jobs"


def interactive() -> bool:
    """Whether somebody is there to be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


class Progress:
    """A count on standard error, if that is a terminal; wiped away at the end."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._on = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._on:
            click.echo("\r\x1b[K", nl=False, err=True)

    def show(self, done: int) -> None:
        if self._on:
            click.echo(f"\r\x1b[K{self._what} {done} of {self._total}", nl=False, err=True)

    def count(self, jobs: Iterator[JobInfo]) -> Iterator[JobInfo]:
        for number, job in enumerate(jobs, 1):
            if number % _BATCH == 0:
                self.show(number)
            yield job
