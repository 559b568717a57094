"""What the job commands print: tables that stand on a terminal, also with Chinese names, and JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any

import click

from zq.monitor.cells import clean, fit, width
from zq.protocol.job import State, format_id
from zq.protocol.messages import JobInfo, Usage

COLOURS = {
    State.SCHEDULED: "blue",
    State.READY: "cyan",
    State.RUNNING: "yellow",
    State.DONE: "green",
    State.DEAD: "red",
    State.CANCELLED: "magenta",
    State.EXPIRED: "magenta",
}


def coloured(text: str, state: State) -> str:
    """In the state's colour on a terminal; NO_COLOR (https://no-color.org) and pipes get plain text."""
    return click.style(text, fg=COLOURS[state]) if use_colour() else text


def use_colour() -> bool:
    return not os.environ.get("NO_COLOR") and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset(), state: int | None = None
) -> str:
    """Columns as wide as their widest cell, two blanks between; `right` ones are aligned right.

    `state` is the column that holds the labels of states: its cells are coloured.
    """
    cells = [[clean(cell) for cell in row] for row in rows]
    widths = [max([width(title), *(width(row[i]) for row in cells)]) for i, title in enumerate(head)]
    lines = []
    for number, row in enumerate([list(head), *cells]):
        parts = [fit(cell, widths[i], right=i in right) for i, cell in enumerate(row)]
        if state is not None and number > 0:
            parts[state] = coloured(parts[state], State[row[state].upper()])
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=2, default=_as_text))


def _as_text(value: object) -> str:
    """Results may hold bytes, which JSON has not."""
    return value.hex() if isinstance(value, bytes) else str(value)


def local_zone() -> tzinfo:
    """This machine's, as in the logs and in zq-top; not that of the exams, which may be far from here."""
    return datetime.now().astimezone().tzinfo or UTC


def iso(unix_ms: int, zone: tzinfo) -> str | None:
    return datetime.fromtimestamp(unix_ms / 1000, zone).isoformat(timespec="milliseconds") if unix_ms > 0 else None


def job_json(job: JobInfo, zone: tzinfo) -> dict[str, Any]:
    """A job for programs; times are ISO 8601, null for not yet."""
    return {
        "id": format_id(job.id),
        "task": job.task,
        "queue": job.queue,
        "state": job.state.label,
        "priority": job.priority,
        "attempt": job.attempt,
        "attempts_max": job.attempts_max,
        "accepted_at": iso(job.accepted_ms, zone),
        "due_at": iso(job.due_ms, zone),
        "started_at": iso(job.started_ms, zone),
        "ended_at": iso(job.ended_ms, zone),
        "worker": job.worker,
        "key": job.key,
        "concurrency_key": job.concurrency_key,
        "tags": list(job.tags),
        "disk_bytes": job.disk_bytes,
        "memory_bytes": job.memory_bytes,
        "stalled": job.stalled,
        "quiet_s": job.quiet_ms / 1000,
        "error": job.error,
        "progress": {"done": job.progress_done, "total": job.progress_total, "message": job.progress_message},
        "usage": usage_json(job.usage),
    }


def usage_json(usage: Usage) -> dict[str, int]:
    return {name: getattr(usage, name) for name in usage.__struct_fields__}
