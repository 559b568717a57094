"""`make demo` as a whole, and what an interrupt leaves: nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, for the sake of a socket's path."""
    with tempfile.TemporaryDirectory(prefix="d", dir="/tmp") as name:
        yield Path(name)


def demo(folder: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    argv = [sys.executable, "-m", "demo"]
    return subprocess.Popen(
        argv, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.long
def test_the_demo_succeeds_and_leaves_the_videos_only(folder: Path) -> None:
    with demo(folder) as process:
        out, _ = process.communicate(timeout=110)
    assert process.returncode == 0, out
    assert "all as it must be" in out
    assert {path.suffix for path in (folder / "var" / "demo").iterdir()} == {".webm", ".mp4"}
    assert [path.name for path in folder.iterdir()] == ["var"]


@pytest.mark.long
@pytest.mark.parametrize("said", ["broker           starting", "uploads", "falls silent"])
def test_an_interrupted_demo_stops_what_it_has_started(folder: Path, said: str) -> None:
    with demo(folder) as process:
        assert process.stdout is not None
        assert any(said in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=90)
    assert process.returncode == 130
    assert "no process of it is left" in out
    assert not list(folder.glob("zq-demo-*"))
