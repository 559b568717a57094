"""Headroom: a job that says what it needs goes only to a worker that has as much left.

What a machine has is the last word of its workers (CREDIT, BEAT); taken off is here what all leases on it need, from
dispatch to the end of the attempt. So two jobs never get the same gigabyte, however quickly they follow each other, and
workers that share a disk or a machine do not count it twice. Jobs without needs are no part of this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from zq.broker.records import JobRow
from zq.broker.sessions import Session
from zq.protocol import limits
from zq.protocol import messages as m

_SOMEWHERE = ""


class _Held(NamedTuple):
    disk: str
    machine: str
    disk_bytes: int
    memory_bytes: int


class Headroom:
    def __init__(self) -> None:
        self._held: dict[int, _Held] = {}
        """By token: leases with needs, also those whose worker is away. Their processes may live."""
        self._disk: Counter[str] = Counter()
        self._memory: Counter[str] = Counter()

    # ------------------------------------------------------------------------------------------ what is held

    def hold(self, row: JobRow, session: Session | None) -> None:
        """The RUNNING job is with this worker now; None: with one that has to claim it first. As long as nobody knows
        on which disk that is, its needs are taken off everywhere.
        """
        if row.disk_bytes or row.memory_bytes:
            self.release(row.token)
            disk, machine = _places(session)
            self._held[row.token] = _Held(disk, machine, row.disk_bytes, row.memory_bytes)
            self._disk[disk] += row.disk_bytes
            self._memory[machine] += row.memory_bytes

    def release(self, token: int) -> None:
        held = self._held.pop(token, None)
        if held is None:
            return
        _take_off(self._disk, held.disk, held.disk_bytes)
        _take_off(self._memory, held.machine, held.memory_bytes)

    def said(self, session: Session, room: m.Room) -> None:
        """A worker's word about its machine."""
        before, session.room = session.room, room
        if before is None or (before.disk, before.machine) != (room.disk, room.machine):
            for lease in session.leases.values():
                self.hold(lease.row, session)

    # ------------------------------------------------------------------------------------------ what is left

    def left(self, session: Session) -> m.Room | None:
        """What the worker has for further jobs; None if it never says."""
        room = session.room
        if room is None:
            return None
        disk, machine = _places(session)
        return m.Room(
            max(0, room.disk_bytes - self._disk[disk] - self._disk[_SOMEWHERE]),
            max(0, room.memory_bytes - self._memory[machine] - self._memory[_SOMEWHERE]),
            room.disk,
            room.machine,
        )

    def fits(self, session: Session, row: JobRow) -> bool:
        if not (row.disk_bytes or row.memory_bytes):
            return True
        left = self.left(session)
        return left is None or (row.disk_bytes <= left.disk_bytes and row.memory_bytes <= left.memory_bytes)

    def lack(self, row: JobRow, workers: Iterable[Session]) -> str:
        """In words, why none of these workers has room for the job; empty if one has."""
        workers = list(workers)
        if any(self.fits(worker, row) for worker in workers):
            return ""
        known = [(left, worker.instance) for worker in workers if (left := self.left(worker)) is not None]
        if not known:
            return ""
        disk_bytes, roomiest = max((left.disk_bytes, name) for left, name in known)
        memory_bytes, largest = max((left.memory_bytes, name) for left, name in known)
        parts = []
        if row.disk_bytes > disk_bytes:
            parts.append(f"{_size(row.disk_bytes)} of disk; most is left on {roomiest}: {_size(disk_bytes)}")
        if row.memory_bytes > memory_bytes:
            parts.append(f"{_size(row.memory_bytes)} of memory; most is left on {largest}: {_size(memory_bytes)}")
        both = f"{_size(row.disk_bytes)} of disk and {_size(row.memory_bytes)} of memory, and no worker has both left"
        return f"it needs {', and '.join(parts) or both}"[: limits.MESSAGE_CHARS_MAX]


def _places(session: Session | None) -> tuple[str, str]:
    """Names of the disk and the machine of a worker; its own where it gives none."""
    if session is None or session.room is None:
        return _SOMEWHERE, _SOMEWHERE
    own = f"worker {session.instance}"
    return session.room.disk or own, session.room.machine or own


def _take_off(sums: Counter[str], name: str, count: int) -> None:
    sums[name] -= count
    if not sums[name]:
        del sums[name]


def _size(count: int) -> str:
    for unit, bits in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >> bits:
            return f"{count / (1 << bits):.1f} {unit}"
    return f"{count} bytes"
