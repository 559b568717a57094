"""`zq worker --reload`: a whole worker, and files that change."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.waiting import wait_until
from tests.workers.worker_system import System
from zq.protocol.job import Outcome, State
from zq.workers.reload import changed, snapshot

TASKS = """
import time
from pathlib import Path
import zq
app = zq.App()

@app.task(queue="q")
def version() -> int:
    return {number}

@app.task(queue="q")
def slow(folder: str) -> int:
    Path(folder, "slow").touch()
    while not Path(folder, "go").exists():
        time.sleep(0.01)
    return {number}
"""


def write(system: System, number: int) -> None:
    (system.folder / "my_tasks.py").write_text(TASKS.format(number=number))


def test_a_change_starts_the_worker_again_and_loses_nothing(system: System) -> None:
    write(system, 1)
    system.broker()
    options = ("--queue", "q", "--tasks", "my_tasks", "--name", system.host, "--reload")
    reloader = system.start("zq.workers", *options, ZQ_WORKER_DRAIN_S="0.2", PYTHONPATH=str(system.folder))
    assert system.submit("my_tasks.version").result(timeout_s=30) == 1
    slow = system.submit("my_tasks.slow", str(system.folder), max_retries=0)
    wait_until((system.folder / "slow").exists)

    write(system, 2)
    wait_until(lambda: "changed: my_tasks.py; the worker is started again" in system.log())
    assert system.submit("my_tasks.version").result(timeout_s=30) == 2
    (system.folder / "go").touch()
    assert slow.result(timeout_s=30) == 2
    assert [attempt.outcome for attempt in system.detail(slow).attempts] == [Outcome.HANDED_BACK, Outcome.DONE]

    (system.folder / "my_tasks.py").write_text("this is no Python")
    wait_until(lambda: "it starts again when a file changes" in system.log())
    waits = system.submit("my_tasks.version")
    assert waits.state() is State.READY
    write(system, 3)
    assert waits.result(timeout_s=30) == 3

    reloader.send_signal(signal.SIGTERM)
    assert reloader.wait(30) == 0


def test_the_worker_does_not_outlive_its_reloader(system: System) -> None:
    write(system, 1)
    system.broker()
    options = ("--queue", "q", "--tasks", "my_tasks", "--name", system.host, "--reload")
    reloader = system.start("zq.workers", *options, PYTHONPATH=str(system.folder))
    system.submit("my_tasks.version").result(timeout_s=30)
    reloader.kill()
    reloader.wait()
    wait_until(lambda: not system.client.workers())


def test_what_is_watched(tmp_path: Path) -> None:
    for name in ("a.py", "sub/b.py", "zq.toml", "c.txt", ".git/d.py", "venv/pyvenv.cfg", "venv/e.py", "var/f.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    os.symlink(tmp_path, tmp_path / "sub" / "loop")
    before = snapshot([tmp_path], without=tmp_path / "var")
    assert sorted(os.path.relpath(path, tmp_path) for path in before) == ["a.py", "sub/b.py", "zq.toml"]
    (tmp_path / "a.py").unlink()
    (tmp_path / "n.py").touch()
    (tmp_path / "sub/b.py").write_text("x")
    after = snapshot([tmp_path], without=tmp_path / "var")
    names = [os.path.relpath(path, tmp_path) for path in changed(before, after)]
    assert names == ["a.py", "n.py", "sub/b.py"]
    assert changed(after, after) == []
