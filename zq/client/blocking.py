"""What a client can be asked to do, in blocking form, over anything that exchanges questions for answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

from zq.client import answers, verbs
from zq.client.follow import Follow
from zq.client.job import Job
from zq.client.requests import JobIdLike, JobRequest, KeyPolicyName, encode, encode_all, raw_id
from zq.client.session import GivenUp, Question
from zq.config import Config
from zq.exceptions import Unavailable
from zq.protocol import limits, messages
from zq.protocol.job import State, new_job_id
from zq.protocol.messages import (
    BrokerInfo,
    BrokerMessage,
    Change,
    Events,
    HourInfo,
    JobDetail,
    QueueInfo,
    Receipt,
    Register,
    RegisterSet,
    Why,
)

T = TypeVar("T")

IN_FLIGHT_MAX: Final = 8
"""SUBMITs that one `submit_many` has on the way: enough to keep the broker's disk busy, and at most 8 MiB."""
NO_LIMIT_S: Final = limits.DURATION_MS_MAX / 1000


class BlockingCalls(ABC):
    """The calls of `zq.Client`, and of the one in `zq.testing`."""

    def __init__(self, config: Config, timeout_s: float | None = None) -> None:
        self.config = config
        self.timeout_s = timeout_s if timeout_s is not None else config.client.timeout_s

    @abstractmethod
    def _exchange(self, questions: Iterable[Question], limit_s: float) -> list[BrokerMessage | GivenUp]:
        """Ask, at most `IN_FLIGHT_MAX` at once, and wait for all answers, in the order of the questions. The questions
        are taken one after the other, as there is room for them.

        GivenUp stands for a WAIT whose job has not ended; any other question without an answer raises Unavailable.
        """

    def _exchange_one(self, question: Question, limit_s: float) -> BrokerMessage | GivenUp:
        """As `_exchange`, of one question."""
        [answer] = self._exchange([question], limit_s)
        return answer

    def submit(
        self,
        task: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        queue: str,
        id: JobIdLike | None = None,
        priority: int = limits.PRIORITY_DEFAULT,
        countdown: float | None = None,
        eta: datetime | None = None,
        expires_s: float | None = None,
        max_retries: int = 3,
        backoff_s: float = 60.0,
        soft_time_limit_s: float | None = None,
        time_limit_s: float | None = None,
        key: str = "",
        trace: str = "",
        key_policy: KeyPolicyName = "refuse",
        concurrency_key: str = "",
        concurrency_limit: int = 1,
        tags: Sequence[str] = (),
        disk_bytes: int = 0,
        memory_bytes: int = 0,
        memory_limit_bytes: int = 0,
        stall_after_s: float | None = None,
    ) -> Job[Any]:
        """Submit a job by its task's name; when this returns, the job is on the broker's disk.

        The parameters are those of `JobRequest`. If a live job has `key` and keeps it (see `key_policy`), that job's
        handle is returned, with `deduplicated` set. Raises Invalid, Unavailable, Refused, Conflict.
        """
        return self.submit_request(
            JobRequest(
                task=task,
                queue=queue,
                args=args,
                kwargs=kwargs,
                id=id if id is not None else new_job_id(),
                priority=priority,
                countdown=countdown,
                eta=eta,
                expires_s=expires_s,
                max_retries=max_retries,
                backoff_s=backoff_s,
                soft_time_limit_s=soft_time_limit_s,
                time_limit_s=time_limit_s,
                key=key,
                trace=trace,
                key_policy=key_policy,
                concurrency_key=concurrency_key,
                concurrency_limit=concurrency_limit,
                tags=tags,
                disk_bytes=disk_bytes,
                memory_bytes=memory_bytes,
                memory_limit_bytes=memory_limit_bytes,
                stall_after_s=stall_after_s,
            )
        )

    def submit_request(self, request: JobRequest) -> Job[Any]:
        """As `submit`. The same request again is the same job."""
        encoded = encode(request, self.config.worker)
        try:
            answer = self._exchange_one(verbs.submit_one(encoded), self.timeout_s)
        except Unavailable as error:
            raise Unavailable(f"{error}{answers.unknown_outcome(encoded.id)}") from None
        [receipt] = verbs.receipts_of([encoded.id], answer)
        return Job(self, answers.check_receipt(receipt).job_id, receipt)

    def submit_many(self, requests: Iterable[JobRequest]) -> list[Receipt]:
        """Submit many in few messages. One receipt each, in their order: look at `status`.

        A list or tuple is checked as a whole: Invalid is raised before anything is sent. Any other iterable, such as a
        generator, is read while the broker works on the jobs before, which is faster and needs no list of them;
        Invalid then ends it where it is, and the jobs before may be accepted. So may some when an answer is missing
        (Unavailable); the same requests again are safe.
        """
        return self._call(verbs.submit(encode_all(requests, self.config.worker)))

    def job(self, id: JobIdLike) -> Job[Any]:
        """A handle; nothing is asked yet."""
        return Job(self, raw_id(id))

    def queues(self) -> list[QueueInfo]:
        return self._call(verbs.queues())

    def set_queue(
        self,
        queue: str,
        *,
        paused: bool | None = None,
        rate_per_s: float | None = None,
        running_max: int | None = None,
        length_max: int | None = None,
    ) -> QueueInfo:
        """Change what a queue may do, over restarts; None leaves a setting as it is, and 0 takes a limit away.

        A paused queue takes jobs and starts none. `rate_per_s` jobs are started in a second, evenly; `running_max` run
        at once, on all workers together; beyond `length_max` waiting ones submits are refused with `queue_full`.
        Needs the role "admin". Raises Invalid, Unavailable, Refused(FORBIDDEN).
        """
        return self._call(verbs.set_queue(queue, paused, rate_per_s, running_max, length_max))

    def pause(self, queue: str) -> QueueInfo:
        """No job of the queue starts any more; those that run go on. As `set_queue(queue, paused=True)`."""
        return self.set_queue(queue, paused=True)

    def resume(self, queue: str) -> QueueInfo:
        return self.set_queue(queue, paused=False)

    def hours(self, queue: str, since_ms: int = 0, limit: int = 100) -> list[HourInfo]:
        """What has become of a queue's jobs, by the hour in which they were accepted: the first `limit` (at most 1000)
        hours that begin at `since_ms` (Unix time in milliseconds) or later and had any, oldest first. Hours are kept
        for 62 days, and longer while a job of theirs lives. Raises Invalid, Unavailable.
        """
        return self._call(verbs.hours(queue, since_ms, limit))

    def registers(self, prefix: str = "") -> list[Register]:
        """Small values that are kept with the broker, over restarts: those whose names begin with `prefix`, by name."""
        return self._call(verbs.registers(prefix))

    def set_registers(self, registers: Sequence[Register]) -> list[RegisterSet]:
        """Write each register if the one that is there has the revision before it (0: was never written).

        Of the answers, one each, `done` says whether; `register` is what is there now. At most 512 of 1024 bytes. Needs
        the role "scheduler" or "admin". Raises Invalid, Unavailable, Refused(FORBIDDEN, BUSY).
        """
        return self._call(verbs.set_registers(registers))

    def jobs(
        self,
        queue: str = "",
        state: State | str = State.READY,
        after: bytes = b"",
        limit: int = 100,
        with_specs: bool = False,
    ) -> verbs.JobPage:
        """One page of the jobs in a state; of all queues without `queue`. `with_specs` brings their arguments too."""
        return self._call(verbs.jobs(queue, state, after, limit, with_specs))

    def detail(self, id: JobIdLike) -> JobDetail:
        """Raises Refused(NOT_FOUND) for a job that never was or is not kept any more."""
        return self._call(verbs.detail(id))

    def details(self, ids: Sequence[JobIdLike]) -> list[JobDetail | None]:
        """Several at once; None for each that never was or is not kept any more."""
        return self._call(verbs.details(ids))

    def why(self, id: JobIdLike) -> Why:
        """The first thing that keeps this job from running. Raises Refused(NOT_FOUND)."""
        return self._call(verbs.why(id))

    def events(
        self, after: int = 0, queue: str = "", job_id: JobIdLike | None = None, wait_s: float = 0.0, limit: int = 500
    ) -> Events:
        """Events after number `after`, oldest first; ask again after its `last`. If there are none, the broker waits
        for one, up to `wait_s`. `gap` says that some are missing before the first one here."""
        return self._call(verbs.events(after, queue, job_id, wait_s, limit), wait_s)

    def follow(self, after: int | None = None, queue: str = "", job_id: JobIdLike | None = None) -> Follow:
        """Events as they happen, for ever, with a `Gap` among them where some are missing.

        Begins after event `after`: 0 is the oldest that is kept, None is now. Its `last` is where to begin next time.
        """
        verbs.events(after or 0, queue, job_id, 0.0, 1)  # what is wrong is told here, not at the first event
        return Follow(self, after, queue, job_id)

    def workers(self) -> verbs.WorkerList:
        return self._call(verbs.workers())

    def broker(self) -> BrokerInfo:
        return self._call(verbs.broker())

    def cancel(self, ids: Sequence[JobIdLike]) -> list[Change]:
        """One change each. A running job is told to stop; its state changes when it has."""
        return self._call(verbs.cancel(ids))

    def retry(self, ids: Sequence[JobIdLike]) -> list[Change]:
        """Run dead, cancelled or expired jobs again, their attempts forgotten."""
        return self._call(verbs.retry(ids))

    def drop(self, ids: Sequence[JobIdLike]) -> list[Change]:
        """Forget ended jobs now, with their results and errors. Needs the role "admin". One change each."""
        return self._call(verbs.drop(ids))

    def wait(self, id: JobIdLike, timeout_s: float | None = None) -> messages.Ended | None:
        """How the job ended; None if it has not within `timeout_s` (None: for as long as it takes).

        Broker restarts meanwhile do no harm; one that is away for longer than the client's `timeout_s` raises
        Unavailable.
        """
        if timeout_s is not None and timeout_s <= 0:
            return verbs.ended_from(self.detail(id))
        limit_s = min(timeout_s if timeout_s is not None else NO_LIMIT_S, NO_LIMIT_S)
        call = verbs.wait(id, limit_s)
        [question] = call.questions
        outcome = self._exchange_one(question, limit_s)
        if isinstance(outcome, GivenUp):
            return None
        return call.read([outcome])

    def result(self, id: JobIdLike, timeout_s: float | None = None) -> Any:
        """What the job returned. Raises ResultTimeout, JobFailed, Unavailable, Refused(NOT_FOUND)."""
        ended = self.wait(id, timeout_s)
        if ended is None:
            raise answers.not_ended(raw_id(id), timeout_s or 0)
        return answers.value_of(ended)

    def _call(self, call: verbs.Call[T], takes_s: float = 0.0) -> T:
        outcomes = self._exchange(call.questions, self.timeout_s + takes_s)
        return call.read([outcome for outcome in outcomes if not isinstance(outcome, GivenUp)])
