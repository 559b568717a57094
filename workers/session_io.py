"""What goes into a worker's session (beside the broker's messages) and what it wants done: frozen values, no code.

Slots are named by numbers that the shell gives and never uses again; attempts by the token of their lease.
"""

from __future__ import annotations

import msgspec

from zq.protocol.job import JobSpec, Outcome
from zq.protocol.messages import PeerMessage, Usage


class Event(msgspec.Struct, frozen=True, gc=False):
    """Base of what the shell tells the session."""


class SlotUp(Event, frozen=True):
    """A new slot can take a job of its queue."""

    slot: int
    queue: str
    jobs_max: int = 0
    """It is replaced after so many jobs; 0 means never."""


class SlotClosing(Event, frozen=True):
    """The slot is idle and will be replaced: give it no more jobs. SlotGone follows."""

    slot: int


class SlotGone(Event, frozen=True):
    """The slot's process has ended and nothing lives below it, however that came."""

    slot: int
    why: str
    """For the job it may have been running, such as "the slot's process died: signal 9 (SIGKILL)"."""
    innocent: bool = False
    """It was ended for the sake of a job in another slot, which shared its process: handed back, not failed."""


class NotStarted(Event, frozen=True):
    """The slot could not be given the job (it has died): the job did not run. SlotGone follows."""

    token: int


class TakenBack(Event, frozen=True):
    """Answers TakeBack: these the slot has not begun, and will not. All others it has, or had."""

    slot: int
    tokens: tuple[int, ...]


class Reported(Event, frozen=True):
    """The slot says how an attempt ended; its process is free for the next job."""

    token: int
    outcome: Outcome | None
    """None: the task gave up because its lease was lost; there is nothing to report."""
    result: bytes = b""
    error: str = ""
    retry_after_ms: int = -1
    usage: Usage = Usage()
    ran_ms: float | None = None
    """How long the task ran, if the slot has said so."""


class Progressed(Event, frozen=True):
    token: int
    done: float
    total: float
    message: str


class HoldAsked(Event, frozen=True):
    """The task waits to hear whether the job is still its own."""

    token: int


class Sampled(Event, frozen=True):
    """What the attempt's process tree has used so far; the largest values seen are kept."""

    token: int
    usage: Usage
    rss_bytes: int = 0
    """What it occupies now."""
    quiet_ms: int = 0
    """Since its last sign of life."""
    stalled: bool = False


class RoomMeasured(Event, frozen=True):
    """What is free for jobs that say what they need; the names are as in `messages.Room`."""

    disk_bytes: int
    memory_bytes: int
    disk: str = ""
    machine: str = ""


class Overrun(Event, frozen=True):
    """The attempt passed a limit that ends its tree; `error` says which."""

    token: int
    error: str


class LinkBroken(Event, frozen=True):
    """The connection has ended, or takes no more messages."""

    why: str


class DrainAsked(Event, frozen=True):
    """First time: take no more jobs, let the running ones finish. Second: hand them back now. Third: leave as it is."""


class Effect(msgspec.Struct, frozen=True, gc=False):
    """Base of what the session wants done, in the order given."""


class OpenLink(Effect, frozen=True):
    """Open a new connection to the broker."""


class CloseLink(Effect, frozen=True):
    """Close the connection. Nothing that arrives on it later may reach the session."""


class Send(Effect, frozen=True):
    message: PeerMessage


class StartJob(Effect, frozen=True):
    """Give a slot a job, to be run after those that it has."""

    slot: int
    token: int
    attempt: int
    spec: JobSpec


class TakeBack(Effect, frozen=True):
    """Take from the slot what it has not begun, but for the first of its jobs. Answered by TakenBack at once."""

    slot: int


class EndSlot(Effect, frozen=True):
    """End the slot's whole process tree and replace it. Answered by SlotGone, then SlotUp of the new one."""

    slot: int
    why: str


class AnswerHold(Effect, frozen=True):
    slot: int
    token: int
    held: bool


class Say(Effect, frozen=True):
    """For the log; `level` as in logging."""

    level: int
    text: str


class Leave(Effect, frozen=True):
    """The worker is done: close everything and exit. `undelivered` results could not be handed over."""

    undelivered: int
