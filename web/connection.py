"""One HTTP connection with the deadlines that uvicorn does not have.

uvicorn waits for ever for the rest of a header, for the rest of a body that nobody reads any more, and for a client
that does not take its answer; and it counts connections only when their header is complete. Each of these ends here.
The deadline of a body that is being read belongs to its reader (`zq.web.bodies.chunks`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from zq.web.problems import CONTENT_TYPE, Problem

READ_BYTES = 64 << 10
"""Taken from a connection at once. asyncio's quarter of a megabyte, for each of thousands of uploads, would be
gigabytes, and a heartbeat would wait until all of it has been read."""
LINGER_S = 2.0
"""How long what is left of a refused body is taken and thrown away, so that the client can read the refusal: closing
at once would reset the connection under it."""


@dataclass(frozen=True, slots=True)
class Bounds:
    header_timeout_s: float
    """From the first byte of a request (or the connection) to the end of its header."""
    write_timeout_s: float
    """How long a client may leave the answer's bytes untaken."""
    max_connections: int


def protocol_with(bounds: Bounds) -> type[HttpToolsProtocol]:
    """The class for uvicorn's `http`, which makes one of it for each connection."""
    return type("Protocol", (BoundedProtocol,), {"bounds": bounds, "idle": {}})


class BoundedProtocol(HttpToolsProtocol):
    bounds: ClassVar[Bounds]
    idle: ClassVar[dict[BoundedProtocol, None]]
    """Connections that wait for their next request, the longest idle first."""
    _deadline: asyncio.TimerHandle | None = None
    _write_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.max_size = READ_BYTES  # type: ignore[attr-defined]
        if len(self.connections) > self.bounds.max_connections and not self._make_room():
            full = f"{self.bounds.max_connections} connections are open, the bound set for this server; try again"
            self._refuse(Problem(503, "busy", full, retry_after_s=1))
            return
        self._arm(self.bounds.header_timeout_s, self._header_too_slow)

    def _make_room(self) -> bool:
        """Who comes now is worth more than who may come back: its client opens a new connection then."""
        if not self.idle:
            return False
        longest = next(iter(self.idle))
        del self.idle[longest]
        longest._close()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.idle.pop(self, None)
        self._disarm()
        self._disarm_write()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self.idle.pop(self, None)
        super().on_message_begin()
        self._arm(self.bounds.header_timeout_s, self._header_too_slow)

    def on_headers_complete(self) -> None:
        self._disarm()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        unread = self.cycle.response_complete and self.cycle.more_body
        super().on_response_complete()
        if unread:
            self._arm(LINGER_S, self._close)
        elif self.cycle.response_complete and not self.transport.is_closing():
            self.idle[self] = None

    def on_message_complete(self) -> None:
        answered = self.cycle.response_complete
        super().on_message_complete()
        if answered:
            # The rest of an unread body has come after all. Its bytes have stopped uvicorn's keep-alive clock.
            self._arm(self.timeout_keep_alive, self._close)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._disarm_write()
        self._write_deadline = self.loop.call_later(self.bounds.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._disarm_write()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._disarm()
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self._close()
            return
        self._refuse(Problem(400, "malformed", "this is not an HTTP/1.1 request"))

    def _header_too_slow(self) -> None:
        self._deadline = None
        if self.cycle is not None and not self.cycle.response_complete:
            # The slow header is that of a request sent behind one whose answer is under way.
            self._arm(self.bounds.header_timeout_s, self._header_too_slow)
            return
        limit_s = self.bounds.header_timeout_s
        self._refuse(Problem(408, "too-slow", f"the request's header did not arrive within {limit_s:g} s"))

    def _refuse(self, problem: Problem) -> None:
        body = problem.body()
        head = STATUS_LINE[problem.status] + b"content-type: " + CONTENT_TYPE.encode() + b"\r\n"
        for name, value in problem.headers.items():
            head += f"{name.lower()}: {value}\r\n".encode()
        self.transport.write(head + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body)
        self._close()

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def _arm(self, timeout_s: float, expired: Callable[[], Any]) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(timeout_s, expired)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _disarm_write(self) -> None:
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None
