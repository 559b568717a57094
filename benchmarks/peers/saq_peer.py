"""SAQ on Redis."""
# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator"

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from saq import Queue

from benchmarks import evidence
from benchmarks.peers import Peer, url

_GATHERED = 100


async def noop(context: dict[str, Any], *, number: int) -> int:
    return evidence.record(number)


def settings() -> dict[str, Any]:
    return {
        "queue": Queue.from_url(url()),
        "functions": [("noop", noop)],
        "concurrency": 10,
        "timers": {"schedule": 1, "worker_info": 10, "sweep": 60, "abort": 1},
    }


class SaqPeer(Peer):
    setting = "a process a slot, 10 coroutines each (its default), acknowledged after the run"
    drain_jobs = 8000
    bulk = f"{_GATHERED} enqueues gathered"

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._queue = Queue.from_url(url())
        self._runner.run(self._queue.connect())

    def submit_each(self, numbers: Iterable[int]) -> None:
        async def submit() -> None:
            for number in numbers:
                await self._queue.enqueue("noop", number=number, ttl=-1)

        self._runner.run(submit())

    def submit_all(self, numbers: Sequence[int]) -> None:
        async def submit() -> None:
            for start in range(0, len(numbers), _GATHERED):
                part = numbers[start : start + _GATHERED]
                await asyncio.gather(*(self._queue.enqueue("noop", number=number, ttl=-1) for number in part))

        self._runner.run(submit())

    def submit_each_later(self, numbers: Iterable[int], delay_s: float) -> None:
        async def submit() -> None:
            for number in numbers:
                await self._queue.enqueue("noop", number=number, ttl=-1, scheduled=time.time() + delay_s)

        self._runner.run(submit())

    def call_each(self, numbers: Iterable[int]) -> None:
        async def call() -> None:
            for number in numbers:
                result = await self._queue.apply("noop", timeout=10, poll_interval=0.001, number=number)
                if result != number:
                    raise RuntimeError(f"job {number} returned {result!r}")

        self._runner.run(call())

    def commands(self, slots: int) -> list[list[str]]:
        return [[sys.executable, "-m", "saq", f"{__name__}.settings", "--workers", str(slots), "--quiet"]]

    def close(self) -> None:
        self._runner.run(self._queue.disconnect())
        self._runner.close()


PEER = SaqPeer
