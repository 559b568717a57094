"""Each thing a client can ask: the questions it takes, and how their answers become what the caller gets.

Pure, so that the sync and the async client say the same things and cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from zq.client import answers
from zq.client.requests import Encoded, JobIdLike, milliseconds, raw_id
from zq.client.session import GivenUp, Question
from zq.exceptions import Invalid
from zq.protocol import limits, messages
from zq.protocol.errors import Code
from zq.protocol.job import State, valid_name
from zq.protocol.messages import (
    BrokerMessage,
    Change,
    HourInfo,
    JobInfo,
    QueueInfo,
    Receipt,
    ReceiptStatus,
    Register,
    WorkerInfo,
)

T = TypeVar("T")

NEWEST: Final = (1 << 63) - 1
"""`after` this event there is none: asked so, the broker says which is the newest one."""
RATE_MAX: Final = 1_000_000
RUNNING_MAX: Final = 1 << 20


@dataclass(frozen=True)
class Call(Generic[T]):
    questions: Iterable[Question]
    """Gone through once."""
    read: Callable[[list[BrokerMessage]], T]
    """One answer for each question, in their order; any may be a Refusal."""


class JobPage(NamedTuple):
    jobs: list[JobInfo]
    next: bytes
    """`after` of the next page; empty when there is none."""
    specs: list[bytes]
    """The encoded jobs as they were submitted, as many as `jobs`, if they were asked for. A `JobFilter` reads them, and
    `zq.protocol.job.decode_spec`."""


class WorkerList(list[WorkerInfo]):
    """The workers, and how many further ones did not fit into the broker's answer."""

    not_listed = 0


SUBMIT_JOBS_MAX: Final = 1000
"""Jobs of one SUBMIT: the broker works on them while the next ones are being encoded."""
_ENVELOPE_BYTES: Final = 8
"""What a job takes in a SUBMIT beside its own bytes, at most."""


def submit_parts(jobs: Iterable[Encoded]) -> Iterator[tuple[list[bytes], messages.Submit]]:
    """The jobs in messages, made when they are asked for, with the ids of each."""
    part: list[Encoded] = []
    part_bytes = 0
    for one in jobs:
        size_bytes = len(one.spec) + _ENVELOPE_BYTES
        if part and (len(part) >= SUBMIT_JOBS_MAX or part_bytes + size_bytes > limits.BATCH_BYTES_MAX):
            yield _submit_of(part)
            part, part_bytes = [], 0
        part.append(one)
        part_bytes += size_bytes
    if part:
        yield _submit_of(part)


def _submit_of(part: list[Encoded]) -> tuple[list[bytes], messages.Submit]:
    return [one.id for one in part], messages.Submit(0, 0, [one.spec for one in part])


def receipts_of(ids: Sequence[bytes], answer: BrokerMessage | GivenUp) -> list[Receipt]:
    """One receipt for each job of a SUBMIT; if the whole message was refused, each says so."""
    if isinstance(answer, messages.Receipts):
        return answer.receipts
    return [_refused_receipt(job_id, answer) for job_id in ids]


def submit(jobs: Iterable[Encoded]) -> Call[list[Receipt]]:
    asked: list[list[bytes]] = []

    def questions() -> Iterator[Question]:
        for ids, question in submit_parts(jobs):
            asked.append(ids)
            yield question

    def read(got: list[BrokerMessage]) -> list[Receipt]:
        receipts: list[Receipt] = []
        for ids, answer in zip(asked, got, strict=True):
            receipts += receipts_of(ids, answer)
        return receipts

    return Call(questions(), read)


def submit_one(job: Encoded) -> Question:
    return messages.Submit(0, 0, [job.spec])


def _refused_receipt(job_id: bytes, answer: BrokerMessage | GivenUp) -> Receipt:
    assert isinstance(answer, messages.Refusal)
    return Receipt(
        job_id,
        ReceiptStatus.REFUSED,
        code=answer.code,
        detail=answer.detail,
        retry_after_ms=answer.retry_after_ms,
    )


def queues() -> Call[list[QueueInfo]]:
    return Call([messages.AskQueues(0, 0)], lambda got: list(_one(got, messages.Queues).queues))


def workers() -> Call[WorkerList]:
    def read(got: list[BrokerMessage]) -> WorkerList:
        answer = _one(got, messages.Workers)
        found = WorkerList(answer.workers)
        found.not_listed = answer.not_listed
        return found

    return Call([messages.AskWorkers(0, 0)], read)


def broker() -> Call[messages.BrokerInfo]:
    return Call([messages.AskBroker(0, 0)], lambda got: _one(got, messages.BrokerInfo))


def detail(job_id: JobIdLike) -> Call[messages.JobDetail]:
    return Call([messages.AskJob(0, 0, raw_id(job_id))], lambda got: _one(got, messages.JobDetail))


def details(ids: Sequence[JobIdLike]) -> Call[list[messages.JobDetail | None]]:
    """None for a job that the broker does not know."""

    def read(got: list[BrokerMessage]) -> list[messages.JobDetail | None]:
        return [None if _is_not_found(answer) else _is(answer, messages.JobDetail) for answer in got]

    return Call([messages.AskJob(0, 0, raw) for raw in _raw_ids(ids)], read)


def _is_not_found(answer: BrokerMessage) -> bool:
    return isinstance(answer, messages.Refusal) and answer.code is Code.NOT_FOUND


def why(job_id: JobIdLike) -> Call[messages.Why]:
    return Call([messages.AskWhy(0, 0, raw_id(job_id))], lambda got: _one(got, messages.Why))


def jobs(queue: str, state: State | str, after: bytes, limit: int, with_specs: bool) -> Call[JobPage]:
    _check_page(queue, limit)

    def read(got: list[BrokerMessage]) -> JobPage:
        page = _one(got, messages.Jobs)
        return JobPage(list(page.jobs), page.next, list(page.specs))

    return Call([messages.AskJobs(0, 0, queue, state_of(state), after, limit, with_specs)], read)


def events(after: int, queue: str, job_id: JobIdLike | None, wait_s: float, limit: int) -> Call[messages.Events]:
    _check_page(queue, limit)
    if isinstance(after, bool) or not isinstance(after, int) or not 0 <= after <= NEWEST:
        raise Invalid(f"after is {after!r:.60}; give the number of an event, 0 for the oldest that is kept")
    wait_ms = milliseconds("wait_s", wait_s)
    raw = raw_id(job_id) if job_id is not None else b""
    return Call([messages.AskEvents(0, 0, after, queue, raw, wait_ms, limit)], lambda got: _one(got, messages.Events))


def _check_page(queue: str, limit: int) -> None:
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= limits.PAGE_ROWS_MAX:
        raise Invalid(f"limit is {limit!r:.60}; give 1 to {limits.PAGE_ROWS_MAX}")
    if not isinstance(queue, str) or len(queue) > limits.NAME_CHARS_MAX:
        raise Invalid(f"queue is a name of at most {limits.NAME_CHARS_MAX} characters")


def set_queue(
    queue: str, paused: bool | None, rate_per_s: float | None, running_max: int | None, length_max: int | None
) -> Call[QueueInfo]:
    if not isinstance(queue, str) or not valid_name(queue):
        raise Invalid(f"queue is {queue!r:.220}; a name is printable characters without blanks")
    if paused is not None and not isinstance(paused, bool):
        raise Invalid(f"paused is {paused!r:.60}; give True or False")
    if rate_per_s is not None:
        if isinstance(rate_per_s, bool) or not isinstance(rate_per_s, (int, float)) or not 0 <= rate_per_s <= RATE_MAX:
            raise Invalid(f"rate_per_s is {rate_per_s!r:.60}; give jobs a second, 0 for no limit, at most {RATE_MAX}")
        rate_per_s = float(rate_per_s)
    for what, value, most in (
        ("running_max", running_max, RUNNING_MAX),
        ("length_max", length_max, limits.LIVE_JOBS_PER_QUEUE_MAX),
    ):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most):
            raise Invalid(f"{what} is {value!r:.60}; give a number of jobs, 0 for no limit, at most {most}")
    order = messages.SetQueue(0, 0, queue, paused, rate_per_s, running_max, length_max)
    return Call([order], lambda got: _admin(got[0], messages.QueueSet).queue)


def hours(queue: str, since_ms: int, limit: int) -> Call[list[HourInfo]]:
    if not valid_name(queue):
        raise Invalid(f"queue {queue!r:.220} is no name")
    if not (0 <= since_ms <= 1 << 53 and 1 <= limit <= limits.PAGE_ROWS_MAX):
        raise Invalid(f"since_ms is a time in milliseconds, and limit 1 to {limits.PAGE_ROWS_MAX}")
    return Call([messages.AskHours(0, 0, queue, since_ms, limit)], lambda got: list(_one(got, messages.Hours).hours))


def registers(prefix: str) -> Call[list[Register]]:
    if not isinstance(prefix, str) or len(prefix) > limits.NAME_CHARS_MAX:
        raise Invalid(f"prefix is the beginning of a name of at most {limits.NAME_CHARS_MAX} characters")
    return Call([messages.AskRegisters(0, 0, prefix)], lambda got: list(_one(got, messages.Registers).registers))


def set_registers(registers: Sequence[Register]) -> Call[list[messages.RegisterSet]]:
    for one in registers:
        if not isinstance(one.name, str) or not valid_name(one.name):
            raise Invalid(f"name is {one.name!r:.220}; a name is printable characters without blanks")
        if isinstance(one.revision, bool) or not isinstance(one.revision, int) or not 1 <= one.revision <= 1 << 53:
            raise Invalid(f"revision is {one.revision!r:.60}; give the one that was read, plus one")
        if not isinstance(one.value, bytes) or len(one.value) > limits.REGISTER_BYTES_MAX:
            raise Invalid(f"value is at most {limits.REGISTER_BYTES_MAX} bytes")
    orders = [messages.SetRegister(0, 0, one.name, one.revision, one.value) for one in registers]
    return Call(orders, lambda got: [_admin(answer, messages.RegisterSet) for answer in got])


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


def drop(ids: Sequence[JobIdLike]) -> Call[list[Change]]:
    return _change(messages.Drop, ids)


def _raw_ids(ids: Sequence[JobIdLike]) -> list[bytes]:
    if isinstance(ids, (str, bytes)):
        raise Invalid("give a list of job ids")
    return [raw_id(one) for one in ids]


def _change(
    verb: type[messages.Cancel] | type[messages.RetryEnded] | type[messages.Drop], ids: Sequence[JobIdLike]
) -> Call[list[Change]]:
    raw = _raw_ids(ids)
    step = limits.BATCH_ITEMS_MAX
    parts = [raw[start : start + step] for start in range(0, len(raw), step)]

    def read(got: list[BrokerMessage]) -> list[Change]:
        return [change for answer in got for change in _admin(answer, messages.Changed).changes]

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


def _admin(answer: Any, kind: type[M]) -> M:
    """The answer to an order that not everybody may give."""
    if isinstance(answer, messages.Refusal) and answer.code is Code.FORBIDDEN:
        advice = "; use a client with role='admin' (its key, if it has one, must be an admin's)"
        raise answers.refused(msgspec.structs.replace(answer, detail=answer.detail + advice))
    return _is(answer, kind)


def _is(answer: Any, kind: type[M]) -> M:
    if isinstance(answer, messages.Refusal):
        raise answers.refused(answer)
    assert isinstance(answer, kind)  # the session let no other answer through
    return answer
