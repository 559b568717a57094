"""`zq len`, `zq ls`, `zq workers`: what is where. Looking never consumes or changes anything."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click

from zq.cli_limits import limits_text, queue_json
from zq.cli_options import connected, json_option, open_client
from zq.cli_text import job_json, local_zone, print_json, table
from zq.client.arguments import arguments_of
from zq.client.blocking import BlockingCalls
from zq.client.filters import JobFilter, condition
from zq.exceptions import Invalid
from zq.monitor.cells import clean, cut
from zq.monitor.units import duration, size
from zq.protocol import limits
from zq.protocol.job import State, format_id
from zq.protocol.messages import JobInfo, QueueInfo

_ERROR_CELLS = 60


def chosen_queues(queues: list[QueueInfo], names: Sequence[str]) -> list[QueueInfo]:
    """Those of these names, or all. Raises Invalid for one that is not there."""
    known = {queue.name: queue for queue in queues}
    for name in names:
        if name not in known:
            listed = ", ".join(sorted(known)) or "none yet"
            raise Invalid(f"there is no queue '{name}'; the broker knows: {listed}")
    return [known[name] for name in names] if names else sorted(queues, key=lambda queue: queue.name)


def require_known_queue(client: BlockingCalls, name: str) -> None:
    """Raises Invalid, with the names that there are."""
    chosen_queues(client.queues(), [name])


@click.command("len")
@click.argument("names", metavar="[QUEUE]…", nargs=-1)
@json_option
@connected
def length(names: Sequence[str], as_json: bool, config_path: str | None, broker: str | None) -> None:
    """Count the jobs of each QUEUE (of all, without one) by state, and say what limits it."""
    _, client = open_client(config_path, broker)
    with client:
        queues = chosen_queues(client.queues(), names)
    if as_json:
        print_json([queue_json(queue) for queue in queues])
        return
    head = ["queue", *(state.label for state in State), "oldest", "workers", "free/slots", "limits"]
    rows = [
        [
            queue.name,
            *(str(getattr(queue, state.label)) for state in State),
            duration(queue.oldest_ready_ms / 1000) if queue.ready else "-",
            str(queue.consumers),
            f"{queue.free}/{queue.slots}",
            limits_text(queue),
        ]
        for queue in queues
    ]
    click.echo(table(head, rows, right=frozenset(range(1, len(head) - 1))))


@click.command()
@click.argument("queue")
@click.option("--state", help="Only jobs in this state (default: ready, running and scheduled).")
@click.option(
    "--where", "where", multiple=True, metavar="K=V",
    help="Only jobs whose keyword argument K is V (K may be the place of a positional one, from 0). Repeatable.",
)
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="At most so many.")
@json_option
@connected
def ls(
    queue: str, state: str | None, where: Sequence[str], limit: int, as_json: bool, config_path: str | None,
    broker: str | None,
) -> None:  # fmt: skip
    """List the jobs of QUEUE, in the order in which they will run. Every priority is shown, nothing is consumed."""
    chosen = JobFilter(where=[condition(one) for one in where])
    _, client = open_client(config_path, broker)
    with client:
        (known,) = chosen_queues(client.queues(), [queue])
        states: list[State | str] = [state] if state else [State.RUNNING, State.READY, State.SCHEDULED]
        found: list[tuple[JobInfo, bytes]] = []
        for one in states:
            found += _list(client, queue, one, chosen, limit - len(found), with_specs=not as_json)
    jobs = [job for job, _ in found]
    zone = local_zone()
    if as_json:
        print_json([job_json(job, zone) for job in jobs])
        return
    click.echo(job_rows(jobs, [arguments_of(spec) for _, spec in found]))
    if not jobs:
        click.echo(f"zq: {_nothing(known, state, bool(where))}", err=True)


def _nothing(queue: QueueInfo, state: str | None, filtered: bool) -> str:
    """Why a list is empty, and where the jobs are."""
    text = f"no job of {queue.name} is {state or 'running, ready or scheduled'}{' and has these arguments' * filtered}"
    ended = {"done": queue.done, "dead": queue.dead, "cancelled": queue.cancelled, "expired": queue.expired}
    told = ", ".join(f"{count} {name}" for name, count in ended.items() if count)
    return f"{text}; ended so far: {told} (list them with --state)" if told and state is None else text


def job_rows(jobs: Sequence[JobInfo], arguments: Sequence[str] = ()) -> str:
    """The jobs as a table. The last column is what tells most of a job: its progress, else its error, else its key or
    arguments."""
    now_ms = time.time() * 1000
    rows = [
        [
            format_id(job.id),
            job.state.label,
            str(job.priority),
            job.task,
            f"{job.attempt}/{job.attempts_max}",
            duration((now_ms - job.accepted_ms) / 1000),
            cut(clean(job.progress_message or job.error.partition("\n")[0] or job.key or given), _ERROR_CELLS),
        ]
        for job, given in zip(jobs, arguments or [""] * len(jobs), strict=True)
    ]
    return table(["job", "state", "prio", "task", "attempt", "age", "what"], rows, right=frozenset({2}), state=1)


def _list(
    client: BlockingCalls, queue: str, state: State | str, chosen: JobFilter, limit: int, *, with_specs: bool
) -> list[tuple[JobInfo, bytes]]:
    with_specs = with_specs or chosen.needs_specs
    found: list[tuple[JobInfo, bytes]] = []
    after = b""
    while len(found) < limit:
        rows = limits.PAGE_ROWS_MAX if chosen.needs_specs else min(limit - len(found), limits.PAGE_ROWS_MAX)
        page = client.jobs(queue, state, after, rows, with_specs)
        specs = page.specs if with_specs else [b""] * len(page.jobs)
        matching = [(job, spec) for job, spec in zip(page.jobs, specs, strict=True) if chosen.matches(job, spec)]
        found += matching[: limit - len(found)]
        after = page.next
        if not after:
            break
    return found


@click.command()
@json_option
@connected
def workers(as_json: bool, config_path: str | None, broker: str | None) -> None:
    """List the workers that are connected, with their queues and tags, and the disk and memory they have left for jobs
    that say what they need.
    """
    _, client = open_client(config_path, broker)
    with client:
        found = client.workers()
    if found.not_listed:
        click.echo(f"zq: {found.not_listed} more workers did not fit into the broker's answer", err=True)
    if as_json:
        print_json(
            [
                {
                    "instance": worker.instance,
                    "role": str(worker.role),
                    "queues": {entry.queue: entry.slots for entry in worker.queues},
                    "running": worker.running,
                    "tasks": worker.tasks,
                    "silent_ms": worker.silent_ms,
                    "connected_ms": worker.connected_ms,
                    "software": worker.software,
                    "tags": worker.tags,
                    "stalled": worker.stalled,
                    "room": {name: getattr(worker.room, name) for name in ("disk_bytes", "memory_bytes")}
                    if worker.room is not None
                    else None,
                }
                for worker in found
            ]
        )
        return
    rows = [
        [
            worker.instance,
            " ".join(f"{entry.queue}:{entry.slots}" for entry in worker.queues),
            " ".join(worker.tags) or "-",
            f"{worker.running} ({worker.stalled} stalled)" if worker.stalled else str(worker.running),
            size(worker.room.disk_bytes) if worker.room is not None else "-",
            size(worker.room.memory_bytes) if worker.room is not None else "-",
            str(worker.tasks),
            duration(worker.silent_ms / 1000),
            duration(worker.connected_ms / 1000),
            worker.software,
        ]
        for worker in found
    ]
    head = ["worker", "queue:slots", "tags", "running", "disk", "memory", "tasks", "heard", "since", "software"]
    click.echo(table(head, rows, right=frozenset(range(3, 9))))
