"""The job systems under measurement, zq among them, behind one small interface.

A driver process (see `benchmarks.driver`) makes one Peer and asks it for work. Numbers come out of iterables whose
turns the driver times, so a peer's own loop, synchronous or asyncio, runs without anything between two jobs.
"""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, Final, NamedTuple

URL_VARIABLE: Final = "BENCH_URL"
"""Where client and workers of the system under test find its server."""


class Peer(ABC):
    """One job system, in its best honest configuration, with `evidence.record` as its task."""

    setting: ClassVar[str]
    """How it was configured, in a line for the report."""
    drain_jobs: ClassVar[int]
    """The most that one slot is given to drain."""
    bulk_jobs: ClassVar[int] = 4000
    bulk: ClassVar[str] = ""
    """Its way to submit many jobs at once; empty if it has none."""
    results: ClassVar[bool] = True
    """Whether a client can get a task's result."""

    @abstractmethod
    def submit_each(self, numbers: Iterable[int]) -> None:
        """One job a number, the next one when the one before is confirmed by the server."""

    def submit_all(self, numbers: Sequence[int]) -> None:
        """All of them by the fastest way there is; returns when all are confirmed."""
        self.submit_each(numbers)

    @abstractmethod
    def submit_each_later(self, numbers: Iterable[int], delay_s: float) -> None:
        """As `submit_each`; each job is due `delay_s` after its submit."""

    def call_each(self, numbers: Iterable[int]) -> None:
        """Submit a job and wait for its result, one after the other. Raises if a result is not the number."""
        raise NotImplementedError

    @abstractmethod
    def commands(self, slots: int) -> list[list[str]]:
        """Processes of a worker with so many slots: processes that run tasks at the same time."""

    def due_commands(self) -> list[list[str]]:
        """Further processes without which nothing delayed ever runs."""
        return []

    def settled(self, count: int) -> None:  # noqa: B027 - most systems do not count
        """Raises unless the server, too, says that `count` jobs are done; for systems that can say it."""

    def close(self) -> None:  # noqa: B027 - some have nothing to close
        """End the client."""


def url() -> str:
    return os.environ[URL_VARIABLE]


def make(name: str) -> Peer:
    peer: type[Peer] = importlib.import_module(f"benchmarks.peers.{name}_peer").PEER
    return peer()


class Contestant(NamedTuple):
    """A system with a server of one kind behind it."""

    peer: str
    title: str
    server: str
    """zq, redis, redis-always, postgresql."""

    @property
    def name(self) -> str:
        return f"{self.peer}-always" if self.server == "redis-always" else self.peer

    @property
    def durable(self) -> bool:
        """Whether what it confirms is on disk."""
        return self.server != "redis"


_REDIS: Final = (
    ("celery", "Celery"), ("dramatiq", "Dramatiq"), ("rq", "RQ"), ("huey", "Huey"), ("saq", "SAQ"),
    ("taskiq", "taskiq"),
)  # fmt: skip
CONTESTANTS: Final = (
    Contestant("zq", "zq", "zq"),
    *(Contestant(peer, f"{title} + Redis", "redis") for peer, title in _REDIS),
    *(Contestant(peer, f"{title} + Redis, fsync always", "redis-always") for peer, title in _REDIS),
    Contestant("procrastinate", "procrastinate + PostgreSQL", "postgresql"),
)
