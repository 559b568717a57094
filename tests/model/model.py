"""What a broker must do, as small as it can be said: a dict of jobs, a dict of workers, and no queue at all.

The model predicts everything but which worker gets which job; of that it says what is allowed, and that no job waits
while a fitting slot is free.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from zq.broker.core import Settings
from zq.protocol.job import ENDED, LIVE, JobSpec, Outcome, State


@dataclass
class Job:
    spec: JobSpec
    seq: int
    state: State
    due_ms: int = 0
    """SCHEDULED; 0 after a failure, until the journal has told it within `due_range_ms`."""
    due_range_ms: tuple[int, int] = (0, 0)
    expires_at_ms: int = 0
    attempt: int = 0
    uncounted: int = 0
    token: int = 0
    worker: str = ""
    claim_by_ms: int = 0
    """RUNNING without a session: when the wait for its worker is over."""
    cancel_asked: bool = False
    ended_ms: int = 0
    result: bytes = b""

    @property
    def exhausted(self) -> bool:
        return self.attempt - self.uncounted > self.spec.max_retries

    def end(self, state: State, now_ms: int) -> None:
        self.state, self.ended_ms, self.token, self.due_ms = state, now_ms, 0, 0

    def try_again(self, now_ms: int, delay_ms: int | None) -> None:
        """After a failure: to be run again after this delay, or after the job's own backoff with its jitter."""
        self.state, self.token, self.expires_at_ms = State.SCHEDULED, 0, 0
        if delay_ms is not None:
            self.due_ms = now_ms + delay_ms
            return
        backoff_ms = self.spec.backoff_ms << (self.attempt - self.uncounted - 1)
        self.due_range_ms = (now_ms + backoff_ms * 9 // 10, now_ms + backoff_ms * 11 // 10)
        self.due_ms = 0


@dataclass
class Worker:
    name: str
    session: int = 0
    """0: none, as far as the broker knows."""
    heard_ms: int = 0
    credit: dict[str, int] = field(default_factory=dict)
    seen: int = 0
    """DISPATCH messages received in this session."""
    leases: dict[int, bytes] = field(default_factory=dict)
    """What the process has, whatever the broker thinks: token → job."""


class Model:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.jobs: dict[bytes, Job] = {}
        self.forgotten: Counter[tuple[str, State]] = Counter()
        self.workers: dict[str, Worker] = {}
        self.token = 0
        """The largest ever given."""
        self._seq = 0

    # ------------------------------------------------------------------------------------------ asked for

    def accept(self, spec: JobSpec, now_ms: int) -> None:
        self._seq += 1
        job = Job(spec, self._seq, State.SCHEDULED if spec.delay_ms else State.READY)
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
                job.claim_by_ms = 0
                held.append(job.token)
            else:
                self.lose(job, now_ms)
        return held

    def end_attempt(self, job: Job, outcome: Outcome, result: bytes, retry_after_ms: int, now_ms: int) -> None:
        if outcome is Outcome.DONE:
            job.end(State.DONE, now_ms)
            job.result = result
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
        for worker in self.workers.values():
            worker.session, worker.credit = 0, {}
        for job in self.jobs.values():
            if job.state is State.RUNNING:
                job.claim_by_ms = now_ms + self.settings.resume_grace_ms

    def stood_still(self, gap_ms: int, now_ms: int) -> None:
        """The broker itself was not there for so long: nobody's silence."""
        for worker in self.workers.values():
            worker.heard_ms = now_ms
        for job in self.jobs.values():
            if job.claim_by_ms:
                job.claim_by_ms = min(job.claim_by_ms + gap_ms, now_ms + self.settings.resume_grace_ms)

    def advance(self, now_ms: int) -> None:
        """What a round does by itself before it gives out jobs."""
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

    def dispatch(self, worker: Worker, job: Job, attempt: int, token: int) -> None:
        """The broker has given this job to this worker: it must have been allowed to."""
        assert job.state is State.READY, f"a job that is {job.state.label} was dispatched"
        assert self.free(worker, job.spec.queue) > 0, "I8: more leases than credit"
        assert attempt == job.attempt + 1
        assert not job.exhausted, "I4: more dispatches than 1 + retries"
        assert token > self.token, "I5: tokens grow"
        same = [j for j in self.jobs.values() if (j.spec.queue, j.spec.priority) == (job.spec.queue, job.spec.priority)]
        assert all(j.seq >= job.seq for j in same if j.state is State.READY), "I9: first in, first out"
        job.state, job.attempt, job.token, job.worker = State.RUNNING, attempt, token, worker.name
        self.token = token

    def idle_while_work_waits(self) -> list[str]:
        """I7: queues where a job waits though a slot is free."""
        waiting = {job.spec.queue for job in self.jobs.values() if job.state is State.READY}
        return [queue for queue in waiting if any(self.free(worker, queue) > 0 for worker in self.workers.values())]

    def forget(self, job_id: bytes, now_ms: int) -> None:
        job = self.jobs.pop(job_id)
        assert job.state in ENDED, "a job that has not ended is gone"
        assert now_ms - job.ended_ms >= self.settings.retention_ms, "a job is gone within its retention"
        self.forgotten[job.spec.queue, job.state] += 1

    def counts(self) -> Counter[tuple[str, State]]:
        return self.forgotten + Counter((job.spec.queue, job.state) for job in self.jobs.values())
