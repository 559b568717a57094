"""The leases a worker has, from DISPATCH until the broker has taken their results or declared them lost. Pure.

    WAITING ──start──► RUNNING ──end──► ENDING ──gone──► ENDED ──acked──► forgotten
       ▲ │              ▲ │ │             │                │
       │ └─hand─► HANDED┘ │ ├──report─────┼───────────────►┤
       └──────unstart─┴───┘ └──abandon─► ABANDONED ──gone──┴─────────────► forgotten

A result is kept (ENDED) until the broker has it on disk or says that the lease is no longer ours: nothing else drops
one. A lease in ENDING or ABANDONED still occupies its slot, because its process tree may still live.
"""

from __future__ import annotations

import itertools
from collections import Counter
from enum import Enum

from zq.protocol import limits
from zq.protocol.job import JobSpec, Outcome
from zq.protocol.messages import Lease, LeaseClaim, Result, Usage

LEASES_MAX = limits.BATCH_ITEMS_MAX
"""All leases of a worker fit into one RESUME and one BEAT."""
RESULT_OVERHEAD_BYTES = 256
_NO_USAGE = Usage()


class Phase(Enum):
    WAITING = "waiting"
    """Dispatched; its slot is still being replaced, or it was taken back from one."""
    HANDED = "handed"
    """In a slot, behind others: it can still be taken back, unless the slot has just begun it."""
    RUNNING = "running"
    ENDING = "ending"
    """Its process tree is being ended and its result is decided."""
    ABANDONED = "abandoned"
    """Its process tree is being ended; the job is no longer ours, nothing is reported."""
    ENDED = "ended"
    """The result is held until the broker has it."""

    # Members are single objects; Enum's own hash, written in Python, would be a tenth of a tiny job's time here.
    __hash__ = object.__hash__


class Step(Enum):
    HAND = "hand"
    START = "start"
    UNSTART = "unstart"
    """Taken back from its slot, or the slot died before it began the job."""
    REPORT = "report"
    """The result is known and no process is left."""
    END = "end"
    ABANDON = "abandon"
    GONE = "gone"
    """The process tree has ended."""
    ACKED = "acked"

    __hash__ = object.__hash__


STEPS: dict[tuple[Phase, Step], Phase | None] = {
    (Phase.WAITING, Step.START): Phase.RUNNING,
    (Phase.WAITING, Step.HAND): Phase.HANDED,
    (Phase.WAITING, Step.REPORT): Phase.ENDED,
    (Phase.WAITING, Step.ABANDON): None,
    (Phase.HANDED, Step.START): Phase.RUNNING,
    (Phase.HANDED, Step.UNSTART): Phase.WAITING,
    (Phase.RUNNING, Step.UNSTART): Phase.WAITING,
    (Phase.RUNNING, Step.REPORT): Phase.ENDED,
    (Phase.RUNNING, Step.END): Phase.ENDING,
    (Phase.RUNNING, Step.ABANDON): Phase.ABANDONED,
    (Phase.ENDING, Step.GONE): Phase.ENDED,
    (Phase.ENDING, Step.ABANDON): Phase.ABANDONED,
    (Phase.ABANDONED, Step.GONE): None,
    (Phase.ENDED, Step.ACKED): None,
    (Phase.ENDED, Step.ABANDON): None,
}
"""(phase, step) → next phase; None: the lease is forgotten. A pair that is not here is illegal and changes nothing."""

_ENDED = Phase.ENDED  # in Python 3.11 a member is found in its Enum by a call: what each job needs is looked up once
OURS = frozenset({Phase.WAITING, Phase.HANDED, Phase.RUNNING, Phase.ENDING, Phase.ENDED})
"""What RESUME and BEAT list."""
OPEN = frozenset({Phase.WAITING, Phase.HANDED, Phase.RUNNING, Phase.ENDING})
"""What counts against the credit."""


class IllegalStep(Exception):
    """A step that the table does not have: a defect of ours, never the broker's or a slot's mistake."""


class Doom(Enum):
    """What is to become of a lease in a slot, behind others, as soon as it is known whether it has begun."""

    CANCEL = "cancel"
    ABANDON = "abandon"


class HeldLease:
    """One lease and what is known about its attempt. `rss_bytes`, `quiet_ms`, `stalled`: as in its last sample."""

    __slots__ = (
        "attempt", "doom", "hold_request", "job_id", "phase", "queue", "quiet_ms", "result", "return_ms", "rss_bytes",
        "sent_ms", "slot", "spec", "stalled", "started_ms", "token", "usage",
    )  # fmt: skip

    def __init__(self, lease: Lease, queue: str, spec: JobSpec | None) -> None:
        self.job_id = lease.job_id
        self.attempt = lease.attempt
        self.token = lease.token
        self.queue = queue
        self.spec = spec
        """None for a job that could not be read: it is never started."""
        self.phase = Phase.WAITING
        self.slot: int | None = None
        self.started_ms = 0
        self.usage = _NO_USAGE
        self.rss_bytes = 0
        self.quiet_ms = 0
        self.stalled = False
        self.result: Result | None = None
        self.sent_ms: int | None = None
        """When the result was last sent in this session; None: not yet."""
        self.doom: Doom | None = None
        self.return_ms: int | None = None
        """When it is handed back to the broker if no slot has taken it; None: it waits for its slot."""
        self.hold_request: int | None = None
        """Number of the HOLD that waits for its answer."""


class LeaseBook:
    """All leases, each in the phase that the table allows."""

    def __init__(self) -> None:
        self._leases: dict[int, HeldLease] = {}
        self._unsent: dict[int, HeldLease] = {}
        self._sent: dict[int, HeldLease] = {}
        # In the order in which they were sent.
        self._open: Counter[str] = Counter()
        self._all: Counter[str] = Counter()
        self._occupied: Counter[bytes] = Counter()
        self._needy: dict[int, HeldLease] = {}
        self.needs_freed = False
        """An attempt that had said what it needs has ended: what is free is to be measured, and told, anew."""
        self.held_bytes = 0
        """Of results that the broker has not taken yet."""

    def __len__(self) -> int:
        return len(self._leases)

    def __contains__(self, token: int) -> bool:
        return token in self._leases

    def get(self, token: int) -> HeldLease | None:
        return self._leases.get(token)

    def all(self) -> list[HeldLease]:
        return list(self._leases.values())

    def in_phase(self, *phases: Phase) -> list[HeldLease]:
        return [lease for lease in self._leases.values() if lease.phase in phases]

    def add(self, lease: HeldLease) -> None:
        assert lease.token not in self._leases
        assert len(self._leases) < LEASES_MAX
        self._leases[lease.token] = lease
        self._open[lease.queue] += 1
        self._all[lease.queue] += 1
        if lease.spec is not None and (lease.spec.disk_bytes or lease.spec.memory_bytes):
            self._needy[lease.token] = lease

    def needy(self) -> list[HeldLease]:
        """Those that have said what they need."""
        return list(self._needy.values())

    def step(self, lease: HeldLease, step: Step) -> None:
        """Move a lease along the table. Raises IllegalStep, with nothing changed, for a pair that it does not have."""
        before = lease.phase
        key = (before, step)
        if key not in STEPS:
            raise IllegalStep(f"{before.value} --{step.value}--> nothing")
        after = STEPS[key]
        if before is _ENDED:
            self.held_bytes -= _size_bytes(lease)
            self._unsent.pop(lease.token, None)
            self._sent.pop(lease.token, None)
        if before in OPEN and after not in OPEN:
            self._open[lease.queue] -= 1
        if self._needy and lease.token in self._needy:
            self.needs_freed = self.needs_freed or after not in OPEN
            if after is None:
                del self._needy[lease.token]
        if after is None:
            del self._leases[lease.token]
            self._all[lease.queue] -= 1
            return
        lease.phase = after
        if after is _ENDED:
            self.held_bytes += _size_bytes(lease)
            self._unsent[lease.token] = lease

    def occupy(self, lease: HeldLease, slot: int) -> None:
        lease.slot = slot
        self._occupied[lease.job_id] += 1

    def vacate(self, lease: HeldLease) -> None:
        lease.slot = None
        self._occupied[lease.job_id] -= 1
        if not self._occupied[lease.job_id]:
            del self._occupied[lease.job_id]

    def open_in(self, queue: str) -> int:
        return self._open[queue]

    def all_in(self, queue: str) -> int:
        """With those whose results the broker has not taken yet."""
        return self._all[queue]

    def job_occupied(self, job_id: bytes) -> bool:
        """Whether an earlier attempt of this job may still have processes here."""
        return job_id in self._occupied

    def claims(self) -> list[LeaseClaim]:
        return [LeaseClaim(lease.job_id, lease.attempt, lease.token) for lease in self.in_phase(*OURS)]

    def tokens(self) -> list[int]:
        return [lease.token for lease in self.in_phase(*OURS)]

    def to_send(self, resend_before_ms: int) -> list[HeldLease]:
        """Results not sent in this session yet, and those sent at `resend_before_ms` or earlier without an answer."""
        late = itertools.takewhile(
            lambda lease: lease.sent_ms is not None and lease.sent_ms <= resend_before_ms, self._sent.values()
        )
        return [*self._unsent.values(), *late]

    def sent(self, lease: HeldLease, now_ms: int) -> None:
        lease.sent_ms = now_ms
        self._unsent.pop(lease.token, None)
        self._sent.pop(lease.token, None)
        self._sent[lease.token] = lease

    def forget_sending(self) -> None:
        """The session is over: every held result is to be sent again."""
        for lease in self._sent.values():
            lease.sent_ms = None
        self._unsent = {**self._sent, **self._unsent}
        self._sent = {}

    def oldest_sent_ms(self) -> int | None:
        return next((lease.sent_ms for lease in self._sent.values()), None)


def _size_bytes(lease: HeldLease) -> int:
    return size_bytes(lease.result) if lease.result is not None else 0


def size_bytes(result: Result) -> int:
    """What a result takes on the wire, at most."""
    return len(result.result) + 4 * len(result.error) + RESULT_OVERHEAD_BYTES


def make_result(
    lease: HeldLease, outcome: Outcome, *, result: bytes = b"", error: str = "", retry_after_ms: int = -1
) -> Result:
    """A result that the wire takes, whatever a task made of it: too large a value is the task's error."""
    if len(result) > limits.RESULT_BYTES_MAX:
        error = f"the result is {len(result)} bytes; at most {limits.RESULT_BYTES_MAX} are allowed: return a reference"
        outcome, result = Outcome.REJECTED, b""
    return Result(  # by position: by name it takes three times as long
        lease.job_id,
        lease.attempt,
        lease.token,
        outcome,
        result,
        clean_text(error, limits.ERROR_CHARS_MAX),
        min(max(retry_after_ms, -1), limits.DURATION_MS_MAX),
        lease.usage,
    )


def clean_text(text: str, chars_max: int) -> str:
    """Text that can be encoded (no lone surrogates), its end kept when it is too long: that is where errors speak."""
    if not text:
        return ""
    return text[-chars_max:].encode("utf-8", "replace").decode()


def larger_usage(one: Usage, other: Usage) -> Usage:
    """Field by field the larger one: samples see the tree's peak, the slot's own account sees what has ended."""
    if one is _NO_USAGE:
        return other
    return Usage(
        max(one.cpu_ms, other.cpu_ms),
        max(one.peak_rss_bytes, other.peak_rss_bytes),
        max(one.read_bytes, other.read_bytes),
        max(one.write_bytes, other.write_bytes),
        max(one.processes, other.processes),
    )
