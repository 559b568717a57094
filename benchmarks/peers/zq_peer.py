"""zq as one of the systems under measurement. `BENCH_URL` is the path of its zq.toml."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence

import zq
from benchmarks import evidence
from benchmarks.peers import Peer, url
from benchmarks.peers.zq_jobs import QUEUE, requests
from zq.config import load
from zq.protocol.messages import ReceiptStatus

_SETTLED_S = 5.0
app = zq.App(url())


@app.task(queue=QUEUE, name="noop")
def noop(number: int) -> int:
    return evidence.record(number)


class ZqPeer(Peer):
    setting = "fsync before every receipt and dispatch, acknowledged after the run, slots are processes"
    drain_jobs = 40_000
    bulk_jobs = 60_000
    bulk = "submit_many, of a generator"

    def __init__(self) -> None:
        self._client = zq.Client(load(url()))

    def submit_each(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._client.submit("noop", (number,), queue=QUEUE)

    def submit_all(self, numbers: Sequence[int]) -> None:
        receipts = self._client.submit_many(requests(numbers))
        # A client that waits too long sends again, and is told that the job is there already: that is a yes, too.
        yes = (ReceiptStatus.ACCEPTED, ReceiptStatus.DUPLICATE)
        refused = [receipt for receipt in receipts if receipt.status not in yes]
        if refused:
            raise RuntimeError(f"{len(refused)} of {len(receipts)} jobs were not accepted: {refused[0]}")

    def submit_each_later(self, numbers: Iterable[int], delay_s: float) -> None:
        for number in numbers:
            self._client.submit("noop", (number,), queue=QUEUE, countdown=delay_s)

    def call_each(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            result = self._client.submit("noop", (number,), queue=QUEUE).result(timeout_s=10)
            if result != number:
                raise RuntimeError(f"job {number} returned {result!r}")

    def commands(self, slots: int) -> list[list[str]]:
        worker = [sys.executable, "-m", "zq.workers", "--queue", QUEUE, "--slots", str(slots), "--tasks", __name__]
        return [[*worker, "--name", f"bench-{os.getpid()}", "--config", url()]]

    def settled(self, count: int) -> None:
        until_s = time.monotonic() + _SETTLED_S
        while True:
            [queue] = [queue for queue in self._client.queues() if queue.name == QUEUE]
            if (queue.done, queue.accepted) == (count, count):
                return
            if time.monotonic() > until_s:
                raise RuntimeError(f"{count} jobs were submitted and the broker says {queue}")
            time.sleep(0.05)

    def close(self) -> None:
        self._client.close()


PEER = ZqPeer
