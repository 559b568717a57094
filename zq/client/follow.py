"""Reading the broker's events one after the other, for as long as somebody wants to.

The place is a number, so nothing is lost by an error, a restart of the broker or of the reader. What cannot be read any
more is said: a `Gap` stands among the events where some are missing.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple, Protocol

from zq.client.requests import JobIdLike
from zq.client.verbs import NEWEST
from zq.protocol.messages import EventInfo, Events

POLL_S: Final = 20.0
"""How long the broker is asked to wait for a next event. It is asked again for ever."""


class Gap(NamedTuple):
    """Events were forgotten before they were read, or this is another journal (a restored one): look at the whole."""

    after: int
    """The event that was read last."""
    last: int
    """Where the reading goes on."""


class _Asks(Protocol):
    def events(
        self, after: int = 0, queue: str = "", job_id: JobIdLike | None = None, wait_s: float = 0.0, limit: int = 500
    ) -> Events: ...


class _AsksAsync(Protocol):
    async def events(
        self, after: int = 0, queue: str = "", job_id: JobIdLike | None = None, wait_s: float = 0.0, limit: int = 500
    ) -> Events: ...


class _Place:
    """Where a reader is, and what it has fetched and not handed out yet. `after` None: at the newest event."""

    def __init__(self, after: int | None, queue: str, job_id: JobIdLike | None) -> None:
        self._asked_after = after
        self._handed_after = after
        self._queue = queue
        self._job_id = job_id
        self._fetched: deque[EventInfo | Gap] = deque()

    @property
    def last(self) -> int | None:
        """The number of what was handed out last: begin after it to go on in another process. None before the first
        answer of a reader that begins at the newest event."""
        return self._handed_after

    def _next_question(self) -> tuple[int, float]:
        """(after, how long to wait)."""
        return (NEWEST, 0.0) if self._asked_after is None else (self._asked_after, POLL_S)

    def _take(self, answer: Events) -> None:
        if self._asked_after is None:
            self._handed_after = answer.last
        else:
            if answer.gap:
                first = answer.events[0].number - 1 if answer.events else answer.last
                self._fetched.append(Gap(self._asked_after, first))
            self._fetched.extend(answer.events)
            if not self._fetched:
                self._handed_after = answer.last  # others' events, which this reader does not want
        self._asked_after = answer.last

    def _hand_out(self) -> EventInfo | Gap:
        item = self._fetched.popleft()
        self._handed_after = item.last if isinstance(item, Gap) else item.number
        return item


class Follow(_Place):
    """An iterator of events and gaps that never ends. Unavailable and Refused come out of `next`; asked again, it goes
    on where it was. Not for several threads at once."""

    def __init__(self, client: _Asks, after: int | None, queue: str, job_id: JobIdLike | None) -> None:
        super().__init__(after, queue, job_id)
        self._client = client

    def __iter__(self) -> Follow:
        return self

    def __next__(self) -> EventInfo | Gap:
        while not self._fetched:
            after, wait_s = self._next_question()
            self._take(self._client.events(after, self._queue, self._job_id, wait_s))
        return self._hand_out()


class AsyncFollow(_Place):
    """`Follow` for asyncio."""

    def __init__(self, client: _AsksAsync, after: int | None, queue: str, job_id: JobIdLike | None) -> None:
        super().__init__(after, queue, job_id)
        self._client = client

    def __aiter__(self) -> AsyncFollow:
        return self

    async def __anext__(self) -> EventInfo | Gap:
        while not self._fetched:
            after, wait_s = self._next_question()
            self._take(await self._client.events(after, self._queue, self._job_id, wait_s))
        return self._hand_out()
