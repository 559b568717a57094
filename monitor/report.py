"""The board as JSON, for programs. Keys stay; new ones may come. Durations are seconds, sizes bytes, ids UUIDs."""

from __future__ import annotations

import json
from datetime import UTC
from typing import Any

from zq.monitor.model import Board, JobRow, QueueRow, Rates, WorkerRow
from zq.monitor.units import moment
from zq.protocol.job import State, format_id


def as_json(board: Board, *, ascii_only: bool = False) -> str:
    """One object and a line feed."""
    return json.dumps(as_data(board), ensure_ascii=ascii_only, indent=2, allow_nan=False) + "\n"


def as_data(board: Board) -> dict[str, Any]:
    t = board.totals
    return {
        "address": board.address,
        "broker": _broker(board),
        "totals": {
            "ready": t.ready, "running": t.running, "slots": t.slots, "scheduled": t.scheduled, "done": t.done,
            "dead": t.dead, "rates_per_s": _rates(t.rates),
        },
        "alarms": list(board.alarms),
        "queues": [_queue(row) for row in board.queues],
        "workers": [_worker(row) for row in board.workers],
        "jobs": [_job(row) for row in board.jobs],
        "jobs_state": board.query.state.label,
        "jobs_more": board.more,
    }  # fmt: skip


def _broker(board: Board) -> dict[str, Any] | None:
    b = board.broker
    if b is None:
        return None
    return {
        "software": b.software, "epoch": b.epoch, "uptime_s": b.uptime_ms / 1000, "now": moment(b.now_ms, UTC),
        "journal_bytes": b.journal_bytes, "disk_free_bytes": b.disk_free_bytes, "commits": b.commits,
        "commit_p99_s": b.commit_p99_us / 1e6, "sessions": b.sessions, "refused": b.refused, "accepting": b.accepting,
    }  # fmt: skip


def _rates(rates: Rates) -> dict[str, float | None]:
    return {"accepted": rates.accepted, "done": rates.done, "failed": rates.failed, "ended": rates.ended}


def _queue(q: QueueRow) -> dict[str, Any]:
    return {
        "name": q.name, "ready": q.ready, "oldest_s": q.oldest_s, "running": q.running, "slots": q.slots,
        "scheduled": q.scheduled, "done": q.done, "dead": q.dead, "consumers": q.consumers, "unserved": q.unserved,
        "paused": q.paused,
        "rates_per_s": _rates(q.rates),
    }  # fmt: skip


def _worker(w: WorkerRow) -> dict[str, Any]:
    return {
        "name": w.name, "role": w.role, "state": w.state, "queues": w.queues.split(), "running": w.running,
        "slots": w.slots, "tasks": w.tasks, "silent_s": w.silent_s, "connected_s": w.connected_s,
        "software": w.software,
    }  # fmt: skip


def _job(j: JobRow) -> dict[str, Any]:
    return {
        "id": format_id(j.id), "task": j.task, "queue": j.queue, "state": j.state.label, "priority": j.priority,
        "attempt": j.attempt, "attempts_max": j.attempts_max,
        "due_in_s" if j.state is State.SCHEDULED else "age_s": j.age_s,
        "limit_s": j.limit_s or None, "progress": j.fraction, "message": j.message, "worker": j.worker,
        "late": j.late, "summary": j.summary,
    }  # fmt: skip
