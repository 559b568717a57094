"""What the journal keeps of a job, and under which keys it is found again.

Rows are frozen: a step of a job makes a new row, and the pair (before, after) is all a journal needs to know. Every
index is computed from a row by one function here, so an index can never say something that the row does not.

Format: msgpack arrays (msgspec). Changing it: add a field at the end with a default, or raise FORMAT and write the
step in upgrade.py; the numbers of State, Cause and Outcome are part of the format.
"""

from __future__ import annotations

import functools
import struct
from enum import StrEnum

import msgspec
from msgspec.structs import replace

from zq.protocol.blake2 import blake2b
from zq.protocol.job import LIVE, Cause, JobSpec, Outcome, State
from zq.protocol.messages import Usage

FORMAT = 3
RESULT_DROPPED = -1
_SCHEDULED, _READY, _RUNNING = State.SCHEDULED, State.READY, State.RUNNING
"""By themselves, here and wherever it is done for each job: in Python 3.11 a member is found in its Enum by a call."""


class JobRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What changes of a job, with the few fixed facts that dispatch needs. Times are broker time in milliseconds."""

    id: bytes
    state: State
    queue: str
    task: str
    seq: int
    """Order of acceptance, over all queues."""
    priority: int
    digest: bytes
    accepted_ms: int
    max_retries: int
    backoff_ms: int
    size_bytes: int
    key: str = ""
    expires_at_ms: int = 0
    due_ms: int = 0
    """SCHEDULED: when it becomes READY."""
    attempt: int = 0
    """Number of the newest attempt; counted at dispatch, so that no crash can hide one."""
    uncounted: int = 0
    """Attempts that were handed back and do not count towards the limit."""
    token: int = 0
    """RUNNING: the fencing token of the lease. Grows with every dispatch, over all jobs and restarts."""
    worker: str = ""
    started_ms: int = 0
    ended_ms: int = 0
    cancel_asked: bool = False
    error: str = ""
    hard_limit_ms: int = 0
    event: int = 0
    """Number of the job's newest event; each event names the one before, so a history is a chain."""
    concurrency_key: str = ""
    concurrency_limit: int = 1
    admitted: bool = True
    """Among the jobs that its concurrency key lets run; the others wait in PARKED."""
    tags: tuple[str, ...] = ()
    result_until_ms: int = 0
    """DONE with a result: how long it is kept; RESULT_DROPPED afterwards."""
    disk_bytes: int = 0
    memory_bytes: int = 0
    """What it needs of its worker, both."""

    @property
    def attempts_max(self) -> int:
        return 1 + self.max_retries + self.uncounted

    @property
    def exhausted(self) -> bool:
        """No further dispatch is allowed."""
        return self.attempt >= self.attempts_max


class AttemptRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One dispatch of a job and what came of it; written when it ends. While it runs, the JobRow has all there is."""

    number: int
    token: int
    worker: str
    started_ms: int
    ended_ms: int
    outcome: Outcome
    error: str = ""
    usage: Usage = Usage()
    progress_done: float = 0.0
    progress_total: float = 0.0
    progress_message: str = ""
    """The last progress its task reported."""


class EventRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One step of a job, under its number. Together they are what has happened here, in order."""

    number: int
    before: int
    """The job's event before this one; 0 for its first."""
    at_ms: int
    job_id: bytes
    queue: str
    task: str
    cause: Cause
    state: State
    attempt: int
    worker: str = ""
    detail: str = ""


class HourRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Jobs of one queue that were accepted in one hour, by the state they are in now."""

    queue: str
    start_ms: int
    accepted: int
    by_state: dict[int, int]

    @property
    def live(self) -> bool:
        return any(self.by_state.get(int(state), 0) for state in LIVE)


class KeptResult(msgspec.Struct, frozen=True, array_like=True, gc=False):
    data: bytes
    expires_ms: int


def due_ms_of(spec: JobSpec, now_ms: int) -> int:
    """When a job that is submitted now may start; in the past for at once."""
    return max(now_ms + spec.delay_ms, spec.run_at_ms)


def new_row(spec: JobSpec, spec_size: int, spec_digest: bytes, seq: int, now_ms: int) -> JobRow:
    """The row of a job that is accepted now: SCHEDULED if its time is yet to come, else READY."""
    due_ms = due_ms_of(spec, now_ms) if spec.delay_ms or spec.run_at_ms else 0
    waits = due_ms > now_ms
    # By position, and what few jobs have only for those: by name it takes three times as long.
    row = JobRow(
        spec.id,
        _SCHEDULED if waits else _READY,
        spec.queue,
        spec.task,
        seq,
        spec.priority,
        spec_digest,
        now_ms,
        spec.max_retries,
        spec.backoff_ms,
        spec_size,
        spec.key,
        now_ms + spec.expires_ms if spec.expires_ms else 0,
        due_ms if waits else 0,
        hard_limit_ms=spec.hard_limit_ms,
    )
    if spec.concurrency_key or spec.concurrency_limit != 1 or spec.tags or spec.disk_bytes or spec.memory_bytes:
        return replace(
            row,
            concurrency_key=spec.concurrency_key,
            concurrency_limit=spec.concurrency_limit,
            admitted=not spec.concurrency_key,
            tags=tuple(sorted(set(spec.tags))),
            disk_bytes=spec.disk_bytes,
            memory_bytes=spec.memory_bytes,
        )
    return row


class Index(StrEnum):
    """Ordered sets of job ids. The value is the table's name on disk."""

    __hash__ = str.__hash__  # Enum's own is written in Python

    READY = "ready"
    """queue, lane, then higher priority, then acceptance: the order of dispatch."""
    PARKED = "parked"
    """READY jobs whose concurrency key is full: key, then higher priority, then acceptance."""
    ADMITTED = "admitted"
    """READY and RUNNING jobs that their concurrency key has let in: key."""
    DUE = "due"
    """SCHEDULED jobs by the time at which they become READY."""
    EXPIRY = "expiry"
    """Jobs that have not started, by the time at which they expire."""
    RESULT = "result_until"
    """DONE jobs whose result is kept, by the time until which it is."""
    STATE = "state"
    """State, queue, then the time of the state (due, started or ended). Of READY jobs only the parked ones."""


_IN_READY, _IN_STATE = Index.READY, Index.STATE
_u64 = struct.Struct(">Q").pack


@functools.lru_cache(4096)
def queue_prefix(queue: str) -> bytes:
    """Eight bytes for a queue's name; two queues that collide (2^-64 a pair) would share an index and be refused."""
    return blake2b(queue.encode(), digest_size=8).digest()


LANE_BYTES = 8
_NO_TAGS = bytes(LANE_BYTES)
_PREFIXES_REMEMBERED = 16_384


@functools.lru_cache(_PREFIXES_REMEMBERED)
def lane_of(tags: tuple[str, ...], disk_bits: int = 0, memory_bits: int = 0) -> bytes:
    """Jobs that ask the same of a worker stand in one lane: a job nobody can run then holds up only its like. What
    they need of disk and memory is alike if it has as many binary digits.
    """
    if not (tags or disk_bits or memory_bits):
        return _NO_TAGS
    asked = "\0".join(tags)
    if disk_bits or memory_bits:
        asked += f"\0\0{disk_bits} {memory_bits}"
    return blake2b(asked.encode(), digest_size=LANE_BYTES).digest()


def lane_of_row(row: JobRow) -> bytes:
    if not (row.tags or row.disk_bytes or row.memory_bytes):
        return _NO_TAGS
    return lane_of(row.tags, row.disk_bytes.bit_length(), row.memory_bytes.bit_length())


@functools.lru_cache(_PREFIXES_REMEMBERED)
def lane_prefix(queue: str, lane: bytes, priority: int) -> bytes:
    return queue_prefix(queue) + lane + bytes((9 - priority,))


def ready_key(row: JobRow) -> bytes:
    return lane_prefix(row.queue, lane_of_row(row), row.priority) + _u64(row.seq)


def stands_ready(row: JobRow) -> bool:
    """Whether it is in the READY index, under its `ready_key`."""
    return row.state is _READY and row.admitted


def _parked_key(row: JobRow) -> bytes:
    return key_digest(row.concurrency_key) + bytes((9 - row.priority,)) + _u64(row.seq)


def _admitted_key(row: JobRow) -> bytes:
    return key_digest(row.concurrency_key) + row.id


KEY_DIGEST_BYTES = 16


def key_digest(key: str) -> bytes:
    return blake2b(key.encode(), digest_size=KEY_DIGEST_BYTES).digest()


@functools.lru_cache(_PREFIXES_REMEMBERED)
def state_prefix(state: State, queue: str) -> bytes:
    return bytes((state,)) + queue_prefix(queue)


def index_keys(row: JobRow) -> list[tuple[Index, bytes]]:
    """Where the row stands. Each key ends in something unique to the job, and the value under it is the job's id."""
    state = row.state
    if state is _READY:
        if row.admitted:
            keys = [(_IN_READY, ready_key(row))]
        else:
            in_queue = state_prefix(state, row.queue) + _u64(row.seq)
            keys = [(Index.PARKED, _parked_key(row)), (_IN_STATE, in_queue)]
    else:
        when_ms = row.ended_ms
        if state is _SCHEDULED:
            when_ms = row.due_ms
        elif state is _RUNNING:
            when_ms = row.started_ms
        when = _u64(when_ms) + row.id
        keys = [(_IN_STATE, state_prefix(state, row.queue) + when)]
        if state is _SCHEDULED:
            keys.append((Index.DUE, when))
    if row.result_until_ms > 0:
        keys.append((Index.RESULT, _u64(row.result_until_ms) + row.id))
    if row.concurrency_key and row.admitted and (state is _READY or state is _RUNNING):
        keys.append((Index.ADMITTED, _admitted_key(row)))
    if row.expires_at_ms and (state is _READY or state is _SCHEDULED):
        keys.append((Index.EXPIRY, _u64(row.expires_at_ms) + row.id))
    return keys


def drops_result(before: JobRow | None, after: JobRow | None) -> bool:
    """Whether a step takes the job's result away."""
    return before is not None and before.result_until_ms > 0 and (after is None or after.result_until_ms <= 0)


def holds_key(row: JobRow) -> bool:
    return bool(row.key) and row.state in LIVE

