"""Linux processes: who they are, what stands below them, and how a whole tree of them is ended.

A process is named by its pid and its start time, so a pid that was used again is never taken for the old process.
Signals go through a pidfd that was checked against the start time: no stranger can be hit.

Trees are read from `/proc/PID/task/TID/children` (microseconds), or from a scan of all `/proc/PID/stat` where the
kernel does not have it. A slot and the keeper are child subreapers: whatever was started below them, however it was
forked, is below them until it ends. Such a scan can miss a process that is being forked or re-parented while it
runs; whoever ends a tree scans again until nothing is found.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

STUCK_AFTER_S: Final = 5.0
"""A process that survives KILL for so long sits in the kernel (state D): it is reported, not waited for."""
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30, "riscv64": 30}.get(os.uname().machine)
"""Number of the system call, which the C library has no function for; None: not known on this machine."""
_IOPRIO_IDLE = 3 << 13

# Resolved at import: between fork and exec nothing may be looked up.
_prctl = ctypes.CDLL(None, use_errno=True).prctl
_prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_prctl.restype = ctypes.c_int


def _set(option: int, value: int) -> None:
    if _prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def become_subreaper() -> None:
    """From now on orphaned descendants of this process become its children. Not inherited by fork."""
    _set(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(signum: int = signal.SIGKILL) -> None:
    """Get `signum` when the *thread* that forked this process ends. The caller must then check getppid():
    the parent may have died before. Kept over exec, not over fork.
    """
    _set(_PR_SET_PDEATHSIG, signum)


def refuse_new_privileges() -> None:
    """No set-uid program gives this process or its descendants more than they have."""
    _set(_PR_SET_NO_NEW_PRIVS, 1)


_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


def idle_io() -> None:
    """Disk work of this process waits for that of all others. A favour: where it is not to be had nothing happens."""
    if _IOPRIO_SET is not None:
        _syscall(ctypes.c_long(_IOPRIO_SET), ctypes.c_long(1), ctypes.c_long(0), ctypes.c_long(_IOPRIO_IDLE))


def name_process(name: str) -> None:
    """What `ps -o comm` and top call this process; 15 bytes of it."""
    try:
        with open("/proc/self/comm", "w", encoding="utf-8") as file:
            file.write(name)
    except OSError:  # where /proc is read-only it keeps its name
        pass


class ProcessKey(NamedTuple):
    """A process, for as long as the machine is up: the pid alone may be used again."""

    pid: int
    started_ticks: int
    """Field 22 of /proc/PID/stat."""


class Stat(NamedTuple):
    key: ProcessKey
    parent_pid: int
    state: str
    """R, S, D, T, t, Z, X, … of proc(5)."""

    @property
    def is_living(self) -> bool:
        """A zombie has ended: it only waits to be reaped."""
        return self.state not in "ZX"


def parse_stat(data: bytes) -> Stat | None:
    """Read one /proc/PID/stat; None if it is not one. A process may choose any name, parentheses included."""
    head, _, tail = data.rpartition(b")")
    fields = tail.split()
    try:
        pid = int(head.partition(b" ")[0])
        return Stat(ProcessKey(pid, int(fields[19])), int(fields[1]), fields[0].decode("ascii"))
    except (ValueError, IndexError):
        return None


def read_stat(pid: int) -> Stat | None:
    """None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return parse_stat(file.read())
    except (FileNotFoundError, ProcessLookupError):
        return None


def key_of(pid: int) -> ProcessKey | None:
    stat = read_stat(pid)
    return stat.key if stat is not None else None


def is_alive(key: ProcessKey) -> bool:
    """Whether this very process still runs (a zombie does not)."""
    stat = read_stat(key.pid)
    return stat is not None and stat.key == key and stat.is_living


def child_pids(pid: int) -> list[int]:
    """Direct children, zombies included. Empty if there is no such process."""
    if not _has_children_file():
        return _scan().get(pid, [])
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            try:
                with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                    found.extend(int(word) for word in file.read().split())
            except (FileNotFoundError, ProcessLookupError):
                continue
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def _has_children_file() -> bool:
    return os.path.exists("/proc/thread-self/children")


def _scan() -> dict[int, list[int]]:
    below: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := read_stat(int(name))) is not None:
            below.setdefault(stat.parent_pid, []).append(stat.key.pid)
    return below


def living_below(*root_pids: int, without: Iterable[int] = ()) -> list[ProcessKey]:
    """The living processes below these, the roots themselves left out; `without` names subtrees to leave out."""
    if _has_children_file():
        children = child_pids
    else:
        below = _scan()

        def children(pid: int) -> list[int]:
            return below.get(pid, [])

    seen = {*root_pids, *without}
    waiting = list(root_pids)
    living: list[ProcessKey] = []
    while waiting:
        for pid in children(waiting.pop()):
            if pid in seen:
                continue
            seen.add(pid)
            stat = read_stat(pid)
            if stat is not None:
                waiting.append(pid)
                if stat.is_living:
                    living.append(stat.key)
    return living


def send_signal(key: ProcessKey, signum: int) -> bool:
    """Signal this very process; False if it is gone or not ours to signal."""
    try:
        pidfd = os.pidfd_open(key.pid)
    except OSError:
        return False
    try:
        # The pidfd holds whoever has the pid now; only if that is still ours is it signalled.
        if key_of(key.pid) != key:
            return False
        signal.pidfd_send_signal(pidfd, signum)
        return True
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(pidfd)


class TreeEnd:
    """Which signals end a tree, step by step. Pure: it is shown who lives, and says who gets what.

    Each process gets TERM once (and CONT, for a stopped one cannot act on TERM); after `grace_s` all get KILL, again
    and again, until a scan finds none. With `grace_s` 0 there is no TERM.
    """

    def __init__(self, started_s: float, grace_s: float) -> None:
        self._kill_from_s = started_s + grace_s
        self._asked: set[ProcessKey] = set()

    def step(self, living: Sequence[ProcessKey], now_s: float) -> list[tuple[ProcessKey, int]]:
        """The signals to send now. Nothing to send and nobody living means the tree has ended."""
        if now_s >= self._kill_from_s:
            return [(key, signal.SIGKILL) for key in living]
        fresh = [key for key in living if key not in self._asked]
        self._asked.update(fresh)
        return [(key, signum) for key in fresh for signum in (signal.SIGTERM, signal.SIGCONT)]


def resident_bytes(pid: int) -> int:
    """What the process occupies now, pages shared with others included; 0 if there is no such process."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def peak_rss_bytes(pid: int) -> int:
    """The most it has ever occupied (VmHWM of proc(5)): between two samples it may have been more than in either. 0 if
    there is no such process.
    """
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            _, _, after = file.read().partition(b"\nVmHWM:")
            return int(after.split(maxsplit=1)[0]) * 1024
    except (OSError, IndexError, ValueError):
        return 0
