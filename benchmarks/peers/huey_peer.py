"""Huey on Redis."""
# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator"

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from huey import RedisHuey

from benchmarks import evidence
from benchmarks.peers import Peer, url

huey = RedisHuey("bench", url=url(), results=True, store_none=False, utc=True)


@huey.task(name="noop")
def noop(number: int) -> None:
    evidence.record(number)


@huey.task(name="call")
def call(number: int) -> int:
    return evidence.record(number)


class HueyPeer(Peer):
    setting = "process workers, blocking pop; a job is gone from Redis before it runs (a killed worker loses it)"
    drain_jobs = 12000

    def submit_each(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            noop(number)

    def submit_each_later(self, numbers: Iterable[int], delay_s: float) -> None:
        for number in numbers:
            noop.schedule((number,), delay=delay_s)

    def call_each(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            result = call(number).get(blocking=True, timeout=10, backoff=1.0, max_delay=0.001)
            if result != number:
                raise RuntimeError(f"job {number} returned {result!r}")

    def commands(self, slots: int) -> list[list[str]]:
        program = Path(sys.executable).with_name("huey_consumer")
        return [[str(program), f"{__name__}.huey", "-w", str(slots), "-k", "process", "-q", "-s", "1"]]


PEER = HueyPeer
