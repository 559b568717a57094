"""What the monitor knows: snapshots of the broker become rates, rows and alarms. No socket, no clock, no terminal.

A `Snapshot` is what the broker answered at one moment. `History` keeps the last few and knows how long ago they
were. `board()` derives from it all that any view shows. Ages of jobs are counted on the broker's own clock
(`BrokerInfo.now_ms`), so a monitor on a machine with a wrong clock shows them right.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from zq.protocol.job import ENDED, State
from zq.protocol.messages import BrokerInfo, JobInfo, QueueInfo, WorkerInfo

RATE_WINDOW_S = 5.0
"""Rates are means over this time: steady enough to read, quick enough to follow."""
SAMPLES_MAX = 64
WORKER_SILENT_S = 6.0
"""Three heartbeats of the default length."""
CONTACT_LOST_S = 3.0
"""The broker is called silent after this time, or after three refreshes if those are longer."""
LATE_LIMIT = 0.9
"""A job that has used this part of its time limit is shown as late."""


@dataclass(frozen=True, slots=True)
class Query:
    """Which jobs the job pane shows; an empty queue means all queues."""

    queue: str = ""
    state: State = State.RUNNING


@dataclass(frozen=True, slots=True)
class Snapshot:
    taken_s: float
    """On the monitor's monotonic clock."""
    broker: BrokerInfo
    queues: Sequence[QueueInfo]
    workers: Sequence[WorkerInfo]
    query: Query
    jobs: Sequence[JobInfo]
    more: bool = False
    """There are more such jobs than were asked for."""
    arguments: Mapping[bytes, str] = field(default_factory=dict)
    """Of jobs without a key, as far as they are known: in one line."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Jobs per second; None while there is nothing to compare with."""

    accepted: float | None = None
    done: float | None = None
    failed: float | None = None
    """Jobs that came to a bad end: dead or expired."""
    ended: float | None = None


@dataclass(frozen=True, slots=True)
class QueueRow:
    name: str
    ready: int
    oldest_s: float
    running: int
    slots: int
    scheduled: int
    done: int
    dead: int
    consumers: int
    rates: Rates
    paused: bool

    @property
    def unserved(self) -> bool:
        """Jobs wait and no worker will ever take them: the failure that stays silent for days elsewhere."""
        return self.ready > 0 and self.consumers == 0


@dataclass(frozen=True, slots=True)
class WorkerRow:
    name: str
    role: str
    queues: str
    running: int
    slots: int
    tasks: int
    silent_s: float
    connected_s: float
    software: str
    stalled: int = 0
    """Of `running`: those that show no sign of life."""
    disk_left_bytes: int | None = None
    """For further jobs that say what they need; None if the worker does not say."""
    memory_left_bytes: int | None = None

    @property
    def state(self) -> str:
        if self.silent_s >= WORKER_SILENT_S:
            return "silent"
        if self.stalled:
            return "stuck"
        return "busy" if self.running else "idle"


@dataclass(frozen=True, slots=True)
class JobRow:
    id: bytes
    task: str
    queue: str
    state: State
    priority: int
    attempt: int
    attempts_max: int
    age_s: float
    """Running: since it started. Ended: since its end. Ready: since it was accepted. Scheduled: until it is due."""
    limit_s: float
    """The hard time limit; 0 when it is not known."""
    fraction: float | None
    """Progress from 0 to 1; None when the task has not said."""
    message: str
    worker: str
    summary: str
    """Key or arguments: what tells this job from its neighbours."""
    stalled_s: float = 0.0
    """Without a sign of life, if that is longer than its task allows; else 0."""

    @property
    def late(self) -> bool:
        return self.state is State.RUNNING and 0 < self.limit_s * LATE_LIMIT <= self.age_s


@dataclass(frozen=True, slots=True)
class Totals:
    ready: int = 0
    running: int = 0
    slots: int = 0
    scheduled: int = 0
    done: int = 0
    dead: int = 0
    rates: Rates = Rates()


@dataclass(frozen=True, slots=True)
class Board:
    """All that is shown at one moment."""

    address: str
    broker: BrokerInfo | None = None
    """None before the first contact."""
    totals: Totals = Totals()
    queues: tuple[QueueRow, ...] = ()
    workers: tuple[WorkerRow, ...] = ()
    jobs: tuple[JobRow, ...] = ()
    query: Query = Query()
    more: bool = False
    alarms: tuple[str, ...] = ()
    age_s: float = 0.0
    """Since the last answer, or since the start when there was none."""
    silent: bool = False
    """The broker has not answered for too long: what is shown is old."""
    trouble: str = ""
    """What the last attempt to reach it said."""


@dataclass(frozen=True, slots=True)
class _Counts:
    accepted: int
    done: int
    failed: int
    ended: int


def _counts(queues: Sequence[QueueInfo]) -> _Counts:
    return _Counts(
        sum(q.accepted for q in queues),
        sum(q.done for q in queues),
        sum(q.dead + q.expired for q in queues),
        sum(q.done + q.dead + q.cancelled + q.expired for q in queues),
    )


class History:
    """The last snapshots, and what became of the attempts to get more. Bounded by SAMPLES_MAX."""

    def __init__(self, started_s: float, interval_s: float = 1.0) -> None:
        self.latest: Snapshot | None = None
        self._contact_s = started_s
        self._trouble = ""
        self._lost_after_s = max(CONTACT_LOST_S, 3 * interval_s)
        self._window_s = max(RATE_WINDOW_S, 2 * interval_s)
        self._samples: deque[tuple[float, dict[str, _Counts], _Counts]] = deque(maxlen=SAMPLES_MAX)
        self._dead_first: dict[str, int] = {}

    def observe(self, snapshot: Snapshot) -> None:
        """A complete answer has come."""
        self.latest = snapshot
        self._contact_s = snapshot.taken_s
        self._trouble = ""
        by_queue = {q.name: _counts([q]) for q in snapshot.queues}
        self._samples.append((snapshot.taken_s, by_queue, _counts(snapshot.queues)))
        while len(self._samples) > 2 and self._samples[1][0] <= snapshot.taken_s - self._window_s:
            self._samples.popleft()
        for queue in snapshot.queues:
            self._dead_first.setdefault(queue.name, queue.dead)

    def miss(self, trouble: str) -> None:
        """An attempt has failed; what is known stays, and grows old."""
        self._trouble = trouble

    def age_s(self, now_s: float) -> float:
        return max(0.0, now_s - self._contact_s)

    def silent(self, now_s: float) -> bool:
        return self.age_s(now_s) >= self._lost_after_s

    @property
    def trouble(self) -> str:
        return self._trouble

    def rates(self, queue: str | None = None) -> Rates:
        """Of one queue, or of all together. A counter that has gone back (an operator's retry) counts as no change."""
        if len(self._samples) < 2:
            return Rates()
        (old_s, old_queues, old_all), (new_s, new_queues, new_all) = self._samples[0], self._samples[-1]
        zero = _Counts(0, 0, 0, 0)
        old = old_all if queue is None else old_queues.get(queue, zero)
        new = new_all if queue is None else new_queues.get(queue, zero)
        seconds = new_s - old_s
        if seconds <= 0:
            return Rates()
        return Rates(
            max(0, new.accepted - old.accepted) / seconds,
            max(0, new.done - old.done) / seconds,
            max(0, new.failed - old.failed) / seconds,
            max(0, new.ended - old.ended) / seconds,
        )

    def dead_since_start(self, queue: QueueInfo) -> int:
        """How many more dead jobs there are than when the monitor started."""
        return max(0, queue.dead - self._dead_first.get(queue.name, queue.dead))


def board(history: History, address: str, now_s: float) -> Board:
    """All that the views show, from what is known at `now_s`."""
    snapshot = history.latest
    age_s, silent = history.age_s(now_s), history.silent(now_s)
    if snapshot is None:
        return Board(address=address, age_s=age_s, silent=silent, trouble=history.trouble)
    queues = tuple(_queue_row(q, history.rates(q.name)) for q in snapshot.queues)
    workers = tuple(_worker_row(w) for w in snapshot.workers)
    now_ms = snapshot.broker.now_ms
    return Board(
        address=address,
        broker=snapshot.broker,
        totals=_totals(queues, history.rates()),
        queues=queues,
        workers=workers,
        jobs=tuple(_job_row(j, now_ms, snapshot.arguments.get(j.id, "")) for j in snapshot.jobs),
        query=snapshot.query,
        more=snapshot.more,
        alarms=_alarms(snapshot, queues, workers, history),
        age_s=age_s,
        silent=silent,
        trouble=history.trouble,
    )


def _queue_row(q: QueueInfo, rates: Rates) -> QueueRow:
    return QueueRow(
        q.name, q.ready, q.oldest_ready_ms / 1000, q.running, q.slots, q.scheduled, q.done, q.dead, q.consumers, rates,
        q.paused,
    )  # fmt: skip


def _worker_row(w: WorkerInfo) -> WorkerRow:
    return WorkerRow(
        name=w.instance,
        role=w.role.value,
        queues=" ".join(f"{q.queue}:{q.slots}" for q in w.queues),
        running=w.running,
        slots=sum(q.slots for q in w.queues),
        tasks=w.tasks,
        silent_s=w.silent_ms / 1000,
        connected_s=w.connected_ms / 1000,
        software=w.software,
        stalled=w.stalled,
        disk_left_bytes=w.room.disk_bytes if w.room is not None else None,
        memory_left_bytes=w.room.memory_bytes if w.room is not None else None,
    )


def age_of(job: JobInfo, now_ms: int) -> float:
    """Seconds, as `JobRow.age_s` has them."""
    if job.state is State.SCHEDULED:
        return max(0, job.due_ms - now_ms) / 1000
    since_ms = job.accepted_ms
    if job.state is State.RUNNING:
        since_ms = job.started_ms or now_ms
    elif job.state in ENDED:
        since_ms = job.ended_ms or now_ms
    return max(0, now_ms - since_ms) / 1000


def fraction_of(job: JobInfo) -> float | None:
    """Progress from 0 to 1, whatever a task has sent (NaN and infinity among it)."""
    if not job.progress_total > 0 or not job.progress_done >= 0:
        return None
    share = job.progress_done / job.progress_total
    return min(1.0, share) if share == share else None


def _job_row(job: JobInfo, now_ms: int, arguments: str) -> JobRow:
    return JobRow(
        id=job.id,
        task=job.task,
        queue=job.queue,
        state=job.state,
        priority=job.priority,
        attempt=job.attempt,
        attempts_max=job.attempts_max,
        age_s=age_of(job, now_ms),
        limit_s=job.hard_limit_ms / 1000,
        fraction=fraction_of(job),
        message=job.progress_message if job.state is State.RUNNING else last_line(job.error),
        worker=job.worker,
        summary=job.key or arguments,
        stalled_s=job.quiet_ms / 1000 if job.stalled else 0.0,
    )


def last_line(error: str) -> str:
    """The line of a traceback that says what happened."""
    lines = [line for line in error.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def _totals(queues: Sequence[QueueRow], rates: Rates) -> Totals:
    return Totals(
        ready=sum(q.ready for q in queues),
        running=sum(q.running for q in queues),
        slots=sum(q.slots for q in queues),
        scheduled=sum(q.scheduled for q in queues),
        done=sum(q.done for q in queues),
        dead=sum(q.dead for q in queues),
        rates=rates,
    )


def _alarms(
    snapshot: Snapshot, queues: Sequence[QueueRow], workers: Sequence[WorkerRow], history: History
) -> tuple[str, ...]:
    """Worst first: what stops work, then what loses a worker, then what wants a look."""
    found = [f"{_jobs(q.ready)} in {q.name} and no worker serves it" for q in queues if q.unserved]
    if not snapshot.broker.accepting:
        found.append("the broker accepts no new jobs: its disk is nearly full, or it is stopping")
    found += [f"worker {w.name} has been silent for {w.silent_s:.0f} s" for w in workers if w.state == "silent"]
    for info in snapshot.queues:
        if grown := history.dead_since_start(info):
            found.append(f"{_jobs(grown)} died in {info.name} since this monitor started")
    found += [f"{_jobs(q.ready)} in {q.name}, which is paused" for q in queues if q.paused and q.ready]
    return tuple(found)


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
