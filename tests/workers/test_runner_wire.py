"""The worker's connection against a real ROUTER: what it tells of breaks, wrong bytes, keys and silence."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zq.config import ClientSection, Config
from zq.protocol import messages as m
from zq.protocol.codec import encode
from zq.protocol.job import Outcome
from zq.workers.session_io import LinkBroken
from zq.workers.wire import Wire

DEADLINE_S = 10.0
HELLO = m.Hello(1, 1, m.Role.WORKER, "w", bytes(16))


class Router:
    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, int(DEADLINE_S * 1000))
        self.socket.bind("tcp://127.0.0.1:*")
        self.address = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def close(self) -> None:
        self.socket.close(linger=0)
        self.context.term()


@pytest.fixture
def router() -> Iterator[Router]:
    made = Router()
    yield made
    made.close()


@pytest.fixture
def wire(router: Router) -> Iterator[Wire]:
    made = Wire(Config(client=ClientSection(broker=router.address)))
    yield made
    made.end()


def next_from(wire: Wire) -> m.BrokerMessage | LinkBroken:
    until_s = time.monotonic() + DEADLINE_S
    poller = zmq.Poller()
    for sock in wire.sockets:
        poller.register(sock, zmq.POLLIN)
    while time.monotonic() < until_s:
        poller.poll(100)
        for item in wire.receive(wire.sockets):
            return item
    raise AssertionError("nothing came")


def test_messages_travel_both_ways(router: Router, wire: Wire) -> None:
    assert wire.open() is None
    assert wire.send(HELLO) is None
    peer, frame = router.socket.recv_multipart()
    assert frame == encode(HELLO)
    router.socket.send_multipart((peer, encode(m.BeatOk(7))))
    assert next_from(wire) == m.BeatOk(7)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.lists(st.binary(max_size=200), max_size=8))
def test_wrong_bytes_are_passed_over(router: Router, wire: Wire, frames: list[bytes]) -> None:
    wire.open()
    wire.send(HELLO)
    peer, _ = router.socket.recv_multipart()
    for frame in frames:
        router.socket.send_multipart((peer, frame))
    router.socket.send_multipart((peer, encode(m.BeatOk(99))))
    while (item := next_from(wire)) != m.BeatOk(99):
        assert not isinstance(item, LinkBroken)


def test_a_connection_that_ends_is_told_after_all_that_came_before(router: Router, wire: Wire) -> None:
    wire.open()
    wire.send(HELLO)
    peer, _ = router.socket.recv_multipart()
    for number in range(300):
        router.socket.send_multipart((peer, encode(m.BeatOk(number))))
    router.socket.close(linger=5_000)
    items = [next_from(wire) for _ in range(1)]
    while not isinstance(items[-1], LinkBroken):
        items += list(wire.receive(wire.sockets))
    assert [item.session for item in items[:-1] if isinstance(item, m.BeatOk)] == list(range(300))
    assert items[-1] == LinkBroken("the connection ended")


def test_without_a_connection_sending_tells_so(wire: Wire) -> None:
    assert isinstance(wire.send(HELLO), LinkBroken)


def test_a_broker_that_reads_nothing_breaks_the_link_and_blocks_nobody(wire: Wire) -> None:
    wire.open()
    beat = m.Ack(1, [m.Result(bytes(16), 1, 1, Outcome.DONE, b"x" * 20_000)])
    started_s = time.monotonic()
    broken = next((found for _ in range(20_000) if (found := wire.send(beat)) is not None), None)
    assert broken == LinkBroken("the broker takes nothing more")
    assert time.monotonic() - started_s < DEADLINE_S


def test_a_key_that_cannot_be_read_now_is_a_broken_link_not_an_end(tmp_path: Path) -> None:
    wire = Wire(Config(client=ClientSection(key=str(tmp_path / "w.key"))))
    broken = wire.open()
    assert broken is not None
    assert "w.key" in broken.why
    assert wire.sockets == []
    wire.end()


def test_a_broker_that_wants_curve_is_told_from_silence(router: Router) -> None:
    _, secret = zmq.curve_keypair()
    server = router.context.socket(zmq.ROUTER)
    server.setsockopt(zmq.CURVE_SERVER, 1)
    server.setsockopt(zmq.CURVE_SECRETKEY, secret)
    server.bind("tcp://127.0.0.1:*")
    wire = Wire(Config(client=ClientSection(broker=server.getsockopt_string(zmq.LAST_ENDPOINT))))
    wire.open()
    wire.send(HELLO)
    item = next_from(wire)
    wire.end()
    server.close(linger=0)
    assert isinstance(item, LinkBroken)
    assert "CURVE" in item.why


def test_an_address_that_cannot_be_is_told() -> None:
    wire = Wire(Config(client=ClientSection(broker="tcp://no port")))
    broken = wire.open()
    assert broken is not None
    assert "tcp://no port" in broken.why
    assert wire.sockets == []
    wire.end()
