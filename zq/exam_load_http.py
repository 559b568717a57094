"""One HTTP/1.1 connection for a load generator: little work for each request, and nothing that hides a failure.

For answers of zq's own server: they have a Content-Length, or no body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

HEAD_BYTES_MAX: Final = 64 << 10


class Answer(NamedTuple):
    status: int
    body: bytes


class Cut(ConnectionError):
    """The connection ended before its answer was whole."""


class Connection(asyncio.Protocol):
    """Opens itself anew when the server has closed it between requests. One request at a time."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._seen = bytearray()
        self._can_write = asyncio.Event()

    async def ask(self, head: bytes, body: Sequence[bytes] = (), timeout_s: float = 60.0) -> Answer:
        """`head` is the whole header with its Content-Length. Raises OSError (Cut), TimeoutError.

        A server may close an idle connection just when a request is on its way. As every client does, the request is
        then sent once more, on a new one.
        """
        used = self._transport is not None
        try:
            async with asyncio.timeout(timeout_s):
                try:
                    return await self._ask(head, body)
                except ConnectionError:
                    if not used or self._seen:
                        raise
                self.close()
                return await self._ask(head, body)
        except BaseException:
            self.close()
            raise

    async def _ask(self, head: bytes, body: Sequence[bytes]) -> Answer:
        try:
            if self._transport is None:
                self._can_write.set()
                await asyncio.get_running_loop().create_connection(lambda: self, self._host, self._port)
            self._seen.clear()
            self._answer = asyncio.get_running_loop().create_future()
            for part in (head, *body):
                await self._can_write.wait()
                if self._answer.done() or self._transport is None:
                    break  # refused before all of it was sent
                self._transport.write(part)
            return await self._answer
        finally:
            self._answer = None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._seen += data
        end = self._seen.find(b"\r\n\r\n")
        if end < 0:
            if len(self._seen) > HEAD_BYTES_MAX:
                self._fail(Cut("the answer's header does not end"))
            return
        head = bytes(self._seen[:end]).lower()
        status = int(head[9:12])
        at = head.find(b"\r\ncontent-length:")
        length = int(head[at + 17 : (head + b"\r\n").index(b"\r\n", at + 17)]) if at >= 0 else 0
        if len(self._seen) < end + 4 + length:
            return
        answer = Answer(status, bytes(self._seen[end + 4 :]))
        if b"\r\nconnection: close" in head:
            self.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._fail(Cut(f"the server closed the connection: {error or 'no answer'}"))

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    def _fail(self, error: OSError) -> None:
        self._can_write.set()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
