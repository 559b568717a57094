"""Whatever well-formed messages peers send, of every kind and at the bounds of every field: the core takes them, and
what it says can be read."""

from __future__ import annotations

import math
import random
from typing import Any, get_args

import msgspec
import pytest
from msgspec import inspect

import zq.protocol.messages as m
from tests.broker.harness import Harness
from zq.broker.check import check
from zq.protocol import codec
from zq.protocol.errors import WireError
from zq.protocol.job import JobSpec, encode_spec
from zq.protocol.messages import PeerMessage, Role

NAMES = ("q", "考试", "a" * 200, "x", "w", "gpu")
"""The first three are queues."""
ROLES = (Role.ADMIN, Role.WORKER, Role.WORKER, Role.TASK, Role.MONITOR)
DECIMALS = (0.0, 1.0, 0.5, 1e6, 5e-324, 5e-324, 1e-300, 1e308, -1.0, math.inf, -math.inf, math.nan)


class Hostile:
    """Makes messages from one generator. Sessions, ids and tokens are mostly ones that there are."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.zq = Harness()
        self.ids = [bytes([n]) * 16 for n in range(12)]
        self.sessions: dict[str, int] = {}
        self.roles: dict[str, Role] = {}

    def value(self, kind: inspect.Type, name: str = "") -> Any:
        chance = self.random
        match kind:
            case inspect.UnionType():
                return self.value(chance.choice(list(kind.types)), name)
            case inspect.NoneType():
                return None
            case inspect.BoolType():
                return chance.random() < 0.5
            case inspect.FloatType():
                return chance.choice(DECIMALS)
            case inspect.IntType():
                return self.number(kind, name)
            case inspect.StrType():
                return self.text(kind)
            case inspect.BytesType():
                return self.data(kind, name)
            case inspect.EnumType():
                return chance.choice(list(kind.cls))
            case inspect.ListType() | inspect.VarTupleType():
                most = min(4, kind.max_length or 4)
                return [self.value(kind.item_type, name) for _ in range(chance.randint(0, most))]
            case inspect.StructType():
                return kind.cls(**{field.name: self.value(field.type, field.name) for field in kind.fields})
        raise NotImplementedError(kind)

    def number(self, kind: inspect.IntType, name: str) -> int:
        least, most = kind.ge or 0, kind.le if kind.le is not None else (1 << 63) - 1
        near = [least, least + 1, most, most - 1, 1, 2, 1000]
        if name in ("token", "leases", "tokens") and self.zq.core.leases.by_token:
            near += list(self.zq.core.leases.by_token) * 4
        if name in ("slots", "attempt", "limit", "dispatches_seen"):
            near += [1, 2, 3] * 4
        return min(max(self.random.choice(near), least), most)

    def text(self, kind: inspect.StrType) -> str:
        found = self.random.choice([*NAMES, *NAMES, "", "two words", "\x1b[31m\n", "é" * (kind.max_length or 10)])
        return (found or "n" * (kind.min_length or 0))[: kind.max_length]

    def data(self, kind: inspect.BytesType, name: str) -> bytes:
        if kind.min_length == 16:
            return self.random.choice(self.ids)
        if name == "jobs":
            return self.spec()
        return self.random.randbytes(self.random.choice([0, 1, 16, min(500, kind.max_length or 500)]))

    def spec(self) -> bytes:
        """Nine of ten are jobs that can be accepted, seven that a worker may be given now."""
        chance = self.random.random()
        spec: JobSpec = self.value(inspect.type_info(JobSpec))
        if chance < 0.9:
            queue = self.random.choice(NAMES[:3])
            spec = msgspec.structs.replace(spec, task="t", queue=queue, tags=(), soft_limit_ms=0)
        if chance < 0.7:
            spec = msgspec.structs.replace(spec, delay_ms=0, run_at_ms=0, disk_bytes=0, memory_bytes=0)
        return encode_spec(spec) if chance < 0.95 else self.random.randbytes(20)

    def message(self) -> tuple[str, PeerMessage]:
        peer = f"peer-{self.random.randrange(len(ROLES))}"
        if peer not in self.sessions or self.random.random() < 0.02:
            self.greet(peer)
        kind = inspect.type_info(self.random.choice(get_args(PeerMessage)))
        made: Any = self.value(kind)
        if not isinstance(made, m.Hello) and self.random.random() < 0.95:
            made = msgspec.structs.replace(made, session=self.sessions[peer])
        return peer, made

    def greet(self, peer: str) -> None:
        role = ROLES[int(peer[-1])]
        queues = [m.QueueSlots(name, 3) for name in NAMES[:3]] if role is Role.WORKER else []
        answers = self.zq.say(peer, m.Hello(1, 1, role, peer, bytes(16), queues, [], "", ["gpu"]))
        self.sessions[peer] = next(a.session for a in answers if isinstance(a, m.Welcome))
        if role is Role.WORKER:
            self.zq.say(peer, m.Resume(self.sessions[peer], []), m.Credit(self.sessions[peer], queues))


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(3, 60))])
def test_any_message_is_taken_and_every_answer_can_be_read(seed: int) -> None:
    hostile = Hostile(seed)
    zq = hostile.zq
    kinds: set[type] = set()
    for number in range(2000):
        peer, message = hostile.message()
        try:
            again = codec.decode_from_peer(codec.encode(message))
        except WireError:
            continue
        answers = zq.say(peer, again)
        zq.core.wake_ms()
        for _, answer in zq.out:
            codec.decode_from_broker(codec.encode(answer))
            kinds.add(type(answer))
        zq.out.clear()
        for answer in answers:
            if isinstance(answer, m.Welcome):
                hostile.sessions[peer] = answer.session
        if number % 100 == 0:
            zq.round(later_ms=hostile.random.choice([0, 100, 5000, 60_000]))
        if number % 400 == 399:
            zq.restart()
            hostile.sessions.clear()
    assert check(zq.journal) == []
    assert kinds >= {m.Dispatch, m.Receipts}, "too little was tried: the test would prove nothing"
