"""`zq pause`, `zq resume`, `zq limit`: what a queue may do, kept by the broker over restarts."""

from __future__ import annotations

from typing import Any

import click

from zq.cli_options import connected, json_option, open_client
from zq.cli_text import print_json
from zq.client.blocking import BlockingCalls
from zq.config import Config
from zq.exceptions import Invalid
from zq.monitor.cells import clean
from zq.protocol.messages import QueueInfo


def _require_known(client: BlockingCalls, config: Config, name: str) -> QueueInfo | None:
    """A mistyped name would get settings of its own, and the queue that was meant none. None for a queue that is
    configured and has had no job yet."""
    known = {queue.name: queue for queue in client.queues()}
    if name not in known and name not in config.queues:
        listed = ", ".join(sorted({*known, *config.queues}))
        raise Invalid(f"there is no queue '{name}'; the broker or the configuration know: {listed}")
    return known.get(name)


def limits_text(queue: QueueInfo) -> str:
    """The settings that differ from none, in a few words."""
    return ", ".join(
        text
        for text, given in (
            ("paused", queue.paused),
            (f"{queue.rate_per_s:g}/s", queue.rate_per_s),
            (f"{queue.running_max} at once", queue.running_max),
            (f"{queue.length_max} waiting", queue.length_max),
        )
        if given
    )


def queue_json(queue: QueueInfo) -> dict[str, Any]:
    return {name: getattr(queue, name) for name in queue.__struct_fields__}


def _say(queue: QueueInfo, as_json: bool) -> None:
    if as_json:
        print_json(queue_json(queue))
    else:
        click.echo(f"{clean(queue.name)}: {limits_text(queue) or 'no limits'}")


def _set(
    queue: str, as_json: bool, config_path: str | None, broker: str | None, **settings: Any
) -> None:
    config, client = open_client(config_path, broker, "admin")
    with client:
        _require_known(client, config, queue)
        _say(client.set_queue(queue, **settings), as_json)


@click.command()
@click.argument("queue")
@json_option
@connected
def pause(queue: str, as_json: bool, config_path: str | None, broker: str | None) -> None:
    """Start no more jobs of QUEUE, on any worker. It still takes jobs, and those that run go on."""
    _set(queue, as_json, config_path, broker, paused=True)


@click.command()
@click.argument("queue")
@json_option
@connected
def resume(queue: str, as_json: bool, config_path: str | None, broker: str | None) -> None:
    """Start the jobs of a paused QUEUE again."""
    _set(queue, as_json, config_path, broker, paused=False)


@click.command()
@click.argument("queue")
@click.option("--rate", "rate_per_s", type=float, metavar="R", help="Jobs started in a second; 0: no limit.")
@click.option("--running", "running_max", type=int, metavar="N", help="Jobs at once, on all workers; 0: no limit.")
@click.option("--length", "length_max", type=int, metavar="N", help="Waiting jobs; more are refused. 0: no limit.")
@json_option
@connected
def limit(
    queue: str,
    rate_per_s: float | None,
    running_max: int | None,
    length_max: int | None,
    as_json: bool,
    config_path: str | None,
    broker: str | None,
) -> None:
    """Bound QUEUE; what is not given stays as it is. Without an option, show its limits."""
    if rate_per_s is None and running_max is None and length_max is None:
        config, client = open_client(config_path, broker)
        with client:
            found = _require_known(client, config, queue)
        _say(found or QueueInfo(queue, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), as_json)
        return
    settings = {"rate_per_s": rate_per_s, "running_max": running_max, "length_max": length_max}
    _set(queue, as_json, config_path, broker, **settings)
