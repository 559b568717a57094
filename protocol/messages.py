"""Every message of the wire, as frozen structs that are arrays on the wire: [tag, field, …].

An object that exists came through the decoder's checks or was made by our own code. A field may be added at the end
of a message, with a default: peers of the older version leave it out and ignore it. SPEC.md says what each message
means and who sends it when; a test compares its list with `FROM_PEER` and `FROM_BROKER`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from zq.protocol import limits
from zq.protocol.errors import Code
from zq.protocol.job import Bytes, Cause, DurationMs, Name, Outcome, State, Tag

PROTOCOL_VERSION = 1

JobId = Annotated[bytes, Meta(min_length=16, max_length=16)]
Token = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Request = Number
"""Chosen by the asker, repeated in the answer."""
SessionId = Number
Attempt = Annotated[int, Meta(ge=1, le=1 << 31)]
Text = Annotated[str, Meta(max_length=limits.MESSAGE_CHARS_MAX)]
ErrorText = Annotated[str, Meta(max_length=limits.ERROR_CHARS_MAX)]
Items = Meta(max_length=limits.BATCH_ITEMS_MAX)


class Role(StrEnum):
    """What a peer is; with CURVE its key must allow it."""

    WORKER = "worker"
    SUBMITTER = "submitter"
    SCHEDULER = "scheduler"
    MONITOR = "monitor"
    ADMIN = "admin"
    TASK = "task"
    """A task that runs on a worker, with the worker's key: it may submit to the queues of that key what follows from
    its job, and ask about jobs in them."""


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Base of what stands in the lists of messages."""


class QueueSlots(Part, frozen=True):
    queue: Name
    slots: Annotated[int, Meta(ge=0, le=limits.CREDIT_MAX)]


class Usage(Part, frozen=True):
    """What the whole process tree of an attempt has used."""

    cpu_ms: Number = 0
    peak_rss_bytes: Number = 0
    read_bytes: Number = 0
    write_bytes: Number = 0
    processes: Number = 0


class Result(Part, frozen=True):
    """How an attempt ended, in its worker's words."""

    job_id: JobId
    attempt: Attempt
    token: Token
    outcome: Outcome
    result: Annotated[bytes, Meta(max_length=limits.RESULT_BYTES_MAX)] = b""
    """msgpack; empty for None."""
    error: ErrorText = ""
    retry_after_ms: Annotated[int, Meta(ge=-1, le=limits.DURATION_MS_MAX)] = -1
    """For FAILED: when to try again; −1 means the job's own backoff."""
    usage: Usage = Usage()


class LeaseClaim(Part, frozen=True):
    job_id: JobId
    attempt: Attempt
    token: Token


class JobProgress(Part, frozen=True):
    job_id: JobId
    token: Token
    done: float
    total: float
    message: Text = ""


class LeaseUsage(Part, frozen=True):
    token: Token
    usage: Usage
    running_ms: DurationMs
    quiet_ms: DurationMs = 0
    """Since its last sign of life."""
    stalled: bool = False
    """It has been quiet for longer than its task allows."""


class Room(Part, frozen=True):
    """What a worker's machine has for jobs that say what they need: what is free, and what such jobs of this worker
    have used of their needs already. So it does not fall as they grow, and what is left is this less all their needs.
    """

    disk_bytes: Bytes
    memory_bytes: Bytes
    disk: Annotated[str, Meta(max_length=limits.DISK_NAME_CHARS_MAX)] = ""
    """Name of the disk: workers that say the same share it. Empty: its own."""
    machine: Annotated[str, Meta(max_length=limits.DISK_NAME_CHARS_MAX)] = ""
    """Likewise of whose memory it is."""


# ---------------------------------------------------------------------------------------------- from a peer


class FromPeer(msgspec.Struct, frozen=True, array_like=True):
    """Base of what peers send."""


class Hello(FromPeer, frozen=True, tag=1):
    """First message of a connection."""

    version_min: Number
    version_max: Number
    role: Role
    instance: Name
    """Stable name of this peer. A worker's name is held by one process at a time (a lock on its machine sees to it)."""
    incarnation: JobId
    """Random, new with every process: tells a reconnect from a restart."""
    queues: Annotated[list[QueueSlots], Meta(max_length=limits.QUEUES_PER_WORKER_MAX)] = []
    tasks: Annotated[list[Name], Meta(max_length=limits.TASKS_PER_WORKER_MAX)] = []
    software: Text = ""
    tags: Annotated[list[Tag], Meta(max_length=limits.WORKER_TAGS_MAX)] = []
    """What this worker has, such as "gpu" or "disk=a"; jobs may require it."""


class Bye(FromPeer, frozen=True, tag=2):
    """The peer leaves. Leases it still holds are handed back by ACK before; what is left is lost."""

    session: SessionId


class Beat(FromPeer, frozen=True, tag=3):
    """A worker lives. `leases` is all it has: running, and ended but not yet acknowledged by the broker."""

    session: SessionId
    dispatches_seen: Number
    """DISPATCH messages received in this session: tells the broker which leases the list can be complete for."""
    leases: Annotated[list[Token], Items]
    usage: Annotated[list[LeaseUsage], Items] = []
    credit: Annotated[list[QueueSlots], Meta(max_length=limits.QUEUES_PER_WORKER_MAX)] = []
    """As in CREDIT, which says it sooner: a limit that was lost on its way is put right by the next BEAT."""
    room: Room | None = None


class Submit(FromPeer, frozen=True, tag=4):
    session: SessionId
    request: Request
    jobs: Annotated[list[bytes], Items]
    """Each an encoded JobSpec."""


class Credit(FromPeer, frozen=True, tag=5):
    """How many leases the worker will hold at once, for each of its queues: a limit, not an increment."""

    session: SessionId
    limits: Annotated[list[QueueSlots], Meta(max_length=limits.QUEUES_PER_WORKER_MAX)]
    room: Room | None = None
    """None: as it said before; of a worker that never says it, any job is taken to fit."""


class Ack(FromPeer, frozen=True, tag=6):
    """Attempts that have ended; resent until ACKED answers."""

    session: SessionId
    results: Annotated[list[Result], Items]


class Resume(FromPeer, frozen=True, tag=7):
    """All leases a worker still has after WELCOME; an empty list says it has none. Sent before anything else."""

    session: SessionId
    leases: Annotated[list[LeaseClaim], Items]


class Progress(FromPeer, frozen=True, tag=8):
    session: SessionId
    items: Annotated[list[JobProgress], Items]


class Hold(FromPeer, frozen=True, tag=9):
    """Does this attempt still hold the job? Asked before an effect that cannot be taken back."""

    session: SessionId
    request: Request
    job_id: JobId
    token: Token


class Cancel(FromPeer, frozen=True, tag=10):
    session: SessionId
    request: Request
    ids: Annotated[list[JobId], Items]


class RetryEnded(FromPeer, frozen=True, tag=11):
    """Run dead, cancelled or expired jobs again, their attempts forgotten."""

    session: SessionId
    request: Request
    ids: Annotated[list[JobId], Items]


class Wait(FromPeer, frozen=True, tag=12):
    """Answer with ENDED when the job ends; no answer if it has not ended after `timeout_ms`."""

    session: SessionId
    request: Request
    job_id: JobId
    timeout_ms: DurationMs


class AskQueues(FromPeer, frozen=True, tag=13):
    session: SessionId
    request: Request


class AskJobs(FromPeer, frozen=True, tag=14):
    """A page of jobs of a queue in one state, in the order in which they stand there."""

    session: SessionId
    request: Request
    queue: Annotated[str, Meta(max_length=limits.NAME_CHARS_MAX)]
    """Empty for all queues."""
    state: State
    after: Annotated[bytes, Meta(max_length=512)] = b""
    """`next` of the page before; empty for the first page."""
    limit: Annotated[int, Meta(ge=1, le=limits.PAGE_ROWS_MAX)] = 100
    with_specs: bool = False
    """Also the encoded JobSpecs, so that the asker can filter by arguments."""


class AskJob(FromPeer, frozen=True, tag=15):
    session: SessionId
    request: Request
    job_id: JobId


class AskWorkers(FromPeer, frozen=True, tag=16):
    session: SessionId
    request: Request


class AskBroker(FromPeer, frozen=True, tag=17):
    """The broker itself: uptime, journal, totals."""

    session: SessionId
    request: Request


class Drop(FromPeer, frozen=True, tag=18):
    """Forget ended jobs now, before their retention is over."""

    session: SessionId
    request: Request
    ids: Annotated[list[JobId], Items]


class SetQueue(FromPeer, frozen=True, tag=19):
    """Change what a queue may do; kept over restarts. None leaves a setting as it is."""

    session: SessionId
    request: Request
    queue: Name
    paused: bool | None = None
    """A paused queue takes jobs and dispatches none."""
    rate_per_s: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    """Dispatches a second, evenly; 0 takes the limit away."""
    running_max: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    """Jobs of the queue that run at once, on all workers together; 0 takes the limit away."""
    length_max: Annotated[int, Meta(ge=0, le=limits.LIVE_JOBS_PER_QUEUE_MAX)] | None = None
    """Waiting jobs; submits beyond are refused with `queue_full`. 0 takes the limit away."""


class AskWhy(FromPeer, frozen=True, tag=20):
    """Why does this job not run?"""

    session: SessionId
    request: Request
    job_id: JobId


class AskEvents(FromPeer, frozen=True, tag=21):
    """Events after a number; answered at once if there are any, else when one comes or the time is over."""

    session: SessionId
    request: Request
    after: Number
    queue: Annotated[str, Meta(max_length=limits.NAME_CHARS_MAX)] = ""
    job_id: Annotated[bytes, Meta(max_length=16)] = b""
    """Only of this job; empty for all."""
    wait_ms: DurationMs = 0
    limit: Annotated[int, Meta(ge=1, le=limits.PAGE_ROWS_MAX)] = 500


class AskRegisters(FromPeer, frozen=True, tag=22):
    """Small values that are kept with the broker: those whose names begin with `prefix`."""

    session: SessionId
    request: Request
    prefix: Annotated[str, Meta(max_length=limits.NAME_CHARS_MAX)] = ""


class AskHours(FromPeer, frozen=True, tag=24):
    """Jobs of a queue by the hour in which they were accepted."""

    session: SessionId
    request: Request
    queue: Name
    since_ms: Number = 0
    """Unix time in milliseconds: hours that begin before are left out."""
    limit: Annotated[int, Meta(ge=1, le=limits.PAGE_ROWS_MAX)] = 100


class SetRegister(FromPeer, frozen=True, tag=23):
    """Write a register if its revision is still one less than this; the first revision is 1."""

    session: SessionId
    request: Request
    name: Name
    revision: Annotated[int, Meta(ge=1, le=1 << 53)]
    value: Annotated[bytes, Meta(max_length=limits.REGISTER_BYTES_MAX)]


# ---------------------------------------------------------------------------------------------- from the broker


class FromBroker(msgspec.Struct, frozen=True, array_like=True):
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
    warnings: Annotated[list[Text], Meta(max_length=8)] = []


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
    tags: list[Tag] = []
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


PeerMessage = (
    Hello | Bye | Beat | Submit | Credit | Ack | Resume | Progress | Hold | Cancel | RetryEnded | Wait
    | AskQueues | AskJobs | AskJob | AskWorkers | AskBroker | Drop | SetQueue | AskWhy | AskEvents
    | AskRegisters | SetRegister | AskHours
)  # fmt: skip
BrokerMessage = (
    Welcome | Receipts | Dispatch | Acked | Resumed | BeatOk | Held | Revoke | Ended | Queues | Jobs | JobDetail
    | Workers | Changed | BrokerInfo | Why | Events | QueueSet | Registers | RegisterSet
    | Hours | Refusal
)  # fmt: skip
