"""Processes that the benchmarks start, end and weigh. Standard library only: the peers' drivers use it too."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], within_s: float, what: str, step_s: float = 0.02) -> None:
    """Raises TimeoutError that says what did not happen."""
    until_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until_s:
            raise TimeoutError(f"{what} did not happen within {within_s:g} s")
        time.sleep(step_s)


class Started:
    """A process in a session of its own, with its output in a file; ended with all that it has started."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        user: int | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                list(command), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                env=dict(env) if env is not None else None, user=user, group=user, cwd=cwd,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self) -> None:
        """Raises RuntimeError with the end of its output if it has ended by itself."""
        if self.process.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self.process.args!r} ended with {self.process.returncode}:\n{tail}")

    def end(self, number: int = signal.SIGTERM, within_s: float = 5.0) -> None:
        """Ask it to end; what is left of its session then is killed."""
        children = tree(self.pid)
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(within_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in children:
            _kill_if_still(pid, self.pid)


def _kill_if_still(pid: int, session: int) -> None:
    try:
        if os.getsid(pid) == session:
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def tree(root: int) -> list[int]:
    """The pid and those of all its descendants that live."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry))
    found = [root]
    for pid in found:
        found.extend(parents.get(pid, []))
    return found


class Weight(NamedTuple):
    processes: int
    pss_mib: float
    """Proportional set size: pages that several processes share count once, all together."""
    rss_mib: float
    """With the pages of mapped files, such as a journal's, that the kernel may drop at any time."""
    own_mib: float
    """Anonymous memory: what is truly the processes' own."""
    cpu_s: float


def weigh(roots: Sequence[int]) -> Weight:
    """Memory and CPU time so far of process trees."""
    pids = {pid for root in roots for pid in tree(root)}
    kib = {"Pss": 0, "Rss": 0, "Anonymous": 0}
    ticks = living = 0
    for pid in pids:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        living += 1
        ticks += int(fields[11]) + int(fields[12])
        for line in rollup.splitlines():
            key, _, value = line.partition(":")
            if key in kib:
                kib[key] += int(value.split()[0])
    return Weight(living, kib["Pss"] / 1024, kib["Rss"] / 1024, kib["Anonymous"] / 1024, ticks / _TICKS_PER_S)


def cpu_percent(roots: Sequence[int], during_s: float) -> float:
    """Percent of one core that the trees use in the coming `during_s`."""
    before, start_s = weigh(roots).cpu_s, time.monotonic()
    time.sleep(during_s)
    return (weigh(roots).cpu_s - before) / (time.monotonic() - start_s) * 100
