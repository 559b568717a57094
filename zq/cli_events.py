"""`zq events`: what happens to jobs and queues, from the journal."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import tzinfo

import click

from zq.cli_options import connected, json_option, open_client
from zq.cli_queues import require_known_queue
from zq.cli_show import event_json, event_words
from zq.cli_text import local_zone
from zq.client.blocking import BlockingCalls
from zq.client.follow import Follow, Gap
from zq.client.verbs import NEWEST
from zq.exceptions import Unavailable
from zq.monitor.cells import clean
from zq.monitor.units import moment
from zq.protocol import limits
from zq.protocol.job import format_id
from zq.protocol.messages import EventInfo

_LAST = 100
_AGAIN_S = 1.0


@click.command()
@click.option("--follow", "-f", "follow", is_flag=True, help="Go on with what happens from now on, until Ctrl-C.")
@click.option("--after", type=click.IntRange(0), metavar="N", help="From the one after event N; 0: the oldest kept.")
@click.option("--queue", default="", metavar="QUEUE", help="Only of this queue.")
@click.option("--job", "job_id", metavar="ID", help="Only of this job; without --after, all that is kept of it.")
@json_option
@connected
def events(
    follow: bool,
    after: int | None,
    queue: str,
    job_id: str | None,
    as_json: bool,
    config_path: str | None,
    broker: str | None,
) -> None:
    """Print what happened to jobs and queues: each event with its number, oldest first.

    Without --after, the last 100 events of all queues are looked through. What has been forgotten since N is said where
    it is missing. With --json, each line is one JSON object. To go on later, give the last number to --after.
    """
    _, client = open_client(config_path, broker)
    zone = local_zone()
    with client:
        if queue:
            require_known_queue(client, queue)
        newest = client.events(NEWEST, limit=1).last
        try:
            last = 0
            for item in _past(client, after, newest, queue, job_id):
                _print(item, zone, as_json)
                last = item.last if isinstance(item, Gap) else item.number
            if follow:
                _go_on(client.follow(max(last, newest), queue, job_id), zone, as_json)
        except KeyboardInterrupt:
            return  # the way to end it


def _past(
    client: BlockingCalls, after: int | None, newest: int, queue: str, job_id: str | None
) -> Iterator[EventInfo | Gap]:
    """What has happened up to event `newest`."""
    if after is None and job_id is not None:
        yield from client.detail(job_id).history
        return
    place = max(newest - _LAST, 0) if after is None else after
    while place < newest or (after is not None and place > newest):
        page = client.events(place, queue, job_id, limit=limits.PAGE_ROWS_MAX)
        if page.gap and after is not None:
            yield Gap(place, page.events[0].number - 1 if page.events else page.last)
        yield from page.events
        if page.last == place:
            return
        place = page.last


def _go_on(follow: Follow, zone: tzinfo, as_json: bool) -> None:
    """For ever; a broker that is away is waited for."""
    told = False
    while True:
        try:
            item = next(follow)
        except Unavailable as error:
            if not told:
                click.echo(f"zq: {error}; waiting for it", err=True)
                told = True
            time.sleep(_AGAIN_S)
            continue
        told = False
        _print(item, zone, as_json)


def _print(item: EventInfo | Gap, zone: tzinfo, as_json: bool) -> None:
    if as_json:
        data = {"gap": True, **item._asdict()} if isinstance(item, Gap) else event_json(item, zone)
        click.echo(json.dumps(data, ensure_ascii=False))
    elif isinstance(item, Gap):
        click.echo(f"-- events after {item.after} up to {item.last} are not there any more --")
    else:
        job = f"{format_id(item.job_id)}  {clean(item.task)}" if any(item.job_id) else "queue"
        where = f"{item.number}  {moment(item.at_ms, zone)}  {clean(item.queue)}"
        click.echo(f"{where}  {job}  {event_words(item)}")
