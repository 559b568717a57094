"""One program run by a task: started with its limits on, its pipes always drained, ended in order.

Limits, niceness, umask and the parent-death signal are set between fork and exec (`preexec_fn`), in the slot's main
thread. A wrapper program would do the same from outside, but Python as a wrapper costs 30 ms for each program and
util-linux is not on every machine; and setting limits from outside after the start would leave a moment without
them. What runs between fork and exec is a handful of system calls, resolved beforehand, so it is safe even when the
task's libraries have threads. The parent-death signal belongs to the forking *thread*, so only the main thread may.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import signal
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final, NoReturn, Protocol

from zq.context import ProcessLimits, ProcessResult
from zq.workers.channel import DOORBELL
from zq.workers.process import die_with_parent, idle_io, key_of, living_below, refuse_new_privileges, send_signal

LINE_BYTES_MAX: Final = 64 << 10
"""A longer line of standard output is cut; the rest of it is dropped."""
STDERR_TAIL_BYTES: Final = 8 << 10
_READ_BYTES: Final = 64 << 10
_FEED_BYTES: Final = 1 << 20
_DESCRIPTORS_MAX: Final = 1 << 20
"""What Linux allows a process by default (fs.nr_open)."""
_READS_AT_END_MAX: Final = 1024
"""After the program has ended its pipes are emptied, but a child of its that still writes is not waited for."""


class Bell(Protocol):
    """Where news for the running task comes in while a program runs."""

    def fileno(self) -> int: ...

    def take(self) -> None:
        """Take what has come in. Called when `fileno()` is readable."""
        ...

    def soft_limit_due(self) -> bool:
        """Whether the soft limit has passed and the task has not been told yet."""
        ...


class _Poller(Protocol):
    """What select.poll and select.epoll have in common."""

    def register(self, fd: int, eventmask: int, /) -> None: ...
    def unregister(self, fd: int, /) -> None: ...


def run_program(
    argv: Sequence[str],
    *,
    cwd: Path | None,
    env: Mapping[str, str] | None,
    limits: ProcessLimits,
    on_stdout_line: Callable[[str], None] | None,
    on_stderr_line: Callable[[str], None] | None = None,
    feed_stdin: Sequence[Path],
    bell: Bell,
    kill_grace_s: float,
) -> ProcessResult | None:
    """Run it to its end. None: the soft limit passed and it was ended with TERM, after `kill_grace_s` with KILL.

    Raises OSError if it cannot be started or a file of `feed_stdin` cannot be read, and whatever `on_stdout_line`
    raises; the program has ended by then.
    """
    with _start(argv, cwd, env, limits, on_stdout_line, on_stderr_line, feed_stdin) as running:
        return running.wait(bell, kill_grace_s)


async def run_program_async(
    argv: Sequence[str],
    *,
    cwd: Path | None,
    env: Mapping[str, str] | None,
    limits: ProcessLimits,
    on_stdout_line: Callable[[str], None] | None,
    on_stderr_line: Callable[[str], None] | None = None,
    feed_stdin: Sequence[Path],
    kill_grace_s: float,
) -> ProcessResult:
    """The same in an event loop, which goes on meanwhile. Whatever ends the waiting, a cancellation or the soft limit,
    gives the program TERM, after `kill_grace_s` KILL, and is raised when it has ended.
    """
    import asyncio

    running = _start(argv, cwd, env, limits, on_stdout_line, on_stderr_line, feed_stdin)
    with running, contextlib.closing(select.epoll()) as news:
        running.register(news)
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(news.fileno(), ready.set)
        try:
            interrupted: BaseException | None = None
            while True:
                ready.clear()
                result = running.step({fd for fd, _ in news.poll(0)}, news)
                if result is not None:
                    if interrupted is not None:
                        raise interrupted
                    return result
                try:
                    await asyncio.wait_for(ready.wait(), running.left_s())
                except TimeoutError:
                    pass
                except BaseException as error:
                    if interrupted is None:
                        running.terminate(kill_grace_s)
                    interrupted = interrupted or error
        finally:
            loop.remove_reader(news.fileno())


def _start(
    argv: Sequence[str], cwd: Path | None, env: Mapping[str, str] | None, limits: ProcessLimits,
    on_stdout_line: Callable[[str], None] | None, on_stderr_line: Callable[[str], None] | None,
    feed_stdin: Sequence[Path],
) -> _Running:  # fmt: skip
    if isinstance(argv, str | bytes) or not argv:
        raise TypeError("run_process takes a list of arguments, not one text: it never goes through a shell")
    process = subprocess.Popen(
        list(argv),
        bufsize=0,
        stdin=subprocess.PIPE if feed_stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE if on_stdout_line is not None else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=env,
        preexec_fn=_enter(limits),  # noqa: PLW1509 - see the top of this file
    )
    return _Running(process, on_stdout_line, on_stderr_line, feed_stdin)


def run_forked(
    function: Callable[[], int],
    *,
    cwd: Path,
    limits: ProcessLimits,
    on_stdout_line: Callable[[str], None],
    bell: Bell,
    kill_grace_s: float,
) -> ProcessResult | None:
    """As `run_program`, with a copy of this process in which `function` runs and gives the exit code.

    For what would cost more to start than to do. What it prints are the lines; it has no other open file of this
    process. Whatever it raises ends it with code 1 and the traceback on standard error.
    """
    process = _Forked(function, cwd, _enter(limits))
    with _Running(process, on_stdout_line, None, ()) as running:
        return running.wait(bell, kill_grace_s)


class _Forked:
    """A forked child, with as much of `subprocess.Popen` as `_Running` needs."""

    def __init__(self, function: Callable[[], int], cwd: Path, enter: Callable[[], None]) -> None:
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        # What is still in their buffers is this process's and would be written twice.
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _be_child(function, cwd, enter, out_write, err_write)
        os.close(out_write)
        os.close(err_write)
        self.returncode: int | None = None
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = os.fdopen(out_read, "rb", buffering=0)
        self.stderr: IO[bytes] | None = os.fdopen(err_read, "rb", buffering=0)

    def poll(self) -> int | None:
        if self.returncode is None:
            self._reap(os.WNOHANG)
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self._reap(0)
        return self.returncode or 0

    def _reap(self, options: int) -> None:
        try:
            pid, status = os.waitpid(self.pid, options)
        except ChildProcessError:
            self.returncode = 0
            return
        if pid:
            self.returncode = os.waitstatus_to_exitcode(status)

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def _be_child(function: Callable[[], int], cwd: Path, enter: Callable[[], None], out: int, err: int) -> NoReturn:
    code = 1
    try:
        enter()
        os.dup2(out, 1)
        os.dup2(err, 2)
        # Not up to the bound on open files: that may be lower by now than what is open.
        os.closerange(3, _DESCRIPTORS_MAX)
        os.chdir(cwd)
        for signum in (signal.SIGTERM, signal.SIGINT, DOORBELL):
            signal.signal(signum, signal.SIG_DFL)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - it lives as long as the process
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        code = function()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        # Nothing of this process's own may happen at the end: it is the parent's to do.
        os._exit(code)


def _enter(limits: ProcessLimits) -> Callable[[], None]:
    """What the new process does before exec. Everything is computed here, before the fork."""
    parent_pid = os.getpid()
    bounds = [(resource.RLIMIT_CORE, (0, 0))]
    wanted = (
        (resource.RLIMIT_AS, limits.memory_bytes, 0),
        (resource.RLIMIT_CPU, limits.cpu_s, 1),  # XCPU at the bound, KILL a second later
        (resource.RLIMIT_FSIZE, limits.file_size_bytes, 0),
        (resource.RLIMIT_NOFILE, limits.open_files, 0),
    )
    for kind, value, slack in wanted:
        if value < 0:
            raise ValueError("a limit of ProcessLimits is negative; 0 means no limit")
        if value:
            hard = resource.getrlimit(kind)[1]
            if hard != resource.RLIM_INFINITY:
                value = min(value, hard)
                slack = min(slack, hard - value)
            bounds.append((kind, (value, value + slack)))
    nice, waits_for_disk = limits.nice, limits.idle_io

    def enter() -> None:
        die_with_parent(signal.SIGKILL)
        if os.getppid() != parent_pid:
            os._exit(127)
        refuse_new_privileges()
        os.umask(0o077)
        if nice:
            os.nice(nice)
        if waits_for_disk:
            idle_io()
        for kind, pair in bounds:
            resource.setrlimit(kind, pair)

    return enter


class _Running:
    """The program while it runs: one loop over its pipes, its end and the bell."""

    def __init__(
        self, process: subprocess.Popen[bytes] | _Forked, on_line: Callable[[str], None] | None,
        on_stderr_line: Callable[[str], None] | None, feed: Sequence[Path],
    ) -> None:  # fmt: skip
        self._process = process
        self._stderr_lines = _Lines(on_stderr_line) if on_stderr_line is not None else None
        self._lines = _Lines(on_line) if on_line is not None else None
        self._feeder = _Feeder(process.stdin, feed) if process.stdin is not None else None
        self._stderr_tail = bytearray()
        self._pidfd = os.pidfd_open(process.pid)
        self._kill_at_s: float | None = None
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)

    def __enter__(self) -> _Running:
        return self

    def __exit__(self, *exc: object) -> None:
        """Whatever happened, the program has ended and is reaped, and its pipes are closed."""
        if self._process.poll() is None:
            self._kill()
            self._process.wait()
        if self._feeder is not None:
            self._feeder.close()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        os.close(self._pidfd)

    def wait(self, bell: Bell, kill_grace_s: float) -> ProcessResult | None:
        poller = select.poll()
        poller.register(bell.fileno(), select.POLLIN)
        self.register(poller)
        while True:
            left_s = self.left_s()
            ready = {fd for fd, _ in poller.poll(None if left_s is None else int(left_s * 1000) + 1)}
            if bell.fileno() in ready:
                bell.take()
            # Also without news on the channel: a limit that passed just before the program started counts.
            if bell.soft_limit_due():
                self.terminate(kill_grace_s)
            result = self.step(ready, poller)
            if result is not None:
                return None if self._kill_at_s is not None else result

    def register(self, poller: _Poller) -> None:
        poller.register(self._pidfd, select.POLLIN)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                poller.register(pipe.fileno(), select.POLLIN)
        if self._process.stdin is not None:
            poller.register(self._process.stdin.fileno(), select.POLLOUT)

    def terminate(self, kill_grace_s: float) -> None:
        """TERM, once; the KILL that may have to follow is given by `step`."""
        if self._kill_at_s is None:
            self._process.terminate()
            self._process.send_signal(signal.SIGCONT)
            self._kill_at_s = time.monotonic() + kill_grace_s

    def left_s(self) -> float | None:
        """Until `step` has to be called though nothing is ready; None: it need not be."""
        return None if self._kill_at_s is None else max(0.0, min(0.1, self._kill_at_s - time.monotonic()))

    def step(self, ready: set[int], poller: _Poller) -> ProcessResult | None:
        """Do what can be done now; the result once the program has ended."""
        if self._kill_at_s is not None and time.monotonic() >= self._kill_at_s:
            self._kill()
        if self._pidfd in ready:
            return self._end()
        self._serve_pipes(ready, poller)
        return None

    def _serve_pipes(self, ready: set[int], poller: _Poller) -> None:
        for pipe, take in ((self._process.stdout, self._take_stdout), (self._process.stderr, self._take_stderr)):
            if pipe is not None and not pipe.closed and pipe.fileno() in ready and not take(pipe.fileno()):
                poller.unregister(pipe.fileno())
                pipe.close()
        stdin = self._process.stdin
        feeding = stdin is not None and not stdin.closed and stdin.fileno() in ready
        if feeding and stdin is not None and self._feeder is not None and not self._feeder.feed():
            poller.unregister(stdin.fileno())
            with contextlib.suppress(BrokenPipeError):
                stdin.close()

    def _take_stdout(self, fd: int) -> bool:
        data = os.read(fd, _READ_BYTES)
        if self._lines is not None:
            self._lines.feed(data)
        return bool(data)

    def _take_stderr(self, fd: int) -> bool:
        data = os.read(fd, _READ_BYTES)
        if self._stderr_lines is not None:
            self._stderr_lines.feed(data)
        self._stderr_tail += data
        del self._stderr_tail[:-STDERR_TAIL_BYTES]
        return bool(data)

    def _kill(self) -> None:
        pid = self._process.pid
        for key in (*living_below(pid), key_of(pid)):
            if key is not None:
                send_signal(key, signal.SIGKILL)

    def _end(self) -> ProcessResult:
        peak_memory_bytes, cpu_s = self._reap()
        for pipe, take in ((self._process.stdout, self._take_stdout), (self._process.stderr, self._take_stderr)):
            if pipe is not None and not pipe.closed:
                with contextlib.suppress(BlockingIOError):
                    for _ in range(_READS_AT_END_MAX):
                        if not take(pipe.fileno()):
                            break
        for lines in (self._lines, self._stderr_lines):
            if lines is not None:
                lines.end()
        stderr_tail = self._stderr_tail.decode("utf-8", "replace")
        return ProcessResult(self._process.wait(), stderr_tail, peak_memory_bytes, cpu_s)

    def _reap(self) -> tuple[int, float]:
        """Memory and CPU seconds of the program by the kernel's account, which Popen would forget; 0: not known."""
        if self._process.returncode is not None:  # a signal to it came too late, and Popen saw that
            return 0, 0.0
        try:
            _, status, usage = os.wait4(self._process.pid, 0)
        except ChildProcessError:  # the task reaps everything itself
            return 0, 0.0
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime


class _Lines:
    """Cuts standard output into lines of bounded length."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._partial = bytearray()

    def feed(self, data: bytes) -> None:
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._keep(piece)
            self._deliver()
        self._keep(rest)

    def end(self) -> None:
        if self._partial:
            self._deliver()

    def _keep(self, piece: bytes) -> None:
        self._partial += piece[: max(0, LINE_BYTES_MAX - len(self._partial))]

    def _deliver(self) -> None:
        line = self._partial.removesuffix(b"\r").decode("utf-8", "replace")
        self._partial.clear()
        self._on_line(line)


class _Feeder:
    """Writes the bytes of files to a pipe, without a copy through this process."""

    def __init__(self, pipe: IO[bytes], files: Sequence[Path]) -> None:
        self._pipe_fd = pipe.fileno()
        self._waiting = list(reversed(files))
        self._file_fd: int | None = None
        with contextlib.suppress(OSError):  # a larger pipe is a favour the kernel may refuse
            fcntl.fcntl(self._pipe_fd, fcntl.F_SETPIPE_SZ, _FEED_BYTES)

    def feed(self) -> bool:
        """Write what fits now; False when all is written, or the program has closed its end."""
        try:
            while True:
                if self._file_fd is None:
                    if not self._waiting:
                        return False
                    self._file_fd = _open_regular(self._waiting.pop())
                if os.sendfile(self._pipe_fd, self._file_fd, None, _FEED_BYTES) == 0:
                    self.close()
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False

    def close(self) -> None:
        if self._file_fd is not None:
            os.close(self._file_fd)
            self._file_fd = None


def _open_regular(path: Path) -> int:
    """Open for reading; no symbolic link, and nothing that would block, such as a FIFO."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"{path} is not a regular file; only those are fed to a program")
    return fd
