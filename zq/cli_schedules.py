"""`zq schedules`: what is submitted by the clock, how far it has come, and orders to it."""

from __future__ import annotations

import getpass
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from zq import schedules as shared
from zq.cli_options import connected, json_option, open_client
from zq.cli_text import print_json
from zq.exceptions import ZqError
from zq.monitor.cells import clean
from zq.protocol.job import State, format_id
from zq.protocol.messages import JobInfo, ReceiptStatus
from zq.schedules import Known, Order, Progress, Shown

if TYPE_CHECKING:
    from zq.client.sync import Client
    from zq.config import Config

ONE_SHOTS_MAX = 200


@click.group("schedules", invoke_without_command=True)
@json_option
@connected
@click.pass_context
def schedules(ctx: click.Context, config_path: str | None, broker: str | None, as_json: bool) -> None:
    """List the schedules: when each comes next, how its last tick went, how many it missed."""
    if ctx.invoked_subcommand is not None:
        return
    config, client = open_client(config_path, broker)
    with client:
        found = _all(client, config)
        waiting = client.jobs(shared.ONE_SHOT_QUEUE, State.SCHEDULED, limit=ONE_SHOTS_MAX).jobs
    one_shots = shared.one_shots(waiting)
    if as_json:
        print_json(
            {"schedules": [_as_json(one) for one in found], "one_shots": [_one_shot_json(job) for job in one_shots]}
        )
        return
    for line in [*_table(found), *_one_shot_lines(one_shots)]:
        click.echo(line)


@schedules.command("pause")
@click.argument("name")
@json_option
@connected
def pause(name: str, config_path: str | None, broker: str | None, as_json: bool) -> None:
    """Let a schedule's ticks pass, until it is resumed. They do not count as missed."""
    _order(name, config_path, broker, as_json, paused=True)


@schedules.command("resume")
@click.argument("name")
@json_option
@connected
def resume(name: str, config_path: str | None, broker: str | None, as_json: bool) -> None:
    """Go on with the next tick of a paused schedule."""
    _order(name, config_path, broker, as_json, paused=False)


@schedules.command("run")
@click.argument("name")
@json_option
@connected
def run(name: str, config_path: str | None, broker: str | None, as_json: bool) -> None:
    """Submit one job of a schedule now, beside its ticks; also while it is paused."""
    config, client = open_client(config_path, broker)
    with client:
        one = shared.require(_all(client, config), name)
        (receipt,) = client.submit_many([shared.require_plan(one).run_now()])
    if receipt.status is not ReceiptStatus.ACCEPTED:
        raise ZqError(f"schedule '{name}' was not run: {shared.refused_text(receipt)}")
    job_id = format_id(receipt.job_id)
    if as_json:
        print_json({"name": name, "job_id": job_id})
    else:
        click.echo(f"{name}: job {job_id}")


def _all(client: Client, config: Config) -> list[Shown]:
    known = shared.read(client.registers(shared.PREFIX))
    return shared.shown(shared.plans_of(config), known, _now_ms())


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _order(name: str, config_path: str | None, broker: str | None, as_json: bool, *, paused: bool) -> None:
    config, client = open_client(config_path, broker, "admin")
    with client:
        for _ in range(shared.TRIES):
            one = shared.require(_all(client, config), name)
            order = Order(paused, _now_ms(), getpass.getuser())
            (answer,) = client.set_registers([shared.order_register(name, one.known, order)])
            if answer.done:
                break
        else:
            raise ZqError("others change this schedule at the same time; look, and try again")
    if as_json:
        known = Known(one.known.progress, one.known.progress_revision, order, answer.register.revision)
        print_json(_as_json(Shown(one.name, one.plan, known)))
    else:
        click.echo(f"{clean(name)}: {'paused' if paused else 'goes on with its next tick'}")


def _as_json(one: Shown) -> dict[str, Any]:
    progress, order = one.known.progress or Progress(), one.known.order
    return {
        "name": one.name,
        "task": one.task,
        "queue": one.queue,
        "rule": one.rule,
        "paused": order.paused,
        "paused_by": order.by if order.paused else None,
        "next_ms": None if order.paused else progress.next_ms or None,
        "last_ms": progress.last_ms or None,
        "late_ms": progress.late_ms if progress.last_ms else None,
        "job_id": format_id(progress.job_id) if progress.last_ms else None,
        "ticks": progress.ticks,
        "missed": progress.missed,
        "overlapped": progress.overlapped,
    }


def _one_shot_json(job: JobInfo) -> dict[str, Any]:
    return {"key": job.key, "task": job.task, "at_ms": job.due_ms, "job_id": format_id(job.id)}


def _table(found: Sequence[Shown]) -> list[str]:
    rows = [("NAME", "WHEN", "NEXT", "LAST", "LATE", "MISSED", "OVERLAPPED")]
    for one in found:
        progress = one.known.progress or Progress()
        rows.append(
            (
                clean(one.name),
                clean(one.rule),
                "paused" if one.known.order.paused else _clock(progress.next_ms) or "not known",
                _clock(progress.last_ms) or "not yet",
                f"{progress.late_ms} ms" if progress.last_ms else "",
                str(progress.missed),
                str(progress.overlapped),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _one_shot_lines(jobs: Sequence[JobInfo]) -> list[str]:
    if not jobs:
        return []
    return ["", "once:", *(f"  {_clock(job.due_ms)}  {clean(job.key)}" for job in jobs)]


def _clock(ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1000)) if ms else ""
