"""RQ on Redis."""
# mypy: disable-error-code="import-not-found, import-untyped, no-any-unimported"

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta

from redis import Redis
from rq import Queue

from benchmarks import evidence
from benchmarks.peers import Peer, url


class RqPeer(Peer):
    setting = "SimpleWorker, a process a slot (its default worker forks for every job and is slower), no results kept"
    drain_jobs = 4000
    bulk_jobs = 8000
    bulk = "enqueue_many"

    def __init__(self) -> None:
        self._queue = Queue("bench", connection=Redis.from_url(url()))

    def submit_each(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._queue.enqueue(evidence.record, number, result_ttl=0)

    def submit_all(self, numbers: Sequence[int]) -> None:
        self._queue.enqueue_many([Queue.prepare_data(evidence.record, (number,), result_ttl=0) for number in numbers])

    def submit_each_later(self, numbers: Iterable[int], delay_s: float) -> None:
        for number in numbers:
            self._queue.enqueue_in(timedelta(seconds=delay_s), evidence.record, number, result_ttl=0)

    def call_each(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            job = self._queue.enqueue(evidence.record, number, result_ttl=60)
            until_s = time.monotonic() + 10
            found = job.latest_result(timeout=10)
            if found is None or found.return_value != number or time.monotonic() > until_s:
                raise RuntimeError(f"job {number} returned {found!r}")

    def commands(self, slots: int) -> list[list[str]]:
        worker = [sys.executable, "-m", "rq.cli", "worker", "bench", "--url", url(), "--with-scheduler", "--quiet"]
        return [[*worker, "--worker-class", "rq.SimpleWorker", "--disable-job-desc-logging"] for _ in range(slots)]


PEER = RqPeer
