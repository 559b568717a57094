"""`zq len`, `zq ls`, `zq workers`, `zq audit`: what is where. Looking never consumes or changes anything."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click

from zq.cli_options import connected, json_option, open_client
from zq.cli_text import job_json, print_json, table, zone_of
from zq.client.blocking import BlockingCalls
from zq.exceptions import Invalid, ZqError
from zq.monitor.cells import clean, cut
from zq.monitor.units import duration
from zq.protocol import limits
from zq.protocol.job import State, format_id
from zq.protocol.messages import JobInfo, QueueInfo

_ERROR_CELLS = 60


class Unbalanced(ZqError):
    """Jobs were accepted that are in no state: a defect of the broker's, or a damaged journal."""


def _chosen(queues: list[QueueInfo], names: Sequence[str]) -> list[QueueInfo]:
    known = {queue.name: queue for queue in queues}
    for name in names:
        if name not in known:
            listed = ", ".join(sorted(known)) or "none yet"
            raise Invalid(f"there is no queue '{name}'; the broker knows: {listed}")
    return [known[name] for name in names] if names else sorted(queues, key=lambda queue: queue.name)


@click.command("len")
@click.argument("names", metavar="[QUEUE]…", nargs=-1)
@json_option
@connected
def length(names: Sequence[str], as_json: bool, config_path: str | None, broker: str | None) -> None:
    """Count the jobs of each QUEUE (of all, without one): ready, scheduled, running and ended."""
    _, client = open_client(config_path, broker)
    with client:
        queues = _chosen(client.queues(), names)
    if as_json:
        print_json([{name: getattr(queue, name) for name in queue.__struct_fields__} for queue in queues])
        return
    head = ["queue", *(state.label for state in State), "oldest", "workers", "free/slots"]
    rows = [
        [
            queue.name,
            *(str(getattr(queue, state.label)) for state in State),
            duration(queue.oldest_ready_ms / 1000) if queue.ready else "-",
            str(queue.consumers),
            f"{queue.free}/{queue.slots}",
        ]
        for queue in queues
    ]
    click.echo(table(head, rows, right=frozenset(range(1, len(head)))))


@click.command()
@click.argument("queue")
@click.option("--state", help="Only jobs in this state (default: ready, running and scheduled).")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="At most so many.")
@json_option
@connected
def ls(
    queue: str, state: str | None, limit: int, as_json: bool, config_path: str | None, broker: str | None
) -> None:
    """List the jobs of QUEUE, in the order in which they will run. Every priority is shown, nothing is consumed."""
    config, client = open_client(config_path, broker)
    with client:
        _chosen(client.queues(), [queue])
        states: list[State | str] = [state] if state else [State.RUNNING, State.READY, State.SCHEDULED]
        jobs: list[JobInfo] = []
        for one in states:
            jobs += _list(client, queue, one, limit - len(jobs))
    zone = zone_of(config)
    if as_json:
        print_json([job_json(job, zone) for job in jobs])
        return
    now_ms = time.time() * 1000
    rows = [
        [
            format_id(job.id),
            job.state.label,
            str(job.priority),
            job.task,
            f"{job.attempt}/{job.attempts_max}",
            duration((now_ms - job.accepted_ms) / 1000),
            cut(clean(job.progress_message or job.error.partition("\n")[0]), _ERROR_CELLS),
        ]
        for job in jobs
    ]
    click.echo(table(["job", "state", "prio", "task", "attempt", "age", "says"], rows, right=frozenset({2}), state=1))


def _list(client: BlockingCalls, queue: str, state: State | str, limit: int) -> list[JobInfo]:
    found: list[JobInfo] = []
    after = b""
    while len(found) < limit:
        page = client.jobs(queue, state, after, min(limit - len(found), limits.PAGE_ROWS_MAX))
        found += page.jobs
        after = page.next
        if not after:
            break
    return found


@click.command()
@json_option
@connected
def workers(as_json: bool, config_path: str | None, broker: str | None) -> None:
    """List the workers that are connected, with their queues."""
    _, client = open_client(config_path, broker)
    with client:
        found = client.workers()
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
                }
                for worker in found
            ]
        )
        return
    rows = [
        [
            worker.instance,
            " ".join(f"{entry.queue}:{entry.slots}" for entry in worker.queues),
            str(worker.running),
            str(worker.tasks),
            duration(worker.silent_ms / 1000),
            duration(worker.connected_ms / 1000),
            worker.software,
        ]
        for worker in found
    ]
    head = ["worker", "queue:slots", "running", "tasks", "heard", "since", "software"]
    click.echo(table(head, rows, right=frozenset({2, 3, 4, 5})))


@click.command()
@json_option
@connected
def audit(as_json: bool, config_path: str | None, broker: str | None) -> None:
    """Check for every queue that accepted = finished + waiting + running. Exit code 1 if a job is not accounted for."""
    _, client = open_client(config_path, broker)
    with client:
        queues = sorted(client.queues(), key=lambda queue: queue.name)
    sums = [audit_row(queue) for queue in queues]
    if as_json:
        print_json(sums)
    else:
        head = ["queue", "accepted", "finished", "waiting", "running", "missing"]
        rows = [[str(row[name]) for name in head] for row in sums]
        total = [str(sum(int(row[name]) for row in sums)) for name in head[1:]]
        click.echo(table(head, [*rows, ["all", *total]], right=frozenset(range(1, len(head)))))
    wrong = [str(row["queue"]) for row in sums if row["missing"]]
    if wrong:
        raise Unbalanced(f"jobs are not accounted for in {', '.join(wrong)}; keep the journal and report this")


def audit_row(queue: QueueInfo) -> dict[str, str | int]:
    finished = queue.done + queue.dead + queue.cancelled + queue.expired
    waiting = queue.ready + queue.scheduled
    return {
        "queue": queue.name,
        "accepted": queue.accepted,
        "finished": finished,
        "waiting": waiting,
        "running": queue.running,
        "missing": queue.accepted - finished - waiting - queue.running,
    }
