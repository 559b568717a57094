"""Millions of waiting jobs: what they weigh, and whether submits, dispatches and a restart are slower for them."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks import evidence
from benchmarks.footprint import resting
from benchmarks.peers import URL_VARIABLE
from benchmarks.peers.zq_jobs import QUEUE, requests
from benchmarks.processes import Started, wait_until
from benchmarks.servers import Zq
from zq.client.sync import Client
from zq.config import load

_PART: Final = 20_000
_PARTS: Final = 5
"""A submit rate is the median of so many parts."""
_DISPATCH_S: Final = 3.0


def measure(folder: Path, count: int, slots: int) -> dict[str, float]:
    """Fills a queue up to `count` waiting jobs; each rate is taken when it is (almost) empty and when it is full."""
    server = Zq(folder)
    part = max(1, min(_PART, count // (2 * _PARTS)))
    try:
        with Client(load(server.url, {}), timeout_s=60) as client:
            stock = _Stock(server, client, folder, slots)
            found = {
                "backlog_submit_empty_per_s": stock.submit_per_s(part),
                "backlog_dispatch_empty_per_s": stock.dispatch_per_s("empty"),
            }
            stock.fill(count - _PARTS * part)
            found["backlog_submit_full_per_s"] = stock.submit_per_s(part)
            weight = resting([server.process.pid], settle_s=1.0, during_s=1.0)
            found["backlog_jobs"] = stock.waiting()
            found["backlog_dispatch_full_per_s"] = stock.dispatch_per_s("full")
        down_s = time.monotonic()
        server.end()
        server.start()
        back_s = time.monotonic() - down_s
        journal = sum(file.stat().st_size for file in (folder / "var" / "journal").iterdir())
        after = resting([server.process.pid], settle_s=0.5, during_s=0.5)
        return found | {
            "backlog_submit_change_percent": _change(found, "submit"),
            "backlog_dispatch_change_percent": _change(found, "dispatch"),
            "backlog_rss_mib": weight["rss_mib"],
            "backlog_own_mib": weight["own_mib"],
            "backlog_restart_s": back_s,
            "backlog_restarted_own_mib": after["own_mib"],
            "backlog_journal_mib": journal / 2**20,
        }
    finally:
        server.end()


def _change(found: dict[str, float], what: str) -> float:
    return (found[f"backlog_{what}_full_per_s"] / found[f"backlog_{what}_empty_per_s"] - 1) * 100


class _Stock:
    """The jobs of one queue, with the numbers that were given out so far."""

    def __init__(self, server: Zq, client: Client, folder: Path, slots: int) -> None:
        self._server = server
        self._client = client
        self._folder = folder
        self._slots = slots
        self._submitted = 0
        self._ran = 0

    def waiting(self) -> int:
        return sum(queue.ready for queue in self._client.queues())

    def fill(self, count: int) -> None:
        """Until so many wait."""
        missing = count - self.waiting()
        while missing > 0:
            self._submit(min(missing, _PART))
            missing -= _PART

    def submit_per_s(self, part: int) -> float:
        rates = []
        for _ in range(_PARTS):
            start_s = time.monotonic()
            self._submit(part)
            rates.append(part / (time.monotonic() - start_s))
        return median(rates)

    def _submit(self, count: int) -> None:
        first, self._submitted = self._submitted, self._submitted + count
        self._client.submit_many(requests(range(first, self._submitted)))

    def dispatch_per_s(self, name: str) -> float:
        """What a worker runs that takes from this queue for a while. Raises unless the broker counts the same."""
        seen = self._folder / f"evidence-{name}"
        seen.mkdir()
        root = str(Path(__file__).resolve().parent.parent)
        env = os.environ | {URL_VARIABLE: self._server.url, evidence.FOLDER_VARIABLE: str(seen), "PYTHONPATH": root}
        command = [sys.executable, "-m", "zq.workers", "--queue", QUEUE, "--slots", str(self._slots)]
        command += ["--tasks", "benchmarks.peers.zq_peer", "--name", "bench", "--config", self._server.url]
        worker = Started(command, self._folder / f"worker-{name}.log", env=env)
        try:
            wait_until(lambda: evidence.count(seen) > 0, 60, "the first job of the backlog")
            time.sleep(_DISPATCH_S)
            worker.check()
        finally:
            worker.end(within_s=30.0)
        ran = evidence.read(seen)
        self._ran += len(ran)
        done = sum(queue.done for queue in self._client.queues())
        if done != self._ran or len({item.number for item in ran}) != len(ran):
            raise RuntimeError(f"{self._ran} jobs have run and the broker says {done}")
        return evidence.rate_per_s(ran)
