"""The client with CURVE keys: a stranger gets nothing, and a key that is authorized late is not locked out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from tests.conftest import LiveBroker
from tests.waiting import wait_until
from zq import AsyncClient, Client
from zq.config import BrokerSection, ClientSection, ConfigError
from zq.exceptions import Refused, Unavailable
from zq.keys import keys_folder, new_key


@pytest.fixture
def curve_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveBroker]:
    broker = LiveBroker(tmp_path)
    section = msgspec.structs.replace(broker.config.broker, curve=True)
    broker.config = msgspec.structs.replace(broker.config, broker=section)
    (tmp_path / "zq.toml").write_text("[broker]\ncurve = true\n")
    broker.start(wait=False)
    yield broker
    broker.end()


def test_keys_decide(curve_broker: LiveBroker) -> None:
    folder = keys_folder(curve_broker.config)
    wait_until((folder / "local.key").exists)
    with Client(curve_broker.config) as local:
        local.submit("m.f", queue="q")

    plain = msgspec.structs.replace(curve_broker.config, broker=BrokerSection())
    with Client(plain, timeout_s=0.5) as stranger, pytest.raises(Unavailable, match=r"client\.key"):
        stranger.queues()

    monitor = new_key(folder, "watcher", "monitor")
    with Client(plain, key=monitor) as watcher:
        assert watcher.queues()[0].accepted == 1
        with pytest.raises(Refused):
            watcher.submit("m.f", queue="q")
        assert watcher.queues()[0].accepted == 1

    async def ask() -> int:
        section = ClientSection(broker=curve_broker.address, key=str(monitor))
        async with AsyncClient(msgspec.structs.replace(plain, client=section)) as client:
            return (await client.queues())[0].accepted

    assert asyncio.run(ask()) == 1


def test_a_key_that_is_authorized_late_gets_in(curve_broker: LiveBroker) -> None:
    """A refused CURVE handshake is never tried again by libzmq: the client opens another socket."""
    folder = keys_folder(curve_broker.config)
    wait_until((folder / "local.key").exists)
    key = new_key(folder, "late", "submitter")
    authorized = folder / "authorized" / "late.toml"
    kept = authorized.rename(folder / "late.kept")
    with Client(curve_broker.config) as local:
        local.queues()
    with Client(curve_broker.config, key=key, timeout_s=30) as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.submit, "m.f", queue="q")
        wait_refused(curve_broker)
        assert not asked.done()
        kept.rename(authorized)
        asked.result(20)


def wait_refused(broker: LiveBroker) -> None:
    """Until the broker has turned the client away at least once: half a second after its HELLO could have come."""
    deadline_s = time.monotonic() + 0.5
    with Client(broker.config) as local:
        while time.monotonic() < deadline_s:
            local.broker()


def test_a_key_file_that_cannot_be_used_is_said_at_once(live_broker: LiveBroker, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="zq keys new"):
        Client(live_broker.config, key=tmp_path / "none.key")
