"""A client in the simulator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import zq.protocol.messages as m
from tests.simulation.checker import DISK_BYTES
from tests.simulation.sim_worker import QUEUES, TINY
from zq.protocol.job import JobSpec, KeyPolicy, encode_spec
from zq.protocol.messages import BrokerMessage, PeerMessage, ReceiptStatus

if TYPE_CHECKING:
    from tests.simulation.world import Connection, World


class SimClient:
    """Submits its jobs one after the other, sends again what has no answer, and cancels some."""

    RESEND_MS = 400

    def __init__(self, world: World, name: str, jobs: int, burst: int) -> None:
        self.world = world
        self.name = name
        self._left = jobs
        self._burst = burst
        self._session: int | None = None
        self._pending: dict[int, bytes] = {}
        self._request = 0
        self._connection: Connection | None = None
        self._heard_ms = world.now_ms
        world.at(1, self._work)

    @property
    def content(self) -> bool:
        return self._left == 0 and not self._pending

    def _work(self) -> None:
        world = self.world
        if self.content:
            return
        if self._connection is None or world.now_ms - self._heard_ms > 3 * self.RESEND_MS:
            self._reconnect()
        elif self._session is not None:
            for _ in range(self._burst):
                if self._left and len(self._pending) < 10 * self._burst:
                    self._submit()
            for request, data in self._pending.items():
                self._say(m.Submit(self._session, request, [data]))
            self._cancel_some(self._session)
        world.at(world.random.randint(1, self.RESEND_MS), self._work)

    def _reconnect(self) -> None:
        world = self.world
        world.drop(self._connection)

        def deliver(message: BrokerMessage) -> None:
            if self._connection is connection:
                self._hear(message)

        connection = world.connect(self.name, deliver)
        self._connection, self._session, self._heard_ms = connection, None, world.now_ms
        self._say(m.Hello(1, 1, m.Role.ADMIN, self.name, bytes(16)))

    def _say(self, message: PeerMessage) -> None:
        assert self._connection is not None
        self.world.to_broker(self._connection, message)

    def _submit(self) -> None:
        world = self.world
        self._left -= 1
        self._request += 1
        chosen = world.random
        concurrency_key = chosen.choice(["", "", "c1", "c2"])
        job_id = chosen.randbytes(16)
        spec = JobSpec(
            id=job_id,
            task="t",
            queue=chosen.choice([*QUEUES, *[TINY] * (self._burst // 4)]),
            priority=chosen.randint(0, 9),
            delay_ms=chosen.choice([0, 0, 0, 700]),
            expires_ms=chosen.choice([0, 0, 0, 0, 4000]),
            max_retries=chosen.randint(0, 3),
            backoff_ms=chosen.choice([0, 50, 1000]),
            key=chosen.choice(["", "", "", "k1", "k2"]),
            key_policy=chosen.choice(list(KeyPolicy)),
            concurrency_key=concurrency_key,
            concurrency_limit=2 if concurrency_key == "c2" else 1,
            tags=chosen.choice([(), (), (), ("gpu",)]),
            disk_bytes=(0, 0, DISK_BYTES // 3, DISK_BYTES // 2 + 1)[job_id[0] % 4],
        )
        data = encode_spec(spec)
        self._pending[self._request] = data
        self.world.checker.submitted(spec)

    def _cancel_some(self, session: int) -> None:
        if self.world.chance(self.world.faults.cancel) and self.world.checker.receipts:
            job_id = self.world.random.choice(sorted(self.world.checker.receipts))
            self._say(m.Cancel(session, 1 << 40, [job_id]))

    def _hear(self, message: BrokerMessage) -> None:
        self._heard_ms = self.world.now_ms
        if isinstance(message, m.Welcome):
            self._session = message.session
        elif isinstance(message, m.Refusal):
            self._heard_ms = 0  # unknown session, most likely: begin anew
        elif isinstance(message, m.Receipts) and message.request in self._pending:
            [receipt] = message.receipts
            self.world.checker.receipt(receipt)
            if receipt.status is not ReceiptStatus.REFUSED:  # for now: it is sent again
                del self._pending[message.request]
