"""What peers do not take at once is kept in order, within bounds, and not for ever."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import zmq

from zq.broker import outbox as module
from zq.broker.outbox import Outbox


class Router:
    """Takes as many frames of a peer as it has room for."""

    def __init__(self) -> None:
        self.room: dict[bytes, int] = {}
        self.sent: list[tuple[bytes, bytes]] = []
        self._peer = b""

    def send(self, part: bytes, flags: int) -> None:
        if flags & zmq.SNDMORE:
            if part not in self.room:
                raise zmq.ZMQError(zmq.EHOSTUNREACH)
            if self.room[part] <= 0:
                raise zmq.ZMQError(errno.EAGAIN)
            self._peer = part
        else:
            self.room[self._peer] -= 1
            self.sent.append((self._peer, part))


@pytest.fixture
def router() -> Router:
    return Router()


@pytest.fixture
def outbox(router: Router) -> Outbox:
    as_socket: Any = router
    return Outbox(as_socket)


def test_what_a_slow_peer_has_not_taken_follows_in_order(router: Router, outbox: Outbox) -> None:
    router.room = {b"slow": 1, b"quick": 9}
    assert all(outbox.send(b"slow", bytes([number])) for number in range(4))
    assert outbox.send(b"quick", b"x")
    assert outbox
    router.room[b"slow"] = 2
    assert outbox.retry() == []
    assert outbox.send(b"slow", b"last"), "not before those that wait"
    router.room[b"slow"] = 9
    assert outbox.retry() == []
    assert not outbox
    assert [frame for peer, frame in router.sent if peer == b"slow"] == [b"\0", b"\1", b"\2", b"\3", b"last"]


def test_a_peer_that_is_gone_is_told_of_at_once_or_when_it_goes(router: Router, outbox: Outbox) -> None:
    assert not outbox.send(b"gone", b"a")
    router.room = {b"going": 0}
    assert outbox.send(b"going", b"a")
    del router.room[b"going"]
    assert outbox.retry() == [b"going"]
    assert not outbox


def test_who_takes_nothing_is_given_up(router: Router, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    router.room = {b"deaf": 0, b"slow": 0}
    for peer in router.room:
        assert outbox.send(peer, b"a")
        assert outbox.send(peer, b"b")
    now_s += module.PATIENCE_S - 0.1
    router.room[b"slow"] = 1
    assert outbox.retry() == []
    now_s += 0.2
    assert outbox.retry() == [b"deaf"], "the other one has taken something a moment ago"
    router.room[b"slow"] = 1
    assert outbox.retry() == []
    assert not outbox


def test_what_is_kept_is_bounded_for_each_and_for_all(
    router: Router, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LATE_BYTES_MAX", 10)
    monkeypatch.setattr(module, "LATE_TOTAL_BYTES_MAX", 15)
    router.room = {b"a": 0, b"b": 0, b"c": 0}
    assert outbox.send(b"a", bytes(10))
    assert not outbox.send(b"a", b"x")
    assert not outbox, "nothing is kept of it"
    assert outbox.send(b"a", bytes(10))
    assert outbox.send(b"b", bytes(5))
    assert not outbox.send(b"c", b"x")
    router.room = {b"a": 1, b"b": 1}
    assert outbox.retry() == []
    assert not outbox
