"""What the worker's parent, its keeper and its slots say to each other, and the frames it travels in.

A frame is four bytes of length (big endian) and one msgpack array [tag, field, …]. Frames between a parent and a slot
XX is bounded here. A slot runs foreign code: what comes from it is checked like
what comes from a network.
"""

from __future__ import annotations

import signal
import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

from zq.protocol import limits

FRAME_BYTES_MAX: Final = limits.FRAME_BYTES_MAX
BATCH_BYTES_MAX: Final = limits.BATCH_BYTES_MAX
HEADER_BYTES: Final = 4
TASK_NAMES_PER_MESSAGE: Final = 256
DOORBELL: Final[int] = signal.SIGRTMIN + 7
"""Sent by the parent after a message that a running task should hear of. Unlikely to be used by a task's libraries."""

TICKET: Final = struct.Struct("=Q")
TICKETS_MAX: Final = 512
"""Jobs in one slot. A pipe of one page, the least there is, takes so many tickets."""

Number = Annotated[int, Meta(ge=0, le=1 << 53)]
SlotNumber = Annotated[int, Meta(ge=0, le=1 << 31)]
Text = Annotated[str, Meta(max_length=limits.MESSAGE_CHARS_MAX)]
ErrorText = Annotated[str, Meta(max_length=limits.ERROR_CHARS_MAX)]
Name = Annotated[str, Meta(max_length=limits.NAME_CHARS_MAX)]


class SlotOutcome(IntEnum):
    """How an attempt ended, in its slot's words. (That the slot died is the parent's to say.)"""

    DONE = 1
    FAILED = 2
    """The task raised or passed its soft limit; another attempt may succeed."""
    REJECTED = 3
    """Another attempt is useless."""
    NOT_OURS = 4
    """The task gave up because its lease was lost: there is nothing to report."""


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Base of what stands in the lists of messages."""


class SlotUsage(Part, frozen=True):
    """What an attempt has used: the slot and every process that was reaped below it, counted by the kernel."""

    cpu_s: Annotated[float, Meta(ge=0)] = 0.0
    peak_rss_bytes: Number = 0
    """Of the largest single process; the watchdog's samples tell the peak of the whole tree."""
    read_bytes: Number = 0
    """From storage; the page cache does not count."""
    written_bytes: Number = 0
    running_s: Annotated[float, Meta(ge=0)] = 0.0


class Assignment(Part, frozen=True):
    """One attempt that a slot is to run. `seq` is chosen by the parent and unique for the slot."""

    seq: Number
    job_id: Annotated[str, Meta(max_length=64)]
    attempt: Annotated[int, Meta(ge=1, le=1 << 31)]
    task: Name
    queue: Name
    arguments: Annotated[bytes, Meta(max_length=limits.ARGUMENTS_BYTES_MAX)]
    """msgpack of [positional, keyword]; decoded in the slot only."""
    soft_limit_s: float
    kill_grace_s: float
    """How long a program that got TERM at the soft limit may take before it gets KILL."""


class AttemptResult(Part, frozen=True):
    seq: Number
    outcome: SlotOutcome
    result: Annotated[bytes, Meta(max_length=limits.RESULT_BYTES_MAX)] = b""
    """msgpack; empty for None."""
    error: ErrorText = ""
    retry_after_s: Annotated[float, Meta(ge=0)] | None = None
    """For FAILED: what the task asked for; None means the job's own backoff."""
    usage: SlotUsage = SlotUsage()


class ToSlot(msgspec.Struct, frozen=True, array_like=True):
    pass


class Run(ToSlot, frozen=True, tag=1):
    """Run these, in this order, each when its ticket is there; more may be sent while some still run."""

    jobs: Annotated[list[Assignment], Meta(max_length=limits.BATCH_ITEMS_MAX)]


class SoftLimit(ToSlot, frozen=True, tag=2):
    """The attempt's soft limit has passed. The doorbell signal follows; ignored if the attempt has ended."""

    seq: Number
    reason: Text


class StillMineAnswer(ToSlot, frozen=True, tag=3):
    seq: Number
    held: bool


class EndAttempt(ToSlot, frozen=True, tag=4):
    """Cancel one of the tasks that run at once in a slot; a result must follow, whatever it says."""

    seq: Number


class FromSlot(msgspec.Struct, frozen=True, array_like=True):
    pass


class Finished(FromSlot, frozen=True, tag=11):
    results: Annotated[list[AttemptResult], Meta(max_length=limits.BATCH_ITEMS_MAX)]


class Progress(FromSlot, frozen=True, tag=12):
    seq: Number
    done: float
    total: float
    message: Text = ""


class StillMineAsk(FromSlot, frozen=True, tag=13):
    seq: Number


class Started(FromSlot, frozen=True, tag=14):
    """The hooks of the task modules have run: jobs may come. Only sent where there are hooks."""


class ToKeeper(msgspec.Struct, frozen=True, array_like=True):
    pass


class OpenSlot(ToKeeper, frozen=True, tag=21):
    slot: SlotNumber
    concurrency: Annotated[int, Meta(ge=1, le=TICKETS_MAX)] = 1
    """Async tasks that it runs at once."""


class EndSlot(ToKeeper, frozen=True, tag=22):
    """End the slot and everything below it: TERM, `grace_s`, KILL; 0 means KILL at once."""

    slot: SlotNumber
    grace_s: Annotated[float, Meta(ge=0, le=3600)]


class FromKeeper(msgspec.Struct, frozen=True, array_like=True):
    pass


class Loaded(FromKeeper, frozen=True, tag=31):
    """Task modules are imported; `more` says that another message with further names follows."""

    tasks: list[Name]
    more: bool
    hooks: bool = False
    """Slots have hooks to run: each says `Started` then."""


class LoadFailed(FromKeeper, frozen=True, tag=32):
    error: ErrorText


class SlotOpened(FromKeeper, frozen=True, tag=33):
    """With it travel the parent's end of the slot's socket, a pidfd of the slot, and both ends of its tickets' pipe."""

    slot: SlotNumber
    pid: int


class SlotEnded(FromKeeper, frozen=True, tag=34):
    """The slot is reaped and nothing lives of its tree, but for `stuck` processes that not even KILL could end."""

    slot: SlotNumber
    status: int
    """As in subprocess: an exit code, or minus the signal."""
    stuck: Number = 0


ToSlotMessage = Run | SoftLimit | StillMineAnswer | EndAttempt
FromSlotMessage = Finished | Progress | StillMineAsk | Started
ToKeeperMessage = OpenSlot | EndSlot
FromKeeperMessage = Loaded | LoadFailed | SlotOpened | SlotEnded


class ChannelError(Exception):
    """The other end sent something that is not one of its messages."""


_encoder = msgspec.msgpack.Encoder()
to_slot: msgspec.msgpack.Decoder[ToSlotMessage] = msgspec.msgpack.Decoder(ToSlotMessage)
from_slot: msgspec.msgpack.Decoder[FromSlotMessage] = msgspec.msgpack.Decoder(FromSlotMessage)
to_keeper: msgspec.msgpack.Decoder[ToKeeperMessage] = msgspec.msgpack.Decoder(ToKeeperMessage)
from_keeper: msgspec.msgpack.Decoder[FromKeeperMessage] = msgspec.msgpack.Decoder(FromKeeperMessage)

T = TypeVar("T")


def encode(message: ToSlotMessage | FromSlotMessage | ToKeeperMessage | FromKeeperMessage) -> bytes:
    return _encoder.encode(message)


def decode(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    """The message; raises ChannelError for anything else."""
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise ChannelError(str(error)[: limits.MESSAGE_CHARS_MAX]) from None


def frame(message: ToSlotMessage | FromSlotMessage) -> bytes:
    """The message with its length before it. Raises ValueError if it is too large for a frame."""
    body = _encoder.encode(message)
    if len(body) > FRAME_BYTES_MAX:
        raise ValueError(f"a message of {len(body)} bytes; a frame is at most {FRAME_BYTES_MAX}")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


class FrameReader:
    """Cuts a stream of bytes into frames. Holds at most one frame and the last read."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The frames that are complete now. Raises ChannelError for a length that is too large."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= HEADER_BYTES:
                body = start + HEADER_BYTES
                size_bytes = int.from_bytes(self._buffer[start:body], "big")
                if size_bytes > FRAME_BYTES_MAX:
                    raise ChannelError(f"a frame of {size_bytes} bytes; at most {FRAME_BYTES_MAX} are allowed")
                if len(self._buffer) - body < size_bytes:
                    return
                start = body + size_bytes
                yield bytes(self._buffer[body:start])
        finally:
            del self._buffer[:start]


def split_jobs(jobs: Sequence[Assignment]) -> Iterator[list[Assignment]]:
    """Cut a batch so that each part fits into one frame, in number and in bytes."""
    part: list[Assignment] = []
    total_bytes = 0
    for job in jobs:
        size_bytes = len(job.arguments) + 4 * (len(job.task) + len(job.queue)) + 256
        if part and (total_bytes + size_bytes > BATCH_BYTES_MAX or len(part) >= limits.BATCH_ITEMS_MAX):
            yield part
            part, total_bytes = [], 0
        part.append(job)
        total_bytes += size_bytes
    if part:
        yield part
