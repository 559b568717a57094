"""The three tables as data: which columns, in which order, and which of them go first on a narrow screen."""

from __future__ import annotations

from zq.monitor.drawing import Column, Signs, Span, Style, bar
from zq.monitor.model import JobRow, QueueRow, WorkerRow
from zq.monitor.units import count, duration, rate, size
from zq.protocol.job import State

BAR_CELLS = 5


def _number(value: int, style: Style = Style.PLAIN) -> Span:
    return Span(count(value), style if value else Style.QUIET)


def _queue_name(q: QueueRow, signs: Signs) -> Span:
    return Span(q.name, Style.BAD if q.unserved else Style.STRONG)


def _oldest(q: QueueRow, signs: Signs) -> Span:
    return Span(duration(q.oldest_s), Style.BAD if q.unserved else Style.PLAIN) if q.ready else _nothing(signs)


def _queue_slots(q: QueueRow, signs: Signs) -> Span:
    if q.paused:
        return Span(f"paused {count(q.running)}/{count(q.slots)}", Style.WARN)
    return _slots(q.running, q.slots, signs)


def _slots(running: int, slots: int, signs: Signs) -> Span:
    share = running / slots if slots else 0.0
    text = f"{bar(share, BAR_CELLS, signs)} {f'{count(running)}/{count(slots)}':>5}"
    return Span(text, Style.BUSY if running else Style.QUIET)


def _nothing(signs: Signs) -> Span:
    return Span(signs.dash, Style.QUIET)


def _rate(value: float | None) -> Span:
    return Span(rate(value), Style.PLAIN if value else Style.QUIET)


def _consumers(q: QueueRow, signs: Signs) -> Span:
    if q.consumers == 0:
        return Span("none", Style.BAD if q.unserved else Style.WARN)
    return Span(count(q.consumers))


QUEUES: tuple[Column[QueueRow], ...] = (
    Column("QUEUE", 12, _queue_name, right=False, grow=1),
    Column("READY", 6, lambda q, signs: _number(q.ready, Style.BAD if q.unserved else Style.PLAIN)),
    Column("OLDEST", 7, _oldest, keep=6),
    Column("RUNNING", 11, _queue_slots, keep=8),
    Column("SCHED", 6, lambda q, signs: _number(q.scheduled), keep=4),
    Column("DEAD", 6, lambda q, signs: _number(q.dead, Style.WARN), keep=7),
    Column("IN/S", 6, lambda q, signs: _rate(q.rates.accepted), keep=3),
    Column("OUT/S", 6, lambda q, signs: _rate(q.rates.ended), keep=3),
    Column("CONS", 5, _consumers, keep=5),
)


def _worker_state(w: WorkerRow, signs: Signs) -> Span:
    return Span(w.state, {"silent": Style.BAD, "stuck": Style.WARN, "busy": Style.BUSY}.get(w.state, Style.GOOD))


def _left(count_bytes: int | None, signs: Signs) -> Span:
    return _nothing(signs) if count_bytes is None else Span(size(count_bytes))


def _heard(w: WorkerRow, signs: Signs) -> Span:
    return Span(duration(w.silent_s), Style.BAD if w.state == "silent" else Style.PLAIN)


WORKERS: tuple[Column[WorkerRow], ...] = (
    Column("WORKER", 12, lambda w, signs: Span(w.name, Style.STRONG), right=False, grow=2),
    Column("STATE", 6, _worker_state, right=False, keep=7),
    Column("RUNNING", 11, lambda w, signs: _slots(w.running, w.slots, signs), keep=8),
    Column("QUEUES", 14, lambda w, signs: Span(w.queues), right=False, grow=2, keep=4),
    Column("TASKS", 5, lambda w, signs: Span(count(w.tasks)), keep=1),
    Column("DISK", 8, lambda w, signs: _left(w.disk_left_bytes, signs), keep=-1),
    Column("MEMORY", 8, lambda w, signs: _left(w.memory_left_bytes, signs), keep=-2),
    Column("HEARD", 6, _heard, keep=6),
    Column("UP", 6, lambda w, signs: Span(duration(w.connected_s)), keep=3),
    Column("SOFTWARE", 9, lambda w, signs: Span(w.software, Style.QUIET), right=False, grow=1, keep=0),
)


def short_id(job_id: bytes) -> str:
    """The last digits: the first ones of a job id are the time, and alike in neighbours."""
    return job_id.hex()[-8:]


def _progress(j: JobRow, signs: Signs) -> Span:
    if j.state is not State.RUNNING:
        return Span(j.state.label, Style.BAD if j.state is State.DEAD else Style.PLAIN)
    if j.stalled_s:
        return Span(f"still {duration(j.stalled_s)}", Style.WARN)
    if j.fraction is None:
        return Span(signs.dash, Style.QUIET)
    return Span(f"{bar(j.fraction, 6, signs)} {int(j.fraction * 100):3}%", Style.BUSY)


def _age(j: JobRow, signs: Signs) -> Span:
    text = duration(j.age_s)
    return Span(f"in {text}" if j.state is State.SCHEDULED else text, Style.WARN if j.late else Style.PLAIN)


def _limit(j: JobRow, signs: Signs) -> Span:
    return Span(duration(j.limit_s), Style.WARN if j.late else Style.QUIET) if j.limit_s else _nothing(signs)


def _try(j: JobRow, signs: Signs) -> Span:
    return Span(f"{j.attempt}/{j.attempts_max}", Style.WARN if j.attempt > 1 else Style.PLAIN)


def _what(j: JobRow, signs: Signs) -> Span:
    return Span(" ".join(filter(None, (j.summary, j.message))))


JOBS: tuple[Column[JobRow], ...] = (
    Column("ID", 8, lambda j, signs: Span(short_id(j.id), Style.STRONG), right=False),
    Column("TASK", 11, lambda j, signs: Span(j.task), right=False, grow=2, keep_end=True),
    Column("PROGRESS", 11, _progress, right=False, keep=8),
    Column("AGE", 8, _age, keep=8),
    Column("LIMIT", 6, _limit, keep=3),
    Column("TRY", 4, _try, keep=5),
    Column("WORKER", 9, lambda j, signs: Span(j.worker or signs.dash), right=False, grow=1, keep=4),
    Column("WHAT", 14, _what, right=False, grow=4, keep=6),
)

