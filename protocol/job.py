"""The job: what is submitted, the states it goes through, and the one table that says which steps are legal.

                    ┌──────────────── hand-back (not counted) ───────────────┐
                    ▼                                                        │
    SCHEDULED ──► READY ──────────────── dispatch ──────────────────────► RUNNING
        ▲  │        │                                                     │  │  │
        │  │        └──► CANCELLED, EXPIRED ◄──┐                          │  │  └──► DONE
        │  └───────────────────────────────────┘                          │  └─────► DEAD, CANCELLED
        └─────────────────── retry after a backoff, lease lost ───────────┘

DEAD, CANCELLED and EXPIRED jobs can be retried by an operator: they go back to READY with their attempts forgotten.
DONE is for ever.
"""

from __future__ import annotations

import functools
import os
import time
from enum import IntEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from zq.protocol import limits
from zq.protocol.blake2 import blake2b

Name = Annotated[str, Meta(min_length=1, max_length=limits.NAME_CHARS_MAX)]
"""Any script is welcome; blanks and control characters are not (`valid_name`)."""
DurationMs = Annotated[int, Meta(ge=0, le=limits.DURATION_MS_MAX)]


class State(IntEnum):
    """Where a job is. The numbers are on disk and on the wire: never reuse one."""

    __hash__ = int.__hash__  # Enum's own is written in Python, and states are hashed many times for each job

    SCHEDULED = 1
    """Waits for its time: a delay, a run_at, a retry's backoff. Left when it is due."""
    READY = 2
    """Waits for a slot. Left by dispatch, cancel or expiry."""
    RUNNING = 3
    """Leased to one worker. Left by that worker's word, or by the loss of its session."""
    DONE = 4
    DEAD = 5
    """Out of attempts, or rejected by its task. An operator may retry it."""
    CANCELLED = 6
    EXPIRED = 7
    """Not started by its expiry."""

    @property
    def label(self) -> str:
        return self.name.lower()

    def __str__(self) -> str:
        return self.label

    def __format__(self, format_spec: str) -> str:
        return format(self.label, format_spec)


class Cause(IntEnum):
    """Why a job changed its state. The numbers are on disk: never reuse one."""

    __hash__ = int.__hash__

    ACCEPT = 1
    DUE = 2
    DISPATCH = 3
    FINISH = 4
    FAIL = 5
    """The task failed, a limit passed, the slot died: attempts are left."""
    EXHAUST = 6
    """The same, and no attempts are left; or the task rejected the job."""
    LOSE = 7
    """The worker's session was lost: attempts are left."""
    HAND_BACK = 8
    """A draining worker gave it back; the attempt does not count."""
    CANCEL = 9
    EXPIRE = 10
    OPERATOR_RETRY = 11
    CANCEL_ASKED = 12
    """A running job's worker is asked to stop; the state stays."""
    RESCHEDULE = 13
    """A waiting job's time is changed by a newer submit with its key."""
    REPLACE = 14
    """Cancelled because a newer job took its key."""
    STALL = 15
    """A running job shows no sign of life; the state stays."""
    QUEUE_UNSERVED = 20
    """Of a queue: jobs wait in it and no worker serves it."""
    QUEUE_SERVED = 21
    """Of a queue: a worker serves it again."""
    QUEUE_SET = 22
    """Of a queue: an operator has changed its settings."""


LIVE = frozenset({State.SCHEDULED, State.READY, State.RUNNING})
ENDED = frozenset({State.DONE, State.DEAD, State.CANCELLED, State.EXPIRED})

TRANSITIONS: dict[tuple[State | None, Cause], frozenset[State]] = {
    (None, Cause.ACCEPT): frozenset({State.SCHEDULED, State.READY}),
    (State.SCHEDULED, Cause.DUE): frozenset({State.READY}),
    (State.SCHEDULED, Cause.CANCEL): frozenset({State.CANCELLED}),
    (State.SCHEDULED, Cause.EXPIRE): frozenset({State.EXPIRED}),
    (State.READY, Cause.DISPATCH): frozenset({State.RUNNING}),
    (State.READY, Cause.CANCEL): frozenset({State.CANCELLED}),
    (State.READY, Cause.EXPIRE): frozenset({State.EXPIRED}),
    (State.RUNNING, Cause.FINISH): frozenset({State.DONE}),
    (State.RUNNING, Cause.FAIL): frozenset({State.SCHEDULED}),
    (State.RUNNING, Cause.LOSE): frozenset({State.SCHEDULED}),
    (State.RUNNING, Cause.EXHAUST): frozenset({State.DEAD}),
    (State.RUNNING, Cause.HAND_BACK): frozenset({State.READY}),
    (State.RUNNING, Cause.CANCEL): frozenset({State.CANCELLED}),
    (State.RUNNING, Cause.CANCEL_ASKED): frozenset({State.RUNNING}),
    (State.RUNNING, Cause.STALL): frozenset({State.RUNNING}),
    (State.SCHEDULED, Cause.RESCHEDULE): frozenset({State.SCHEDULED, State.READY}),
    (State.READY, Cause.RESCHEDULE): frozenset({State.SCHEDULED, State.READY}),
    (State.SCHEDULED, Cause.REPLACE): frozenset({State.CANCELLED}),
    (State.READY, Cause.REPLACE): frozenset({State.CANCELLED}),
    (State.DEAD, Cause.OPERATOR_RETRY): frozenset({State.READY}),
    (State.CANCELLED, Cause.OPERATOR_RETRY): frozenset({State.READY}),
    (State.EXPIRED, Cause.OPERATOR_RETRY): frozenset({State.READY}),
}
"""(state before, cause) → states that may follow. A pair that is not here is illegal and changes nothing."""


class IllegalTransition(Exception):
    """A step that the table does not have: a defect of ours, never a peer's mistake."""


def check_transition(before: State | None, cause: Cause, after: State) -> None:
    """Raise IllegalTransition unless the table has this step."""
    if after not in TRANSITIONS.get((before, cause), ()):
        name = before.label if before is not None else "nothing"
        raise IllegalTransition(f"{name} --{cause.name}--> {after.label}")


class Outcome(IntEnum):
    """How an attempt ended, in its worker's words. The numbers are on the wire and on disk."""

    DONE = 1
    FAILED = 2
    """The task raised, a limit passed, or its process died: another attempt may succeed."""
    REJECTED = 3
    """Another attempt is useless: to the dead letters."""
    HANDED_BACK = 4
    """The worker is draining; the attempt does not count."""
    LOST = 5
    """Never sent: the broker writes it when the worker's session is lost."""
    CANCELLED = 6
    """The worker has ended a cancelled job."""


class KeyPolicy(IntEnum):
    """What a submit does when a live job has its key. The numbers are on the wire."""

    REFUSE = 0
    """The answer names the job that has the key."""
    REPLACE = 1
    """A job that still waits is cancelled and this one takes its place; a running one is as for REFUSE."""
    RESCHEDULE = 2
    """A job that still waits takes over this one's time; a running one is as for REFUSE."""


Bytes = Annotated[int, Meta(ge=0, le=limits.NEED_BYTES_MAX)]
Tag = Annotated[str, Meta(min_length=1, max_length=limits.TAG_CHARS_MAX)]


class JobSpec(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is submitted; never changes. Encoded once by the client, kept and handed on as those bytes.

    Times are durations in milliseconds, measured by the broker from the moment it accepts the job; only `run_at_ms`
    is a wall-clock time (Unix milliseconds, 0 for none).
    """

    id: Annotated[bytes, Meta(min_length=16, max_length=16)]
    task: Name
    queue: Name
    arguments: Annotated[bytes, Meta(max_length=limits.ARGUMENTS_BYTES_MAX)] = b"\x92\x90\x80"
    """msgpack of [positional, keyword]; the broker never looks inside."""
    priority: Annotated[int, Meta(ge=limits.PRIORITY_MIN, le=limits.PRIORITY_MAX)] = limits.PRIORITY_DEFAULT
    delay_ms: DurationMs = 0
    run_at_ms: Annotated[int, Meta(ge=0, le=1 << 53)] = 0
    expires_ms: DurationMs = 0
    """The job must start within this time of being accepted, or it expires; 0 means never."""
    max_retries: Annotated[int, Meta(ge=0, le=limits.RETRIES_MAX)] = 3
    backoff_ms: DurationMs = 60_000
    """Before the first retry; doubled for each further one, with jitter, at most an hour (or this, if larger)."""
    soft_limit_ms: DurationMs = 1_500_000
    hard_limit_ms: DurationMs = 1_800_000
    key: Annotated[str, Meta(max_length=limits.KEY_CHARS_MAX)] = ""
    """At most one live job has this key; empty means no key."""
    trace: Annotated[str, Meta(max_length=limits.TRACE_CHARS_MAX)] = ""
    key_policy: KeyPolicy = KeyPolicy.REFUSE
    concurrency_key: Annotated[str, Meta(max_length=limits.KEY_CHARS_MAX)] = ""
    """At most `concurrency_limit` jobs with this key run at once, on all workers together; empty means no bound."""
    concurrency_limit: Annotated[int, Meta(ge=1, le=limits.CREDIT_MAX)] = 1
    tags: Annotated[tuple[Tag, ...], Meta(max_length=limits.TAGS_MAX)] = ()
    """Only a worker that has all these tags may run the job."""
    disk_bytes: Bytes = 0
    """What it will write: only a worker with so much disk left may run it."""
    memory_bytes: Bytes = 0
    """What its processes will occupy: only a worker with so much memory left may run it."""
    memory_limit_bytes: Bytes = 0
    """Its process tree is ended when it is larger; 0 means no limit but the worker's own, which always holds."""
    stall_after_ms: DurationMs = 0
    """After so long without a sign of life it is stalled, and gets its soft limit; 0 means never."""


@functools.lru_cache(maxsize=4096)
def valid_name(name: str) -> bool:
    """Whether `name` may name a task, a queue or a worker: printable, no blanks, not too long."""
    return 0 < len(name) <= limits.NAME_CHARS_MAX and name.isprintable() and not any(c.isspace() for c in name)


_spec_encoder = msgspec.msgpack.Encoder()
_spec_decoder = msgspec.msgpack.Decoder(JobSpec)


def encode_spec(spec: JobSpec) -> bytes:
    return _spec_encoder.encode(spec)


def decode_spec(data: bytes) -> JobSpec:
    """Raises ValueError (msgspec.ValidationError and DecodeError are ones) for anything that is not a valid spec."""
    if len(data) > limits.SPEC_BYTES_MAX:
        raise ValueError(f"a job of {len(data)} bytes; at most {limits.SPEC_BYTES_MAX} are allowed")
    spec = _spec_decoder.decode(data)
    if spec.soft_limit_ms > spec.hard_limit_ms:
        raise ValueError("soft_limit_ms is larger than hard_limit_ms")
    for name in (spec.task, spec.queue, *spec.tags):
        if not valid_name(name):
            raise ValueError(f"{name!r} is not a name: printable characters without blanks are")
    return spec


def digest(spec_bytes: bytes) -> bytes:
    """16 bytes that tell two jobs with the same id apart (BLAKE2b, RFC 7693)."""
    return blake2b(spec_bytes, digest_size=16).digest()


_V7_FIXED = (0x7 << 76) | (0b10 << 62)
"""Version and variant, at their places in the 128 bits."""
_V7_RANDOM = (0xFFF << 64) | ((1 << 62) - 1)


def new_job_id() -> bytes:
    """A UUIDv7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then random. Sorts by time of making."""
    now_ms = time.time_ns() // 1_000_000
    return ((now_ms << 80) | _V7_FIXED | (int.from_bytes(os.urandom(10)) & _V7_RANDOM)).to_bytes(16)


def job_id_from(*parts: str) -> bytes:
    """The same parts give the same id (RFC 9562, section 5.8: UUIDv8 by hash): for ticks and idempotency keys."""
    value = bytearray(blake2b("\x00".join(parts).encode(), digest_size=16).digest())
    value[6] = 0x80 | (value[6] & 0x0F)
    value[8] = 0x80 | (value[8] & 0x3F)
    return bytes(value)


def format_id(job_id: bytes) -> str:
    text = job_id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def parse_id(text: str) -> bytes:
    """Raises ValueError unless `text` is 32 hexadecimal digits, with or without the hyphens of a UUID."""
    digits = text.strip().replace("-", "")
    try:
        value = bytes.fromhex(digits)
    except ValueError:
        value = b""
    if len(value) != 16 or len(digits) != 32:
        raise ValueError(f"{text!r} is not a job id (a UUID such as 0190a3c4-0000-7000-8000-000000000000)")
    return value
