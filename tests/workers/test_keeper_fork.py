"""The first keeper is a fork of its worker, and must be as apart from it as a program of its own would be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

from tests.waiting import wait_until
from tests.workers.worker_system import System, kill
from zq.workers.sweep import MARKER, parse_marker

TASKS = """
import zq

app = zq.App()

@app.task(queue="q")
def here():
    return 7
"""


def open_files(pid: int) -> set[str]:
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
        except FileNotFoundError:
            continue
    return found


def test_the_first_keeper_has_only_its_memory_in_common_with_the_worker(system: System) -> None:
    system.broker()
    worker = system.worker()
    system.submit("whoami").result(timeout_s=30)
    parent = psutil.Process(worker.pid)
    (keeper,) = parent.children()
    slots = keeper.children()
    assert keeper.cmdline() == parent.cmdline()
    assert [one.name() for one in (keeper, *slots)] == ["zq-keeper", "zq-slot", "zq-slot"]
    for process in (parent, keeper, *slots):
        marker = parse_marker(process.environ()[MARKER])  # what the sweep of a later worker goes by
        assert marker is not None
        assert (marker.instance, marker.owner.pid) == (system.host, worker.pid)
    assert os.getsid(keeper.pid) == keeper.pid != os.getsid(worker.pid)
    shared = open_files(keeper.pid) & open_files(worker.pid)
    assert {Path(name).name for name in shared} <= {"null", "zq.workers.log"}
    assert open_files(keeper.pid) >= {os.devnull}


def test_the_next_keeper_is_a_program_of_its_own(system: System) -> None:
    system.broker()
    worker = system.worker()
    first = system.submit("whoami").result(timeout_s=30)
    (keeper,) = psutil.Process(worker.pid).children()
    keeper.kill()
    wait_until(lambda: not psutil.pid_exists(first))
    assert system.submit("whoami").result(timeout_s=30) != first
    (keeper,) = psutil.Process(worker.pid).children()
    assert "zq.workers.keeper" in keeper.cmdline()


def test_the_name_of_a_killed_worker_is_free_at_once(system: System) -> None:
    system.broker()
    worker = system.worker()
    system.submit("whoami").result(timeout_s=30)
    kill(worker)
    again = system.worker()  # refused, if the keeper held the lock of the name
    system.submit("whoami").result(timeout_s=30)
    assert again.poll() is None


def test_tasks_are_found_in_the_folder_where_the_command_was_given(system: System) -> None:
    """`zq worker` is a script: unlike `python -m` it has not got that folder on its path."""
    (system.folder / "here_tasks.py").write_text(TASKS, "utf-8")
    system.broker()
    env = {**os.environ, "ZQ_CONFIG": str(system.folder / "zq.toml")}
    command = [str(Path(sys.executable).with_name("zq")), "worker", "--queue", "q", "--tasks", "here_tasks"]
    with (system.folder / "zq.workers.log").open("ab") as log:
        process = subprocess.Popen(command, env=env, cwd=system.folder, stdout=log, stderr=log)
    system.processes.append(process)
    assert system.submit("here_tasks.here").result(timeout_s=30) == 7
