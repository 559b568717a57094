"""All workers of a real system are restarted under load, by a real supervisord: nothing is lost, nothing runs twice."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

from tests.control.test_control import System, running, wait_for
from zq.client.sync import Client
from zq.protocol.job import Outcome, State

TASKS = """
import time
from pathlib import Path
import zq

app = zq.App()

@app.task(queue="reports")
def note(folder, number):
    time.sleep(0.01)
    with open(Path(folder, "ran"), "a") as file:
        file.write(f"{number}\\n")

@app.task(queue="long")
def slow(folder, number):
    Path(folder, f"slow-{number}").touch()
    until_s = time.monotonic() + 60
    while not Path(folder, "go").exists():
        assert time.monotonic() < until_s
        time.sleep(0.02)
    with open(Path(folder, "ran"), "a") as file:
        file.write(f"slow {number}\\n")
"""


@pytest.mark.long
def test_a_rolling_restart_under_load(tmp_path: Path) -> None:
    (tmp_path / "load.py").write_text(TASKS, "utf-8")
    queues = '[queues.reports]\nslots = 2\ntasks = ["load"]\n[queues.long]\nslots = 2\ntasks = ["load"]\n'
    ids: list[str] = []
    stop = threading.Event()

    def submit_until_stopped() -> None:
        with Client(system.config) as client:
            while not stop.is_set():
                number = len(ids)
                job = client.submit("load.note", (str(tmp_path), number), queue="reports", max_retries=0)
                ids.append(job.id)
                stop.wait(0.005)

    with running(System(tmp_path, queues, drain_s=1.0)) as system, Client(system.config) as client:
        slow = [client.submit("load.slow", (str(tmp_path), n), queue="long", max_retries=0) for n in range(2)]
        wait_for(lambda: len(list(tmp_path.glob("slow-*"))) == 2 or None)
        load = threading.Thread(target=submit_until_stopped)
        load.start()
        try:
            before = system.pids()
            for _ in range(2):
                restarted = system.zq("restart", "workers")
                assert restarted.returncode == 0, restarted.stdout + restarted.stderr
                assert restarted.stderr == ""
            after = system.pids()
        finally:
            stop.set()
            load.join()
        assert {name for name in before if before[name] != after[name]} == {
            "status-worker", "merge-worker", "worker-reports", "worker-long",
        }  # fmt: skip
        (tmp_path / "go").touch()
        for job_id in ids:
            ended = client.wait(job_id, 60)
            assert ended is not None
            assert ended.state is State.DONE, ended
        for job in slow:
            job.result(timeout_s=60)
            outcomes = [attempt.outcome for attempt in client.detail(job.id).attempts]
            assert outcomes == [Outcome.HANDED_BACK, Outcome.HANDED_BACK, Outcome.DONE]
        ran = Counter((tmp_path / "ran").read_text().splitlines())
        assert len(ids) > 50
        assert ran == Counter([*map(str, range(len(ids))), "slow 0", "slow 1"])
        audit = system.zq("audit")
        assert audit.returncode == 0, audit.stdout + audit.stderr


@pytest.mark.long
def test_at_the_end_all_workers_drain_at_once(tmp_path: Path) -> None:
    (tmp_path / "load.py").write_text(TASKS, "utf-8")
    names = ("long", "longer", "longest")
    queues = "".join(f'[queues.{name}]\ntasks = ["load"]\n' for name in names)
    drain_s = 5.0
    with running(System(tmp_path, queues, drain_s=drain_s)) as system, Client(system.config) as client:
        for number, name in enumerate(names):
            client.submit("load.slow", (str(tmp_path), number), queue=name, max_retries=0)
        wait_for(lambda: len(list(tmp_path.glob("slow-*"))) == len(names) or None)
    began = []
    for name in names:
        log = (system.config.data_path / "log" / f"worker-{name}.log").read_text("utf-8")
        assert "handing back 1 running jobs" in log
        told = next(line for line in log.splitlines() if "draining" in line)
        began.append(datetime.fromisoformat(" ".join(told.split()[:2])))
    assert (max(began) - min(began)).total_seconds() < drain_s
