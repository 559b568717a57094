"""What systems weigh and use while they have nothing to do."""

from __future__ import annotations

import compileall
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import zq
from benchmarks import servers
from benchmarks.peer_venv import PeerVenv
from benchmarks.peers import URL_VARIABLE
from benchmarks.processes import Started, cpu_percent, free_port, tree, wait_until, weigh

_ZQ_PROGRAMS: Final = {
    "scheduler": ["zq.scheduler"],
    "status-worker": ["zq.workers", "--queue", "status_check"],
    "merge-worker": ["zq.workers", "--queue", "video_merge"],
    "web": ["zq.web"],
}
_PROCESSES: Final = {"scheduler": 1, "status-worker": 3, "merge-worker": 4, "web": 1}
"""A worker is its parent, the keeper that forks, and a process for each slot."""


def resting(roots: Sequence[int], *, settle_s: float, during_s: float) -> dict[str, float]:
    """CPU in percent of one core over `during_s`, then the weight, of process trees."""
    time.sleep(settle_s)
    cpu = cpu_percent(roots, during_s)
    weight = weigh(roots)
    return {
        "cpu_percent": cpu,
        "pss_mib": weight.pss_mib,
        "rss_mib": weight.rss_mib,
        "own_mib": weight.own_mib,
        "processes": weight.processes,
    }


def _processes(started: Sequence[Started]) -> int:
    for process in started:
        process.check()
    return sum(len(tree(process.pid)) for process in started)


def zq_system(folder: Path, during_s: float) -> dict[str, float]:
    """Broker, scheduler, status worker with one slot, merge worker with two, web: what `zq up` runs."""
    _compile()
    server = servers.Zq(folder)
    with server.config_file.open("a") as file:
        file.write(f"[web]\nport = {free_port()}\n")
    env = {name: value for name, value in servers.as_installed().items() if not name.startswith("ZQ_")}
    env["ZQ_CONFIG"] = server.url
    started = [
        Started([sys.executable, "-m", "zq.supervised", *command], folder / f"{name}.log", env=env)
        for name, command in _ZQ_PROGRAMS.items()
    ]
    try:
        wait_until(lambda: _processes(started) >= sum(_PROCESSES.values()), 20, "the start of zq's processes")
        found = _system([server.process, *started], list(_ZQ_PROGRAMS), during_s)
        return {f"system_zq_{name}": value for name, value in found.items()}
    finally:
        for process in reversed(started):
            process.end()
        server.end()


def _compile() -> None:
    """What pip does when it installs, as it did for the peers: a process that has to compile what it imports weighs
    more than one that reads it.
    """
    package = Path(zq.__file__).parent
    for folder in [package, *(entry for entry in package.iterdir() if entry.is_dir())]:
        compileall.compile_dir(folder.resolve(), quiet=2)  # it follows no links by itself


def celery_system(folder: Path, venv: PeerVenv, during_s: float) -> dict[str, float]:
    """Redis, Beat, two prefork workers, Flower: the same work in Celery."""
    server = servers.Redis(folder, always=False)
    env = {**venv.environment(), URL_VARIABLE: server.url}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    script = [str(venv.python), "-m", "benchmarks.peers.celery_system", str(folder), str(free_port())]
    lines = subprocess.run(script, env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    started = [
        Started(line.split("\t"), folder / f"celery-{index}.log", env=env) for index, line in enumerate(lines)
    ]
    names = ["beat", "status-worker", "merge-worker", "flower"]
    try:
        wait_until(lambda: _processes(started) >= 7, 30, "the start of Celery's processes")
        found = _system([server.process, *started], names, during_s)
        return {f"system_celery_{name}": value for name, value in found.items()}
    finally:
        for process in reversed(started):
            process.end()
        server.end()


def _system(started: Sequence[Started], names: Sequence[str], during_s: float) -> dict[str, float]:
    """The whole, and the PSS of each of its trees; the first one is the server."""
    roots = [process.pid for process in started]
    found = resting(roots, settle_s=8.0, during_s=during_s)
    for name, root in zip(["server", *names], roots, strict=True):
        found[f"{name}_pss_mib"] = weigh([root]).pss_mib
    return found
