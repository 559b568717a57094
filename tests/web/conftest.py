"""The application in this process over a real exam store and a real broker; and the whole server in its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from tests.ports import free_port
from zq import config as configuration
from zq.config import Config
from zq.web import auth
from zq.web.app import create_app
from zq.web.services import Services

T = TypeVar("T")
START_S = 20.0


def write_config(folder: Path, broker_port: int, web: str = "", client: str = "timeout_s = 20") -> Path:
    path = folder / "zq.toml"
    address = f"tcp://127.0.0.1:{broker_port}"
    path.write_text(
        f'data_dir = "./var"\n[broker]\nbind = "{address}"\n[client]\nbroker = "{address}"\n{client}\n[web]\n{web}\n'
    )
    return path


class Process:
    """One of zq's processes, which listens on `port` once it is made."""

    def __init__(self, module: str, config: Path, port: int, log: Path) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("ZQ_")}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, "--config", str(config)], stdout=output, stderr=output, env=environ
            )
        self.port = port
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"{module} did not start: {log.read_text()}")
            time.sleep(0.02)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(START_S)
        finally:
            self.process.kill()


@pytest.fixture(scope="session")
def broker_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("broker")
    port = free_port()
    process = Process("zq.broker", write_config(folder, port), port, folder / "log")
    yield port
    process.stop()


class Api:
    """Calls to an application that runs only while they do. Sends the token unless told otherwise."""

    def __init__(self, config: Config) -> None:
        self.token = auth.ensure_token(config.data_path)
        self.services = Services(config, self.token)
        self._runner = asyncio.Runner()
        self._app = create_app(self.services)
        self._stack = contextlib.AsyncExitStack()
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self._app, raise_app_exceptions=True),
            base_url="http://zq.test",
            headers={"Authorization": f"Bearer {self.token}"},
        )
        self.run(self._stack.enter_async_context(self._app.router.lifespan_context(self._app)))

    def run(self, work: Awaitable[T]) -> T:
        async def waited() -> T:
            return await work

        return self._runner.run(waited())

    async def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        return await self._client.request(method, path, **options)

    def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.run(self.send(method, path, **options))

    def close(self) -> None:
        self.run(self._client.aclose())
        self.run(self._stack.aclose())
        self._runner.close()


def load(path: Path) -> Config:
    return configuration.load(path, environ={})


@pytest.fixture
def api(tmp_path: Path, broker_port: int) -> Iterator[Api]:
    made = Api(load(write_config(tmp_path, broker_port)))
    yield made
    made.close()


@pytest.fixture
def lonely_api(tmp_path: Path) -> Iterator[Api]:
    """Its broker is away."""
    made = Api(load(write_config(tmp_path, free_port(), client="timeout_s = 0.2")))
    yield made
    made.close()


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """The body of a problem, after checking that it is one."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert body["type"].startswith("urn:zq:problem:")
    assert body["title"]
    assert body["detail"]
    return body
