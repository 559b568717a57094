from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.broker.process import Broker, Connect, connecting, running
from zq.broker.journal import Journal
from zq.broker.lmdb_journal import LmdbJournal
from zq.broker.memory_journal import MemoryJournal

Reopen = Callable[[], Journal]


@pytest.fixture(params=["memory", "lmdb"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reopen]:
    """A function that opens the journal; each further call is the next broker on the same content."""
    opened: list[MemoryJournal | LmdbJournal] = []

    def memory() -> Journal:
        if opened and isinstance(opened[0], MemoryJournal):
            opened[0].reopen()
        else:
            opened.append(MemoryJournal())
        return opened[0]

    def lmdb() -> Journal:
        if opened:
            opened[-1].close()
        opened.append(LmdbJournal(tmp_path / "journal", map_size_bytes=1 << 26))
        return opened[-1]

    yield memory if request.param == "memory" else lmdb
    if opened:
        opened[-1].close()


@pytest.fixture
def connect() -> Iterator[Connect]:
    with connecting() as new:
        yield new


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with running(Broker(tmp_path / "var")) as started:
        yield started
