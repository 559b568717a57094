"""Answers about queues, jobs and workers. Looking never changes anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from zq.broker.book import Book
from zq.broker.feed import Feed
from zq.broker.leases import Leases
from zq.broker.queues import Queues
from zq.broker.records import HourRow, Index, JobRow, queue_prefix, state_prefix
from zq.broker.sessions import Sessions
from zq.protocol import limits
from zq.protocol import messages as m
from zq.protocol.job import ENDED, State

_LISTED_ERROR_CHARS = 300
_ATTEMPTS_SHOWN = 20


@dataclass
class Facts:
    """What only the server knows, for BrokerInfo; brought up to date by it about once a second."""

    epoch: int = 0
    started_ms: int = 0
    journal_bytes: int = 0
    disk_free_bytes: int = 0
    commits: int = 0
    commit_p99_us: int = 0
    software: str = ""
    refused: dict[str, int] = field(default_factory=dict)


class _Cursor(msgspec.Struct, frozen=True, array_like=True):
    queue: str
    part: int
    key: bytes


_decode_cursor = msgspec.msgpack.Decoder(_Cursor).decode


class Queries:
    def __init__(
        self, book: Book, queues: Queues, sessions: Sessions, leases: Leases, feed: Feed, facts: Facts
    ) -> None:
        self._book = book
        self._queues = queues
        self._feed = feed
        self._sessions = sessions
        self._leases = leases
        self._facts = facts

    def queues(self, request: int, now_ms: int) -> m.Queues:
        names = sorted(set(self._book.counts) | set(self._queues.by_name))
        return m.Queues(request, [self.queue(name, now_ms) for name in names])

    def queue(self, name: str, now_ms: int) -> m.QueueInfo:
        counts = self._book.counts.get(name)
        queue = self._queues.get(name)
        by_state = counts.by_state if counts is not None else dict.fromkeys(State, 0)
        head = queue.lanes.head()
        settings = queue.settings
        return m.QueueInfo(
            name=name,
            scheduled=by_state[State.SCHEDULED],
            ready=by_state[State.READY],
            running=by_state[State.RUNNING],
            done=by_state[State.DONE],
            dead=by_state[State.DEAD],
            cancelled=by_state[State.CANCELLED],
            expired=by_state[State.EXPIRED],
            accepted=counts.accepted if counts is not None else 0,
            oldest_ready_ms=max(0, now_ms - head.accepted_ms) if head is not None else 0,
            consumers=len(queue.consumers),
            slots=queue.slots,
            free=queue.free,
            paused=settings.paused,
            rate_per_s=settings.rate_per_s,
            running_max=settings.running_max,
            length_max=settings.length_max,
        )

    def jobs(self, ask: m.AskJobs) -> m.Jobs:
        """A page; ended jobs newest first. Raises ValueError for a cursor that is none of ours."""
        cursor = _Cursor("", 0, b"")
        if ask.after:
            try:
                cursor = _decode_cursor(ask.after)
            except msgspec.MsgspecError:
                raise ValueError("not a cursor of this broker; begin again without one") from None
        found: list[m.JobInfo] = []
        specs: list[bytes] = []
        size_bytes = 0
        last = cursor
        for name, part, index, prefix in self._parts(ask.queue, ask.state):
            if (name, part) < (cursor.queue, cursor.part):
                continue
            after = cursor.key if (name, part) == (cursor.queue, cursor.part) else b""
            room = ask.limit + 1 - len(found)
            backwards = ask.state in ENDED
            for key, job_id in self._book.view.scan(index, prefix, after, room, backwards=backwards):
                if len(found) == ask.limit or size_bytes > limits.PAGE_BYTES:
                    return m.Jobs(ask.request, found, msgspec.msgpack.encode(last), specs)
                row = self._book.row(job_id)
                last = _Cursor(name, part, key)
                if row is not None and row.state is ask.state:  # else: it has moved on in this very batch
                    info = self.info(row, _LISTED_ERROR_CHARS)
                    size_bytes += 400 + 4 * (len(info.error) + len(info.key) + len(info.progress_message))
                    found.append(info)
                    if ask.with_specs:
                        specs.append(self._book.spec(job_id) or b"")
                        size_bytes += len(specs[-1])
        return m.Jobs(ask.request, found, specs=specs)

    def _parts(self, queue: str, state: State) -> Iterator[tuple[str, int, Index, bytes]]:
        """(queue, number, index, prefix) of what holds its jobs in that state, in the order of listing."""
        for name in [queue] if queue else sorted(self._book.counts):
            if state is State.READY:
                # Lane by lane, and in a lane in the order of dispatch; then those whose concurrency key is full.
                yield name, 0, Index.READY, queue_prefix(name)
            yield name, 1, Index.STATE, state_prefix(state, name)

    def result(self, row: JobRow, now_ms: int) -> tuple[bytes, bool]:
        """(the result's bytes, whether they are still kept). A result of None is no bytes, and kept."""
        if not row.result_until_ms:
            return b"", True
        kept = self._book.result(row.id) if row.result_until_ms > now_ms else None
        return (kept.data, True) if kept is not None else (b"", False)

    def job(self, ask: m.AskJob, now_ms: int) -> m.JobDetail | None:
        row = self._book.row(ask.job_id)
        if row is None:
            return None
        attempts = [
            m.AttemptInfo(
                a.number, a.worker, a.started_ms, a.ended_ms, a.outcome, a.error, a.usage, a.progress_done,
                a.progress_total, a.progress_message,
            )
            for a in self._book.attempts(row.id)[-_ATTEMPTS_SHOWN:]
        ]
        info = self.info(row)
        if row.state is State.RUNNING:
            progress = (info.progress_done, info.progress_total, info.progress_message)
            attempts.append(
                m.AttemptInfo(row.attempt, row.worker, row.started_ms, 0, None, "", info.usage, *progress)
            )
        result, kept = self.result(row, now_ms)
        return m.JobDetail(
            request=ask.request,
            job=info,
            spec=self._book.spec(row.id) or b"",
            attempts=attempts,
            result=result,
            result_kept=kept,
            history=self._feed.history(row.event),
        )

    def info(self, row: JobRow, error_chars: int = limits.ERROR_CHARS_MAX) -> m.JobInfo:
        lease = self._leases.by_token.get(row.token) if row.token else None
        progress = lease.progress if lease is not None else None
        return m.JobInfo(
            id=row.id,
            task=row.task,
            queue=row.queue,
            state=row.state,
            priority=row.priority,
            attempt=row.attempt,
            attempts_max=row.attempts_max,
            accepted_ms=row.accepted_ms,
            due_ms=row.due_ms,
            started_ms=row.started_ms,
            ended_ms=row.ended_ms,
            worker=row.worker,
            key=row.key,
            error=row.error[:error_chars],
            size_bytes=row.size_bytes,
            progress_done=progress.done if progress is not None else 0.0,
            progress_total=progress.total if progress is not None else 0.0,
            progress_message=progress.message if progress is not None else "",
            usage=lease.usage if lease is not None else m.Usage(),
            hard_limit_ms=row.hard_limit_ms,
            concurrency_key=row.concurrency_key,
            tags=row.tags,
            disk_bytes=row.disk_bytes,
            memory_bytes=row.memory_bytes,
            quiet_ms=lease.quiet_ms if lease is not None else 0,
            stalled=lease is not None and lease.stalled,
        )

    def hours(self, ask: m.AskHours) -> m.Hours:
        rows = self._book.view.hours(ask.queue, ask.since_ms, ask.limit)
        return m.Hours(ask.request, ask.queue, [_hour(row) for row in rows])

    def workers(self, request: int, now_ms: int) -> m.Workers:
        workers: list[m.WorkerInfo] = []
        size_bytes = 0
        for s in sorted(self._sessions.workers.values(), key=lambda s: s.instance):
            worker = m.WorkerInfo(
                instance=s.instance,
                role=s.role,
                queues=[m.QueueSlots(name, s.open_slots(name)) for name in s.queues],
                running=len(s.leases),
                tasks=s.tasks,
                silent_ms=max(0, now_ms - s.heard_ms),
                connected_ms=max(0, now_ms - s.since_ms),
                software=s.software,
                tags=sorted(s.tags),
                room=self._queues.headroom.left(s),
                stalled=sum(lease.stalled for lease in s.leases.values()),
            )
            size_bytes += 100 + 4 * (len(s.instance) + sum(map(len, s.queues)) + sum(map(len, s.tags)))
            if size_bytes > limits.PAGE_BYTES:
                break
            workers.append(worker)
        return m.Workers(request, workers, len(self._sessions.workers) - len(workers))

    def broker(self, request: int, now_ms: int, accepting: bool) -> m.BrokerInfo:
        facts = self._facts
        return m.BrokerInfo(
            request=request,
            epoch=facts.epoch,
            uptime_ms=max(0, now_ms - facts.started_ms),
            now_ms=now_ms,
            journal_bytes=facts.journal_bytes,
            disk_free_bytes=facts.disk_free_bytes,
            commits=facts.commits,
            commit_p99_us=facts.commit_p99_us,
            sessions=len(self._sessions.by_id),
            refused=dict(facts.refused),
            accepting=accepting,
            software=facts.software,
        )


def _hour(row: HourRow) -> m.HourInfo:
    return m.HourInfo(row.start_ms, row.accepted, *(row.by_state.get(int(state), 0) for state in State))
