from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("ZQ_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ZQ_CONFIG", "")
    monkeypatch.chdir(tmp_path)
