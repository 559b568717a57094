"""Why does this job not run? The first thing that holds it, in the order in which the broker itself looks at them."""

from __future__ import annotations

import zq.protocol.messages as m
from zq.broker.headroom import Headroom
from zq.broker.leases import Lease
from zq.broker.queues import Queue
from zq.broker.records import JobRow
from zq.broker.sessions import Session
from zq.broker.waiting import WaitingRoom
from zq.protocol import limits
from zq.protocol.job import State, format_id
from zq.protocol.messages import WhyReason

_HOLDERS_MAX = 16


def why(request: int, row: JobRow, room: WaitingRoom, lease: Lease | None, now_ms: int) -> m.Why:
    """`lease`: the job's, if it runs."""
    reason, text, holders, wait_ms = _why(row, room, lease, now_ms)
    return m.Why(request, reason, text, holders, min(wait_ms, limits.DURATION_MS_MAX))


def _why(
    row: JobRow, room: WaitingRoom, lease: Lease | None, now_ms: int
) -> tuple[WhyReason, str, list[bytes], int]:
    queue = room.queues.get(row.queue)
    settings = queue.settings
    if row.state is State.RUNNING:
        return WhyReason.NOT_WAITING, _runs(row, lease), [], 0
    if row.state is State.SCHEDULED:
        after = f" after attempt {row.attempt}: {row.error[:200]}" if row.attempt else ""
        return WhyReason.NOT_DUE, f"it is not due yet{after}", [], max(0, row.due_ms - now_ms)
    if row.state is not State.READY:
        return WhyReason.NOT_WAITING, f"it is {row.state.label}", [], 0
    if settings.paused:
        return WhyReason.PAUSED, f"queue '{row.queue}' is paused; zq resume {row.queue}", [], 0
    if not row.admitted:
        holders = room.concurrency.holders(row.concurrency_key, _HOLDERS_MAX)
        names = ", ".join(format_id(job_id) for job_id in holders[:3])
        text = f"at most {row.concurrency_limit} with key '{row.concurrency_key}' at once; before it: {names}"
        return WhyReason.CONCURRENCY, text[:500], holders, 0
    if not queue.consumers:
        return WhyReason.NO_CONSUMER, f"no worker serves queue '{row.queue}'", [], 0
    if not _able(row, queue):
        return WhyReason.TAGS, f"no worker of the queue has the tags {', '.join(row.tags)}", [], 0
    if lack := room.queues.headroom.lack(row, _able(row, queue)):
        return WhyReason.HEADROOM, lack, [], 0
    if settings.running_max and queue.running >= settings.running_max:
        return WhyReason.RUNNING_MAX, f"{queue.running} of the queue run, the most that may at once", [], 0
    if settings.rate_per_s and queue.next_dispatch_ms > now_ms:
        wait_ms = int(queue.next_dispatch_ms - now_ms) + 1
        return WhyReason.RATE, f"at most {settings.rate_per_s:g} jobs a second are dispatched", [], wait_ms
    return _no_credit_or_behind(row, queue, room.queues.headroom, now_ms)


def _runs(row: JobRow, lease: Lease | None) -> str:
    text = f"it runs on {row.worker}, attempt {row.attempt}"
    if lease is not None and lease.stalled:
        text += f"; it has stalled: no sign of life for {lease.quiet_ms // 1000} s"
    return text


def _able(row: JobRow, queue: Queue) -> list[Session]:
    return [consumer for consumer in queue.consumers.values() if consumer.tags.issuperset(row.tags)]


def _no_credit_or_behind(
    row: JobRow, queue: Queue, headroom: Headroom, now_ms: int
) -> tuple[WhyReason, str, list[bytes], int]:
    able = [c for c in _able(row, queue) if headroom.fits(c, row)]
    if all(consumer.free(queue.name) <= 0 for consumer in able):
        leases = [lease for c in able for lease in c.leases.values() if lease.row.queue == queue.name]
        longest = min(leases, key=lambda lease: lease.row.started_ms, default=None)
        text = f"all {sum(c.open_slots(queue.name) for c in able)} slots are busy"
        if longest is not None:
            seconds = (now_ms - longest.row.started_ms) // 1000
            text += f"; the longest, job {format_id(longest.row.id)}, for {seconds} s on {longest.row.worker}"
        return WhyReason.NO_CREDIT, text[:500], [lease.row.id for lease in leases[:_HOLDERS_MAX]], 0
    head = queue.lanes.head()
    holders = [head.id] if head is not None and head.id != row.id else []
    return WhyReason.BEHIND, "its turn is next, or others are before it: it is about to move", holders, 0
