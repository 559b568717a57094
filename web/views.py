"""What the API answers, as types, and how the broker's words become them. Pure.

Times are RFC 3339 in UTC, null for not yet; durations carry their unit in their name.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from zq import payload
from zq.protocol.job import JobSpec, decode_spec, format_id
from zq.protocol.messages import AttemptInfo, EventInfo, JobDetail, JobInfo, QueueInfo, Usage, Why, WorkerInfo

NO_JOB = bytes(16)
"""The job id of an event that is about a queue."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every answer's body."""


class JobAccepted(View, frozen=True):
    id: str
    state: str
    queue: str
    deduplicated: bool
    """A job with this id or key was there already; `id` is that one's."""
    warnings: list[str]


class UsageView(View, frozen=True):
    """What the whole process tree has used."""

    cpu_s: float
    peak_rss_bytes: int
    read_bytes: int
    write_bytes: int
    processes: int
    """How many were seen."""


class ProgressView(View, frozen=True):
    done: float
    total: float
    message: str


class AttemptView(View, frozen=True):
    number: int
    worker: str
    outcome: str | None
    """null while it runs."""
    started_at: str | None
    ended_at: str | None
    error: str
    progress: ProgressView | None
    """The last that the task reported."""
    usage: UsageView


class JobRow(View, frozen=True):
    """A job in a list."""

    id: str
    task: str
    queue: str
    state: str
    priority: int
    key: str
    attempt: int
    attempts_max: int
    concurrency_key: str
    tags: list[str]
    disk_bytes: int
    """What it needs of its worker; so is memory_bytes."""
    memory_bytes: int
    stalled: bool
    """It runs, and shows no sign of life."""
    quiet_s: float
    """Since its last sign of life, while it runs."""
    accepted_at: str | None
    due_at: str | None
    started_at: str | None
    ended_at: str | None
    worker: str
    error: str
    """First what went wrong, then where; in a list only the beginning."""
    progress: ProgressView | None
    usage: UsageView
    time_limit_s: float
    arguments: str | None = None
    """On one line, cut where they are long; null unless a list was asked for with `arguments=true`."""


class EventView(View, frozen=True):
    """One step of a job, or something about a queue: that nobody serves it, or that it was changed."""

    number: int
    """Grows with every event, over restarts of the broker."""
    at: str | None
    job_id: str | None
    """null, as are task and state, for a queue."""
    queue: str
    task: str | None
    cause: str
    state: str | None
    """The state after it."""
    attempt: int
    worker: str
    detail: str
    """The beginning of the error, who asked, or what was changed."""


class WhyView(View, frozen=True):
    """The first thing that holds a job."""

    reason: str
    text: str
    holders: list[str]
    """Ids of jobs that hold it."""
    wait_s: float
    """When it may go on, if that is known; else 0."""


class JobView(View, frozen=True):
    """One job with all that is known of it."""

    job: JobRow
    args: list[Any] | None
    """null if the arguments cannot be shown as JSON."""
    kwargs: dict[str, Any] | None
    max_retries: int
    backoff_s: float
    soft_time_limit_s: float
    time_limit_s: float
    key_policy: str
    concurrency_limit: int
    attempts: list[AttemptView]
    history: list[EventView]
    """Its newest steps, oldest first."""
    why: WhyView | None
    """Why it waits; null unless it is scheduled or ready."""
    result: Any
    result_kept: bool
    """False when the result has been dropped after its time to live."""


class JobList(View, frozen=True):
    jobs: list[JobRow]
    next: str | None
    """Cursor of the next page; null when there is none. A page with a filter may be short, or empty, and have one."""
    scanned: int
    """Jobs that were looked at for this page."""


class QueueView(View, frozen=True):
    name: str
    scheduled: int
    ready: int
    running: int
    done: int
    dead: int
    cancelled: int
    expired: int
    accepted: int
    oldest_ready_s: float
    consumers: int
    slots: int
    free: int
    paused: bool
    rate_per_s: float
    """Starts a second; 0 is no limit, as for the next two."""
    running_max: int
    length_max: int


class QueueList(View, frozen=True):
    queues: list[QueueView]


class SlotsView(View, frozen=True):
    queue: str
    slots: int


class RoomView(View, frozen=True):
    disk_bytes: int
    memory_bytes: int


class WorkerView(View, frozen=True):
    name: str
    role: str
    queues: list[SlotsView]
    running: int
    silent_s: float
    connected_s: float
    software: str
    tags: list[str]
    stalled: int
    """Of `running`: those that show no sign of life."""
    room: RoomView | None
    """What it has left for jobs that say what they need; null if it does not say."""


class WorkerList(View, frozen=True):
    workers: list[WorkerView]


class Health(View, frozen=True):
    status: str
    """ok, degraded or unavailable."""
    reasons: list[str] = []


def when(ms: int | None) -> str | None:
    """Unix milliseconds as RFC 3339; None for 0 (not yet) and for what no calendar holds."""
    if not ms:
        return None
    try:
        return (_EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except OverflowError:
        return None


def usage_view(usage: Usage) -> UsageView:
    return UsageView(
        cpu_s=usage.cpu_ms / 1000,
        peak_rss_bytes=usage.peak_rss_bytes,
        read_bytes=usage.read_bytes,
        write_bytes=usage.write_bytes,
        processes=usage.processes,
    )


def progress_view(said: JobInfo | AttemptInfo) -> ProgressView | None:
    """None if nothing was reported."""
    if not (said.progress_total or said.progress_done or said.progress_message):
        return None
    return ProgressView(done=said.progress_done, total=said.progress_total, message=said.progress_message)


def job_row(job: JobInfo, arguments: str | None = None) -> JobRow:
    return JobRow(
        id=format_id(job.id),
        task=job.task,
        queue=job.queue,
        state=job.state.label,
        priority=job.priority,
        key=job.key,
        concurrency_key=job.concurrency_key,
        tags=list(job.tags),
        disk_bytes=job.disk_bytes,
        memory_bytes=job.memory_bytes,
        stalled=job.stalled,
        quiet_s=job.quiet_ms / 1000,
        attempt=job.attempt,
        attempts_max=job.attempts_max,
        accepted_at=when(job.accepted_ms),
        due_at=when(job.due_ms),
        started_at=when(job.started_ms),
        ended_at=when(job.ended_ms),
        worker=job.worker,
        error=job.error,
        progress=progress_view(job),
        usage=usage_view(job.usage),
        time_limit_s=job.hard_limit_ms / 1000,
        arguments=arguments,
    )


def event_view(event: EventInfo) -> EventView:
    of_queue = event.job_id == NO_JOB
    return EventView(
        number=event.number,
        at=when(event.at_ms),
        job_id=None if of_queue else format_id(event.job_id),
        queue=event.queue,
        task=None if of_queue else event.task,
        cause=event.cause.name.lower(),
        state=None if of_queue else event.state.label,
        attempt=event.attempt,
        worker=event.worker,
        detail=event.detail,
    )


def why_view(why: Why) -> WhyView:
    return WhyView(
        reason=why.reason.value,
        text=why.text,
        holders=[format_id(job_id) for job_id in why.holders],
        wait_s=why.wait_ms / 1000,
    )


def _attempt(attempt: AttemptInfo) -> AttemptView:
    return AttemptView(
        number=attempt.number,
        worker=attempt.worker,
        outcome=attempt.outcome.name.lower() if attempt.outcome is not None else None,
        started_at=when(attempt.started_ms),
        ended_at=when(attempt.ended_ms),
        error=attempt.error,
        progress=progress_view(attempt),
        usage=usage_view(attempt.usage),
    )


def job_view(detail: JobDetail, why: WhyView | None) -> JobView:
    spec = decode_spec(detail.spec)
    args, kwargs = _arguments(spec)
    return JobView(
        job=job_row(detail.job),
        args=args,
        kwargs=kwargs,
        max_retries=spec.max_retries,
        backoff_s=spec.backoff_ms / 1000,
        soft_time_limit_s=spec.soft_limit_ms / 1000,
        time_limit_s=spec.hard_limit_ms / 1000,
        key_policy=spec.key_policy.name.lower(),
        concurrency_limit=spec.concurrency_limit,
        attempts=[_attempt(attempt) for attempt in detail.attempts],
        history=[event_view(event) for event in detail.history],
        why=why,
        result=_result(detail.result),
        result_kept=detail.result_kept,
    )


def _arguments(spec: JobSpec) -> tuple[list[Any] | None, dict[str, Any] | None]:
    # The broker does not look inside, so a stranger to our client may have put anything there.
    try:
        return payload.decode_arguments(spec.arguments)
    except payload.PayloadError:
        return None, None


def _result(data: bytes) -> Any:
    try:
        return payload.decode_result(data)
    except payload.PayloadError as error:
        return {"unreadable": str(error)}


def queue_view(queue: QueueInfo) -> QueueView:
    return QueueView(
        name=queue.name,
        scheduled=queue.scheduled,
        ready=queue.ready,
        running=queue.running,
        done=queue.done,
        dead=queue.dead,
        cancelled=queue.cancelled,
        expired=queue.expired,
        accepted=queue.accepted,
        oldest_ready_s=queue.oldest_ready_ms / 1000,
        consumers=queue.consumers,
        slots=queue.slots,
        free=queue.free,
        paused=queue.paused,
        rate_per_s=queue.rate_per_s,
        running_max=queue.running_max,
        length_max=queue.length_max,
    )


def worker_view(worker: WorkerInfo) -> WorkerView:
    return WorkerView(
        name=worker.instance,
        role=worker.role.value,
        queues=[SlotsView(queue=item.queue, slots=item.slots) for item in worker.queues],
        running=worker.running,
        silent_s=worker.silent_ms / 1000,
        connected_s=worker.connected_ms / 1000,
        software=worker.software,
        tags=list(worker.tags),
        stalled=worker.stalled,
        room=RoomView(disk_bytes=worker.room.disk_bytes, memory_bytes=worker.room.memory_bytes)
        if worker.room is not None
        else None,
    )


def unserved(queues: list[QueueInfo]) -> list[str]:
    """The alarms: queues in which jobs are due and nobody works. In a paused one nobody shall."""
    return [
        f"queue {queue.name!r}: no worker for its {queue.ready} ready job{'s' * (queue.ready > 1)}; start one with: "
        f"zq worker --queue {queue.name}"
        for queue in queues
        if queue.ready and not queue.consumers and not queue.paused
    ]
