"""A broker, workers and a client as processes, for tests of whole workers; the fixtures are in conftest.py."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from tests.ports import free_port
from tests.waiting import wait_until
from zq.client.job import Job
from zq.client.sync import Client
from zq.config import load
from zq.protocol.messages import JobDetail

HERE = Path(__file__).parent
DEADLINE_S = 30.0
PYTHONPATH = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])


class System:
    """A broker, workers and a client over one configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = f"test-{uuid.uuid4().hex[:12]}"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.address = f"tcp://127.0.0.1:{free_port()}"
        (folder / "zq.toml").write_text(
            f"""
            data_dir = "var"
            [broker]
            bind = "{self.address}"
            heartbeat_s = 0.2
            session_timeout_s = 10
            [client]
            broker = "{self.address}"
            [worker]
            kill_grace_s = 0.2
            sample_s = 0.1
            drain_s = 0.3
            [queues.q]
            slots = 2
            tasks = ["system_tasks"]
            """,
            "utf-8",
        )
        self.config = load(folder / "zq.toml", {})
        self.client = Client(self.config)

    def start(self, module: str, *arguments: str, **environ: str) -> subprocess.Popen[bytes]:
        env = {**os.environ, "ZQ_CONFIG": str(self.folder / "zq.toml"), "PYTHONPATH": PYTHONPATH, **environ}
        with (self.folder / f"{module}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments], env=env, cwd=self.folder, stderr=log, stdout=log
            )
        self.processes.append(process)
        return process

    def broker(self) -> subprocess.Popen[bytes]:
        return self.start("zq.broker")

    def worker(self, **environ: str) -> subprocess.Popen[bytes]:
        return self.start("zq.workers", "--queue", "q", "--name", self.host, **environ)

    def submit(self, task: str, *args: Any, **options: Any) -> Job[Any]:
        return self.client.submit(task, args, queue="q", **{"backoff_s": 0.0, **options})

    def detail(self, job: Job[Any]) -> JobDetail:
        return self.client.detail(job.id)

    def log(self) -> str:
        return (self.folder / "zq.workers.log").read_text("utf-8")

    def started(self, attempt: int = 1) -> None:
        wait_until((self.folder / f"started-{attempt}").exists)

    def left_pids(self) -> list[int]:
        """The processes that `leave_a_child` has started."""
        file = self.folder / "pids"
        wait_until(lambda: file.exists() and len(file.read_text().split()) == 2)
        return [int(pid) for pid in file.read_text().split()]

    def go(self) -> None:
        (self.folder / "go").touch()

    def close(self) -> None:
        self.client.close()
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
