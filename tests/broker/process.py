"""A real broker process, and peers that speak to it one message at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zmq

import zq.protocol.messages as m
from tests.ports import free_port
from zq.keys import KeyFile
from zq.protocol import codec
from zq.protocol.job import JobSpec, encode_spec, job_id_from
from zq.protocol.messages import BrokerMessage, PeerMessage, Role

DEADLINE_MS = 20_000


class Broker:
    """`python -m zq.broker` on a port and a folder of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.folder = folder
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ZQ_")}
        own = {"ZQ_DATA_DIR": str(folder), "ZQ_BROKER_BIND": self.address, "ZQ_BROKER_BALLAST_MIB": "1"}
        self.environment = {**clean, **own, **environment}
        self.process: subprocess.Popen[str] | None = None

    def start(self, *before: str) -> None:
        self.process = subprocess.Popen(
            [*before, sys.executable, "-m", "zq.broker"], env=self.environment, stderr=subprocess.PIPE, text=True
        )

    def end(self, number: int) -> tuple[int, str]:
        """Send a signal and wait; the exit code and what was logged."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        assert self.process is not None
        _, log = self.process.communicate(timeout=DEADLINE_MS / 1000)
        return self.process.returncode, log


class Peer:
    """A DEALER that speaks one message at a time."""

    def __init__(self, context: zmq.Context[Any], address: str, key: KeyFile | None = None) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 20)
        if key is not None:
            self.socket.setsockopt(zmq.CURVE_SERVERKEY, key.server_key)
            self.socket.setsockopt(zmq.CURVE_PUBLICKEY, key.public_key)
            self.socket.setsockopt(zmq.CURVE_SECRETKEY, key.secret_key)
        self.socket.connect(address)

    def send(self, message: PeerMessage) -> None:
        self.socket.send(codec.encode(message))

    def hear(self, timeout_ms: int = DEADLINE_MS) -> BrokerMessage | None:
        if not self.socket.poll(timeout_ms):
            return None
        return codec.decode_from_broker(self.socket.recv())

    def ask(self, message: PeerMessage) -> Any:
        self.send(message)
        return self.hear()

    def hello(self, role: Role = Role.ADMIN, queues: list[m.QueueSlots] | None = None) -> Any:
        return self.ask(m.Hello(1, 1, role, "peer", bytes(16), queues or []))


Connect = Callable[..., Peer]


@contextmanager
def running(broker: Broker) -> Iterator[Broker]:
    broker.start()
    try:
        yield broker
    finally:
        if broker.process is not None and broker.process.poll() is None:
            broker.process.kill()
            broker.wait()
        elif broker.process is not None and broker.process.stderr is not None:
            broker.process.stderr.close()


@contextmanager
def connecting() -> Iterator[Connect]:
    """connect(address, key=None) → a Peer; all are closed in the end."""
    context: zmq.Context[Any] = zmq.Context()
    peers: list[Peer] = []

    def new(address: str, key: KeyFile | None = None) -> Peer:
        peers.append(Peer(context, address, key))
        return peers[-1]

    try:
        yield new
    finally:
        for peer in peers:
            peer.socket.close()
        context.term()


def job(name: str, queue: str = "q", **options: Any) -> bytes:
    """The encoded spec of a job that is made from its name: the same name is the same job."""
    return encode_spec(JobSpec(job_id_from(name), "t", queue, **options))
