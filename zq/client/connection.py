"""One socket and its session: does what the session says, without ever blocking. Both clients are built on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import zmq

from zq.client.link import LINGER_MS, ClientContext, ClientSocket, Link, new_session, open_socket
from zq.client.session import Answered, Effect, GivenUp, Question, Reopen, Send

FRAMES_PER_TURN: Final = 1000
"""After so many frames the caller gets a word in between."""


def _nothing(fd: int) -> None:
    pass


class Connection:
    """Not safe for two threads at once; may move between threads that hand it over under a lock.

    After anything that may have brought I/O, call `turn`, then take what is in `outcomes`. Wait for `fd` to be
    readable, or for `session.next_wake_s()`. The descriptor is edge-triggered (zmq_getsockopt(3), ZMQ_FD): wait only
    after `turn` has returned False.
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
        """As `ClientSession.ask`; call `turn` afterwards."""
        request, effects = self.session.ask(question, now_s, deadline_s, patience_s)
        self._apply(effects)
        return request

    def turn(self, now_s: float) -> bool:
        """Do all that can be done now. True if more remains: call again before waiting."""
        self._apply(self.session.tick(now_s))
        frames = 0
        while self._socket is not None and frames < FRAMES_PER_TURN:
            self._flush(self._socket)
            frames += self._drain(self._socket, now_s, FRAMES_PER_TURN - frames)
            sock: ClientSocket | None = self._socket  # an answer may have led to another socket
            if sock is None:
                break
            events = sock.getsockopt(zmq.EVENTS)
            assert isinstance(events, int)
            if not (events & zmq.POLLIN or (self._outbox and events & zmq.POLLOUT)):
                return False
        return self._socket is not None

    def close(self) -> None:
        """Say BYE if a session stands. Blocks for at most `LINGER_MS` when the context is ended."""
        self._apply(self.session.goodbye())
        if self._socket is not None:
            self._flush(self._socket)
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

    def _flush(self, sock: ClientSocket) -> None:
        while self._outbox:
            try:
                sock.send(self._outbox[0], zmq.NOBLOCK)
            except zmq.Again:
                return  # not connected yet
            self._outbox.popleft()
            self.connected = True

    def _drain(self, sock: ClientSocket, now_s: float, frames_max: int) -> int:
        """Read what has come; the number of frames."""
        for count in range(frames_max):
            try:
                frame = sock.recv(zmq.NOBLOCK)
            except zmq.Again:
                return count
            self._apply(self.session.receive(frame, now_s))
            if sock is not self._socket:
                return count + 1
        return frames_max
