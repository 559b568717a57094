"""A connection in an event loop: questions become futures."""

from __future__ import annotations

import asyncio
import functools
import time
from typing import Final

from zq.client import answers
from zq.client.connection import Connection
from zq.client.link import ClientContext, Link
from zq.client.session import Answered, GivenUp, Question
from zq.exceptions import Unavailable
from zq.protocol import messages
from zq.protocol.messages import BrokerMessage

Outcome = BrokerMessage | GivenUp
OUTCOMES_PER_TURN: Final = 1000
"""After so many answers the loop's other callbacks get their turn."""


class Wire:
    """Lives in one event loop and must be closed in it."""

    def __init__(self, link: Link, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._link = link
        self._context = ClientContext(io_threads=1)
        self._connection = Connection(link, self._context, self._watch, self._unwatch)
        self._futures: dict[int, tuple[Question, float, asyncio.Future[Outcome]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0
        """When `_timer` comes, in time.monotonic()."""
        self._turn_due: asyncio.Handle | None = None

    def ask(self, question: Question, limit_s: float, patience_s: float) -> asyncio.Future[Outcome]:
        """The answer to come; GivenUp for a WAIT whose job has not ended. Sets Unavailable as its exception.

        Raises what `ClientSession.ask` raises. A cancelled future is forgotten.
        """
        now_s = time.monotonic()
        request = self._connection.ask(question, now_s, now_s + limit_s, patience_s)
        future: asyncio.Future[Outcome] = self.loop.create_future()
        self._futures[request] = (question, patience_s, future)
        future.add_done_callback(functools.partial(self._forget_if_cancelled, request))
        self._turn_soon()
        return future

    def close(self) -> None:
        for handle in (self._timer, self._turn_due):
            if handle is not None:
                handle.cancel()
        self._timer = self._turn_due = None
        self._connection.close()
        self._context.term()
        for _, _, future in self._futures.values():
            if not future.done():
                future.set_exception(Unavailable("the client was closed before the broker answered"))
        self._futures.clear()

    def _watch(self, fd: int) -> None:
        self.loop.add_reader(fd, self._turn)

    def _unwatch(self, fd: int) -> None:
        self.loop.remove_reader(fd)

    def _turn_soon(self) -> None:
        """One turn for all that is asked in this turn of the loop."""
        if self._turn_due is None:
            self._turn_due = self.loop.call_soon(self._turn)

    def _turn(self) -> None:
        if self._turn_due is not None:
            self._turn_due.cancel()
            self._turn_due = None
        now_s = time.monotonic()
        for _ in range(OUTCOMES_PER_TURN):
            more = self._connection.turn(now_s)
            self._settle()
            if not more:
                break
        else:
            self._turn_soon()
        self._set_timer(now_s)

    def _forget_if_cancelled(self, request: int, future: asyncio.Future[Outcome]) -> None:
        if future.cancelled():
            self._futures.pop(request, None)
            self._connection.session.forget(request)

    def _settle(self) -> None:
        outcomes = self._connection.outcomes
        while outcomes:
            outcome = outcomes.popleft()
            question, patience_s, future = self._futures.pop(outcome.request, (None, 0.0, None))
            if future is None or future.done():
                continue
            if isinstance(outcome, Answered):
                future.set_result(outcome.answer)
            elif outcome.in_contact and isinstance(question, messages.Wait):
                future.set_result(outcome)
            else:
                future.set_exception(
                    answers.unavailable(
                        self._link.address,
                        patience_s,
                        connected=self._connection.connected,
                        with_key=bool(self._link.public_key),
                    )
                )

    def _set_timer(self, now_s: float) -> None:
        """A timer that comes too early does no harm; making one anew for every question would cost more."""
        wake_s = self._connection.session.next_wake_s()
        if wake_s is None or (self._timer is not None and self._timer_s <= wake_s):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = wake_s
        self._timer = self.loop.call_later(max(wake_s - now_s, 0.0) + 0.001, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._turn()
