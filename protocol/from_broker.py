"""What the broker sends. SPEC.md says when, and what it means."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from zq.protocol import limits
from zq.protocol.errors import Code
from zq.protocol.job import Bytes, Cause, DurationMs, Name, Outcome, State, Tag
from zq.protocol.parts import (
    Attempt,
    ErrorText,
    Items,
    JobId,
    Number,
    Part,
    QueueSlots,
    Request,
    Role,
    Room,
    SessionId,
    Text,
    Token,
    Usage,
)


class FromBroker(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of what the broker sends."""


class Welcome(FromBroker, frozen=True, tag=101):
    session: SessionId
    version: Number
    epoch: Number
    """Grows with every start of the broker."""
    heartbeat_ms: DurationMs
    timeout_ms: DurationMs
    """A worker silent for so long has lost its leases."""


class ReceiptStatus(StrEnum):
    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    """This very job was accepted before: the same answer again."""
    KEY_TAKEN = "key_taken"
    """A live job has the key; `job_id` is that job's."""
    REFUSED = "refused"


class Receipt(Part, frozen=True):
    job_id: JobId
    status: ReceiptStatus
    state: State | None = None
    code: Code | None = None
    detail: Text = ""
    retry_after_ms: DurationMs = 0
    warnings: Annotated[list[Text], Meta(max_length=8)] = msgspec.field(default_factory=list)


class Receipts(FromBroker, frozen=True, tag=102):
    """One receipt for each job of the SUBMIT, in its order. What is accepted is on disk."""

    request: Request
    receipts: Annotated[list[Receipt], Items]


class Lease(Part, frozen=True):
    job_id: JobId
    attempt: Attempt
    token: Token
    spec: bytes
    """The encoded JobSpec, as it was submitted."""


class Dispatch(FromBroker, frozen=True, tag=103):
    session: SessionId
    number: Number
    """1, 2, 3, … within the session."""
    leases: Annotated[list[Lease], Items]


class Acked(FromBroker, frozen=True, tag=104):
    """These results are on disk (`accepted`), or came too late and changed nothing (`stale`): forget them."""

    session: SessionId
    accepted: Annotated[list[Token], Items]
    stale: Annotated[list[Token], Items]


class Resumed(FromBroker, frozen=True, tag=105):
    session: SessionId
    held: Annotated[list[Token], Items]
    lost: Annotated[list[Token], Items]
    """The job went elsewhere, or ended: stop working on it."""


class BeatOk(FromBroker, frozen=True, tag=106):
    session: SessionId
    idle_ms: DurationMs = 0
    """A worker that has no leases may leave so long between two BEATs; 0 for `heartbeat_ms` of WELCOME."""


class Held(FromBroker, frozen=True, tag=107):
    request: Request
    held: bool


class RevokeReason(StrEnum):
    CANCELLED = "cancelled"
    STALE = "stale"


class Revoke(FromBroker, frozen=True, tag=108):
    """Stop these attempts. A cancelled one is answered by an ACK; a stale one by nothing."""

    session: SessionId
    tokens: Annotated[list[Token], Items]
    reason: RevokeReason


class Ended(FromBroker, frozen=True, tag=109):
    request: Request
    job_id: JobId
    state: State
    result: bytes = b""
    result_kept: bool = True
    """False when the result has been dropped after its time to live."""
    error: ErrorText = ""


class QueueInfo(Part, frozen=True):
    name: Name
    scheduled: Number
    ready: Number
    running: Number
    done: Number
    dead: Number
    cancelled: Number
    expired: Number
    accepted: Number
    """All that was ever accepted: the sum of the seven before, always."""
    oldest_ready_ms: DurationMs
    """How long the job at the head has been waiting."""
    consumers: Number
    """Workers that serve this queue now."""
    slots: Number
    free: Number
    paused: bool = False
    rate_per_s: float = 0.0
    running_max: Number = 0
    length_max: Number = 0


class Queues(FromBroker, frozen=True, tag=110):
    request: Request
    queues: list[QueueInfo]


class JobInfo(Part, frozen=True):
    id: JobId
    task: Name
    queue: Name
    state: State
    priority: int
    attempt: Number
    attempts_max: Number
    accepted_ms: Number
    """Unix milliseconds, as are all times here; 0 for not yet."""
    due_ms: Number
    started_ms: Number
    ended_ms: Number
    worker: Text
    key: Annotated[str, Meta(max_length=limits.KEY_CHARS_MAX)]
    error: ErrorText
    size_bytes: Number
    progress_done: float = 0.0
    progress_total: float = 0.0
    progress_message: Text = ""
    usage: Usage = Usage()
    hard_limit_ms: DurationMs = 0
    concurrency_key: Annotated[str, Meta(max_length=limits.KEY_CHARS_MAX)] = ""
    tags: tuple[Tag, ...] = ()
    disk_bytes: Bytes = 0
    """What it needs, as in its JobSpec; so is memory_bytes."""
    memory_bytes: Bytes = 0
    quiet_ms: DurationMs = 0
    """RUNNING: since its last sign of life, as its worker last said."""
    stalled: bool = False


class Jobs(FromBroker, frozen=True, tag=111):
    request: Request
    jobs: list[JobInfo]
    next: bytes = b""
    """Cursor of the next page; empty when there is none."""
    specs: list[bytes] = []
    """As many as `jobs`, if they were asked for."""


class AttemptInfo(Part, frozen=True):
    number: Attempt
    worker: Text
    started_ms: Number
    ended_ms: Number
    outcome: Outcome | None
    """None while it runs."""
    error: ErrorText
    usage: Usage
    progress_done: float = 0.0
    progress_total: float = 0.0
    progress_message: Text = ""
    """The last progress that the task reported."""


class EventInfo(Part, frozen=True):
    """One step of a job, as the journal has it."""

    number: Number
    """Grows by one with every event of this journal, over restarts."""
    at_ms: Number
    job_id: JobId
    queue: Name
    task: Name
    cause: Cause
    state: State
    attempt: Number
    worker: Text
    detail: Text
    """The beginning of the error, or who asked."""


class JobDetail(FromBroker, frozen=True, tag=112):
    request: Request
    job: JobInfo
    spec: bytes
    attempts: list[AttemptInfo]
    result: bytes = b""
    result_kept: bool = True
    history: list[EventInfo] = []
    """The newest events of this job, in their order."""


class WorkerInfo(Part, frozen=True):
    instance: Name
    role: Role
    queues: list[QueueSlots]
    running: Number
    tasks: Number
    silent_ms: DurationMs
    connected_ms: DurationMs
    software: Text
    tags: list[Tag] = msgspec.field(default_factory=list)
    room: Room | None = None
    """What is left for further jobs that say what they need; None if the worker does not say."""
    stalled: Number = 0
    """Of `running`: those that show no sign of life."""


class Workers(FromBroker, frozen=True, tag=113):
    request: Request
    workers: list[WorkerInfo]
    not_listed: Number = 0
    """Further workers that did not fit into this message."""


class Change(Part, frozen=True):
    job_id: JobId
    code: Code | None
    """None when it was done."""
    state: State | None


class Changed(FromBroker, frozen=True, tag=114):
    request: Request
    changes: Annotated[list[Change], Items]


class BrokerInfo(FromBroker, frozen=True, tag=115):
    request: Request
    epoch: Number
    uptime_ms: DurationMs
    now_ms: Number
    journal_bytes: Number
    disk_free_bytes: Number
    commits: Number
    commit_p99_us: Number
    sessions: Number
    refused: dict[str, int]
    """Bad messages so far, by code."""
    accepting: bool
    software: Text


class WhyReason(StrEnum):
    """The first thing that holds a job, in the order in which they are looked at."""

    NOT_WAITING = "not_waiting"
    """It runs, or has ended."""
    NOT_DUE = "not_due"
    PAUSED = "paused"
    CONCURRENCY = "concurrency"
    """Others with its concurrency key run, or come before it."""
    NO_CONSUMER = "no_consumer"
    TAGS = "tags"
    """No worker of the queue has the tags it requires."""
    HEADROOM = "headroom"
    """No such worker has as much disk or memory left as it needs."""
    RUNNING_MAX = "running_max"
    RATE = "rate"
    NO_CREDIT = "no_credit"
    """Every slot that could run it is busy."""
    BEHIND = "behind"
    """Others are before it, and it is about to move."""


class Why(FromBroker, frozen=True, tag=116):
    request: Request
    reason: WhyReason
    text: Text
    holders: Annotated[list[JobId], Meta(max_length=16)] = []
    """Jobs that hold it, where there are any."""
    wait_ms: DurationMs = 0
    """When it may go on, where that is known."""


class Events(FromBroker, frozen=True, tag=117):
    request: Request
    events: list[EventInfo]
    last: Number
    """Ask again after this number."""
    gap: bool = False
    """Events between `after` and the first one here have been forgotten, or `after` is still to come in this journal:
    look at the whole again."""


class QueueSet(FromBroker, frozen=True, tag=118):
    request: Request
    queue: QueueInfo


class Register(Part, frozen=True):
    name: Name
    revision: Number
    """0 for one that was never written."""
    value: bytes


class Registers(FromBroker, frozen=True, tag=119):
    request: Request
    registers: list[Register]


class HourInfo(Part, frozen=True):
    """What has become of the jobs that were accepted in one hour, as of now."""

    start_ms: Number
    accepted: Number
    """The sum of the seven that follow, always."""
    scheduled: Number
    ready: Number
    running: Number
    done: Number
    dead: Number
    cancelled: Number
    expired: Number


class Hours(FromBroker, frozen=True, tag=121):
    """Hours in which nothing was accepted are left out."""

    request: Request
    queue: Name
    hours: list[HourInfo]


class RegisterSet(FromBroker, frozen=True, tag=120):
    """The register as it is now: as ordered if `done`, else as somebody else has left it."""

    request: Request
    register: Register
    done: bool


class Refusal(FromBroker, frozen=True, tag=199):
    """The answer no. `request` is 0 when the message had none, or could not be read."""

    request: Request
    code: Code
    detail: Text
    retry_after_ms: DurationMs = 0
