"""A connection in an event loop: questions become futures."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from zq.client import answers
from zq.client.connection import Connection
from zq.client.link import ClientContext, Link
from zq.client.session import Answered, GivenUp, Question
from zq.exceptions import Unavailable
from zq.protocol import messages
from zq.protocol.messages import BrokerMessage

Outcome = BrokerMessage | GivenUp
Deliver = Callable[[Outcome | Unavailable], None]
OUTCOMES_PER_TURN: Final = 1000
"""After so many answers the loop's other callbacks get their turn."""


class _Asked(NamedTuple):
    question: Question
    patience_s: float
    deliver: Deliver


class Wire:
    """Lives in one event loop and must be closed in it."""

    def __init__(self, link: Link, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._link = link
        self._context = ClientContext(io_threads=1)
        self._connection = Connection(link, self._context, self._watch, self._unwatch)
        self._asked: dict[int, _Asked] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0
        """When `_timer` comes, in time.monotonic()."""
        self._turn_due: asyncio.Handle | None = None

    def ask(self, question: Question, limit_s: float, patience_s: float) -> asyncio.Future[Outcome]:
        """The answer to come; GivenUp for a WAIT whose job has not ended. Sets Unavailable as its exception.

        Raises what `ClientSession.ask` raises. A cancelled future is forgotten.
        """
        future: asyncio.Future[Outcome] = self.loop.create_future()
        request = self.ask_then(question, limit_s, patience_s, functools.partial(_resolve, future))
        future.add_done_callback(functools.partial(self._forget_if_cancelled, request))
        if self._turn_due is None:  # one turn for all that is asked in this turn of the loop
            self._turn_due = self.loop.call_soon(self.turn)
        return future

    def ask_then(self, question: Question, limit_s: float, patience_s: float, deliver: Deliver) -> int:
        """As `ask`, but `deliver` gets the answer or the exception. Call `turn` afterwards."""
        now_s = time.monotonic()
        request = self._connection.ask(question, now_s, now_s + limit_s, patience_s)
        self._asked[request] = _Asked(question, patience_s, deliver)
        return request

    def turn(self) -> None:
        """Take what has come. Called by the loop, too."""
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
            self._turn_due = self.loop.call_soon(self.turn)
        self._set_timer(now_s)

    def close(self) -> None:
        for handle in (self._timer, self._turn_due):
            if handle is not None:
                handle.cancel()
        self._timer = self._turn_due = None
        self._connection.close()
        self._context.term()
        asked, self._asked = self._asked, {}
        for one in asked.values():
            one.deliver(Unavailable("the client was closed before the broker answered"))

    def _watch(self, fd: int) -> None:
        self.loop.add_reader(fd, self.turn)

    def _unwatch(self, fd: int) -> None:
        self.loop.remove_reader(fd)

    def _forget_if_cancelled(self, request: int, future: asyncio.Future[Outcome]) -> None:
        if future.cancelled():
            self._asked.pop(request, None)
            self._connection.session.forget(request)

    def _settle(self) -> None:
        outcomes = self._connection.outcomes
        while outcomes:
            outcome = outcomes.popleft()
            asked = self._asked.pop(outcome.request, None)
            if asked is None:
                continue
            if isinstance(outcome, Answered):
                asked.deliver(outcome.answer)
            elif outcome.in_contact and isinstance(asked.question, messages.Wait):
                asked.deliver(outcome)
            else:
                asked.deliver(
                    answers.unavailable(
                        self._link.address,
                        asked.patience_s,
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
        self.turn()


def _resolve(future: asyncio.Future[Outcome], outcome: Outcome | Unavailable) -> None:
    if future.done():
        return
    if isinstance(outcome, Unavailable):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
