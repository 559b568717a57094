"""A whole run: what is measured, how often and in which order, and the record it leaves."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import alone, backlog, crowd, footprint, limits, servers
from benchmarks.peer_venv import PeerVenv
from benchmarks.peers import CONTESTANTS, URL_VARIABLE, Contestant

DRIVER_LIMIT_S = 300.0


@dataclass(frozen=True)
class Plan:
    """What was asked for."""

    contestants: tuple[Contestant, ...]
    parts: frozenset[str]
    """Of PARTS: what is measured beside the contestants."""
    repetitions: int
    scale: float
    slots: int
    backlog: int
    history: int
    sessions: int


PARTS = ("limits", "clients", "idle", "crowd", "backlog", "history", "system")


@dataclass
class Record:
    """All that was found: name → figure → one value for each repetition."""

    about: dict[str, Any] = field(default_factory=dict)
    contestants: dict[str, dict[str, Any]] = field(default_factory=dict)
    figures: dict[str, list[float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, found: Mapping[str, float]) -> None:
        for name, value in found.items():
            self.figures.setdefault(name, []).append(value)

    def add_contestant(self, contestant: Contestant, found: Mapping[str, Any]) -> None:
        entry = self.contestants.setdefault(
            contestant.name, {"setting": found["setting"], "bulk": found["bulk"], "figures": {}}
        )
        for name, value in found["figures"].items():
            entry["figures"].setdefault(name, []).append(value)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.__dict__, indent=1, ensure_ascii=False) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> Record:
        return cls(**json.loads(path.read_text("utf-8")))


def about(plan: Plan, venv: PeerVenv, command: str) -> dict[str, Any]:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "command": command,
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cores": os.cpu_count(),
        "slots": plan.slots,
        "cpu": model[0].partition(":")[2].strip() if model else platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "repetitions": plan.repetitions,
        "scale": plan.scale,
        "versions": venv.versions() if venv.python.exists() else {},
        "servers": _server_versions(),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "changed_files": len(_git("status", "--porcelain", "--", "broker", "protocol", "workers", "zq").splitlines()),
        "load_before": os.getloadavg()[0],
    }


def _git(*arguments: str) -> str:
    run = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=False, cwd=Path(__file__).resolve().parent.parent
    )
    return run.stdout.strip()


def _server_versions() -> list[str]:
    found = []
    for command in (["redis-server", "--version"], ["postgres", "--version"]):
        if shutil.which(command[0]) is not None:
            found.append(subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()[:60])
    return found


class Runner:
    """Measures a plan into a record, one thing after the other, and says what it is doing."""

    def __init__(
        self, plan: Plan, record: Record, folder: Path, output: Path, venv: PeerVenv, say: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._record = record
        self._folder = folder
        self._output = output
        self._venv = venv
        self._say = say
        self._made = 0

    def run(self) -> None:
        """The contestants take turns, each repetition in another order, so that a slow minute hits all alike."""
        count = len(self._plan.contestants)
        for repetition in range(self._plan.repetitions):
            if "limits" in self._plan.parts:
                self._measure("this machine's limits", lambda f: limits.measure(f, max(0.2, self._plan.scale)))
            if "clients" in self._plan.parts:
                self._measure("zq with many clients", lambda f: alone.many_clients(f, max(0.5, 2 * self._plan.scale)))
            for index in range(count):
                contestant = self._plan.contestants[(index + repetition * (count // 3 + 1)) % count]
                self._say(f"repetition {repetition + 1} of {self._plan.repetitions}: {contestant.title}")
                self._guarded(contestant.title, partial(self._contest, contestant))
        for title, measure in self._once():
            self._measure(title, measure)

    def _once(self) -> Iterator[tuple[str, Callable[[Path], dict[str, float]]]]:
        plan, scale = self._plan, self._plan.scale
        if "idle" in plan.parts:
            yield "an idle broker", lambda f: alone.idle_broker(f, max(2.0, 10 * scale))
        if "crowd" in plan.parts:
            yield f"{plan.sessions} idle workers", lambda f: crowd.measure(f, plan.sessions, max(3.0, 10 * scale))
        if "backlog" in plan.parts:
            yield f"a backlog of {plan.backlog:,} jobs", lambda f: backlog.measure(f, plan.backlog, plan.slots)
        if "history" in plan.parts:
            yield f"a history of {plan.history:,} jobs", lambda f: alone.history(f, plan.history)
        if "system" in plan.parts:
            yield "the whole zq system at rest", lambda f: footprint.zq_system(f, max(3.0, 30 * scale))
            during_s = max(3.0, 30 * scale)
            yield "the whole Celery system at rest", lambda f: footprint.celery_system(f, self._venv, during_s)

    # ------------------------------------------------------------------------------------------ one measurement

    def _measure(self, title: str, measure: Callable[[Path], dict[str, float]]) -> None:
        self._say(title)
        self._guarded(title, lambda: self._record.add(measure(self._new_folder())))

    def _guarded(self, title: str, act: Callable[[], None]) -> None:
        """What fails, in whatever way, is told and does not end the run; what was found so far is kept at once."""
        try:
            act()
        except Exception as error:
            self._record.failures.append(f"{title}: {type(error).__name__}: {error}")
            self._say(f"FAILED: {title}: {type(error).__name__}: {error}")
        self._record.about["load_after"] = os.getloadavg()[0]
        self._record.save(self._output / "record.json")

    def _new_folder(self) -> Path:
        self._made += 1
        return self._folder / str(self._made)

    def _contest(self, contestant: Contestant) -> None:
        folder = self._new_folder()
        server = servers.start(contestant.server, folder)
        try:
            self._record.add_contestant(contestant, self._drive(contestant, server.fresh("bench")))
        finally:
            server.end()
            shutil.rmtree(folder, ignore_errors=True)

    def _drive(self, contestant: Contestant, url: str) -> dict[str, Any]:
        folder = self._new_folder()
        folder.mkdir()
        python = sys.executable if contestant.peer == "zq" else str(self._venv.python)
        command = [python, "-m", "benchmarks.driver", contestant.peer, str(folder)]
        command += ["--slots", str(self._plan.slots), "--scale", str(self._plan.scale)]
        run = subprocess.run(
            command, env=self._venv.environment() | {URL_VARIABLE: url}, capture_output=True, text=True,
            timeout=DRIVER_LIMIT_S, cwd=folder, check=False,
        )  # fmt: skip
        if run.returncode:
            raise RuntimeError(f"its driver ended with {run.returncode}:\n{run.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(run.stdout)
        shutil.rmtree(folder, ignore_errors=True)
        return found


def chosen(names: Sequence[str]) -> tuple[tuple[Contestant, ...], frozenset[str]]:
    """The contestants and parts that `names` name; all for none. Raises ValueError that says which there are."""
    if not names:
        return CONTESTANTS, frozenset(PARTS)
    known = {contestant.name for contestant in CONTESTANTS} | {c.peer for c in CONTESTANTS} | set(PARTS)
    unknown = sorted(set(names) - known)
    if unknown:
        raise ValueError(f"unknown: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return (
        tuple(c for c in CONTESTANTS if c.name in names or c.peer in names),
        frozenset(part for part in PARTS if part in names),
    )
