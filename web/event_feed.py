"""The broker's events for all streams of this process: one reader, a ring of the newest, nothing kept for anybody.

A stream asks for what comes after its own number. As long as that is in the ring it costs the broker nothing; who is
further behind, or came back after a while, is answered from the broker's journal. So a slow stream holds nothing up
and nothing is stored for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from zq.client.aio import AsyncClient
from zq.client.verbs import NEWEST
from zq.exceptions import Refused, Unavailable
from zq.protocol import limits
from zq.protocol.messages import EventInfo

log = logging.getLogger("zq.web")

RING_EVENTS: Final = 4096
POLL_S: Final = 10.0
"""How long the broker keeps an unanswered question of the reader."""
AGAIN_S: Final = 0.5
"""Between questions while the broker is away."""
GATHER_S: Final = 0.05
"""Between answers under load: every one of them wakes all the streams."""


@dataclass(frozen=True)
class News:
    """What came after a number. `last` is where to go on; `gap`: what came before these has been forgotten."""

    events: Sequence[EventInfo]
    last: int
    gap: bool = False


class Ring:
    """The newest events, without a hole: all those after `floor` up to `last`. Pure."""

    def __init__(self, last: int, size: int) -> None:
        self.floor = self.last = last
        self._size = size
        self._events: deque[EventInfo] = deque()

    def add(self, news: News) -> None:
        if news.gap:
            self._events.clear()
            self.floor = news.last if not news.events else news.events[0].number - 1
        self._events.extend(news.events)
        self.last = news.last
        while len(self._events) > self._size:
            self.floor = self._events.popleft().number

    def after(self, number: int) -> News | None:
        """What came after `number`, maybe nothing; None if the ring does not reach back that far, or not so far on."""
        if not self.floor <= number <= self.last:
            return None
        found: list[EventInfo] = []
        for event in reversed(self._events):
            if event.number <= number:
                break
            found.append(event)
        return News(found[::-1], self.last)


class EventFeed:
    """Reads while anybody listens. Belongs to one event loop."""

    def __init__(self, client: Callable[[], AsyncClient]) -> None:
        self._client = client
        self._ring: Ring | None = None
        self._changed = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self.listeners = 0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        self.listeners += 1
        try:
            if self._reader is None:
                self._reader = asyncio.create_task(self._read(), name="events")
            yield
        finally:
            self.listeners -= 1
            if not self.listeners:
                self.close()

    async def newest(self) -> int:
        """The number of the newest event. Raises Unavailable, Refused."""
        if self._ring is not None:
            return self._ring.last
        return (await self._client().events(NEWEST, limit=1)).last

    async def after(self, number: int, queue: str = "", job_id: bytes = b"") -> News:
        """The next events after `number`, as soon as there is any sign of some: maybe none of this queue or job, then
        with a larger `last`. Waits as long as the broker is away."""
        while True:
            changed = self._changed
            if self._ring is not None:
                news = self._ring.after(number)
                try:
                    news = news or await self._from_broker(number, queue, job_id)
                except (Unavailable, Refused):
                    await asyncio.sleep(AGAIN_S)
                    continue
                if news.last != number or news.gap:
                    fitting = [e for e in news.events if queue in ("", e.queue) and job_id in (b"", e.job_id)]
                    return News(fitting, news.last, news.gap)
            await changed.wait()

    def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
        self._reader = self._ring = None

    async def _from_broker(self, number: int, queue: str, job_id: bytes) -> News:
        found = await self._client().events(number, queue=queue, job_id=job_id or None, limit=limits.PAGE_ROWS_MAX)
        return News(found.events, found.last, found.gap)

    async def _read(self) -> None:
        trouble = False
        while True:
            try:
                await self._read_on()
            except (Unavailable, Refused) as error:
                if not trouble:
                    log.warning("streams wait for the broker: %s", error)
                trouble = True
                await asyncio.sleep(AGAIN_S)
            except Exception:
                # A reader that dies would leave every stream silent for ever.
                log.exception("events could not be read")
                await asyncio.sleep(AGAIN_S)
            else:
                trouble = False

    async def _read_on(self) -> None:
        if self._ring is None:
            self._ring = Ring((await self._client().events(NEWEST, limit=1)).last, RING_EVENTS)
        else:
            found = await self._client().events(self._ring.last, wait_s=POLL_S, limit=limits.PAGE_ROWS_MAX)
            if found.last == self._ring.last and not found.gap:
                return
            self._ring.add(News(found.events, found.last, found.gap))
        self._changed.set()
        self._changed = asyncio.Event()
        await asyncio.sleep(GATHER_S)
