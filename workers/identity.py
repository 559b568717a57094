"""The name of a worker: stable over restarts, and held by one process at a time.

A worker that is started again after a crash takes the same name, so the broker learns at once that the old process is
dead, and the sweep knows which processes the old one may have left. Two locks keep a name to one process: a file in
`data_dir` (for containers that share the folder), and an abstract socket (for systems with folders of their own on
one machine). The kernel drops both when the process ends, however that comes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from zq.protocol import limits
from zq.protocol.blake2 import blake2b
from zq.protocol.job import valid_name

WORKERS_PER_NAME_MAX: Final = 1024
_FILE_NAME_BYTES_MAX: Final = 200


class NameRefused(Exception):
    """The worker cannot have this name, or no name. The text says why and what to do."""


class Identity:
    """A name that is held until `release`, or the end of the process."""

    def __init__(self, instance: str, lock_fd: int, guard: socket.socket) -> None:
        self.instance = instance
        self.incarnation = os.urandom(16)
        """New with every process."""
        self._lock_fd = lock_fd
        self._guard = guard

    def release(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._guard.close()
            self._lock_fd = -1

    def __enter__(self) -> Identity:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def take_name(data_path: Path, queues: Sequence[str], name: str = "", hostname: str | None = None) -> Identity:
    """Take `name`, else the first of `HOST:QUEUE+QUEUE:1`, `…:2`, … that no process holds.

    Raises NameRefused if the name cannot be one, is held, or `data_path` cannot be written.
    """
    if name and (not valid_name(name) or "/" in name):
        raise NameRefused(f"worker name {name!r}: use 1 to {limits.NAME_CHARS_MAX} printable characters, no blank or /")
    folder = data_path / "run"
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        for candidate in [name] if name else default_names(hostname or socket.gethostname(), queues):
            identity = _try(folder, candidate)
            if identity is not None:
                return identity
    except OSError as error:
        raise NameRefused(f"cannot keep the worker's lock file in {folder}: {error}; check data_dir") from None
    if name:
        raise NameRefused(f"another process on this machine is the worker {name!r}; stop it, or give another --name")
    raise NameRefused(f"{WORKERS_PER_NAME_MAX} workers for these queues run on this machine already")


def default_names(hostname: str, queues: Sequence[str]) -> Iterator[str]:
    """The names to try, in order; always valid ones."""
    base = "".join(c if c.isprintable() and not c.isspace() and c != "/" else "_" for c in hostname) or "localhost"
    base = f"{base}:{'+'.join(queues)}".replace("/", "_")
    room = limits.NAME_CHARS_MAX - len(f":{WORKERS_PER_NAME_MAX}")
    if len(base) > room:
        mark = _mark(base, 6)
        base = f"{base[: room - len(mark) - 1]}~{mark}"
    for number in range(1, WORKERS_PER_NAME_MAX + 1):
        yield f"{base}:{number}"


def _try(folder: Path, instance: str) -> Identity | None:
    """The identity, or None if another process holds the name."""
    fd = os.open(folder / lock_file_name(instance), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    guard = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        guard.bind(b"\0zq-worker-" + _mark(instance, 16).encode())
    except OSError as error:
        os.close(fd)
        guard.close()
        if error.errno in (errno.EWOULDBLOCK, errno.EADDRINUSE):
            return None
        raise
    # The pid is for people; the lock is what counts, and a file that is left over holds nobody up.
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
    return Identity(instance, fd, guard)


def lock_file_name(instance: str) -> str:
    """A file name for a worker's name, which may be longer than a file system allows."""
    if len(instance.encode()) > _FILE_NAME_BYTES_MAX:
        mark = _mark(instance, 8)
        instance = instance.encode()[: _FILE_NAME_BYTES_MAX - 20].decode("utf-8", "ignore") + f"~{mark}"
    return f"worker-{instance}.lock"


def _mark(text: str, size_bytes: int) -> str:
    return blake2b(text.encode("utf-8", "replace"), digest_size=size_bytes).hexdigest()
