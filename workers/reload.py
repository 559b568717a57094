"""`zq worker --reload`: for development. The worker is started again when its code has changed.

A process of its own runs the worker and watches the files. A change is a SIGTERM to the worker, which drains as ever:
what runs may finish, or is handed back without costing an attempt. A worker that cannot start, for a module with an
error in it, is started again with the next change.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from zq.workers.process import die_with_parent

LOOK_S: Final = 0.5
SETTLE_S: Final = 0.3
"""So long no further file may change: an editor, or git, writes many."""
FILES_MAX: Final = 20_000
_SUFFIXES: Final = (".py", ".toml")
_USAGE: Final = 2
_SHOWN_MAX: Final = 3
_logger = logging.getLogger("zq.workers")

Snapshot = dict[str, tuple[int, int]]


def snapshot(roots: Sequence[Path], without: Path | None = None) -> Snapshot:
    """path → (mtime in ns, size) of the source files below `roots`; `without` names a folder to leave out.

    Hidden folders, virtual environments and caches are left out too. At most FILES_MAX files.
    """
    found: Snapshot = {}
    for root in roots:
        for path in _files(str(root), str(without) if without is not None else ""):
            try:
                stat = os.stat(path)
            except OSError:  # gone meanwhile
                continue
            found[path] = (stat.st_mtime_ns, stat.st_size)
            if len(found) >= FILES_MAX:
                return found
    return found


def _files(folder: str, without: str) -> Iterator[str]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    if any(entry.name == "pyvenv.cfg" for entry in entries):
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name in ("__pycache__", "node_modules") or entry.path == without:
            continue
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path, without)
            elif entry.name.endswith(_SUFFIXES):
                yield entry.path
        except OSError:
            continue


def changed(before: Snapshot, after: Snapshot) -> list[str]:
    """Files that are new, gone or different."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


class Reloader:
    """Runs `argv` again and again; `run` returns the exit code once somebody has asked it to stop."""

    def __init__(self, argv: Sequence[str], roots: Sequence[Path], without: Path | None) -> None:
        self._argv = list(argv)
        self._roots = list(roots)
        self._without = without
        self._seen: Snapshot = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def run(self) -> int:
        wake_out, wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
        try:
            return self._serve(wake_out)
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(wake_out)
            os.close(wake_in)

    def _serve(self, wake_fd: int) -> int:
        self._seen = self._look()
        _logger.info("watching %d files below %s", len(self._seen), ", ".join(map(str, self._roots)))
        self._start()
        code: int | None = None
        while True:
            select.select([wake_fd], [], [], LOOK_S)
            while select.select([wake_fd], [], [], 0)[0]:
                os.read(wake_fd, 512)
            if self._process is not None and (code := self._process.poll()) is not None:
                self._process = None
                if code in (0, _USAGE) or self._stopping:
                    return code
                _logger.error("the worker has ended with code %d; it starts again when a file changes", code)
            if self._stopping:
                if self._process is None:
                    return code or 0
                continue
            if names := self._changes():
                shown = ", ".join(os.path.relpath(name) for name in names[:_SHOWN_MAX])
                more = f" and {len(names) - _SHOWN_MAX} more" if len(names) > _SHOWN_MAX else ""
                _logger.info("changed: %s%s; the worker is started again", shown, more)
                if self._drain():
                    self._start()

    def _look(self) -> Snapshot:
        return snapshot(self._roots, self._without)

    def _changes(self) -> list[str]:
        """What has changed since the worker was started, once it changes no more."""
        now = self._look()
        names = changed(self._seen, now)
        while names:
            time.sleep(SETTLE_S)
            last, now = now, self._look()
            if last == now:
                break
        self._seen = now
        return names

    def _start(self) -> None:
        # Python takes a .pyc for up to date if the second and the size fit, which is not enough for quick fingers.
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        own_pid = os.getpid()

        def enter() -> None:
            die_with_parent(signal.SIGTERM)
            if os.getppid() != own_pid:
                os._exit(0)

        self._process = subprocess.Popen(self._argv, env=env, preexec_fn=enter)  # noqa: PLW1509 - we have one thread

    def _drain(self) -> bool:
        """End the worker in order; False if somebody has asked us to stop meanwhile."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None
        return not self._stopping

    def _on_signal(self, number: int, _frame: object) -> None:
        self._stopping = True
        # Ctrl-C has reached the worker as well; a signal of `kill` has not.
        if number == signal.SIGTERM and self._process is not None:
            self._process.terminate()


def roots_of(environ: Mapping[str, str]) -> list[Path]:
    """Where the code under development is: this folder, and those of PYTHONPATH."""
    named = [Path(entry) for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return [path for path in dict.fromkeys(path.resolve() for path in [Path.cwd(), *named]) if path.is_dir()]


def worker_argv(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "zq.workers", *words]
