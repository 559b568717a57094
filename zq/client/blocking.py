"""What a client can be asked to do, in blocking form, over anything that exchanges questions for answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

from zq.client import answers, verbs
from zq.client.job import Job
from zq.client.requests import JobIdLike, JobRequest, encode, raw_id
from zq.client.session import GivenUp, Question
from zq.config import Config
from zq.exceptions import Unavailable
from zq.protocol import limits, messages
from zq.protocol.job import State, new_job_id
from zq.protocol.messages import BrokerInfo, BrokerMessage, Change, JobDetail, QueueInfo, Receipt, WorkerInfo

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
    def _exchange(self, questions: Sequence[Question], limit_s: float) -> list[BrokerMessage | GivenUp]:
        """Ask, at most `IN_FLIGHT_MAX` at once, and wait for all answers, in the order of the questions.

        GivenUp stands for a WAIT whose job has not ended; any other question without an answer raises Unavailable.
        """

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
    ) -> Job[Any]:
        """Submit a job by its task's name; when this returns, the job is on the broker's disk.

        The parameters are those of `JobRequest`. If a live job has `key`, that job's handle is returned, with
        `deduplicated` set. Raises Invalid, Unavailable, Refused, Conflict.
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
            )
        )

    def submit_request(self, request: JobRequest) -> Job[Any]:
        """As `submit`. The same request again is the same job."""
        encoded = encode(request, self.config.worker)
        try:
            (receipt,) = self._call(verbs.submit([encoded]))
        except Unavailable as error:
            raise Unavailable(f"{error}{answers.unknown_outcome(encoded.id)}") from None
        return Job(self, answers.check_receipt(receipt).job_id, receipt)

    def submit_many(self, requests: Sequence[JobRequest]) -> list[Receipt]:
        """Submit a batch in as few messages as possible. One receipt each, in their order: look at `status`.

        Raises Invalid before anything is sent if one cannot be; Unavailable if an answer is missing: some may be
        accepted then, and the same list again is safe.
        """
        return self._call(verbs.submit([encode(request, self.config.worker) for request in requests]))

    def job(self, id: JobIdLike) -> Job[Any]:
        """A handle; nothing is asked yet."""
        return Job(self, raw_id(id))

    def queues(self) -> list[QueueInfo]:
        return self._call(verbs.queues())

    def jobs(
        self, queue: str = "", state: State | str = State.READY, after: bytes = b"", limit: int = 100
    ) -> verbs.JobPage:
        """One page of the jobs in a state; of all queues without `queue`."""
        return self._call(verbs.jobs(queue, state, after, limit))

    def detail(self, id: JobIdLike) -> JobDetail:
        """Raises Refused(NOT_FOUND) for a job that never was or is not kept any more."""
        return self._call(verbs.detail(id))

    def workers(self) -> list[WorkerInfo]:
        return self._call(verbs.workers())

    def broker(self) -> BrokerInfo:
        return self._call(verbs.broker())

    def cancel(self, ids: Sequence[JobIdLike]) -> list[Change]:
        """One change each. A running job is told to stop; its state changes when it has."""
        return self._call(verbs.cancel(ids))

    def retry(self, ids: Sequence[JobIdLike]) -> list[Change]:
        """Run dead, cancelled or expired jobs again, their attempts forgotten."""
        return self._call(verbs.retry(ids))

    def wait(self, id: JobIdLike, timeout_s: float | None = None) -> messages.Ended | None:
        """How the job ended; None if it has not within `timeout_s` (None: for as long as it takes).

        Broker restarts meanwhile do no harm; one that is away for longer than the client's `timeout_s` raises
        Unavailable.
        """
        if timeout_s is not None and timeout_s <= 0:
            return verbs.ended_from(self.detail(id))
        limit_s = min(timeout_s if timeout_s is not None else NO_LIMIT_S, NO_LIMIT_S)
        call = verbs.wait(id, limit_s)
        (outcome,) = self._exchange(call.questions, limit_s)
        if isinstance(outcome, GivenUp):
            return None
        return call.read([outcome])

    def result(self, id: JobIdLike, timeout_s: float | None = None) -> Any:
        """What the job returned. Raises ResultTimeout, JobFailed, Unavailable, Refused(NOT_FOUND)."""
        ended = self.wait(id, timeout_s)
        if ended is None:
            raise answers.not_ended(raw_id(id), timeout_s or 0)
        return answers.value_of(ended)

    def _call(self, call: verbs.Call[T]) -> T:
        outcomes = self._exchange(call.questions, self.timeout_s)
        return call.read([outcome for outcome in outcomes if not isinstance(outcome, GivenUp)])
