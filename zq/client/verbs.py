"""Each thing a client can ask: the questions it takes, and how their answers become what the caller gets.

Pure, so that the sync and the async client say the same things and cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from zq.client import answers
from zq.client.requests import Encoded, JobIdLike, raw_id
from zq.client.session import Question
from zq.exceptions import Invalid
from zq.protocol import codec, limits, messages
from zq.protocol.job import State
from zq.protocol.messages import BrokerMessage, Change, JobInfo, QueueInfo, Receipt, ReceiptStatus, WorkerInfo

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    questions: Sequence[Question]
    read: Callable[[list[BrokerMessage]], T]
    """One answer for each question, in their order; any may be a Refusal."""


class JobPage(NamedTuple):
    jobs: list[JobInfo]
    next: bytes
    """`after` of the next page; empty when there is none."""


def submit_parts(jobs: Sequence[Encoded]) -> list[tuple[Sequence[Encoded], messages.Submit]]:
    """The jobs in as few messages as they fit into."""
    parts = codec.split(jobs, [len(one.spec) + 8 for one in jobs])
    return [(part, messages.Submit(0, 0, [one.spec for one in part])) for part in parts]


def receipts_of(part: Sequence[Encoded], answer: BrokerMessage) -> list[Receipt]:
    """One receipt for each job of a SUBMIT; if the whole message was refused, each says so."""
    if isinstance(answer, messages.Receipts):
        return list(answer.receipts)
    return [_refused_receipt(one, answer) for one in part]


def submit(jobs: Sequence[Encoded]) -> Call[list[Receipt]]:
    parts = submit_parts(jobs)

    def read(got: list[BrokerMessage]) -> list[Receipt]:
        return [
            receipt
            for (part, _), answer in zip(parts, got, strict=True)
            for receipt in receipts_of(part, answer)
        ]

    return Call([question for _, question in parts], read)


def _refused_receipt(one: Encoded, answer: BrokerMessage) -> Receipt:
    assert isinstance(answer, messages.Refusal)
    return Receipt(
        one.id,
        ReceiptStatus.REFUSED,
        code=answer.code,
        detail=answer.detail,
        retry_after_ms=answer.retry_after_ms,
    )


def queues() -> Call[list[QueueInfo]]:
    return Call([messages.AskQueues(0, 0)], lambda got: list(_one(got, messages.Queues).queues))


def workers() -> Call[list[WorkerInfo]]:
    return Call([messages.AskWorkers(0, 0)], lambda got: list(_one(got, messages.Workers).workers))


def broker() -> Call[messages.BrokerInfo]:
    return Call([messages.AskBroker(0, 0)], lambda got: _one(got, messages.BrokerInfo))


def detail(job_id: JobIdLike) -> Call[messages.JobDetail]:
    return Call([messages.AskJob(0, 0, raw_id(job_id))], lambda got: _one(got, messages.JobDetail))


def jobs(queue: str, state: State | str, after: bytes, limit: int) -> Call[JobPage]:
    if not 1 <= limit <= limits.PAGE_ROWS_MAX:
        raise Invalid(f"limit is {limit}; give 1 to {limits.PAGE_ROWS_MAX}")
    if len(queue) > limits.NAME_CHARS_MAX:
        raise Invalid(f"queue is a name of at most {limits.NAME_CHARS_MAX} characters")

    def read(got: list[BrokerMessage]) -> JobPage:
        page = _one(got, messages.Jobs)
        return JobPage(list(page.jobs), page.next)

    return Call([messages.AskJobs(0, 0, queue, state_of(state), after, limit)], read)


def state_of(state: State | str) -> State:
    """A state by its name, in any case. Raises Invalid."""
    if isinstance(state, State):
        return state
    try:
        return State[state.upper()]
    except (KeyError, AttributeError):
        raise Invalid(f"state {state!r} is none of {', '.join(s.label for s in State)}") from None


def cancel(ids: Sequence[JobIdLike]) -> Call[list[Change]]:
    return _change(messages.Cancel, ids)


def retry(ids: Sequence[JobIdLike]) -> Call[list[Change]]:
    return _change(messages.RetryEnded, ids)


def _change(
    verb: type[messages.Cancel] | type[messages.RetryEnded], ids: Sequence[JobIdLike]
) -> Call[list[Change]]:
    if isinstance(ids, (str, bytes)):
        raise Invalid("give a list of job ids")
    raw = [raw_id(one) for one in ids]
    step = limits.BATCH_ITEMS_MAX
    parts = [raw[start : start + step] for start in range(0, len(raw), step)]

    def read(got: list[BrokerMessage]) -> list[Change]:
        return [change for answer in got for change in _is(answer, messages.Changed).changes]

    return Call([verb(0, 0, part) for part in parts], read)


def wait(job_id: JobIdLike, timeout_s: float) -> Call[messages.Ended]:
    timeout_ms = min(max(round(timeout_s * 1000), 1), limits.DURATION_MS_MAX)
    return Call([messages.Wait(0, 0, raw_id(job_id), timeout_ms)], lambda got: _one(got, messages.Ended))


def ended_from(found: messages.JobDetail) -> messages.Ended | None:
    """What WAIT would have answered at once; None while the job lives."""
    if found.job.state in (State.SCHEDULED, State.READY, State.RUNNING):
        return None
    return messages.Ended(0, found.job.id, found.job.state, found.result, found.result_kept, found.job.error)


M = TypeVar("M")


def _one(got: list[BrokerMessage], kind: type[M]) -> M:
    return _is(got[0], kind)


def _is(answer: Any, kind: type[M]) -> M:
    if isinstance(answer, messages.Refusal):
        raise answers.refused(answer)
    assert isinstance(answer, kind)  # the session let no other answer through
    return answer
