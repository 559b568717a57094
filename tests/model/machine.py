"""The broker's core and the model side by side: every event that Hypothesis can think of, told to both and compared.

In memory and on real LMDB, with restarts. What is compared after every event: each job, each lease, each count, and
the journal's own consistency.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

import zq.protocol.messages as m
from tests.broker.harness import Harness, one
from tests.model.model import Job, Model, Worker
from zq.broker.check import check
from zq.broker.core import Settings
from zq.broker.journal import Journal
from zq.broker.lmdb_journal import LmdbJournal
from zq.protocol.errors import Code
from zq.protocol.job import ENDED, JobSpec, KeyPolicy, Outcome, State, encode_spec, job_id_from
from zq.protocol.messages import BrokerMessage, PeerMessage, ReceiptStatus, Role

SETTINGS = Settings(
    heartbeat_ms=1000, session_timeout_ms=4000, resume_grace_ms=6000, retention_ms=30_000, result_ttl_ms=15_000
)
QUEUES = ("status", "合并")
WORKERS = ("w1", "w2", "w3")
KEYS = ("", "", "exam:1", "考试:2")
LIMITS = {"": 1, "exam:1": 1, "考试:2": 2}
"""Concurrency keys, and how many jobs with one may run."""
TAGS = ("gpu", "磁盘")
ROOMS = (4, 9, None, 0)
NEEDS = (0, 0, 0, 5, 3)
"""Bytes of disk; no two of a size, so that none waits behind its like."""
AT_ONCE_MAX = 20
"""Rounds that follow each other without a pause."""
NUMBER = st.integers(0, 50)
"""Chooses one of however many there are."""


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.zq = Harness(SETTINGS, self.journals())
        self.model = Model(SETTINGS)
        self.model.restart(self.now_ms)
        self.names = 0
        self.read = 0

    def journals(self) -> Callable[[], Journal] | None:
        return None

    @property
    def now_ms(self) -> int:
        return self.zq.now_ms

    # ------------------------------------------------------------------------------------------ rounds

    def say(self, peer: str, message: PeerMessage, happens: Callable[[], None] = lambda: None) -> list[BrokerMessage]:
        """One message in a round of its own, of which the model says what happens."""
        if peer in self.model.workers:
            self.model.workers[peer].heard_ms = self.now_ms
        happens()
        answers = self.zq.say(peer, message)
        self.settle()
        return answers

    def ask(self, kind: Any, message: Callable[[int], PeerMessage], happens: Callable[[], None] = lambda: None) -> Any:
        """One message of a client."""
        session = self.zq.client()
        self.settle()
        return one(self.say("client", message(session), happens), kind)

    def settle(self) -> None:
        """The model does what the rounds have done, until nothing more happens without a message or time."""
        self.settle_round()
        for _ in range(AT_ONCE_MAX):
            if self.zq.core.wake_ms() > self.now_ms:
                break
            self.zq.round()
            self.settle_round()
        else:
            raise AssertionError("the broker always finds something to do at once")
        assert not self.model.idle_while_work_waits(self.now_ms)
        assert not self.model.kept_out_without_need()

    def settle_round(self) -> None:
        """Take note of what one round has let in, dispatched and forgotten, and compare."""
        self.model.advance(self.now_ms)
        for job in self.model.jobs.values():
            row = self.zq.journal.row(job.spec.id)
            if job.state is State.READY and row is not None and row.state in (State.READY, State.RUNNING):
                job.let_in = row.admitted
        given = []
        for peer, message in self.zq.out[self.read :]:
            if isinstance(message, m.Dispatch):
                worker = self.model.workers[peer]
                assert message.session == worker.session
                worker.seen = message.number
                given += [(lease.token, worker, lease) for lease in message.leases]
        self.read = len(self.zq.out)
        for token, worker, lease in sorted(given, key=lambda item: item[0]):
            self.model.dispatch(worker, self.model.jobs[lease.job_id], lease.attempt, token, self.now_ms)
            worker.leases[token] = lease.job_id
        for job_id in list(self.model.jobs):
            if self.zq.journal.row(job_id) is None:
                self.model.forget(job_id, self.now_ms)
        for job_id, job in self.model.jobs.items():
            self.compare(job_id, job)

    def compare(self, job_id: bytes, job: Job) -> None:
        row = self.zq.row(job_id)
        assert row.state is job.state, f"{row.state.label}, and {job.state.label} was expected"
        assert (row.attempt, row.uncounted, row.token) == (job.attempt, job.uncounted, job.token)
        assert (row.cancel_asked, row.ended_ms, row.seq) == (job.cancel_asked, job.ended_ms, job.seq)
        assert row.admitted is job.let_in or job.state in ENDED
        if job.state is State.SCHEDULED and not job.due_ms:
            low_ms, high_ms = job.due_range_ms
            assert low_ms <= row.due_ms <= high_ms
            job.due_ms = row.due_ms
        assert row.due_ms == job.due_ms
        kept = self.zq.journal.result(job_id)
        if self.now_ms < job.result_until_ms:
            assert kept is not None
            assert kept.data == job.result
        elif self.model.has_outstayed(job.result_until_ms):
            assert kept is None, "a result is kept beyond its time"
        if job.state in ENDED:
            until_ms = job.ended_ms + SETTINGS.retention_ms
            assert not self.model.has_outstayed(until_ms), "a job is kept beyond its retention"

    def job(self, number: int) -> Job:
        jobs = list(self.model.jobs.values())
        return jobs[number % len(jobs)]

    def worker(self, number: int) -> Worker:
        workers = [worker for worker in self.model.workers.values() if worker.session]
        return workers[number % len(workers)]

    def jobs_exist(self) -> bool:
        return bool(self.model.jobs)

    def workers_exist(self) -> bool:
        return any(worker.session for worker in self.model.workers.values())

    def leases_exist(self) -> bool:
        return any(worker.session and worker.leases for worker in self.model.workers.values())

    # ------------------------------------------------------------------------------------------ clients

    @initialize(jobs=st.integers(0, 4))
    def begin(self, jobs: int) -> None:
        self.join(0, 2, 1, set(), 4)
        for number in range(jobs):
            self.submit(QUEUES[number % 2], "", 5, 0, 0, 1, KeyPolicy.REFUSE, "", set(), NEEDS[-1 - number])

    @rule(
        queue=st.sampled_from(QUEUES), key=st.sampled_from(KEYS), priority=st.sampled_from((0, 5, 9)),
        delay_ms=st.sampled_from((0, 0, 300, 3000)), expires_ms=st.sampled_from((0, 0, 0, 1000, 5000)),
        max_retries=st.sampled_from((0, 0, 1, 3)), policy=st.sampled_from(KeyPolicy),
        concurrency_key=st.sampled_from(KEYS), tags=st.sets(st.sampled_from(TAGS)), disk_bytes=st.sampled_from(NEEDS),
    )  # fmt: skip
    def submit(
        self, queue: str, key: str, priority: int, delay_ms: int, expires_ms: int, max_retries: int,
        policy: KeyPolicy, concurrency_key: str, tags: set[str], disk_bytes: int = 0,
    ) -> None:  # fmt: skip
        self.names += 1
        spec = JobSpec(
            job_id_from(str(self.names)), "t", queue, key=key, priority=priority, delay_ms=delay_ms,
            expires_ms=expires_ms, max_retries=max_retries, backoff_ms=1000, key_policy=policy,
            concurrency_key=concurrency_key, concurrency_limit=LIMITS[concurrency_key], tags=tuple(sorted(tags)),
            disk_bytes=disk_bytes,
        )  # fmt: skip
        if self.model.is_full(queue):
            assert self.submit_spec(spec).code is Code.QUEUE_FULL
            return
        taken, holder = self.model.takes(spec)
        receipt = self.submit_spec(spec, lambda: self.model.submit(spec, self.now_ms))
        if taken:
            assert (receipt.status, receipt.job_id) == (ReceiptStatus.ACCEPTED, spec.id)
        else:
            assert holder is not None
            assert (receipt.status, receipt.job_id) == (ReceiptStatus.KEY_TAKEN, holder.spec.id)

    def submit_spec(self, spec: JobSpec, happens: Callable[[], None] = lambda: None) -> m.Receipt:
        answer: m.Receipts = self.ask(m.Receipts, lambda s: m.Submit(s, 1, [encode_spec(spec)]), happens)
        return answer.receipts[0]

    @precondition(jobs_exist)
    @rule(number=NUMBER, other=st.booleans())
    def submit_again(self, number: int, other: bool) -> None:
        job = self.job(number)
        if other:
            changed = JobSpec(job.spec.id, "another.task", job.spec.queue)
            assert self.submit_spec(changed).code is Code.CONFLICT
        else:
            state = job.state
            receipt = self.submit_spec(job.spec)
            assert (receipt.status, receipt.state) == (ReceiptStatus.DUPLICATE, state)

    @precondition(jobs_exist)
    @rule(number=NUMBER)
    def cancel(self, number: int) -> None:
        job = self.job(number)
        before = job.state
        answer = self.ask(
            m.Changed, lambda s: m.Cancel(s, 1, [job.spec.id]), lambda: self.model.cancel(job, self.now_ms)
        )
        change = answer.changes[0]
        if before in ENDED:
            assert change.code is (None if before is State.CANCELLED else Code.NOT_ALLOWED)
            assert change.state is before
        else:
            assert change.code is None
            assert change.state is (State.RUNNING if before is State.RUNNING else State.CANCELLED)

    @precondition(jobs_exist)
    @rule(number=NUMBER)
    def retry(self, number: int) -> None:
        job = self.job(number)
        may = self.model.may_retry(job)
        answer = self.ask(
            m.Changed, lambda s: m.RetryEnded(s, 1, [job.spec.id]), lambda: self.model.retry(job) if may else None
        )
        assert (answer.changes[0].code is None) is may

    @precondition(jobs_exist)
    @rule(number=NUMBER)
    def drop(self, number: int) -> None:
        job = self.job(number)
        ended, before = job.state in ENDED, job.state
        answer = self.ask(
            m.Changed, lambda s: m.Drop(s, 1, [job.spec.id]), lambda: self.model.drop(job) if ended else None
        )
        change = answer.changes[0]
        assert (change.code, change.state) == ((None, None) if ended else (Code.NOT_ALLOWED, before))

    @rule(
        name=st.sampled_from(QUEUES), paused=st.sampled_from((None, False, False, True)),
        rate_per_s=st.sampled_from((None, 0.0, 0.0, 2.0, 30.0)), running_max=st.sampled_from((None, 0, 0, 1, 2)),
        length_max=st.sampled_from((None, 0, 0, 2)),
    )  # fmt: skip
    def set_queue(
        self, name: str, paused: bool | None, rate_per_s: float | None, running_max: int | None, length_max: int | None
    ) -> None:
        def happens() -> None:
            queue = self.model.queue(name)
            queue.paused = queue.paused if paused is None else paused
            queue.running_max = queue.running_max if running_max is None else running_max
            queue.length_max = queue.length_max if length_max is None else length_max
            if rate_per_s is not None:
                queue.rate_per_s, queue.next_ms = rate_per_s, 0.0

        message = m.SetQueue(0, 1, name, paused, rate_per_s, running_max, length_max)
        told = self.ask(m.QueueSet, lambda s: replace(message, session=s), happens).queue
        queue = self.model.queue(name)
        assert (told.paused, told.rate_per_s) == (queue.paused, queue.rate_per_s)
        assert (told.running_max, told.length_max) == (queue.running_max, queue.length_max)

    # ------------------------------------------------------------------------------------------ workers

    @rule(
        number=NUMBER, slots=st.integers(0, 3), other_slots=st.integers(0, 2), tags=st.sets(st.sampled_from(TAGS)),
        room=st.sampled_from(ROOMS),
    )  # fmt: skip
    def join(self, number: int, slots: int, other_slots: int, tags: set[str], room: int | None) -> None:
        """A worker says HELLO, also in the place of an earlier session of its own, and claims what it still has."""
        name = WORKERS[number % len(WORKERS)]
        worker = self.model.workers.setdefault(name, Worker(name))
        self.model.orphan(worker, self.now_ms)
        credit = [m.QueueSlots(QUEUES[0], slots), m.QueueSlots(QUEUES[1], other_slots)]
        hello = m.Hello(1, 1, Role.WORKER, name, bytes(16), credit, ["t"], "", sorted(tags))
        session = one(self.say(name, hello), m.Welcome).session
        worker.tags = frozenset(tags)
        worker.session, worker.heard_ms, worker.seen, worker.room = session, self.now_ms, 0, None
        claims = []
        for token, job_id in worker.leases.items():
            job = self.model.jobs.get(job_id)
            claims.append(m.LeaseClaim(job_id, job.attempt if job is not None else 1, token))
        held: list[int] = []
        resume = m.Resume(session, claims)
        answers = self.say(
            name, resume, lambda: held.extend(self.model.claim(worker, list(worker.leases), self.now_ms))
        )
        resumed = one(answers, m.Resumed)
        assert sorted(resumed.held) == sorted(held)
        assert sorted(resumed.lost) == sorted(set(worker.leases) - set(held))
        worker.leases = {token: worker.leases[token] for token in held}
        said = m.Room(room, 1 << 40) if room is not None else None
        self.say(name, m.Credit(session, credit, said), lambda: self.give_credit(worker, credit, room))

    def give_credit(self, worker: Worker, credit: list[m.QueueSlots], room: int | None = None) -> None:
        self.model.say_room(worker, room)
        worker.credit = {entry.queue: entry.slots for entry in credit}

    @precondition(workers_exist)
    @rule(
        number=NUMBER, slots=st.integers(0, 3), other_slots=st.integers(0, 2), by_beat=st.booleans(),
        room=st.sampled_from(ROOMS),
    )  # fmt: skip
    def credit(self, number: int, slots: int, other_slots: int, by_beat: bool, room: int | None) -> None:
        worker = self.worker(number)
        credit = [m.QueueSlots(QUEUES[0], slots), m.QueueSlots(QUEUES[1], other_slots)]
        said = m.Room(room, 1 << 40) if room is not None else None
        message: PeerMessage = m.Credit(worker.session, credit, said)
        if by_beat:
            message = m.Beat(worker.session, worker.seen, list(worker.leases), [], credit, said)
        self.say(worker.name, message, lambda: self.give_credit(worker, credit, room))

    @precondition(leases_exist)
    @rule(
        number=NUMBER, which=NUMBER, outcome=st.sampled_from([*Outcome, Outcome.DONE]), result=st.binary(max_size=3),
        retry_after_ms=st.sampled_from((-1, -1, 0, 500)),
    )  # fmt: skip
    def ack(self, number: int, which: int, outcome: Outcome, result: bytes, retry_after_ms: int) -> None:
        worker = self.worker(number)
        if not worker.leases:
            return
        token = list(worker.leases)[which % len(worker.leases)]
        job = self.model.jobs[worker.leases.pop(token)]
        assert job.token == token, "the worker has what the broker does not know"
        word = m.Result(job.spec.id, job.attempt, token, outcome, result=result, retry_after_ms=retry_after_ms)
        kept = result if outcome is Outcome.DONE else b""
        acked = self.say(
            worker.name, m.Ack(worker.session, [word]),
            lambda: self.model.end_attempt(job, outcome, kept, retry_after_ms, self.now_ms),
        )  # fmt: skip
        assert one(acked, m.Acked).accepted == [token]
        again = one(self.say(worker.name, m.Ack(worker.session, [word])), m.Acked)
        assert (again.accepted, again.stale) == ([], [token])

    @precondition(lambda self: self.workers_exist() and self.jobs_exist())
    @rule(number=NUMBER, which=NUMBER, token_off=st.sampled_from((-1, 1, 1 << 40)), attempt_off=st.integers(-1, 1))
    def stale_ack(self, number: int, which: int, token_off: int, attempt_off: int) -> None:
        """I5: a word under a token that is not this session's current one changes nothing."""
        worker, job = self.worker(number), self.job(which)
        token = job.token + token_off if job.token else self.model.token + abs(token_off)
        word = m.Result(job.spec.id, max(1, job.attempt + attempt_off), max(1, token), Outcome.DONE, result=b"\x07")
        acked = one(self.say(worker.name, m.Ack(worker.session, [word])), m.Acked)
        assert (acked.accepted, acked.stale) == ([], [word.token])

    @precondition(leases_exist)
    @rule(number=NUMBER, which=NUMBER)
    def beat_without_a_lease(self, number: int, which: int) -> None:
        """A worker that has lost a job, say with its slot, and says so by not naming it."""
        worker = self.worker(number)
        if worker.leases:
            token = list(worker.leases)[which % len(worker.leases)]
            job = self.model.jobs[worker.leases.pop(token)]
            self.beat(worker, lambda: self.model.lose(job, self.now_ms))

    def beat(self, worker: Worker, happens: Callable[[], None] = lambda: None) -> None:
        answers = self.say(worker.name, m.Beat(worker.session, worker.seen, list(worker.leases)), happens)
        assert not [a for a in answers if isinstance(a, m.Revoke)], "it has only what is its own"

    @precondition(workers_exist)
    @rule(number=NUMBER)
    def bye(self, number: int) -> None:
        worker = self.worker(number)
        session = worker.session
        self.say(worker.name, m.Bye(session), lambda: self.model.leave(worker, self.now_ms))
        worker.leases.clear()
        refused = one(self.say(worker.name, m.Beat(session, 0, [])), m.Refusal)
        assert refused.code is Code.UNKNOWN_SESSION

    # ------------------------------------------------------------------------------------------ time and death

    @rule(
        rounds=st.integers(1, 12), step_ms=st.sampled_from((250, 500, 1000)), beating=st.sets(st.sampled_from(WORKERS))
    )
    def time_passes(self, rounds: int, step_ms: int, beating: set[str]) -> None:
        """Only some workers are heard meanwhile."""
        for _ in range(rounds):
            self.zq.round(step_ms)
            self.settle()
            for worker in self.model.workers.values():
                if worker.session and worker.name in beating:
                    self.beat(worker)

    @rule(gap_ms=st.integers(5001, 60_000))
    def the_broker_stands_still(self, gap_ms: int) -> None:
        self.model.stood_still(gap_ms, self.now_ms + gap_ms)
        self.zq.round(gap_ms)
        self.settle()

    @rule(after_ms=st.sampled_from((0, 0, 300, 1000)))
    def the_broker_restarts(self, after_ms: int) -> None:
        """Also after a round that has left something to do at once."""
        if after_ms:
            self.zq.round(after_ms)
            self.settle_round()
        self.model.restart(self.now_ms)
        self.zq.restart()
        self.zq.round()
        self.settle()

    # ------------------------------------------------------------------------------------------ always

    @invariant()
    def counts_are_those_of_the_model(self) -> None:
        counts = self.zq.journal.counts()
        found = {(name, state): n for name, c in counts.items() for state, n in c.by_state.items() if n}
        assert found == dict(self.model.counts())
        assert all(c.balanced() for c in counts.values())

    @invariant()
    def leases_are_those_of_the_model(self) -> None:
        core = self.zq.core
        running = {job.token: job for job in self.model.jobs.values() if job.state is State.RUNNING}
        assert set(core.leases.by_token) == set(running)
        for worker in self.model.workers.values():
            session = core.sessions.workers.get(worker.name)
            assert (session.id if session is not None else 0) == worker.session
            if session is not None:
                assert set(session.leases) == {job.token for job in self.model.held(worker)}
                assert {q: n for q, n in session.limits.items() if n} == {q: n for q, n in worker.credit.items() if n}

    @invariant()
    def the_journal_is_whole(self) -> None:
        assert check(self.zq.journal) == []

    def teardown(self) -> None:
        self.zq.journal.close()


class LmdbMachine(Machine):
    """On real LMDB. A restart opens it again."""

    def journals(self) -> Callable[[], Journal]:
        # In memory where there is such a file system: what a power failure does is shown in tests/durability.
        place = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        self.place = place
        opened: list[LmdbJournal] = []

        def reopen() -> Journal:
            if opened:
                opened.pop().close()
            opened.append(LmdbJournal(Path(place.name) / "journal", map_size_bytes=1 << 26))
            return opened[0]

        return reopen

    def teardown(self) -> None:
        super().teardown()
        self.place.cleanup()


def run(machine: type[Machine], examples: int, steps: int, *, seeded: bool = True, shrink: bool = True) -> None:
    phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, derandomize=seeded, database=None,
            suppress_health_check=list(HealthCheck), phases=phases, report_multiple_bugs=False,
        ),
    )  # fmt: skip
