"""A real keeper with real slots for tests: hand over a job, wait for an event, see who still lives."""

from __future__ import annotations

import itertools
import os
import select
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import psutil

from tests.waiting import Patience, wait_until
from zq.workers import slots
from zq.workers.channel import Assignment, AttemptResult, SlotOutcome
from zq.workers.keeper_handle import KeeperHandle
from zq.workers.sweep import MARKER, Marker, own_marker

HERE = Path(__file__).parent
INSTANCE = f"测试-{uuid.uuid4().hex[:12]}"
"""A worker's name that no other run of the tests on this machine has: whoever sweeps ends what carries its name."""
DEADLINE_S = 20.0
E = TypeVar("E")
_generations = itertools.count(1)


def pids_in(path: Path) -> list[int]:
    wait_until(path.exists)
    return [int(line) for line in path.read_text().split()]


def carriers(marker: Marker) -> list[int]:
    """Living processes that carry the marker."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARKER) == marker.format():
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


class Driver:
    """One keeper. Use as a context manager: on leaving, nothing of it is left."""

    def __init__(self, modules: Sequence[str] = ("slot_tasks",), *, slots: int = 1) -> None:
        self.marker = own_marker(f"{INSTANCE}-d", next(_generations))
        self.events: list[slots_event] = []
        self._seqs = itertools.count(1)
        self._slots_wanted = slots
        self._modules = modules
        self._path_before = os.environ.get("PYTHONPATH")

    def __enter__(self) -> Driver:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [self._path_before])])
        try:
            self.keeper = KeeperHandle(self._modules, self.marker, adopts_orphans=False)
        finally:
            if self._path_before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = self._path_before
        self.slots = [self.open() for _ in range(self._slots_wanted)]
        return self

    def __exit__(self, *exc: object) -> None:
        self.keeper.close()
        assert carriers(self.marker) == []

    @property
    def slot(self) -> slots.Slot:
        return self.slots[0]

    def open(self) -> slots.Slot:
        slot = self.keeper.open_slot()
        self.until(slots.Opened, lambda event: event.slot is slot)
        return slot

    def until(self, kind: type[E], fits: Callable[[E], bool] = lambda _: True, within_s: float = DEADLINE_S) -> E:
        """The first event of this kind that fits; it is taken out, the others are kept."""
        patience = Patience(within_s)
        while True:
            for index, event in enumerate(self.events):
                if isinstance(event, kind) and fits(event):
                    del self.events[index]
                    return event
            left_s = patience.left_s
            assert left_s > 0, f"no {kind.__name__} in time; there were {self.events}"
            select.select([self.keeper], [], [], min(left_s, 0.2))
            self.events.extend(self.keeper.receive())

    def start(self, task: str, *args: Any, slot: slots.Slot | None = None, **options: Any) -> int:
        assignment = self.assignment(task, *args, **options)
        (slot or self.slot).send([assignment])
        return assignment.seq

    def assignment(self, task: str, *args: Any, attempt: int = 1, kill_grace_s: float = 5.0) -> Assignment:
        seq = next(self._seqs)
        return Assignment(
            seq=seq,
            job_id=f"job-{os.getpid()}-{id(self)}",
            attempt=attempt,
            task=f"slot_tasks.{task}",
            queue="队列",
            arguments=msgspec.msgpack.encode([args, {}]),
            soft_limit_s=60.0,
            kill_grace_s=kill_grace_s,
        )

    def result(self, seq: int) -> AttemptResult:
        event = self.until(slots.Finished, lambda event: any(r.seq == seq for r in event.results))
        return next(r for r in event.results if r.seq == seq)

    def run(self, task: str, *args: Any, **options: Any) -> AttemptResult:
        return self.result(self.start(task, *args, **options))

    def value(self, task: str, *args: Any, **options: Any) -> Any:
        """The value of a task that must succeed."""
        result = self.run(task, *args, **options)
        assert result.outcome is SlotOutcome.DONE, result.error
        return msgspec.msgpack.decode(result.result) if result.result else None


slots_event = slots.Event
PYTHON = sys.executable
