"""`zq show` and `zq why`: one job, with all that is known of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import tzinfo
from typing import Any

import click

from zq import payload
from zq.cli_options import connected, json_option, open_client
from zq.cli_text import coloured, iso, job_json, local_zone, print_json, usage_json
from zq.monitor.cells import clean
from zq.monitor.units import duration, moment, size
from zq.protocol.job import Cause, State, decode_spec, format_id
from zq.protocol.messages import EventInfo, JobDetail, Why

_WAITING = (State.SCHEDULED, State.READY)


@click.command()
@click.argument("job_id", metavar="ID")
@json_option
@connected
def show(job_id: str, as_json: bool, config_path: str | None, broker: str | None) -> None:
    """Show a job: state, arguments, attempts with their errors and usage, history, result; and why it does not run, if
    it waits."""
    _, client = open_client(config_path, broker)
    with client:
        detail = client.detail(job_id)
        why = client.why(job_id) if detail.job.state in _WAITING else None
    zone = local_zone()
    if as_json:
        print_json(_detail_json(detail, why, zone))
    else:
        click.echo("\n".join(_detail_lines(detail, why, zone)))


@click.command("why")
@click.argument("job_id", metavar="ID")
@json_option
@connected
def why_command(job_id: str, as_json: bool, config_path: str | None, broker: str | None) -> None:
    """Say why a job does not run: the first thing that holds it, and the jobs it waits for."""
    _, client = open_client(config_path, broker)
    with client:
        why = client.why(job_id)
    if as_json:
        print_json({"id": job_id, **why_json(why)})
    else:
        click.echo("\n".join(_why_lines(why)))


def why_json(why: Why) -> dict[str, Any]:
    return {
        "reason": str(why.reason),
        "text": why.text,
        "holders": [format_id(holder) for holder in why.holders],
        "wait_ms": why.wait_ms or None,
    }


def _why_lines(why: Why) -> list[str]:
    wait = f" (goes on in {duration(why.wait_ms / 1000)})" if why.wait_ms else ""
    return [f"{why.reason}: {clean(why.text)}{wait}", *(f"    held by {format_id(holder)}" for holder in why.holders)]


def event_json(event: EventInfo, zone: tzinfo) -> dict[str, Any]:
    """An event for programs. `job` is null for what happens to a queue."""
    return {
        "number": event.number,
        "at": iso(event.at_ms, zone),
        "job": format_id(event.job_id) if any(event.job_id) else None,
        "queue": event.queue,
        "task": event.task if any(event.job_id) else None,
        "event": event.cause.name.lower(),
        "state": event.state.label if any(event.job_id) else None,
        "attempt": event.attempt,
        "worker": event.worker,
        "detail": event.detail,
    }


def event_words(event: EventInfo) -> str:
    """What happened, in one line."""
    parts = [event.cause.name.lower().replace("_", " ")]
    if any(event.job_id) and event.cause is not Cause.CANCEL_ASKED:
        parts.append(f"→ {event.state.label}")
    if event.attempt:
        parts.append(f"attempt {event.attempt}")
    if event.worker:
        parts.append(f"on {event.worker}")
    first_line = event.detail.strip().partition("\n")[0]
    return clean(" ".join(parts) + (f": {first_line}" if first_line else ""))


def _arguments(detail: JobDetail) -> dict[str, Any]:
    try:
        positional, keyword = payload.decode_arguments(decode_spec(detail.spec).arguments)
    except ValueError as error:
        return {"unreadable": str(error)}
    return {"args": positional, "kwargs": keyword}


def _asks(detail: JobDetail) -> dict[str, Any]:
    """What the job asks for beside its arguments, where it does."""
    job = detail.job
    found: dict[str, Any] = {"key": job.key, "concurrency_key": job.concurrency_key, "tags": list(job.tags)}
    try:
        spec = decode_spec(detail.spec)
    except ValueError:
        return found
    found |= {
        "disk_bytes": spec.disk_bytes,
        "memory_bytes": spec.memory_bytes,
        "memory_limit_bytes": spec.memory_limit_bytes,
        "stall_after_s": spec.stall_after_ms / 1000,
    }
    found["key_policy"] = spec.key_policy.name.lower() if spec.key else None
    found["concurrency_limit"] = spec.concurrency_limit if spec.concurrency_key else None
    return found


def _result(detail: JobDetail) -> Any:
    if not detail.result_kept:
        return "(not kept any more)"
    try:
        return payload.decode_result(detail.result)
    except ValueError as error:
        return f"(unreadable: {error})"


def _detail_json(detail: JobDetail, why: Why | None, zone: tzinfo) -> dict[str, Any]:
    return {
        **job_json(detail.job, zone),
        **_asks(detail),
        **_arguments(detail),
        "result": _result(detail) if detail.job.state is State.DONE else None,
        "result_kept": detail.result_kept,
        "why": why_json(why) if why is not None else None,
        "attempts": [
            {
                "number": attempt.number,
                "worker": attempt.worker,
                "started_at": iso(attempt.started_ms, zone),
                "ended_at": iso(attempt.ended_ms, zone),
                "outcome": attempt.outcome.name.lower() if attempt.outcome is not None else None,
                "error": attempt.error,
                "usage": usage_json(attempt.usage),
                "progress": {
                    "done": attempt.progress_done,
                    "total": attempt.progress_total,
                    "message": attempt.progress_message,
                },
            }
            for attempt in detail.attempts
        ],
        "history": [event_json(event, zone) for event in detail.history],
    }


def _detail_lines(detail: JobDetail, why: Why | None, zone: tzinfo) -> list[str]:
    return [
        *_head_lines(detail, zone),
        *([f"why        {line}" if i == 0 else line for i, line in enumerate(_why_lines(why))] if why else []),
        *_attempt_lines(detail, zone),
        *_end_lines(detail),
        *_history_lines(detail, zone),
    ]


def _head_lines(detail: JobDetail, zone: tzinfo) -> Iterator[str]:
    job = detail.job
    yield f"job        {format_id(job.id)}"
    yield f"task       {clean(job.task)}   queue {clean(job.queue)}   priority {job.priority}"
    yield f"state      {coloured(job.state.label, job.state)}   attempt {job.attempt} of {job.attempts_max}"
    yield f"accepted   {moment(job.accepted_ms, zone)}"
    if job.due_ms and job.state is State.SCHEDULED:
        yield f"due        {moment(job.due_ms, zone)}"
    asks = _asks(detail)
    if asks["key"]:
        policy = asks.get("key_policy")
        yield f"key        {clean(asks['key'])}" + (f"   ({policy})" if policy not in (None, "refuse") else "")
    if asks["concurrency_key"]:
        most = asks.get("concurrency_limit")
        yield f"at once    {f'{most} ' if most else ''}with key {clean(asks['concurrency_key'])}"
    if asks["tags"]:
        yield f"tags       {clean(' '.join(asks['tags']))}"
    needs = [f"{size(asks[f'{what}_bytes'])} of {what}" for what in ("disk", "memory") if asks.get(f"{what}_bytes")]
    if needs:
        yield f"needs      {', '.join(needs)}"
    if job.stalled:
        yield f"stalled    no sign of life for {duration(job.quiet_ms / 1000)}"
    for name, value in _arguments(detail).items():
        yield f"{name:10} {json.dumps(value, ensure_ascii=False, default=lambda v: v.hex())}"
    if job.progress_total > 0:
        yield f"progress   {job.progress_done:g} of {job.progress_total:g} {clean(job.progress_message)}".rstrip()


def _attempt_lines(detail: JobDetail, zone: tzinfo) -> Iterator[str]:
    for attempt in detail.attempts:
        outcome = attempt.outcome.name.lower() if attempt.outcome is not None else "running"
        took = f"{duration((attempt.ended_ms - attempt.started_ms) / 1000)}" if attempt.ended_ms else ""
        yield (
            f"attempt {attempt.number}  {outcome} {took}  on {clean(attempt.worker)} from"
            f" {moment(attempt.started_ms, zone)}, CPU {duration(attempt.usage.cpu_ms / 1000)},"
            f" memory {size(attempt.usage.peak_rss_bytes)}, read {size(attempt.usage.read_bytes)},"
            f" written {size(attempt.usage.write_bytes)}, processes {attempt.usage.processes}"
        )
        if attempt.progress_total > 0 and attempt.outcome is not None:
            reached = f"{attempt.progress_done:g} of {attempt.progress_total:g} {clean(attempt.progress_message)}"
            yield f"    reached {reached.rstrip()}"
        yield from (f"    {clean(line)}" for line in attempt.error.splitlines())


def _end_lines(detail: JobDetail) -> Iterator[str]:
    job = detail.job
    if job.state is State.DONE:
        yield f"result     {json.dumps(_result(detail), ensure_ascii=False, default=lambda v: v.hex())}"
    elif job.error and not any(attempt.error == job.error for attempt in detail.attempts):
        yield "error"
        yield from (f"    {clean(line)}" for line in job.error.splitlines())


def _history_lines(detail: JobDetail, zone: tzinfo) -> Iterator[str]:
    if detail.history:
        yield "history"
    for event in detail.history:
        yield f"    {moment(event.at_ms, zone)}  {event_words(event)}"
