"""A system of a broker and workers, as processes; nothing of it is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workers.worker_system import System


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    made = System(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def running(system: System) -> System:
    system.broker()
    system.worker()
    return system
