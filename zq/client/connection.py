"""One socket and its session: does what the session says, without ever blocking. Both clients are built on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, cast

import zmq

from zq.client.link import LINGER_MS, ClientContext, ClientSocket, Link, new_session, open_socket
from zq.client.session import Answered, Effect, GivenUp, Question, Reopen, Send

FRAMES_PER_TURN: Final = 1000
"""After so many frames without an outcome the caller gets a word in between."""
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
        """As `ClientSession.ask`, and it is sent if it can be."""
        request, effects = self.session.ask(question, now_s, deadline_s, patience_s)
        self._apply(effects)
        self._flush()
        return request

    def turn(self, now_s: float) -> bool:
        """Do what can be done now, up to the next outcome. True if more may remain: call again before waiting."""
        self._apply(self.session.tick(now_s))
        for _ in range(FRAMES_PER_TURN):
            self._flush()
            if self.outcomes:
                return True
            sock = self._socket  # an answer may have led to another one
            if sock is None:
                return False
            events = cast(int, sock.getsockopt(zmq.EVENTS))
            if events & _POLLIN:
                try:
                    frame = sock.recv(zmq.NOBLOCK)
                except zmq.Again:
                    continue  # the connection it came by is gone
                self._apply(self.session.receive(frame, now_s))
            elif not (self._outbox and events & _POLLOUT):
                return False
        return True

    def close(self) -> None:
        """Say BYE if a session stands. Blocks for at most `LINGER_MS` when the context is ended."""
        self._apply(self.session.goodbye())
        self._flush()
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

    def _flush(self) -> None:
        while self._outbox and self._socket is not None:
            try:
                self._socket.send(self._outbox[0], zmq.NOBLOCK)
            except zmq.Again:
                return  # not connected yet
            self._outbox.popleft()
            self.connected = True
