"""One socket and its session: does what the session says, without ever blocking. Both clients are built on it."""

from __future__ import annotations

import select
import threading
import time
import types
from collections import deque
from collections.abc import Callable
from typing import Final, cast

import zmq
from zmq import zmq_poll

from zq.client.link import LINGER_MS, ClientContext, ClientSocket, Link, new_session, open_socket
from zq.client.session import Answered, Effect, GivenUp, Question, Reopen, Send
from zq.protocol.transport import watch

FRAMES_PER_TURN: Final = 1000
"""After so many frames without an outcome the caller gets a word in between."""
WATCH_S: Final = 0.001
"""An answer that comes so soon finds the caller awake; to be woken up costs as much as a good part of the answer."""
WAIT_S_MAX: Final = 1.0
"""A wait is cut into pieces of this, should a word of the descriptor ever be missed."""
_POLLIN: Final = int(zmq.POLLIN)
_POLLOUT: Final = int(zmq.POLLOUT)
"""As plain integers: arithmetic on pyzmq's flags is written in Python."""


def _nothing(fd: int) -> None:
    pass


class Connection:
    """Not safe for two threads at once; may move between threads that hand it over under a lock.

    After anything that may have brought I/O, a question included, call `turn`, then take what is in `outcomes`. Wait
    for `fd` to be readable, or for `session.next_wake_s()`. The descriptor is edge-triggered (zmq_getsockopt(3),
    ZMQ_FD): wait only after `turn` has returned False.
    """

    def __init__(
        self,
        link: Link,
        context: ClientContext,
        opened: Callable[[int], None] = _nothing,
        closing: Callable[[int], None] = _nothing,
    ) -> None:
        self.link = link
        self.session = new_session(link)
        self.outcomes: deque[Answered | GivenUp] = deque()
        self.connected = False
        """Whether this socket has ever sent something: a connection stood, handshake and keys included."""
        self._context = context
        self._opened = opened
        self._closing = closing
        self._socket: ClientSocket | None = None
        self._fd = -1
        self._outbox: deque[bytes] = deque()

    @property
    def fd(self) -> int:
        """−1 while there is no socket. Changes when the session reopens it."""
        return self._fd

    def ask(self, question: Question, now_s: float, deadline_s: float, patience_s: float) -> int:
        """As `ClientSession.ask`. It is sent by the next `flush`, `turn` or `wait`."""
        request, effects = self.session.ask(question, now_s, deadline_s, patience_s)
        self._apply(effects)
        return request

    def turn(self, now_s: float) -> bool:
        """Do what can be done now, up to the next outcome. True if more may remain: call again before waiting."""
        self._apply(self.session.tick(now_s))
        for _ in range(FRAMES_PER_TURN):
            self.flush()
            if self.outcomes:
                return True
            sock = self._socket  # an answer may have led to another one
            if sock is None:
                return False
            events = cast(int, sock.getsockopt(zmq.EVENTS))
            if events & _POLLIN:
                self._receive(sock, now_s)
            elif not (self._outbox and events & _POLLOUT):
                return False
        return True

    def _receive(self, sock: ClientSocket, now_s: float) -> None:
        try:
            frame = sock.recv(zmq.NOBLOCK)
        except zmq.Again:
            return  # the connection it came by is gone
        self._apply(self.session.receive(frame, now_s))

    def wait(self) -> None:
        """Block until there may be something in `outcomes`, at most `WAIT_S_MAX`. Other greenlets run meanwhile.

        What waits to be sent is sent at the last moment: whatever this thread does between a send and its sleep holds
        up libzmq's own thread where the two share a core.
        """
        now_s = time.monotonic()
        wake_s = self.session.next_wake_s()
        left_ms = (WAIT_S_MAX if wake_s is None else min(max(wake_s - now_s, 0.0), WAIT_S_MAX)) * 1000 + 1
        if self._socket is None or _greenlets_are_about():
            if not self.turn(now_s):
                poller = select.poll()  # gevent's
                poller.register(self._fd, select.POLLIN)
                poller.poll(left_ms)
        else:
            sent = self.flush()
            found: object = sent and threading.active_count() == 1 and watch(self._socket, now_s + WATCH_S)
            if not found:
                found = zmq_poll([(self._socket, _POLLIN if sent else _POLLIN | _POLLOUT)], int(left_ms))
            if found and sent:
                self._receive(self._socket, time.monotonic())
            else:
                self.turn(time.monotonic())

    def close(self) -> None:
        """Say BYE if a session stands. Blocks for at most `LINGER_MS` when the context is ended."""
        self._apply(self.session.goodbye())
        self.flush()
        self._drop_socket(LINGER_MS)

    def abandon(self) -> None:
        """In a forked child: the socket is the parent's, and must not be touched."""
        self._socket = None

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._outbox.append(effect.frame)
            elif isinstance(effect, Reopen):
                self._reopen()
            else:
                self.outcomes.append(effect)

    def _reopen(self) -> None:
        self._drop_socket(0)
        self._socket = open_socket(self._context, self.link)
        fd = self._socket.getsockopt(zmq.FD)
        assert isinstance(fd, int)
        self._fd = fd
        self._opened(fd)

    def _drop_socket(self, linger_ms: int) -> None:
        self._outbox.clear()
        self.connected = False
        if self._socket is not None:
            self._closing(self._fd)
            self._socket.close(linger=linger_ms)
            self._socket = None
            self._fd = -1

    def flush(self) -> bool:
        """Send what waits to be sent. False if something is left: no connection stands."""
        while self._outbox and self._socket is not None:
            try:
                self._socket.send(self._outbox[0], zmq.NOBLOCK)
            except zmq.Again:
                return False
            self._outbox.popleft()
            self.connected = True
        return not self._outbox


def _greenlets_are_about() -> bool:
    return not isinstance(getattr(select, "poll", None), types.BuiltinFunctionType)
