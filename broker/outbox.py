"""What goes out to peers. A peer that reads more slowly than it is answered has its answers kept for a while, in order
and within bounds; one that reads nothing is given up.

libzmq keeps a number of messages for each peer, however large they are, and tells only that one more does not fit. Many
small answers at once are nothing unusual: thousands of jobs may end in one round, and one client wait for all of them.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from dataclasses import dataclass, field

import zmq

LATE_BYTES_MAX = 8 << 20
"""Kept for one peer beside what libzmq keeps."""
LATE_TOTAL_BYTES_MAX = 64 << 20
"""Kept for all of them."""
PATIENCE_S = 5.0
"""A peer that has taken nothing for so long reads nothing."""
_SEND_MORE = zmq.DONTWAIT | zmq.SNDMORE


@dataclass
class _Late:
    moved_s: float
    """When the peer last took something."""
    frames: deque[bytes] = field(default_factory=deque)
    size_bytes: int = 0


class Outbox:
    def __init__(self, router: zmq.Socket[bytes]) -> None:
        self._router = router
        self._late: dict[bytes, _Late] = {}
        self._size_bytes = 0

    def __bool__(self) -> bool:
        """Whether something waits that `retry` may get rid of."""
        return bool(self._late)

    def send(self, peer: bytes, frame: bytes) -> bool:
        """Send it, or keep it until the peer takes it. False: the peer is gone or reads nothing, and what was kept for
        it is dropped."""
        late = self._late.get(peer)
        if late is None:
            sent = self._try(peer, frame)
            if sent is not None:
                return sent
            late = self._late[peer] = _Late(time.monotonic())
        late.frames.append(frame)
        late.size_bytes += len(frame)
        self._size_bytes += len(frame)
        if late.size_bytes > LATE_BYTES_MAX or self._size_bytes > LATE_TOTAL_BYTES_MAX:
            self._forget(peer)
            return False
        return True

    def retry(self) -> list[bytes]:
        """Send what is taken by now. Returns the peers that are gone or read nothing."""
        now_s = time.monotonic()
        return [peer for peer in list(self._late) if not self._retry(peer, self._late[peer], now_s)]

    def _retry(self, peer: bytes, late: _Late, now_s: float) -> bool:
        while late.frames:
            sent = self._try(peer, late.frames[0])
            if sent is None and now_s - late.moved_s < PATIENCE_S:
                return True
            if not sent:
                self._forget(peer)
                return False
            size_bytes = len(late.frames.popleft())
            late.size_bytes -= size_bytes
            self._size_bytes -= size_bytes
            late.moved_s = now_s
        self._forget(peer)
        return True

    def _forget(self, peer: bytes) -> None:
        self._size_bytes -= self._late.pop(peer).size_bytes

    def _try(self, peer: bytes, frame: bytes) -> bool | None:
        """None: the peer takes nothing now. False: it is gone."""
        try:
            self._router.send(peer, _SEND_MORE)
            self._router.send(frame, zmq.DONTWAIT)
        except zmq.ZMQError as error:
            if error.errno == errno.EAGAIN:
                return None
            if error.errno == zmq.EHOSTUNREACH:
                return False
            raise
        return True
