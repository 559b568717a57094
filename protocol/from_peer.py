"""What clients and workers send. SPEC.md says when, and what it means."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from zq.protocol import limits
from zq.protocol.job import DurationMs, Name, Outcome, State, Tag
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


class FromPeer(msgspec.Struct, frozen=True, array_like=True, gc=False):
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
