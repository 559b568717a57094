"""A worker on a second machine: two network namespaces with a wire between them, CURVE keys, and a stranger.

Where namespaces cannot be made (they need root and iproute2) the same is shown over a second loopback address, and the
test says so: that is one machine with two addresses, not two machines.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import zq
from zq.keys import new_key

TASK = """
import os, zq
app = zq.App()

@app.task(queue="far")
def where() -> str:
    return os.readlink("/proc/self/ns/net")

@app.task(queue="far")
def follow() -> str:
    # As a merge submits its clean-up, and the clean-up asks how the merge ended.
    with zq.Client(timeout_s=30) as client:
        job = client.submit("far_task.where", queue="far")
        return client.detail(job.id).job.task
"""
DEADLINE_S = 40


@dataclass
class Site:
    """A machine: how to run a program there, and the address at which the broker's machine is reached."""

    run: list[str] = field(default_factory=list)
    network: str = ""


@dataclass
class Sites:
    broker: Site
    worker: Site
    broker_address: str
    real: bool


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def sites() -> Iterator[Sites]:
    here, there = f"zqa{os.getpid()}", f"zqb{os.getpid()}"
    with ExitStack() as cleanup:
        try:
            for name in (here, there):
                ip("netns", "add", name)
                cleanup.callback(ip, "netns", "del", name)
            ip("-n", here, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", there)
        except (OSError, subprocess.CalledProcessError) as error:
            why = getattr(error, "stderr", b"") or str(error).encode()
            warnings.warn(
                f"no network namespaces here ({why.decode(errors='replace').strip()}): shown over 127.0.0.2 instead",
                pytest.PytestWarning,
                stacklevel=1,
            )
            yield Sites(Site(), Site(), "127.0.0.2", real=False)
            return
        for number, name in enumerate((here, there), 1):
            ip("-n", name, "addr", "add", f"10.118.64.{number}/24", "dev", "wire")
            ip("-n", name, "link", "set", "wire", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield Sites(
            Site(["ip", "netns", "exec", here], here), Site(["ip", "netns", "exec", there], there), "10.118.64.1", True
        )


def environment(folder: Path, **variables: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ZQ_")}
    return {**clean, "ZQ_DATA_DIR": str(folder), **variables}


def start(site: Site, arguments: list[str], env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen([*site.run, sys.executable, "-m", *arguments], env=env, stdout=file, stderr=file)


def on(site: Site, program: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a small Python program on a machine."""
    return subprocess.run(
        [*site.run, sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False,
        timeout=DEADLINE_S,
    )  # fmt: skip


SUBMIT = """
import zq
with zq.Client(timeout_s=30) as client:
    print(client.submit("far_task.where", queue="far").result(timeout_s=30))
"""
FOLLOW = SUBMIT.replace("where", "follow")
ELSEWHERE = """
import zq
with zq.Client(timeout_s=30) as client:
    client.submit("far_task.where", queue="elsewhere")
"""
STRANGER = """
import zq
try:
    with zq.Client(timeout_s=3) as client:
        print("got in:", client.queues())
except zq.Unavailable as error:
    print("nothing:", error)
"""


def test_a_worker_on_a_second_machine_runs_jobs_and_a_strangers_key_gets_nothing(sites: Sites, tmp_path: Path) -> None:
    (tmp_path / "far_task.py").write_text(TASK, encoding="utf-8")
    address = f"tcp://{sites.broker_address}:5570"
    at_broker = environment(
        tmp_path / "one", ZQ_BROKER_BIND=address, ZQ_BROKER_CURVE="true", ZQ_CLIENT_BROKER=address
    )
    key = new_key(tmp_path / "one" / "keys", "machine-b", "worker", ("far",))
    at_worker = environment(tmp_path / "two", ZQ_CLIENT_KEY=str(key), PYTHONPATH=str(tmp_path))
    (tmp_path / "two").mkdir()
    logs = [tmp_path / "broker.log", tmp_path / "worker.log"]
    processes: list[subprocess.Popen[Any]] = []
    try:
        processes.append(start(sites.broker, ["zq.broker"], at_broker, logs[0]))
        far = ["zq.workers", "--queue", "far", "--tasks", "far_task", "--broker", address]
        processes.append(start(sites.worker, far, at_worker, logs[1]))
        answer = on(sites.broker, SUBMIT, at_broker)
        assert "net:[" in answer.stdout, answer.stderr + "".join(log.read_text() for log in logs)
        if sites.real:
            ours = on(sites.broker, "import os; print(os.readlink('/proc/self/ns/net'))", at_broker)
            theirs = on(sites.worker, "import os; print(os.readlink('/proc/self/ns/net'))", at_worker)
            assert answer.stdout == theirs.stdout != ours.stdout

        # A key of somebody else's zq: it knows the broker's address and even its public key.
        strange = new_key(tmp_path / "three" / "keys", "machine-c", "admin")
        server = next(line for line in key.read_text().splitlines() if line.startswith("server"))
        text = strange.read_text().splitlines()
        strange.write_text("\n".join([server if line.startswith("server") else line for line in text]) + "\n")
        stranger = environment(tmp_path / "two", ZQ_CLIENT_KEY=str(strange), ZQ_CLIENT_BROKER=address)
        assert on(sites.worker, STRANGER, stranger).stdout.startswith("nothing:")
        # A worker's key lets its tasks submit to the queues of that key, and to no other.
        follow = on(sites.broker, FOLLOW, at_broker)
        assert follow.stdout.strip() == "far_task.where", follow.stderr
        submit = on(sites.worker, ELSEWHERE, {**at_worker, "ZQ_CLIENT_BROKER": address})
        assert "may not submit to queue 'elsewhere'" in submit.stderr
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_S) == 0, "".join(log.read_text() for log in logs)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    assert zq.__version__
