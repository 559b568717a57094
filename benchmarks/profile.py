"""Where the broker's time goes: `python -m benchmarks.profile [JOBS]`. py-spy comes from the peers' environment.

Only samples in which the broker's thread ran are counted, so waiting for messages is left out; waiting for the disk
counts, as the line that commits.
"""

from __future__ import annotations

import collections
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import evidence, peers, servers
from benchmarks.peer_venv import PeerVenv
from benchmarks.processes import Started, wait_until

_TOP: Final = 22
_RATE_HZ: Final = 200
_WAITS: Final = "Poller.poll"
_LOOP: Final = "Server.run"
_DRAIN_S: Final = 3.0


def _place(frame: str) -> str:
    """`function (file:line)` as `file function`."""
    name, _, rest = frame.rpartition(" (")
    return f"{Path(rest.partition(':')[0]).name} {name}"


def _below_the_loop(frames: list[str]) -> list[str]:
    """Without what only started the broker."""
    start = next((index for index, frame in enumerate(frames) if _LOOP in frame), 0)
    return frames[start:]


def summary(folded: str) -> list[str]:
    """The costs of folded stacks ("a;b;c count" a line), by function with all it calls, and by line alone."""
    total = 0
    inclusive: collections.Counter[str] = collections.Counter()
    alone: collections.Counter[str] = collections.Counter()
    for line in folded.splitlines():
        stack, _, text = line.rpartition(" ")
        if _WAITS in stack:
            continue
        frames = _below_the_loop(stack.split(";"))
        total += int(text)
        inclusive.update(dict.fromkeys({_place(frame) for frame in frames}, int(text)))
        alone[frames[-1]] += int(text)
    out = [f"{total} samples; with what it calls:"]
    out += [f"  {count / total:6.1%}  {name}" for name, count in inclusive.most_common(_TOP)]
    out.append("the line itself:")
    out += [f"  {count / total:6.1%}  {name}" for name, count in alone.most_common(_TOP)]
    return out


@contextmanager
def _recorded(pid: int, title: str, folder: Path, python: Path) -> Iterator[None]:
    raw = folder / "stacks.txt"
    command = [str(python.with_name("py-spy")), "record", "-p", str(pid), "-f", "raw", "-o", str(raw)]
    spy = Started([*command, "-r", str(_RATE_HZ), "-d", "600", "--idle", "--nonblocking"], folder / "py-spy.log")
    time.sleep(0.5)
    try:
        yield
    finally:
        spy.end(signal.SIGINT)
    print(f"--- {title}")
    for text in summary(raw.read_text()):
        print(text)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    venv = PeerVenv()
    venv.make()
    folder = servers.work_folder()
    server = servers.Zq(folder / "zq")
    try:
        _profile(server, folder, venv.python, count)
    finally:
        server.end()
        shutil.rmtree(folder, ignore_errors=True)


def _reached(seen: Path, count: int) -> bool:
    return evidence.count(seen) >= count


def _timed(title: str, count: int, act: Callable[[], None]) -> None:
    start_s = time.monotonic()
    act()
    print(f"{title}: {count / (time.monotonic() - start_s):,.0f} jobs/s (under py-spy)")


def _profile(server: servers.Zq, folder: Path, python: Path, count: int) -> None:
    os.environ[peers.URL_VARIABLE] = server.url
    peer = peers.make("zq")
    with _recorded(server.process.pid, "bulk submit", folder, python):
        _timed("bulk submit", count, lambda: peer.submit_all(range(count)))
    seen = folder / "evidence"
    seen.mkdir()
    env = os.environ | {evidence.FOLDER_VARIABLE: str(seen), "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    for slots in (1, os.cpu_count() or 1):
        known = evidence.count(seen) + 1
        worker = Started(peer.commands(slots)[0], folder / f"worker-{slots}.log", env=env)
        try:
            wait_until(partial(_reached, seen, known), 20, "the first job")
            with _recorded(server.process.pid, f"drain, {slots} slots", folder, python):
                first, start_s = evidence.count(seen), time.monotonic()
                time.sleep(_DRAIN_S)
                done = evidence.count(seen) - first
                print(f"drain: {done / (time.monotonic() - start_s):,.0f} jobs/s (under py-spy)")
        finally:
            worker.end()
    peer.close()


if __name__ == "__main__":
    main()
