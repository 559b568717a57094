"""What is measured of zq alone: many clients, an idle broker, a long history."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from benchmarks.footprint import resting
from benchmarks.peers.zq_jobs import QUEUE
from benchmarks.servers import Zq
from zq.broker.journal import Step
from zq.broker.lmdb_journal import LmdbJournal
from zq.broker.records import AttemptRow, new_row
from zq.client.sync import Client
from zq.config import Config, load
from zq.protocol.job import JobSpec, Outcome, State, digest, encode_spec, new_job_id

CLIENTS: Final = 8
_START_AFTER_S: Final = 0.3
"""All clients are connected by then and begin together."""


def submit_together(server: Zq, kind: str, clients: int, seconds: float) -> float:
    """Confirmed jobs per second of so many client processes at once. Raises if the broker counts other jobs."""
    with Client(load(server.url, {})) as client:
        before = sum(queue.accepted for queue in client.queues())
        command = [sys.executable, "-m", "benchmarks.submitter", server.url, kind, str(seconds)]
        processes = [
            subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(clients)
        ]
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("a client could not connect")
        start_s = time.monotonic() + _START_AFTER_S
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{start_s}\n")
            process.stdin.flush()
        counts = [int(process.communicate()[0]) for process in processes]
        accepted = sum(queue.accepted for queue in client.queues()) - before
    if accepted != sum(counts):
        raise RuntimeError(f"{sum(counts)} jobs were confirmed and the broker has {accepted}")
    return accepted / seconds


def many_clients(folder: Path, seconds: float) -> dict[str, float]:
    server = Zq(folder)
    try:
        return {
            "pipelined_1_per_s": submit_together(server, "pipelined", 1, seconds),
            "pipelined_8_per_s": submit_together(server, "pipelined", CLIENTS, seconds),
            "confirmed_8_per_s": submit_together(server, "one", CLIENTS, seconds),
        }
    finally:
        server.end()


def idle_broker(folder: Path, seconds: float) -> dict[str, float]:
    server = Zq(folder)
    try:
        rest = resting([server.process.pid], settle_s=2.0, during_s=seconds)
        return {f"idle_broker_{name}": value for name, value in rest.items()}
    finally:
        server.end()


def history(folder: Path, count: int) -> dict[str, float]:
    """`count` finished jobs are kept: how soon the broker is there, and how soon it shows a page of them.

    They are written by the broker's own journal while no broker runs; running a million jobs would take minutes.
    """
    server = Zq(folder)
    server.end()
    config = load(server.url, {})
    _write_history(config, count)
    try:
        start_s = time.monotonic()
        server.start()
        started_s = time.monotonic() - start_s
        with Client(config, timeout_s=60) as client:
            client.broker()
            times_s = []
            for _ in range(20):
                start_s = time.monotonic()
                page = client.jobs(QUEUE, State.DONE, limit=100)
                times_s.append(time.monotonic() - start_s)
                if len(page.jobs) != min(100, count):
                    raise RuntimeError(f"a page of {len(page.jobs)} jobs where there are {count}")
        return {"history_jobs": count, "history_start_s": started_s, "history_page_ms": max(times_s) * 1000}
    finally:
        server.end()


def _write_history(config: Config, count: int) -> None:
    journal = LmdbJournal(config.data_path / "journal", map_size_bytes=config.broker.map_size_gib << 30)
    now_ms = time.time_ns() // 1_000_000
    try:
        for first in range(0, count, 5000):
            steps = []
            for number in range(first, min(first + 5000, count)):
                spec = JobSpec(id=new_job_id(), task="noop", queue=QUEUE, arguments=b"\x92\x91\x01\x80")
                encoded = encode_spec(spec)
                row = new_row(spec, len(encoded), digest(encoded), number + 1, now_ms)
                done = replace(row, state=State.DONE, attempt=1, worker="bench", started_ms=now_ms, ended_ms=now_ms)
                attempt = AttemptRow(1, number + 1, "bench", now_ms, now_ms, Outcome.DONE)
                steps.append(Step(None, done, encoded, (attempt,)))
            journal.commit(steps, now_ms)
    finally:
        journal.close()
