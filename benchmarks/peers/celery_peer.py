"""Celery on Redis."""
# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator"

from __future__ import annotations

import sys
from collections.abc import Iterable

from celery import Celery

from benchmarks import evidence
from benchmarks.peers import Peer, url

app = Celery("bench", broker=url(), backend=url())
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_store_errors_even_if_ignored=False,
    worker_prefetch_multiplier=64,
    worker_send_task_events=False,
    broker_transport_options={"visibility_timeout": 3600},
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)


@app.task(name="noop", ignore_result=True)
def noop(number: int) -> None:
    evidence.record(number)


@app.task(name="call")
def call(number: int) -> int:
    return evidence.record(number)


class CeleryPeer(Peer):
    setting = "prefork, acks late, prefetch 64 a process, no gossip, mingle or events, results only where asked for"
    drain_jobs = 4000

    def submit_each(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            noop.apply_async((number,))

    def submit_each_later(self, numbers: Iterable[int], delay_s: float) -> None:
        for number in numbers:
            noop.apply_async((number,), countdown=delay_s)

    def call_each(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            result = call.apply_async((number,)).get(timeout=10)
            if result != number:
                raise RuntimeError(f"job {number} returned {result!r}")

    def commands(self, slots: int) -> list[list[str]]:
        worker = [sys.executable, "-m", "celery", "-A", __name__, "worker", "-P", "prefork", "-c", str(slots)]
        return [[*worker, "--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "error"]]

    def close(self) -> None:
        app.close()


PEER = CeleryPeer
