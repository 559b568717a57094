"""`zq submit`, `zq cancel`, `zq retry`: one job, or a few by their ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, cast, get_args

import click

from zq.cli_options import connected, json_option, open_client
from zq.cli_text import print_json, table
from zq.client.filters import json_or_text, strict_json
from zq.client.job import Job
from zq.client.requests import JobRequest, KeyPolicyName
from zq.config import Config
from zq.exceptions import Invalid, JobFailed, Refused
from zq.monitor.cells import clean
from zq.protocol import limits
from zq.protocol.errors import Code
from zq.protocol.job import State, format_id, new_job_id
from zq.protocol.messages import Change


def parse_keyword(text: str) -> tuple[str, Any]:
    """k=v: the value is JSON if it reads as JSON, else text. Raises Invalid."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise Invalid(f"--arg {text!r}: write it as name=value, as in --arg width_px=640")
    return name, json_or_text(value)


def parse_positional(text: str | None) -> list[Any]:
    """--args: a JSON array. Raises Invalid."""
    if text is None:
        return []
    try:
        value = strict_json(text)
    except ValueError as error:
        raise Invalid(f"--args is not JSON: {error}; write an array, as in --args '[\"a.png\", 640]'") from None
    if not isinstance(value, list):
        raise Invalid("--args is not a JSON array; write [..] around it")
    return value


@click.command()
@click.argument("task")
@click.option("--queue", help="The queue (default: the one whose `tasks` in zq.toml hold the task's module).")
@click.option("--arg", "keywords", multiple=True, metavar="K=V", help="A keyword argument (repeatable); V may be JSON.")
@click.option("--args", "positional", metavar="JSON", help="Positional arguments, as a JSON array.")
@click.option("--key", default="", help="At most one live job has this key.")
@click.option(
    "--key-policy", type=click.Choice(get_args(KeyPolicyName)), default="refuse", show_default=True,
    help="When a waiting job has the key: leave it, take its place, or give it this one's time.",
)  # fmt: skip
@click.option("--concurrency-key", default="", metavar="KEY", help="Bound how many jobs with this key run at once.")
@click.option("--concurrency-limit", type=int, default=1, show_default=True, metavar="N", help="How many they are.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Only workers with this tag run it (repeatable).")
@click.option("--disk-bytes", type=int, default=0, help="Only a worker that has so much disk left runs it.")
@click.option("--memory-bytes", type=int, default=0, help="Only a worker that has so much memory left runs it.")
@click.option("--memory-limit-bytes", type=int, default=0, help="End it when its processes take more memory.")
@click.option("--stall-after", "stall_after_s", type=float, metavar="S", help="Soft limit when it is as still so long.")
@click.option("--id", "job_id", metavar="UUID", help="The job's id: the same id and job again is the same job.")
@click.option("--priority", type=int, default=limits.PRIORITY_DEFAULT, show_default=True, help="0–9; higher is sooner.")
@click.option(
    "--delay", "--countdown", "countdown", type=float, metavar="S", help="Start after so many seconds at the earliest."
)
@click.option("--eta", metavar="TIME", help="Start at this time at the earliest: ISO 8601 with a zone.")
@click.option("--expires", "expires_s", type=float, metavar="S", help="Drop it if it has not started within this.")
@click.option("--max-retries", type=int, default=3, show_default=True, help="Attempts after the first one.")
@click.option(
    "--backoff", "backoff_s", type=float, default=60.0, show_default=True, metavar="S",
    help="Before the first retry; doubled for each further one, an hour at most.",
)  # fmt: skip
@click.option("--soft-time-limit", "soft_time_limit_s", type=float, metavar="S", help="Then the task is asked to stop.")
@click.option("--time-limit", "time_limit_s", type=float, metavar="S", help="Then its processes are ended.")
@click.option("--wait", "wait", is_flag=True, help="Wait for the end and print the result.")
@click.option("--timeout", "timeout_s", type=float, metavar="S", help="With --wait: how long (default: for ever).")
@json_option
@connected
def submit(
    task: str,
    queue: str | None,
    keywords: Sequence[str],
    positional: str | None,
    key: str,
    key_policy: str,
    concurrency_key: str,
    concurrency_limit: int,
    tags: Sequence[str],
    disk_bytes: int,
    memory_bytes: int,
    memory_limit_bytes: int,
    stall_after_s: float | None,
    job_id: str | None,
    priority: int,
    countdown: float | None,
    eta: str | None,
    expires_s: float | None,
    max_retries: int,
    backoff_s: float,
    soft_time_limit_s: float | None,
    time_limit_s: float | None,
    wait: bool,
    timeout_s: float | None,
    as_json: bool,
    config_path: str | None,
    broker: str | None,
) -> None:
    """Submit a job for TASK (its name, as in module.function) and print its id.

    The id is printed when the job is durable. With --wait the result follows as JSON on a line of its own, and the exit
    code is 1 if the job ended without one, or has not ended in time.
    """
    config, client = open_client(config_path, broker)
    request = JobRequest(
        task=task,
        queue=queue if queue is not None else queue_of(task, config),
        args=parse_positional(positional),
        kwargs=dict(map(parse_keyword, keywords)),
        id=job_id if job_id is not None else new_job_id(),
        key=key,
        key_policy=cast(KeyPolicyName, key_policy),
        concurrency_key=concurrency_key,
        concurrency_limit=concurrency_limit,
        tags=tags,
        disk_bytes=disk_bytes,
        memory_bytes=memory_bytes,
        memory_limit_bytes=memory_limit_bytes,
        stall_after_s=stall_after_s,
        priority=priority,
        countdown=countdown,
        eta=_parse_eta(eta),
        expires_s=expires_s,
        max_retries=max_retries,
        backoff_s=backoff_s,
        soft_time_limit_s=soft_time_limit_s,
        time_limit_s=time_limit_s,
    )
    with client:
        job = client.submit_request(request)
        if not as_json:
            _say_submitted(job, key)
        if not wait:
            if as_json:
                print_json(_submitted(job))
            return
        try:
            result = job.result(timeout_s)
        except JobFailed as error:
            if as_json:
                print_json({**_submitted(job), "state": error.state, "error": error.error})
            raise
    if as_json:
        print_json({**_submitted(job), "state": State.DONE.label, "result": result})
    else:
        click.echo(json.dumps(result, ensure_ascii=False, default=lambda v: v.hex()))


def queue_of(task: str, config: Config) -> str:
    """The queue whose worker imports the task's module. Raises Invalid unless there is exactly one."""
    module = task.rpartition(".")[0]
    found = [name for name, section in config.queues.items() if module in section.tasks]
    if len(found) == 1:
        return found[0]
    known = ", ".join(sorted(config.queues)) or "none"
    raise Invalid(f"which queue? Give --queue; {len(found) or 'no'} queues in the configuration have it ({known})")


def _parse_eta(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise Invalid(f"--eta {text!r}: write ISO 8601 with a zone, as in 2025-06-01T09:00:00+08:00") from None


def _submitted(job: Job[Any]) -> dict[str, Any]:
    state = job.receipt.state if job.receipt is not None else None
    return {
        "id": job.id,
        "state": state.label if state is not None else None,
        "deduplicated": job.deduplicated,
        "warnings": job.warnings,
    }


def _say_submitted(job: Job[Any], key: str) -> None:
    click.echo(job.id)
    if job.deduplicated:
        click.echo(f"zq: a live job has the key '{key}' already: this is its id", err=True)
    for warning in job.warnings:
        click.echo(f"zq: {clean(warning)}", err=True)


@click.command()
@click.argument("ids", metavar="ID…", nargs=-1, required=True)
@json_option
@connected
def cancel(ids: Sequence[str], as_json: bool, config_path: str | None, broker: str | None) -> None:
    """Cancel jobs. A waiting one is cancelled at once, a running one is told to stop; its process tree is ended."""
    _, client = open_client(config_path, broker)
    with client:
        _report(client.cancel(ids), as_json, _cancelled)


@click.command()
@click.argument("ids", metavar="ID…", nargs=-1, required=True)
@json_option
@connected
def retry(ids: Sequence[str], as_json: bool, config_path: str | None, broker: str | None) -> None:
    """Run dead, cancelled or expired jobs again, their attempts forgotten."""
    _, client = open_client(config_path, broker)
    with client:
        _report(client.retry(ids), as_json, lambda change: "runs again")


def _cancelled(change: Change) -> str:
    return "told to stop" if change.state is State.RUNNING else "cancelled"


def _report(changes: Sequence[Change], as_json: bool, done: Callable[[Change], str]) -> None:
    """What became of each; exit code 1 if one was refused."""
    if as_json:
        print_json(
            [
                {
                    "id": format_id(change.job_id),
                    "done": change.code is None,
                    "code": change.code,
                    "state": change.state.label if change.state is not None else None,
                }
                for change in changes
            ]
        )
    else:
        rows = [[format_id(change.job_id), _outcome(change, done)] for change in changes]
        click.echo(table(["job", "outcome"], rows))
    refused = [change for change in changes if change.code is not None]
    if refused:
        code = refused[0].code or Code.INVALID
        raise Refused(code, f"{len(refused)} of {len(changes)} jobs were not changed")


def _outcome(change: Change, done: Callable[[Change], str]) -> str:
    if change.code is None:
        return done(change)
    if change.code is Code.NOT_FOUND:
        return "no such job"
    return f"{change.code}: it is {change.state.label}" if change.state is not None else str(change.code)
