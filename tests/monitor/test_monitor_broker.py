"""`zq-top` against a real broker, with a worker of a few lines that speaks the wire."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import zmq
from click.testing import CliRunner

from tests.ports import free_port
from zq.client.sync import Client
from zq.monitor.__main__ import EXIT_UNAVAILABLE, main
from zq.protocol import codec
from zq.protocol import messages as m
from zq.protocol.job import Outcome, State

T = TypeVar("T")
DEADLINE_S = 20.0


class Broker:
    """A broker process of its own, in its own folder."""

    def __init__(self, folder: Path) -> None:
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.toml = folder / "zq.toml"
        self.toml.write_text(
            f'data_dir = "./var"\n[broker]\nbind = "{self.address}"\n[client]\nbroker = "{self.address}"\n'
        )
        self._log = (folder / "broker.log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "zq.broker", "--config", str(self.toml)], stdout=self._log, stderr=self._log
        )

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(DEADLINE_S)
        self._log.close()


class Worker:
    """Takes jobs and does what the test says with them."""

    def __init__(self, address: str, name: str, queue: str, slots: int) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(address)
        served = [m.QueueSlots(queue, slots)]
        self.send(m.Hello(1, 1, m.Role.WORKER, name, os.urandom(16), served, ["t"], "test"))
        welcome = self.get(m.Welcome)
        self.session = welcome.session
        self.send(m.Resume(self.session, []))
        self.send(m.Credit(self.session, served))

    def send(self, message: m.PeerMessage) -> None:
        self._socket.send(codec.encode(message))

    def get(self, kind: type[T]) -> T:
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:
            if self._socket.poll(100):
                message = codec.decode_from_broker(self._socket.recv())
                if isinstance(message, kind):
                    return message
        raise AssertionError(f"no {kind.__name__} came")

    def take(self, count: int) -> list[m.Lease]:
        leases: list[m.Lease] = []
        while len(leases) < count:
            leases += self.get(m.Dispatch).leases
        return leases

    def close(self) -> None:
        self._socket.close()
        self._context.term()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path)
    yield made
    made.stop()


def once(*options: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["--once", "--interval", "0.2", *options])
    return result.exit_code, result.stdout, result.stderr


def test_once_shows_what_is_there(broker: Broker) -> None:
    with Client(broker=broker.address, timeout_s=DEADLINE_S) as client:
        for student in ("张伟", "李雷", "韩梅梅"):
            client.submit("merge", args=(49,), kwargs={"student": student}, queue="合并", time_limit_s=60,
                          soft_time_limit_s=50)  # fmt: skip
        client.submit("merge", queue="hebing")
        worker = Worker(broker.address, "机房-3", "合并", 2)
        try:
            first, second = worker.take(2)
            worker.send(m.Progress(worker.session, [m.JobProgress(first.job_id, first.token, 1, 4, "合并中")]))
            refused = m.Result(second.job_id, second.attempt, second.token, Outcome.REJECTED, error="E: 片段丢失")
            worker.send(m.Ack(worker.session, [refused]))
            worker.take(1)
            code, text, _ = once("--config", str(broker.toml), "--json")
        finally:
            worker.close()
        data = json.loads(text)
        assert code == 0
        assert data["alarms"] == ["1 job in hebing and no worker serves it"]
        queues = {q["name"]: q for q in data["queues"]}
        assert (queues["合并"]["running"], queues["合并"]["dead"], queues["合并"]["consumers"]) == (2, 1, 1)
        assert queues["hebing"]["unserved"]
        assert [w["name"] for w in data["workers"]] == ["机房-3"]
        jobs = {j["summary"]: j for j in data["jobs"]}
        assert jobs["49 student=张伟"]["progress"] == 0.25
        assert jobs["49 student=张伟"]["message"] == "合并中"
        assert jobs["49 student=韩梅梅"]["limit_s"] == 60
        assert client.jobs("合并", State.DEAD).jobs[0].error == "E: 片段丢失"

    code, text, _ = once("--config", str(broker.toml))
    assert code == 0
    assert "hebing and no worker serves it" in text
    assert "\x1b" not in text
    code, text, _ = once("--broker", broker.address, "--ascii")
    assert code == 0
    assert text.isascii()


def test_without_a_broker_it_says_so_and_leaves_with_69() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    result = CliRunner(env={"ZQ_CLIENT_TIMEOUT_S": "0.3"}).invoke(main, ["--once", "--broker", address])
    assert result.exit_code == EXIT_UNAVAILABLE == 69
    assert result.stdout == ""
    assert address in result.stderr
    assert "is it running" in result.stderr


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--json"], 2, "--json needs --once"),
        ([], 2, "use --once"),
        (["--interval", "0"], 2, "0.2"),
        (["--once", "--config", "/nowhere/zq.toml"], 78, "no such file"),
        (["--once", "--broker", "localhost:5570"], 78, "tcp://HOST:PORT"),
        (["--once", "--key", "/nowhere/key"], 78, "/nowhere/key"),
    ],
)
def test_wrong_options_are_told(options: list[str], code: int, says: str) -> None:
    result = CliRunner().invoke(main, options)
    assert result.exit_code == code
    assert says in result.stderr


def test_once_needs_no_textual() -> None:
    code = "import sys, zq.monitor.__main__; print({n.split('.')[0] for n in sys.modules} & {'textual', 'rich'})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
