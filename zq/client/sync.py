"""The client for ordinary code: threads, fork, gevent, Ctrl-C.

There is no thread behind it. A call borrows a connection, waits for its answer (under gevent in a way that lets other
greenlets run meanwhile) and puts it back. A child made by fork finds that the pid has changed and opens connections of
its own; the parent's are left alone.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterable
from dataclasses import replace
from types import TracebackType
from typing import Final, TypeVar

from zq import config as configuration
from zq.client import answers
from zq.client.blocking import IN_FLIGHT_MAX, BlockingCalls
from zq.client.connection import Connection
from zq.client.link import ClientContext, Link, make_link
from zq.client.session import Answered, GivenUp, Question
from zq.config import Config
from zq.exceptions import Invalid, Unavailable
from zq.protocol import limits, messages
from zq.protocol.messages import BrokerMessage, Role

T = TypeVar("T")

CONNECTIONS_MAX: Final = 64
"""Calls of one client that can be under way at once, from different threads or greenlets."""


class _Pool:
    """The connections of one process."""

    def __init__(self, link: Link) -> None:
        self.pid = os.getpid()
        self._link = link
        self._context: ClientContext | None = None
        self._free: list[Connection] = []
        self._all: list[Connection] = []
        self._lock = threading.RLock()  # a signal's handler may submit, too
        self._changed = threading.Condition(self._lock)
        self._waiting = 0
        """Calls that wait for a connection."""
        self._closed = False

    def borrow(self, limit_s: float) -> Connection:
        """To be given back. Raises Invalid when closed, Unavailable when none is free within `limit_s`."""
        with self._lock:
            if self._free and not self._closed:
                return self._free.pop()  # the last one used: it has been heard of most recently
            return self._another(time.monotonic() + limit_s)

    def give_back(self, connection: Connection) -> None:
        with self._lock:
            self._free.append(connection)
            if self._closed:
                self._end()
            if self._waiting:
                self._changed.notify()

    def _another(self, deadline_s: float) -> Connection:
        while True:
            if self._closed:
                raise Invalid("this client is closed; make another one")
            if self._free:
                return self._free.pop()
            if len(self._all) < CONNECTIONS_MAX:
                number = len(self._all)
                name = self._link.instance if number == 0 else f"{self._link.instance}-{number}"
                link = replace(self._link, instance=name[: limits.NAME_CHARS_MAX])
                self._context = self._context or ClientContext(io_threads=1)
                connection = Connection(link, self._context)
                self._all.append(connection)
                return connection
            self._waiting += 1
            try:
                left_s = deadline_s - time.monotonic()
                freed = left_s > 0 and self._changed.wait(left_s)
            finally:
                self._waiting -= 1
            if not freed:
                raise Unavailable(
                    f"all {CONNECTIONS_MAX} connections of this client are waiting for answers; nothing was sent."
                    " Fewer threads, or zq.AsyncClient, which needs one connection for any number of questions"
                )

    def close(self) -> None:
        """Idempotent. Connections that are in use are closed when their calls end."""
        if os.getpid() != self.pid:
            for connection in self._all:
                connection.abandon()
            return
        with self._changed:
            self._closed = True
            self._end()
            self._changed.notify_all()

    def _end(self) -> None:
        for connection in self._free:
            connection.close()
            self._all.remove(connection)
        self._free.clear()
        if not self._all and self._context is not None:
            self._context.term()
            self._context = None


class Client(BlockingCalls):
    """A connection to the broker for submitting jobs and asking about them.

    Opens nothing before the first call. Every call returns within `timeout_s` (default: `client.timeout_s`) or raises
    Unavailable: whether the broker did it is then unknown, and asking again with the same ids is safe. Safe to share
    between threads and greenlets, and to use after fork. Close it, or use it in a `with`.

    Raises ConfigError if no `config` is given and the file is wrong, Invalid for a wrong address, role or name.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        broker: str | None = None,
        key: str | os.PathLike[str] | None = None,
        timeout_s: float | None = None,
        role: Role | str | None = None,
        instance: str | None = None,
    ) -> None:
        super().__init__(config if config is not None else configuration.load(), timeout_s)
        self._link = make_link(self.config, broker, key, role, instance)
        self._pools: dict[int, _Pool] = {}
        self._closed = False
        self._finalizer = weakref.finalize(self, _close_all, self._pools)

    @property
    def address(self) -> str:
        return self._link.address

    def close(self) -> None:
        """Idempotent. Takes at most half a second."""
        self._closed = True
        self._finalizer()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<zq.Client {self._link.address}>"

    def _pool(self) -> _Pool:
        if self._closed:
            raise Invalid("this client is closed; make another one")
        pid = os.getpid()
        pool = self._pools.get(pid)
        if pool is None:
            for stale in list(self._pools.values()):
                stale.close()
            pool = self._pools.setdefault(pid, _Pool(self._link))
        return pool

    def _exchange_one(self, question: Question, limit_s: float) -> BrokerMessage | GivenUp:
        patience_s = min(self.timeout_s, limit_s)
        pool = self._pool()
        connection = pool.borrow(limit_s)
        try:
            now_s = time.monotonic()
            request = connection.ask(question, now_s, now_s + limit_s, patience_s)
            try:
                while True:
                    connection.wait()
                    while connection.outcomes:
                        outcome = connection.outcomes.popleft()
                        if outcome.request == request:
                            return _told(connection, question, outcome, patience_s)
            finally:
                connection.session.forget(request)  # if it was broken off
        finally:
            pool.give_back(connection)

    def _exchange(self, questions: Iterable[Question], limit_s: float) -> list[BrokerMessage | GivenUp]:
        pool = self._pool()
        connection = pool.borrow(limit_s)
        exchange = _Exchange(connection, limit_s, min(self.timeout_s, limit_s))
        try:
            return exchange.run(questions)
        finally:
            exchange.forget()
            pool.give_back(connection)


class _Exchange:
    """Many questions on one connection, until all have their answers."""

    def __init__(self, connection: Connection, limit_s: float, patience_s: float) -> None:
        self._connection = connection
        self._limit_s = limit_s
        self._patience_s = patience_s
        self._open: dict[int, tuple[int, Question]] = {}
        """Request → which of the questions it is, and that question."""
        self._found: dict[int, BrokerMessage | GivenUp] = {}

    def run(self, questions: Iterable[Question]) -> list[BrokerMessage | GivenUp]:
        """The next question is made while those before it are on their way."""
        asked = 0
        for question in questions:
            while len(self._open) >= IN_FLIGHT_MAX:
                self._wait()
            now_s = time.monotonic()
            request = self._connection.ask(question, now_s, now_s + self._limit_s, self._patience_s)
            self._open[request] = (asked, question)
            asked += 1
            self._connection.flush()
        while self._open:
            self._wait()
        return [self._found[index] for index in range(asked)]

    def forget(self) -> None:
        """After an error or Ctrl-C the connection is clean for its next user."""
        for request in self._open:
            self._connection.session.forget(request)

    def _wait(self) -> None:
        self._connection.wait()
        while self._connection.outcomes:
            outcome = self._connection.outcomes.popleft()
            index, question = self._open.pop(outcome.request, (-1, None))
            if question is not None:  # else of a call that was broken off
                self._found[index] = _told(self._connection, question, outcome, self._patience_s)


def _told(
    connection: Connection, question: Question, outcome: Answered | GivenUp, patience_s: float
) -> BrokerMessage | GivenUp:
    """The answer, or GivenUp for a WAIT whose job has not ended. Raises Unavailable."""
    if isinstance(outcome, Answered):
        return outcome.answer
    if outcome.in_contact and isinstance(question, messages.Wait):
        return outcome
    link = connection.link
    raise answers.unavailable(link.address, patience_s, connected=connection.connected, with_key=bool(link.public_key))


def _close_all(pools: dict[int, _Pool]) -> None:
    for pool in list(pools.values()):
        pool.close()
