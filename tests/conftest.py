"""Fixtures for every test: a real broker process on a port of its own; real servers in tests/servers/."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ports import free_port
from zq.client.sync import Client
from zq.config import BrokerSection, ClientSection, Config

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell makes its background jobs deaf to Ctrl-C, and their children inherit it; some tests press it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


pytest_plugins = ["tests.servers.fixtures"]


class LiveBroker:
    """`python -m zq.broker` on its own data folder and loopback port; may be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.folder = folder
        self.config = Config(
            data_dir=str(folder / "var"),
            broker=BrokerSection(bind=self.address),
            client=ClientSection(broker=self.address),
        )
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.folder / "broker.log").read_text()

    def start(self, wait: bool = True) -> None:
        """With `wait`, returns when it answers."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("ZQ_")}
        env |= {"ZQ_DATA_DIR": self.config.data_dir, "ZQ_BROKER_BIND": self.address, "ZQ_BROKER_BALLAST_MIB": "1"}
        with open(self.folder / "broker.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "zq.broker"], env=env, stdout=log, stderr=log, cwd=self.folder
            )
        if wait:
            with Client(self.config, timeout_s=20) as client:
                client.broker()

    def end(self, signum: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(signum)
            try:
                self.process.wait(10)
            finally:
                self.process.kill()
                self.process.wait()
                self.process = None


@pytest.fixture
def live_broker(tmp_path: Path) -> Iterator[LiveBroker]:
    """A running broker, ended with the test."""
    folder = tmp_path / "live-broker"
    folder.mkdir()
    broker = LiveBroker(folder)
    broker.start()
    yield broker
    broker.end(signal.SIGKILL)
