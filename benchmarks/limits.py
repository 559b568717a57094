"""What this machine allows, measured beside the systems: no job system that keeps its word can be faster."""

from __future__ import annotations

import itertools
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import lmdb
import zmq

from benchmarks.figures import percentile

_MESSAGE: Final = b"m" * 120
"""About what a SUBMIT with one small job weighs."""
_VALUE: Final = b"v" * 256
_REST_S: Final = 0.012
"""As before each submit whose latency is measured."""
_IN_FLIGHT: Final = 50
_BATCH: Final = 50
"""Jobs in one message of the batched echo."""


def measure(folder: Path, seconds: float) -> dict[str, float]:
    """Every limit, each for `seconds`."""
    folder.mkdir()
    found = {"fdatasync_per_s": _fdatasync(folder / "synced", seconds)}
    for group in (1, 100, 1000):
        found[f"lmdb_{group}_per_s"] = _lmdb(folder / f"lmdb-{group}", group, seconds)
    found |= _zmq(seconds)
    found["durable_echo_per_s"] = _durable_echo(folder / "echo", seconds)
    found["rested_round_trip_ms"] = _rested_ms(None, seconds)
    found["rested_synced_echo_ms"] = _rested_ms(folder / "synced", seconds)
    return found | derived(found)


def derived(found: dict[str, float]) -> dict[str, float]:
    """What a client that waits cannot beat: round trips and commits that must follow each other.

    A confirmed submit is one of both. A start is the same, since accept and dispatch share a commit and the hop to the
    worker is the second half of the round trip. A result needs the commit of the end and another round trip.
    """
    commit_ms = 1000 / found["lmdb_1_per_s"]
    turn_ms = found["zmq_round_trip_us"] / 1000 + commit_ms
    return {"confirmed_limit_per_s": 1000 / turn_ms, "start_limit_ms": turn_ms, "result_limit_ms": 2 * turn_ms}


def _rate(turn: Callable[[], None], seconds: float, per_turn: int = 1) -> float:
    start_s = now_s = time.perf_counter()
    count = 0
    while now_s - start_s < seconds:
        turn()
        count += per_turn
        now_s = time.perf_counter()
    return count / (now_s - start_s)


def _fdatasync(path: Path, seconds: float) -> float:
    """4 KiB over the same place, synced: what one commit costs at least."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(descriptor, bytes(1 << 20), 0)
        os.fsync(descriptor)

        def turn() -> None:
            os.pwrite(descriptor, bytes(4096), 0)
            os.fdatasync(descriptor)

        return _rate(turn, seconds)
    finally:
        os.close(descriptor)


class _Rows:
    """Records of 256 bytes with one index entry each."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        self._env = lmdb.open(str(folder), map_size=1 << 32, max_dbs=2, lib_version=0)
        self._rows, self._index = self._env.open_db(b"rows"), self._env.open_db(b"index")
        self._numbers = itertools.count(1)

    def commit(self, group: int) -> None:
        """So many in a commit that is synced."""
        with self._env.begin(write=True) as txn:
            for number in itertools.islice(self._numbers, group):
                key = struct.pack(">QQ", number, number)
                txn.put(key, _VALUE, db=self._rows)
                txn.put(key + b"index", key, db=self._index)

    def close(self) -> None:
        self._env.close()


def _lmdb(folder: Path, group: int, seconds: float) -> float:
    rows = _Rows(folder)
    try:
        return _rate(lambda: rows.commit(group), seconds, group)
    finally:
        rows.close()


@contextmanager
def _echo(*arguments: str) -> Iterator[zmq.Socket[bytes]]:
    """A DEALER whose ROUTER over TCP is in another process, as client and broker are."""
    echo = subprocess.Popen([sys.executable, "-m", __name__, *arguments], stdout=subprocess.PIPE, text=True)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        assert echo.stdout is not None
        dealer = context.socket(zmq.DEALER)
        dealer.connect(echo.stdout.readline().strip())
        dealer.send(_MESSAGE)
        dealer.recv()
        yield dealer
    finally:
        echo.kill()
        echo.communicate()
        context.destroy(linger=0)


def _durable_echo(folder: Path, seconds: float) -> float:
    """The round trip and the commit in one: each wakes up the other from its sleep, as in a broker without load."""
    with _echo(str(folder)) as dealer:

        def turn() -> None:
            dealer.send(_MESSAGE)
            dealer.recv()

        return _rate(turn, seconds)


def _rested_ms(file: Path | None, seconds: float) -> float:
    """An echo after a pause each time, p50: on a machine with nothing to do every thread on the way has to be woken up,
    and its processor, too. With a file, 4 KiB of it are written and synced before the answer."""
    with _echo(*([] if file is None else ["--sync", str(file)])) as dealer:
        times_ms = []
        for _ in range(max(10, round(100 * seconds))):
            time.sleep(_REST_S)
            start_ns = time.perf_counter_ns()
            dealer.send(_MESSAGE)
            dealer.recv()
            times_ms.append((time.perf_counter_ns() - start_ns) / 1e6)
    return percentile(times_ms, 50)


def _zmq(seconds: float) -> dict[str, float]:
    with _echo() as dealer:
        times_us: list[float] = []

        def round_trip() -> None:
            start_ns = time.perf_counter_ns()
            dealer.send(_MESSAGE)
            dealer.recv()
            times_us.append((time.perf_counter_ns() - start_ns) / 1000)

        _rate(round_trip, seconds)
        pipelined = _pipelined(dealer, _MESSAGE, seconds)
        batched = _pipelined(dealer, _MESSAGE * _BATCH, seconds) * _BATCH
        return {
            "zmq_round_trip_us": percentile(times_us, 50),
            "zmq_round_trip_p99_us": percentile(times_us, 99),
            "zmq_echo_per_s": pipelined,
            "zmq_batched_jobs_per_s": batched,
        }


def _pipelined(dealer: zmq.Socket[bytes], message: bytes, seconds: float) -> float:
    for _ in range(_IN_FLIGHT):
        dealer.send(message)

    def turn() -> None:
        dealer.recv()
        dealer.send(message)

    rate = _rate(turn, seconds)
    for _ in range(_IN_FLIGHT):
        dealer.recv()
    return rate


def _echo_for_ever(*arguments: str) -> None:
    """With a folder, each message is answered when a record for it has been committed there; with `--sync FILE`, when a
    block of the file has been written and synced."""
    rows = _Rows(Path(arguments[0])) if len(arguments) == 1 else None
    file = os.open(arguments[1], os.O_RDWR) if len(arguments) == 2 else None
    router: zmq.Socket[bytes] = zmq.Context().socket(zmq.ROUTER)
    router.bind("tcp://127.0.0.1:*")
    print(router.getsockopt_string(zmq.LAST_ENDPOINT), flush=True)
    while True:
        parts = router.recv_multipart()
        if rows is not None:
            rows.commit(1)
        if file is not None:
            os.pwrite(file, bytes(4096), 0)
            os.fdatasync(file)
        router.send_multipart(parts)


if __name__ == "__main__":
    _echo_for_ever(*sys.argv[1:])
