"""What the routes stand on, opened with the server and closed with it: broker client, exam store, heartbeats, files."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar, cast

from starlette.requests import Request

from zq.client.aio import AsyncClient
from zq.config import Config
from zq.exams.errors import ExamError
from zq.exams.heartbeats import HeartbeatBuffer
from zq.exams.late_store import LatePresence, LateStore
from zq.exams.recording_place import open_recordings
from zq.protocol.messages import Role
from zq.web.auth import Gate
from zq.web.event_feed import EventFeed
from zq.web.idempotency import AnswerBook, AnswerKeeper
from zq.web.tokens import TokenBook, tokens_folder

if TYPE_CHECKING:
    from zq.exams.store import ExamStore

log = logging.getLogger("zq.web")

T = TypeVar("T")

FLUSH_S = 0.5
"""Between writes of heartbeats: what a crash may lose."""
THREADS = 16
"""For the database (four connections) and for files. Each has a stack. On a disk that takes long to sync, many uploads
wait for it at once, and logins must not wait behind them."""


class Services:
    """Made before the loop runs; usable inside `running()`."""

    def __init__(self, config: Config, token: str) -> None:
        self.config = config
        self.gate = Gate(token, TokenBook(tokens_folder(config)))
        self.late_store = LateStore(config)
        self.store = cast("ExamStore", self.late_store)
        self.presence = LatePresence(self.late_store)
        self.heartbeats = HeartbeatBuffer(self.presence)
        self.storage = open_recordings(config)
        window_ms = round(config.web.idempotency_s * 1000)
        self._answer_book = AnswerBook(config.data_path / "http.db", window_ms)
        self.answers = AnswerKeeper(self._answer_book)
        self.uploads = 0
        """Segments that are being taken in just now."""
        self.stopping = asyncio.Event()
        """Set when the server was told to stop: no new waiting. Requests under way still end."""
        self.events = EventFeed(lambda: self.client)
        self._client: AsyncClient | None = None

    @property
    def client(self) -> AsyncClient:
        assert self._client is not None, "used outside running()"
        return self._client

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Everything is open inside; at the end the last heartbeats are written."""
        threads = ThreadPoolExecutor(THREADS, thread_name_prefix="zq-web")
        asyncio.get_running_loop().set_default_executor(threads)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.late_store.close)
            stack.callback(self._answer_book.close)
            self._client = await stack.enter_async_context(AsyncClient(self.config, role=_role(self.config)))
            stack.callback(self.events.close)
            closing = asyncio.Event()
            flusher = asyncio.create_task(self._flush_until(closing), name="heartbeats")
            try:
                yield
            finally:
                self.stopping.set()
                closing.set()
                await flusher
                self._client = None

    async def _flush_until(self, closing: asyncio.Event) -> None:
        """Not until `stopping`: requests that are under way then still bring heartbeats."""
        while not closing.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(closing.wait(), FLUSH_S)
            await self._flush()

    async def _flush(self) -> None:
        try:
            recorded = await asyncio.to_thread(self.heartbeats.flush, now_ms())
        except ExamError as error:
            # The buffer keeps them; the next flush tries again.
            log.warning("heartbeats cannot be written now: %s", error.detail, extra={"waiting": len(self.heartbeats)})
            return
        except Exception:
            log.exception("heartbeats could not be written")
            return
        if recorded is not None and recorded.unknown:
            log.info("heartbeats of students who are not on their exam's list", extra={"count": len(recorded.unknown)})

    async def until_gone(self, request: Request, work: Awaitable[T]) -> T | None:
        """The result of `work`, or None once the client has hung up or the server stops. The work is then cancelled.

        The request's body must have been read, or be none.
        """
        working = asyncio.ensure_future(work)
        ends = [asyncio.ensure_future(_hung_up(request)), asyncio.ensure_future(self.stopping.wait())]
        try:
            await asyncio.wait([working, *ends], return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            for task in (working, *ends):
                task.cancel()
            await asyncio.gather(working, *ends, return_exceptions=True)


def _role(config: Config) -> Role | None:
    """Without keys the broker trusts whoever reaches it; pausing queues and dropping jobs is asked as an administrator.
    With a key it is the key's role, and what that may not do is refused (403)."""
    return None if config.client.key or config.broker.curve else Role.ADMIN


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def now_ms() -> int:
    return time.time_ns() // 1_000_000
