"""Waiting for something to come about, for a time that is meant on a machine with a core to spare."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

DEADLINE_S = 30.0
"""For what only has to happen: nothing is promised of when."""
_PRESSURE = Path("/proc/pressure/cpu")


class Patience:
    """A promised time. What this machine lets processes wait for a core is added: that time was nobody's to use.

    So a promise of two seconds is held to two seconds where nothing else runs, and no test fails because others do.
    """

    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        self._began_s = time.monotonic()
        self._starved_s = starved_s()

    @property
    def left_s(self) -> float:
        """Never negative."""
        allowed_s = self._within_s + starved_s() - self._starved_s
        return max(0.0, allowed_s - (time.monotonic() - self._began_s))

    def wait(self, descriptor: int) -> bool:
        """Whether the descriptor became readable in time."""
        while True:
            left_s = self.left_s
            if select.select([descriptor], [], [], left_s)[0]:
                return True
            if not left_s:
                return False

    @property
    def over(self) -> bool:
        return not self.left_s


def starved_s() -> float:
    """For how long, since the machine's start, some process had to wait for a core.

    Linux counts it (pressure stall information). Where it does not tell, half of all time is taken to be so.
    """
    try:
        some = _PRESSURE.read_text().partition("\n")[0]
    except OSError:
        return time.monotonic() / 2
    return int(some.rpartition("total=")[2]) / 1e6


def wait_until(condition: Callable[[], bool], within_s: float = DEADLINE_S, what: str = "it") -> None:
    """Fails unless the condition comes true in time."""
    patience = Patience(within_s)
    while not condition():
        assert not patience.over, f"{what} did not come about within {within_s:g} s"
        time.sleep(0.005)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_gone(pids: Sequence[int], within_s: float) -> None:
    """Wait for the ends of these processes, by pidfd; fails if one outlives the time."""
    patience = Patience(within_s)
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            gone = patience.wait(pidfd)
        finally:
            os.close(pidfd)
        assert gone or not is_running(pid), f"process {pid} still lives"
