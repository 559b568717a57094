"""Dramatiq on Redis."""
# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator"

from __future__ import annotations

import sys
from collections.abc import Iterable

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks import evidence
from benchmarks.peers import Peer, url

broker = RedisBroker(url=url())
broker.add_middleware(Results(backend=RedisBackend(url=url())))
dramatiq.set_broker(broker)


@dramatiq.actor(actor_name="noop")
def noop(number: int) -> None:
    evidence.record(number)


@dramatiq.actor(actor_name="call", store_results=True)
def call(number: int) -> int:
    return evidence.record(number)


class DramatiqPeer(Peer):
    setting = "a process a slot with 8 threads each (its default), acknowledged after the run, prefetch as it comes"
    drain_jobs = 16000

    def submit_each(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            noop.send(number)

    def submit_each_later(self, numbers: Iterable[int], delay_s: float) -> None:
        for number in numbers:
            noop.send_with_options(args=(number,), delay=round(delay_s * 1000))

    def call_each(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            result = call.send(number).get_result(block=True, timeout=10_000)
            if result != number:
                raise RuntimeError(f"job {number} returned {result!r}")

    def commands(self, slots: int) -> list[list[str]]:
        return [[sys.executable, "-m", "dramatiq", __name__, "--processes", str(slots), "--threads", "8"]]

    def close(self) -> None:
        broker.close()


PEER = DramatiqPeer
