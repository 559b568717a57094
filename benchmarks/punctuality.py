"""`python -m benchmarks.punctuality`: how late ticks reach the broker, by its own clock, and how late their jobs start.

A real broker and one scheduler (or several) on this machine, with a schedule of one tick every 100 ms beside others.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import click

from benchmarks import servers
from benchmarks.figures import percentile
from benchmarks.processes import Started
from zq.client.sync import Client
from zq.config import load
from zq.protocol.job import State
from zq.scheduler.service import schedules_of
from zq.scheduler.ticks import Tick

EVERY_MS = 100
_SCHEDULES = f"""
[schedules.measured]
task = "t"
queue = "ticks"
every_s = {EVERY_MS / 1000}
expires_s = 3600
[schedules.beside]
task = "t"
queue = "beside"
every_s = 0.25
"""


@click.command()
@click.option("--seconds", type=click.IntRange(1, 3600), default=60, show_default=True)
@click.option("--schedulers", type=click.IntRange(1, 16), default=1, show_default=True)
def main(seconds: int, schedulers: int) -> None:
    """Leave the machine alone meanwhile."""
    folder = servers.work_folder()
    try:
        late_ms, ticks = measure(folder, seconds, schedulers)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    click.echo(
        f"{len(late_ms)} of {ticks} ticks; lateness p50 {percentile(late_ms, 50):.0f} ms, "
        f"p99 {percentile(late_ms, 99):.0f} ms, max {max(late_ms):.0f} ms"
    )


def measure(folder: Path, seconds: int, schedulers: int) -> tuple[list[float], int]:
    """Lateness of each tick in ms, and how many ticks there were to be."""
    server = servers.Zq(folder / "zq")
    started: list[Started] = []
    try:
        with server.config_file.open("a") as file:
            file.write(_SCHEDULES)
        env = {name: value for name, value in os.environ.items() if not name.startswith("ZQ_")}
        for number in range(schedulers):
            command = [sys.executable, "-m", "zq.scheduler", "--config", server.url]
            started.append(Started(command, folder / f"scheduler-{number}.log", env=env))
        config = load(server.url, {})
        (schedule,) = [one for one in schedules_of(config) if one.name == "measured"]
        with Client(config) as client:
            while not client.jobs("ticks", State.READY, limit=1).jobs:
                time.sleep(0.05)
            first_ms = time.time_ns() // 1_000_000 // EVERY_MS * EVERY_MS + EVERY_MS
            time.sleep(seconds)
            nominals = range(first_ms, first_ms + seconds * 1000 - 1000, EVERY_MS)
            details = client.details([Tick(schedule, nominal).job_id for nominal in nominals])
        late_ms = [
            float(detail.job.accepted_ms - nominal)
            for nominal, detail in zip(nominals, details, strict=True)
            if detail is not None
        ]
        for process in started:
            process.check()
        return late_ms, len(nominals)
    finally:
        for process in started:
            process.end()
        server.end()


if __name__ == "__main__":
    main()
