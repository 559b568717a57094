"""Who is connected: one session for each peer that said HELLO, what it may say, and what it may hold.

                 HELLO of a worker            RESUME
        (none) ──────────────────► JOINING ──────────► ACTIVE
        (none) ── HELLO of others ───────────────────► ACTIVE

Both end by BYE, by silence, or by a newer HELLO of the same worker. A worker that joins is given nothing before its
RESUME has said what it still has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from zq.protocol import messages as m
from zq.protocol.messages import Role

if TYPE_CHECKING:
    from zq.broker.leases import Lease


class SessionState(Enum):
    JOINING = "joining"
    ACTIVE = "active"


_ASKERS = frozenset({Role.SUBMITTER, Role.SCHEDULER, Role.MONITOR, Role.ADMIN})
_SUBMITTERS = frozenset({Role.SUBMITTER, Role.SCHEDULER, Role.ADMIN})
_WORKER = frozenset({Role.WORKER})
_ANY = frozenset(Role)
_ACTIVE = frozenset({SessionState.ACTIVE})
_BOTH = frozenset(SessionState)

VERBS: dict[type, tuple[frozenset[Role], frozenset[SessionState]]] = {
    m.Bye: (_ANY, _BOTH),
    m.Beat: (_WORKER, _ACTIVE),
    m.Resume: (_WORKER, frozenset({SessionState.JOINING})),
    m.Credit: (_WORKER, _ACTIVE),
    m.Ack: (_WORKER, _ACTIVE),
    m.Progress: (_WORKER, _ACTIVE),
    m.Hold: (_WORKER, _ACTIVE),
    m.Submit: (_SUBMITTERS | {Role.TASK}, _ACTIVE),
    m.Wait: (_ASKERS, _ACTIVE),
    m.AskJob: (_ASKERS | {Role.TASK}, _ACTIVE),
    m.AskQueues: (_ASKERS, _ACTIVE),
    m.AskBroker: (_ASKERS, _ACTIVE),
    m.AskJobs: (_ASKERS, _ACTIVE),
    m.AskWorkers: (_ASKERS, _ACTIVE),
    m.Cancel: (frozenset({Role.SUBMITTER, Role.ADMIN}), _ACTIVE),
    m.RetryEnded: (frozenset({Role.SUBMITTER, Role.ADMIN}), _ACTIVE),
    m.Drop: (frozenset({Role.ADMIN}), _ACTIVE),
    m.SetQueue: (frozenset({Role.ADMIN}), _ACTIVE),
    m.AskWhy: (_ASKERS, _ACTIVE),
    m.AskEvents: (_ASKERS, _ACTIVE),
    m.AskRegisters: (_ASKERS, _ACTIVE),
    m.AskHours: (_ASKERS, _ACTIVE),
    m.SetRegister: (frozenset({Role.SCHEDULER, Role.ADMIN}), _ACTIVE),
}
"""verb → who may say it, and in which state of its session. HELLO is what makes a session, so it is not here."""


@dataclass(frozen=True)
class Identity:
    """What a CURVE key stands for. Without CURVE there is none, and loopback is trusted."""

    name: str
    role: Role
    queues: tuple[str, ...] = ("*",)
    """Patterns of the queues it may submit to or work on."""

    def may_be(self, role: Role) -> bool:
        return self.role in (role, Role.ADMIN) or (self.role is Role.WORKER and role is Role.TASK)

    def may_use(self, queue: str) -> bool:
        return any(fnmatchcase(queue, pattern) for pattern in self.queues)


def full_name(identity: Identity | None, instance: str) -> str:
    """A key's workers have names of their own: no key can claim what another key's worker holds."""
    return instance if identity is None else f"{identity.name}/{instance}"


@dataclass(eq=False, slots=True)
class Session:
    id: int
    peer: bytes
    """The ROUTER's name for the connection; a session is bound to it."""
    identity: Identity | None
    role: Role
    instance: str
    state: SessionState
    since_ms: int
    heard_ms: int
    queues: tuple[str, ...] = ()
    slots: dict[str, int] = field(default_factory=dict)
    """As its HELLO said, by queue."""
    limits: dict[str, int] = field(default_factory=dict)
    """Credit: leases it will hold at once, by queue."""
    held: dict[str, int] = field(default_factory=dict)
    leases: dict[int, Lease] = field(default_factory=dict)
    idle_ms: int = 0
    """What it was told it may leave between two BEATs while it has no leases."""
    busy_ms: int = 0
    """When it was last given leases while it had none."""
    dispatches: int = 0
    tasks: int = 0
    tags: frozenset[str] = frozenset()
    software: str = ""
    room: m.Room | None = None
    """What it said of its machine; see `headroom`."""
    ended: bool = False

    def free(self, queue: str) -> int:
        """Leases it may still be given in this queue."""
        return self.limits.get(queue, 0) - self.held.get(queue, 0)

    def open_slots(self, queue: str) -> int:
        """What people are told. Credit for tiny jobs goes beyond the slots; that of a worker that stops falls below."""
        return min(self.slots.get(queue, 0), self.limits.get(queue, 0))

    def free_slots(self, queue: str) -> int:
        return max(0, self.open_slots(queue) - self.held.get(queue, 0))

    @property
    def active(self) -> bool:
        return self.state is SessionState.ACTIVE and not self.ended


class Sessions:
    """Sessions by id, by connection and, for workers, by instance. Ids are unique over restarts of the broker."""

    def __init__(self, epoch: int) -> None:
        self._next = epoch << 32
        self.by_id: dict[int, Session] = {}
        self.by_peer: dict[bytes, Session] = {}
        self.workers: dict[str, Session] = {}

    def open(self, peer: bytes, identity: Identity | None, hello: m.Hello, now_ms: int) -> Session:
        self._next += 1
        worker = hello.role is Role.WORKER
        session = Session(
            id=self._next,
            peer=peer,
            identity=identity,
            role=hello.role,
            instance=full_name(identity, hello.instance),
            state=SessionState.JOINING if worker else SessionState.ACTIVE,
            since_ms=now_ms,
            heard_ms=now_ms,
            queues=tuple(q.queue for q in hello.queues),
            slots={q.queue: q.slots for q in hello.queues},
            tasks=len(hello.tasks),
            software=hello.software,
            tags=frozenset(hello.tags),
        )
        self.by_id[session.id] = session
        self.by_peer[peer] = session
        if worker:
            self.workers[session.instance] = session
        return session

    def close(self, session: Session) -> None:
        session.ended = True
        self.by_id.pop(session.id, None)
        if self.by_peer.get(session.peer) is session:
            del self.by_peer[session.peer]
        if self.workers.get(session.instance) is session:
            del self.workers[session.instance]
