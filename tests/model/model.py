"""What a broker must do, as small as it can be said: a dict of jobs, a dict of workers, and no queue at all.

The model predicts everything but which worker gets which job; of that it says what is allowed, and that no job waits
while a fitting slot is free.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from zq.broker import retention
from zq.broker.core import Settings
from zq.broker.lanes import AGEING_MS
from zq.broker.queues import BURST_MS
from zq.protocol.job import ENDED, LIVE, JobSpec, KeyPolicy, Outcome, State


@dataclass
class Job:
    spec: JobSpec
    seq: int
    state: State
    accepted_ms: int = 0
    due_ms: int = 0
    """SCHEDULED; 0 after a failure, until the journal has told it within `due_range_ms`."""
    due_range_ms: tuple[int, int] = (0, 0)
    expires_at_ms: int = 0
    attempt: int = 0
    uncounted: int = 0
    token: int = 0
    worker: str = ""
    disk: str = ""
    """RUNNING: the worker whose disk its needs are kept on; empty: nobody knows which that is."""
    claim_by_ms: int = 0
    """RUNNING without a session: when the wait for its worker is over."""
    cancel_asked: bool = False
    let_in: bool = True
    """Its concurrency key has let it in; without a key, always. As the journal tells: the model says what may be."""
    ended_ms: int = 0
    result: bytes = b""
    result_until_ms: int = 0

    @property
    def exhausted(self) -> bool:
        return self.attempt - self.uncounted > self.spec.max_retries

    def end(self, state: State, now_ms: int) -> None:
        self.state, self.ended_ms, self.token, self.due_ms = state, now_ms, 0, 0

    def try_again(self, now_ms: int, delay_ms: int | None) -> None:
        """After a failure: to be run again after this delay, or after the job's own backoff with its jitter."""
        self.state, self.token, self.expires_at_ms = State.SCHEDULED, 0, 0
        self.let_in = not self.spec.concurrency_key
        if delay_ms is not None:
            self.due_ms = now_ms + delay_ms
            return
        backoff_ms = self.spec.backoff_ms << (self.attempt - self.uncounted - 1)
        self.due_range_ms = (now_ms + backoff_ms * 9 // 10, now_ms + backoff_ms * 11 // 10)
        self.due_ms = 0


@dataclass
class Worker:
    name: str
    tags: frozenset[str] = frozenset()
    session: int = 0
    """0: none, as far as the broker knows."""
    heard_ms: int = 0
    room: int | None = None
    """Bytes of disk that it has said it has, in this session."""
    credit: dict[str, int] = field(default_factory=dict)
    seen: int = 0
    """DISPATCH messages received in this session."""
    leases: dict[int, bytes] = field(default_factory=dict)
    """What the process has, whatever the broker thinks: token → job."""


@dataclass
class Queue:
    """What an operator has set; 0: no bound."""

    paused: bool = False
    rate_per_s: float = 0.0
    running_max: int = 0
    length_max: int = 0
    next_ms: float = 0.0
    """With a rate: when the next job may go."""


class Model:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.jobs: dict[bytes, Job] = {}
        self.forgotten: Counter[tuple[str, State]] = Counter()
        self.workers: dict[str, Worker] = {}
        self.queues: dict[str, Queue] = {}
        self._purged_ms = (0, 0)
        """When the broker last looked for what it may forget: the time before the last, and the last."""
        self.token = 0
        """The largest ever given."""
        self._seq = 0

    # ------------------------------------------------------------------------------------------ asked for

    def queue(self, name: str) -> Queue:
        return self.queues.setdefault(name, Queue())

    def is_full(self, queue: str) -> bool:
        waiting = sum(j.spec.queue == queue and j.state in (State.READY, State.SCHEDULED) for j in self.jobs.values())
        return 0 < self.queue(queue).length_max <= waiting

    def takes(self, spec: JobSpec) -> tuple[bool, Job | None]:
        """(whether it will be accepted, the job that has its key now), of a job with a new id in a queue with room."""
        holder = self.key_holder(spec.key)
        replaces = spec.key_policy is KeyPolicy.REPLACE and holder is not None and holder.state is not State.RUNNING
        return holder is None or replaces, holder

    def submit(self, spec: JobSpec, now_ms: int) -> None:
        taken, holder = self.takes(spec)
        if taken:
            if holder is not None:
                holder.end(State.CANCELLED, now_ms)
            self._accept(spec, now_ms)
        elif holder is not None and spec.key_policy is KeyPolicy.RESCHEDULE and holder.state is not State.RUNNING:
            holder.state = State.SCHEDULED if spec.delay_ms else State.READY
            holder.due_ms = now_ms + spec.delay_ms if spec.delay_ms else 0
            holder.let_in = not holder.spec.concurrency_key

    def _accept(self, spec: JobSpec, now_ms: int) -> None:
        self._seq += 1
        job = Job(spec, self._seq, State.SCHEDULED if spec.delay_ms else State.READY, now_ms)
        job.let_in = not spec.concurrency_key
        job.due_ms = now_ms + spec.delay_ms if spec.delay_ms else 0
        job.expires_at_ms = now_ms + spec.expires_ms if spec.expires_ms else 0
        self.jobs[spec.id] = job

    def key_holder(self, key: str) -> Job | None:
        return next((job for job in self.jobs.values() if key and job.spec.key == key and job.state in LIVE), None)

    def cancel(self, job: Job, now_ms: int) -> None:
        if job.state is State.RUNNING:
            job.cancel_asked = True
        elif job.state not in ENDED:
            job.end(State.CANCELLED, now_ms)

    def may_retry(self, job: Job) -> bool:
        ended = job.state in ENDED and job.state is not State.DONE
        return ended and self.key_holder(job.spec.key) is None

    def retry(self, job: Job) -> None:
        job.state, job.ended_ms, job.expires_at_ms, job.cancel_asked = State.READY, 0, 0, False
        job.uncounted = job.attempt
        job.let_in = not job.spec.concurrency_key

    # ------------------------------------------------------------------------------------------ workers

    def held(self, worker: Worker) -> list[Job]:
        """Jobs whose lease is this worker's, in its session."""
        return [j for j in self._running(worker.name) if not j.claim_by_ms]

    def orphaned(self, name: str) -> list[Job]:
        return [j for j in self._running(name) if j.claim_by_ms]

    def _running(self, name: str) -> list[Job]:
        return [j for j in self.jobs.values() if j.state is State.RUNNING and j.worker == name]

    def free(self, worker: Worker, queue: str) -> int:
        held = sum(job.spec.queue == queue for job in self.held(worker))
        return worker.credit.get(queue, 0) - held if worker.session else 0

    def has_room(self, worker: Worker, job: Job) -> bool:
        """Beside what all that runs on its disk needs, and what runs nobody knows where."""
        if worker.room is None or not job.spec.disk_bytes:
            return True
        running = [j for j in self.jobs.values() if j.state is State.RUNNING and j.disk in ("", worker.name)]
        return sum(j.spec.disk_bytes for j in running) + job.spec.disk_bytes <= worker.room

    def say_room(self, worker: Worker, room: int | None) -> None:
        if room is not None:
            if worker.room is None:
                for job in self.held(worker):
                    job.disk = worker.name
            worker.room = room

    def orphan(self, worker: Worker, now_ms: int) -> None:
        """The session is over; its worker may come back."""
        for job in self.held(worker):
            job.claim_by_ms = now_ms + self.settings.resume_grace_ms
        worker.session, worker.credit = 0, {}

    def claim(self, worker: Worker, tokens: list[int], now_ms: int) -> list[int]:
        """RESUME: the tokens that are held again. What the worker does not claim is lost."""
        held = []
        for job in self.orphaned(worker.name):
            if job.token in tokens:
                job.claim_by_ms, job.disk = 0, ""
                held.append(job.token)
            else:
                self.lose(job, now_ms)
        return held

    def end_attempt(self, job: Job, outcome: Outcome, result: bytes, retry_after_ms: int, now_ms: int) -> None:
        if outcome is Outcome.DONE:
            job.end(State.DONE, now_ms)
            job.result = result
            job.result_until_ms = now_ms + self.settings.result_ttl_ms if result else 0
        elif job.cancel_asked:
            job.end(State.CANCELLED, now_ms)
        elif outcome is Outcome.HANDED_BACK:
            job.state, job.token = State.READY, 0
            job.uncounted += 1
        elif outcome is Outcome.REJECTED or job.exhausted:
            job.end(State.DEAD, now_ms)
        else:
            job.try_again(now_ms, retry_after_ms if retry_after_ms >= 0 else None)

    def lose(self, job: Job, now_ms: int) -> None:
        job.claim_by_ms = 0
        if job.cancel_asked:
            job.end(State.CANCELLED, now_ms)
        elif job.exhausted:
            job.end(State.DEAD, now_ms)
        else:
            # The job did not fail: it does not wait.
            job.try_again(now_ms, 0)

    def leave(self, worker: Worker, now_ms: int) -> None:
        for job in self.held(worker):
            self.lose(job, now_ms)
        worker.session, worker.credit = 0, {}

    # ------------------------------------------------------------------------------------------ by itself

    def restart(self, now_ms: int) -> None:
        self._purged_ms = (0, now_ms)
        for queue in self.queues.values():
            queue.next_ms = 0.0
        for worker in self.workers.values():
            worker.session, worker.credit = 0, {}
        for job in self.jobs.values():
            if job.state is State.RUNNING:
                job.claim_by_ms, job.disk = now_ms + self.settings.resume_grace_ms, ""

    def stood_still(self, gap_ms: int, now_ms: int) -> None:
        """The broker itself was not there for so long: nobody's silence."""
        for worker in self.workers.values():
            worker.heard_ms = now_ms
        for job in self.jobs.values():
            if job.claim_by_ms:
                job.claim_by_ms = min(job.claim_by_ms + gap_ms, now_ms + self.settings.resume_grace_ms)

    def advance(self, now_ms: int) -> None:
        """What a round does by itself before it gives out jobs."""
        if now_ms >= self._purged_ms[1] + retention.EVERY_MS:
            self._purged_ms = (self._purged_ms[1], now_ms)
        for worker in self.workers.values():
            if worker.session and now_ms - worker.heard_ms > self.settings.session_timeout_ms:
                self.leave(worker, now_ms)
        for job in self.jobs.values():
            if job.claim_by_ms and job.claim_by_ms <= now_ms:
                self.lose(job, now_ms)
        for job in self.jobs.values():
            if job.state is State.SCHEDULED and job.due_ms and job.due_ms <= now_ms:
                job.state, job.due_ms = State.READY, 0
            waits = job.state in (State.READY, State.SCHEDULED)
            if waits and job.expires_at_ms and job.expires_at_ms <= now_ms:
                job.end(State.EXPIRED, now_ms)

    def dispatch(self, worker: Worker, job: Job, attempt: int, token: int, now_ms: int) -> None:
        """The broker has given this job to this worker: it must have been allowed to."""
        assert job.state is State.READY, f"a job that is {job.state.label} was dispatched"
        assert self.free(worker, job.spec.queue) > 0, "I8: more leases than credit"
        assert job.let_in, "its concurrency key has no room"
        assert worker.tags.issuperset(job.spec.tags), "a worker without its tags"
        assert self.has_room(worker, job), "a worker without the disk that it needs"
        assert attempt == job.attempt + 1
        assert not job.exhausted, "I4: more dispatches than 1 + retries"
        assert token > self.token, "I5: tokens grow"
        assert not self.held_back(job.spec.queue, now_ms), "a queue that may not dispatch now"
        first = min(self._can_start(job.spec.queue), key=lambda j: self._rank(j, now_ms))
        assert job is first, f"I9: job {first.seq} comes before job {job.seq}"
        if not self.held(worker):
            worker.heard_ms = now_ms  # an idle one was not due to speak: its silence counts from now
        job.state, job.attempt, job.token, job.worker, job.due_ms = State.RUNNING, attempt, token, worker.name, 0
        self.token = token
        job.disk = "" if worker.room is None else worker.name
        queue = self.queue(job.spec.queue)
        if queue.rate_per_s:
            queue.next_ms = max(queue.next_ms, now_ms - BURST_MS) + 1000 / queue.rate_per_s
        key = job.spec.concurrency_key
        running = sum(j.state is State.RUNNING and j.spec.concurrency_key == key for j in self.jobs.values())
        assert not key or running <= job.spec.concurrency_limit, "too many with its concurrency key run"

    @staticmethod
    def _rank(job: Job, now_ms: int) -> tuple[float, int]:
        """Higher priority first, where waiting makes up for priority; then as accepted."""
        return job.accepted_ms - job.spec.priority * AGEING_MS, job.seq

    def _can_start(self, queue: str) -> list[Job]:
        """Jobs that wait for a slot only, and for which one is free."""
        return [
            job
            for job in self.jobs.values()
            if job.spec.queue == queue and job.state is State.READY and job.let_in
            if any(
                w.tags.issuperset(job.spec.tags) and self.free(w, queue) > 0 and self.has_room(w, job)
                for w in self.workers.values()
            )
        ]

    def held_back(self, name: str, now_ms: int) -> bool:
        queue = self.queue(name)
        running = sum(job.spec.queue == name and job.state is State.RUNNING for job in self.jobs.values())
        full = 0 < queue.running_max <= running
        return queue.paused or full or (queue.rate_per_s > 0 and queue.next_ms > now_ms)

    def idle_while_work_waits(self, now_ms: int) -> list[str]:
        """I7: queues where a job waits though it may start and a slot is free."""
        queues = {job.spec.queue for job in self.jobs.values()}
        return [name for name in queues if self._can_start(name) and not self.held_back(name, now_ms)]

    def kept_out_without_need(self) -> list[str]:
        """Concurrency keys with room, and with a job that has not been let in."""
        found = []
        for key in {job.spec.concurrency_key for job in self.jobs.values()} - {""}:
            here = [job for job in self.jobs.values() if job.spec.concurrency_key == key]
            inside = sum(job.let_in and job.state in (State.READY, State.RUNNING) for job in here)
            outside = [job for job in here if job.state is State.READY and not job.let_in]
            if outside and inside < outside[0].spec.concurrency_limit:
                found.append(key)
        return found

    def has_outstayed(self, until_ms: int) -> bool:
        """What is to be kept until then must be gone now: it has been looked for twice."""
        return self._purged_ms[0] >= until_ms

    def drop(self, job: Job) -> None:
        del self.jobs[job.spec.id]
        self.forgotten[job.spec.queue, job.state] += 1

    def forget(self, job_id: bytes, now_ms: int) -> None:
        job = self.jobs[job_id]
        assert job.state in ENDED, "a job that has not ended is gone"
        assert now_ms - job.ended_ms >= self.settings.retention_ms, "a job is gone within its retention"
        self.drop(job)

    def counts(self) -> Counter[tuple[str, State]]:
        return self.forgotten + Counter((job.spec.queue, job.state) for job in self.jobs.values())
