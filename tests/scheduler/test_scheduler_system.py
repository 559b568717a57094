"""Real schedulers and a real broker: one job per tick, whatever is started twice, killed and restarted."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ports import free_port
from zq.client.sync import Client
from zq.config import load
from zq.exceptions import Unavailable
from zq.protocol.job import State
from zq.scheduler.service import schedules_of
from zq.scheduler.ticks import Tick

EVERY_MS = 100


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    port = free_port()
    (tmp_path / "zq.toml").write_text(
        f'[broker]\nbind = "tcp://127.0.0.1:{port}"\n[client]\nbroker = "tcp://127.0.0.1:{port}"\n'
        # Nobody works on it, and nothing expires: what was submitted can be counted.
        f'[schedules.often]\ntask = "t"\nqueue = "ticks"\nevery_s = {EVERY_MS / 1000}\nexpires_s = 600\n',
        "utf-8",
    )
    return tmp_path


class Program:
    def __init__(self, folder: Path, module: str) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith("ZQ_")}
        self._log = open(folder / f"{module}.log", "ab")  # noqa: SIM115 (closed in stop)
        self._process = subprocess.Popen([sys.executable, "-m", module], cwd=folder, env=env, stderr=self._log)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(timeout=20)
        self._log.close()
        return code


@contextlib.contextmanager
def started(folder: Path, module: str) -> Iterator[Program]:
    program = Program(folder, module)
    try:
        yield program
    finally:
        program.stop()


def accepted(client: Client) -> int:
    try:
        return sum(queue.accepted for queue in client.queues() if queue.name == "ticks")
    except Unavailable:
        return 0


def wait_accepted(client: Client, count: int) -> None:
    until_s = time.monotonic() + 40
    while accepted(client) < count:
        assert time.monotonic() < until_s
        time.sleep(0.02)


def test_two_schedulers_and_restarts_of_everything_make_one_job_a_tick(folder: Path) -> None:
    config = load(folder / "zq.toml", {})
    (schedule,) = [schedule for schedule in schedules_of(config) if schedule.name == "often"]
    first_ms = time.time_ns() // 1_000_000
    with (
        Client(config) as client,
        started(folder, "zq.scheduler"),
        started(folder, "zq.scheduler") as other,
        started(folder, "zq.broker") as broker,
    ):
        wait_accepted(client, 8)
        other.kill()
        with started(folder, "zq.scheduler"):
            wait_accepted(client, accepted(client) + 8)
            broker.kill()
            with started(folder, "zq.broker"):
                wait_accepted(client, accepted(client) + 8)
                jobs = [job.id for job in client.jobs("ticks", State.READY, limit=1000).jobs]
    last_ms = time.time_ns() // 1_000_000
    nominals = range(first_ms - first_ms % EVERY_MS, last_ms + EVERY_MS, EVERY_MS)
    assert len(jobs) >= 24
    assert len(set(jobs)) == len(jobs)
    assert set(jobs) <= {Tick(schedule, nominal_ms).job_id for nominal_ms in nominals}
