"""`zq audit`: is every job that was ever accepted accounted for?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, tzinfo
from typing import Any, Final

import click

from zq.cli_options import connected, json_option, open_client
from zq.cli_text import local_zone, print_json, table
from zq.client.blocking import BlockingCalls
from zq.exceptions import ZqError
from zq.protocol.limits import PAGE_ROWS_MAX
from zq.protocol.messages import HourInfo, QueueInfo

HOUR_MS: Final = 3_600_000
_COUNTED: Final = ("accepted", "finished", "waiting", "running", "missing")


class Unbalanced(ZqError):
    """Jobs were accepted that are in no state: a defect of the broker's, or a damaged journal."""


@click.command()
@click.option("--hours", metavar="N", type=click.IntRange(1, 1488), help="Also by the hour of acceptance, the last N.")
@json_option
@connected
def audit(hours: int | None, as_json: bool, config_path: str | None, broker: str | None) -> None:
    """Check for every queue that accepted = finished + waiting + running. Exit code 1 if a job is not accounted for.

    With --hours the same of the jobs that were accepted in each hour, whatever has become of them since.
    """
    since_ms = 0 if hours is None else int(time.time() * 1000) // HOUR_MS * HOUR_MS - (hours - 1) * HOUR_MS
    _, client = open_client(config_path, broker)
    with client:
        queues = sorted(client.queues(), key=lambda queue: queue.name)
        sums = [audit_row(queue) for queue in queues]
        if hours is not None:
            for row, queue in zip(sums, queues, strict=True):
                row["hours"] = [hour_row(hour, local_zone()) for hour in _hours(client, queue.name, since_ms)]
    if as_json:
        print_json(sums)
    else:
        _print_audit(sums)
    wrong = [row["queue"] for row in sums if any(part["missing"] for part in (row, *row.get("hours", [])))]
    if wrong:
        raise Unbalanced(f"jobs are not accounted for in {', '.join(wrong)}; keep the journal and report this")


def _hours(client: BlockingCalls, queue: str, since_ms: int) -> Iterator[HourInfo]:
    while page := client.hours(queue, since_ms, limit=PAGE_ROWS_MAX):
        yield from page
        since_ms = page[-1].start_ms + 1


def _print_audit(sums: list[dict[str, Any]]) -> None:
    rows = []
    for row in sums:
        rows.append([str(row["queue"]), *(str(row[name]) for name in _COUNTED)])
        for hour in row.get("hours", []):
            rows.append([f"  {hour['start']}", *(str(hour[name]) for name in _COUNTED)])
    total = [str(sum(int(row[name]) for row in sums)) for name in _COUNTED]
    click.echo(table(["queue", *_COUNTED], [*rows, ["all", *total]], right=frozenset(range(1, 6))))


def hour_row(hour: HourInfo, zone: tzinfo) -> dict[str, Any]:
    start = datetime.fromtimestamp(hour.start_ms / 1000, zone)
    return {"start": start.isoformat(timespec="minutes"), **_sums(hour)}


def audit_row(queue: QueueInfo) -> dict[str, Any]:
    return {"queue": queue.name, **_sums(queue)}


def _sums(counted: QueueInfo | HourInfo) -> dict[str, int]:
    finished = counted.done + counted.dead + counted.cancelled + counted.expired
    waiting = counted.ready + counted.scheduled
    return {
        "accepted": counted.accepted,
        "finished": finished,
        "waiting": waiting,
        "running": counted.running,
        "missing": counted.accepted - finished - waiting - counted.running,
    }
