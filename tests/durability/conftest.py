from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.broker.process import Connect, connecting


@pytest.fixture
def connect() -> Iterator[Connect]:
    with connecting() as new:
        yield new


@pytest.fixture(scope="session")
def strace() -> str:
    """The path of strace. Without ptrace these tests cannot be done, and that must not go unnoticed."""
    path = shutil.which("strace")
    reason = "strace is not installed (apt install strace)"
    if path is not None:
        tried = subprocess.run([path, "-qq", "-o", "/dev/null", "true"], check=False, capture_output=True, text=True)
        if tried.returncode == 0:
            return path
        reason = f"ptrace is forbidden here: {tried.stderr.strip()}"
    pytest.skip(f"NOT TESTED: what a crash leaves of the journal. {reason}")
