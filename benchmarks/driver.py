"""One system through all workloads, in a process of its own and in its own environment: `python -m benchmarks.driver`.

The jobs that the submit workloads make are those that the drains run, so every job that was ever confirmed is looked
for: `audit` counts what is missing, what ran twice and what nobody submitted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import evidence, peers
from benchmarks.figures import percentile
from benchmarks.peers import Peer
from benchmarks.processes import Started, wait_until

DELAY_S: Final = 2.0
_DRAIN_LIMIT_S: Final = 60.0
_DRAIN_S: Final = 2.5
"""About what a drain takes; it has at least _DRAIN_LEAST jobs."""
_DRAIN_LEAST: Final = 200
_WARM_UP: Final = 5


@dataclass(frozen=True)
class Scale:
    """How much of each workload is run."""

    confirmed_s: float = 1.0
    jobs: float = 1.0
    """Of the peer's `drain_jobs`."""
    starts: int = 100
    results: int = 50
    late: int = 50

    @classmethod
    def of(cls, factor: float) -> Scale:
        full = cls()
        few = max(5, round(full.late * factor))
        return cls(full.confirmed_s * factor, factor, max(10, round(full.starts * factor)), few, few)


class Turns:
    """Numbers for a peer's loop, with the times at which each was taken and at which it was done."""

    def __init__(self, first: int) -> None:
        self._next = first
        self.taken_ns: dict[int, int] = {}
        self.done_ns: dict[int, int] = {}

    @property
    def count(self) -> int:
        return len(self.taken_ns)

    @property
    def numbers(self) -> range:
        return range(self._next - self.count, self._next)

    def _turn(self) -> Iterator[int]:
        number, self._next = self._next, self._next + 1
        self.taken_ns[number] = time.monotonic_ns()
        yield number
        self.done_ns[number] = time.monotonic_ns()

    def during(self, seconds: float) -> Iterator[int]:
        until_ns = time.monotonic_ns() + round(seconds * 1e9)
        while time.monotonic_ns() < until_ns:
            yield from self._turn()

    def paced(self, count: int, pause_s: float) -> Iterator[int]:
        """The pause lets the system become idle; it is no part of any turn."""
        for _ in range(count):
            time.sleep(pause_s)
            yield from self._turn()

    def rate_per_s(self) -> float:
        start, end = min(self.taken_ns.values()), max(self.done_ns.values())
        return self.count / ((end - start) / 1e9)

    def latencies_ms(self) -> list[float]:
        return [(self.done_ns[number] - taken) / 1e6 for number, taken in self.taken_ns.items()]


def spread_ms(name: str, values: Sequence[float]) -> dict[str, float]:
    return {f"{name}_p50_ms": percentile(values, 50), f"{name}_p99_ms": percentile(values, 99)}


class Run:
    """The workloads, one after the other, on one peer. `figures` is what they give."""

    def __init__(self, peer: Peer, folder: Path, slots: int, scale: Scale) -> None:
        self.peer = peer
        self.folder = folder
        self.slots = slots
        self.scale = scale
        self.figures: dict[str, float] = {}
        self._submitted = 0
        self._started = 0

    # ------------------------------------------------------------------------------------------ workers

    @contextmanager
    def _worker(self, slots: int, *, due: bool = False) -> Iterator[Path]:
        """A worker that runs within the block; the folder of its evidence."""
        self._started += 1
        seen = self.folder / f"evidence-{self._started}"
        seen.mkdir()
        env = {**os.environ, evidence.FOLDER_VARIABLE: str(seen)}
        commands = self.peer.commands(slots) + (self.peer.due_commands() if due else [])
        processes = [
            Started(command, self.folder / f"worker-{self._started}-{index}.log", env=env)
            for index, command in enumerate(commands)
        ]
        try:
            yield seen
            for process in processes:
                process.check()
        except TimeoutError as error:
            for process in processes:
                process.check()
            tails = "\n".join(process.log.read_text(errors="replace")[-1500:] for process in processes)
            raise TimeoutError(f"{error}; the workers said:\n{tails}") from None
        finally:
            for process in processes:
                process.end()

    def _take(self, turns: Turns) -> Turns:
        self._submitted += turns.count
        return turns

    def _turns(self) -> Turns:
        return Turns(self._submitted)

    # ------------------------------------------------------------------------------------------ workloads

    def confirmed(self) -> None:
        """One job at a time, confirmed by the server; one client; no worker runs."""
        connect = self._turns()
        self.peer.submit_each(connect.paced(_WARM_UP, 0.0))
        self._take(connect)
        turns = self._turns()
        self.peer.submit_each(turns.during(self.scale.confirmed_s))
        self.figures["confirmed_per_s"] = self._take(turns).rate_per_s()

    def fill(self, count: int) -> int:
        """Let so many jobs wait; the first of their numbers."""
        first = self._submitted
        self._submitted += count
        self.peer.submit_all(range(first, self._submitted))
        return first

    def bulk(self) -> None:
        """The last of all: these jobs are left where they are, so that their number need not be one to be drained."""
        if not self.peer.bulk:
            return
        count = round(self.peer.bulk_jobs * self.scale.jobs)
        start_s = time.monotonic()
        self.fill(count)
        self.figures["bulk_per_s"] = count / (time.monotonic() - start_s)

    def drain(self, slots: int, name: str, first: int) -> None:
        """Jobs wait, then a worker starts; until all have run. `first` is the first number that waits."""
        waiting = self._submitted - first
        with self._worker(slots) as seen:
            wait_until(lambda: evidence.count(seen) >= waiting, _DRAIN_LIMIT_S, f"the end of {waiting} jobs")
            # What runs twice would run soon after.
            time.sleep(0.2)
            self.peer.settled(self._submitted)
        ran = evidence.read(seen)
        found = evidence.audit(set(range(first, self._submitted)), ran)
        self.figures[f"{name}_per_s"] = evidence.rate_per_s(ran)
        for kind, count in found._asdict().items():
            self.figures[f"{name}_{kind}"] = count

    def idle_worker(self, late: bool) -> float:
        """One worker with nothing to do: how soon a job starts, how soon its result is there, how late it is.

        Before that it runs what waits; returned is its rate at that, by which the drains are sized.
        """
        if not self._submitted:
            self.fill(_WARM_UP)
        with self._worker(1, due=late) as seen:
            ran = self._submitted
            wait_until(lambda: evidence.count(seen) >= ran, _DRAIN_LIMIT_S, "the end of what waited")
            rate_per_s = evidence.rate_per_s(evidence.read(seen))
            starts = self._turns()
            self.peer.submit_each(starts.paced(self.scale.starts, 0.012))
            ran += self._take(starts).count
            wait_until(lambda: evidence.count(seen) >= ran, 20, "the start of every job")
            if self.peer.results:
                calls = self._turns()
                self.peer.call_each(calls.paced(self.scale.results, 0.012))
                ran += self._take(calls).count
                self.figures |= spread_ms("result", calls.latencies_ms())
            lates = self._turns()
            if late:
                self.peer.submit_each_later(lates.paced(self.scale.late, 0.02), DELAY_S)
                ran += self._take(lates).count
                wait_until(lambda: evidence.count(seen) >= ran, 70, "the start of every delayed job", 0.25)
        at_ns = {item.number: item.at_ns for item in evidence.read(seen)}
        self.figures |= spread_ms("start", [(at_ns[n] - taken) / 1e6 for n, taken in starts.taken_ns.items()])
        if late:
            due = [(at_ns[n] - taken) / 1e6 - DELAY_S * 1000 for n, taken in lates.taken_ns.items()]
            self.figures |= spread_ms("late", due)
        return rate_per_s

    def all(self) -> None:
        self.confirmed()
        rate_per_s = self.idle_worker(late=True)
        most = round(self.peer.drain_jobs * self.scale.jobs)
        count = min(most, max(_DRAIN_LEAST, round(rate_per_s * _DRAIN_S * self.scale.jobs)))
        self.drain(1, "drain_one", self.fill(count))
        self.drain(self.slots, "drain_all", self.fill(count * min(self.slots, 4)))
        self.bulk()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slots", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--scale", type=float, default=1.0)
    given = parser.parse_args(arguments)
    peer = peers.make(given.peer)
    run = Run(peer, given.folder, given.slots, Scale.of(given.scale))
    try:
        run.all()
    finally:
        peer.close()
    about: dict[str, Any] = {"setting": peer.setting, "bulk": peer.bulk, "figures": run.figures}
    json.dump(about, sys.stdout)


if __name__ == "__main__":
    main()
