"""Tasks for the tests of slots and keeper: well behaved ones, and as hostile ones as they come.

Imported by a real keeper process. Tasks that start processes write their pids to a file, one a line, when they stand.
"""

from __future__ import annotations

import ctypes
import datetime
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import zq
from zq import registry

F = TypeVar("F", bound=Callable[..., Any])


def task(function: F) -> F:
    registry.register(f"slot_tasks.{function.__name__}", function)
    return function


def _stand(path: str, *pids: int) -> None:
    """Say, at once and completely, that these processes stand."""
    part = Path(path + ".part")
    part.write_text("".join(f"{pid}\n" for pid in pids))
    part.rename(path)


@task
def echo(*args: Any, **kwargs: Any) -> list[Any]:
    return [list(args), kwargs]


@task
def who() -> dict[str, Any]:
    job = zq.current_job()
    return {"id": job.id, "attempt": job.attempt, "task": job.task, "queue": job.queue, "pid": os.getpid()}


@task
def raise_error(text: str) -> None:
    raise ValueError(text)


class _Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@task
def raise_unprintable() -> None:
    raise _Unprintable


@task
def recurse() -> None:
    recurse()


@task
def leave(code: int) -> None:
    sys.exit(code)


@task
def exit_hard(code: int) -> None:
    os._exit(code)


@task
def retry(after_s: float | None) -> None:
    raise zq.Retry("later, please", after_s=after_s)


@task
def reject(reason: str) -> None:
    raise zq.Reject(reason)


@task
def return_date() -> Any:
    return {"when": [1, datetime.date(2026, 1, 1)]}


@task
def return_bytes(size: int) -> bytes:
    return bytes(size)


@task
def sleep_python(path: str) -> str:
    """Sleep for ever; at the soft limit say so."""
    try:
        _stand(path, os.getpid())
        time.sleep(600)
    except zq.SoftTimeLimitExceeded as limit:
        return f"told: {limit}"
    return "slept"


@task
def swallow_soft(path: str) -> str:
    """Ignore the first word about the soft limit, then ask."""
    try:
        _stand(path, os.getpid())
        time.sleep(600)
    except zq.SoftTimeLimitExceeded:
        pass
    try:
        zq.current_job().check_soft_limit()
    except zq.SoftTimeLimitExceeded:
        return "told again"
    return "forgotten"


@task
def sleep_in_c(path: str) -> None:
    """Never come back to Python: no handler runs."""
    libc = ctypes.PyDLL(None)  # holds the GIL
    _stand(path, os.getpid())
    while True:
        libc.usleep(500_000)


@task
def spin_in_c(path: str) -> None:
    _stand(path, os.getpid())
    pow(3, 10**9)  # one instruction of Python, minutes of C


@task
def eat_memory(path: str, size_bytes: int) -> None:
    block = bytearray(size_bytes)
    block[:: 4096] = b"x" * len(block[:: 4096])
    _stand(path, os.getpid())
    time.sleep(600)


@task
def stop_self(path: str) -> None:
    _stand(path, os.getpid())
    os.kill(os.getpid(), signal.SIGSTOP)


@task
def fill_own_pipe(path: str) -> None:
    """Start a program, never read what it writes, wait for it: both hang for ever."""
    code = "import sys\nwhile True: sys.stdout.write('x' * 65536)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        _stand(path, os.getpid(), process.pid)
        process.wait()


@task
def fork_many(path: str, count: int) -> None:
    pids = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                time.sleep(600)
        pids.append(pid)
    _stand(path, *pids)
    time.sleep(600)


DAEMON = """
import os, signal, sys, time
for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(s, signal.SIG_IGN)
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
os.chdir("/")
with open(sys.argv[1] + ".part", "w") as file: file.write(f"{os.getpid()}\\n")
os.rename(sys.argv[1] + ".part", sys.argv[1])
while True: time.sleep(600)
"""


@task
def daemonize(path: str, stay: bool) -> str:
    """Start what does all it can to escape: double fork, own session, no signals, no environment."""
    subprocess.run([sys.executable, "-c", DAEMON, path], env={}, check=True, close_fds=True)
    until_s = time.monotonic() + 10
    while not os.path.exists(path) and time.monotonic() < until_s:
        time.sleep(0.005)
    if stay:
        time.sleep(600)
    return "left"


@task
def breed(path: str) -> None:
    """A process that walks: each generation forks the next and ends, so its pid is never the same for long."""
    if os.fork() == 0:
        os.setsid()
        until_s = time.monotonic() + 60  # should a test be ended before it has ended this
        while time.monotonic() < until_s:
            if os.fork():
                os._exit(0)
            time.sleep(0.002)
        os._exit(0)
    _stand(path, os.getpid())
    time.sleep(600)


@task
def run_endless(path: str, argv: list[str]) -> None:
    """As the merge runs FFmpeg."""
    job = zq.current_job()

    def stand(line: str) -> None:
        if not os.path.exists(path):
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            _stand(path, os.getpid(), *map(int, children))

    job.run_process(argv, on_stdout_line=stand)


@task
def start_long_children(path: str) -> None:
    sleeper = subprocess.Popen(["sleep", "600"])
    python = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    _stand(path, os.getpid(), sleeper.pid, python.pid)
    sleeper.wait()


@task
def run(argv: list[str], options: dict[str, Any]) -> dict[str, Any]:
    lines: list[str] = []
    bounds = options.pop("limits", None)
    feed = [Path(name) for name in options.pop("feed_stdin", [])]
    result = zq.current_job().run_process(
        argv,
        limits=zq.ProcessLimits(**bounds) if bounds else None,
        on_stdout_line=lines.append,
        feed_stdin=feed,
        **options,
    )
    return {"returncode": result.returncode, "stderr": result.stderr_tail, "lines": lines}


def _look_around() -> int:
    import resource

    files = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))
    print(os.getcwd(), files[:3], resource.getrlimit(resource.RLIMIT_CPU))
    print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, len(os.listdir("/proc/self/fd")))
    print("一", file=sys.stderr)
    return 3


def _raise() -> int:
    raise LookupError("no luck")


def _crash() -> int:
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0


def _take_much() -> int:
    return len(bytearray(1 << 30)) & 1


@task
def fork(what: str) -> dict[str, Any]:
    lines: list[str] = []
    job: Any = zq.current_job()
    functions = {"look": _look_around, "raise": _raise, "crash": _crash, "take": _take_much}
    limits = zq.ProcessLimits(cpu_s=7, memory_bytes=512 << 20, open_files=64)
    os.dup2(0, 200)  # above that bound, and not for the child
    try:
        result = job.run_forked(functions[what], cwd=Path("/"), limits=limits, on_stdout_line=lines.append)
    finally:
        os.close(200)
    return {"returncode": result.returncode, "stderr": result.stderr_tail, "lines": lines}


@task
def run_then_raise(argv: list[str]) -> None:
    result = zq.current_job().run_process(argv)
    raise RuntimeError(f"it ended with {result.returncode}")


@task
def run_raising_callback(path: str) -> None:
    def fail(line: str) -> None:
        _stand(path, int(line))
        raise LookupError("the callback failed")

    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    zq.current_job().run_process([sys.executable, "-c", code], on_stdout_line=fail)


@task
def run_told(path: str, clean_up_argv: list[str]) -> dict[str, Any]:
    """Run something that takes note of TERM; when told, another program."""
    code = (
        "import pathlib, signal, sys, time\n"
        "def term(*_): pathlib.Path(sys.argv[1] + '.term').touch(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, term)\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "time.sleep(600)\n"
    )
    job = zq.current_job()
    try:
        job.run_process([sys.executable, "-c", code, path])
    except zq.SoftTimeLimitExceeded as limit:
        cleaned = job.run_process(clean_up_argv).returncode
        return {"told": str(limit), "term": os.path.exists(path + ".term"), "cleaned": cleaned}
    return {}


@task
def report(count: int) -> None:
    job = zq.current_job()
    for number in range(count):
        job.progress(number + 1, count, "步骤")


@task
def ask_still_mine() -> str:
    zq.current_job().still_mine()
    return "mine"


@task
def publish(path: str, text: str) -> None:
    with zq.current_job().publish(Path(path)) as part:
        part.write_text(text)


@task
def publish_nothing(path: str) -> None:
    with zq.current_job().publish(Path(path)):
        pass


@task
def publish_and_die(path: str) -> None:
    with zq.current_job().publish(Path(path)) as part:
        part.write_text("half")
        os._exit(9)


@task
def fork_and_return() -> int:
    """The child returns from the task, too, and before the task itself."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    return pid


@task
def speak_in_fork() -> str:
    pid = os.fork()
    if pid == 0:
        try:
            zq.current_job().progress(1, 2)
        except RuntimeError:
            os._exit(7)
        os._exit(0)
    return str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


@task
def still_mine_in_thread() -> str:
    said: list[str] = []

    def ask() -> None:
        try:
            job.still_mine()
        except RuntimeError as error:
            said.append(str(error))

    job = zq.current_job()
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return said[0]


@task
def scribble() -> None:
    """Write nonsense to every socket of the slot."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                os.write(int(name), b"\xff" * 64)
        except OSError:
            continue
    time.sleep(600)


@task
def close_all() -> None:
    os.closerange(3, 4096)
    time.sleep(600)


@task
def block_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


@task
def leave_an_alarm() -> float:
    """What an earlier one has left of its own."""
    return signal.setitimer(signal.ITIMER_REAL, 600)[0]


@task
def fork_twice() -> str:
    """The child opens files, its child must have them, too."""
    pid = os.fork()
    if pid == 0:
        files = [os.open(os.devnull, os.O_WRONLY) for _ in range(4)]
        inner = os.fork()
        if inner:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]))
        try:
            for fd in files:
                os.write(fd, b"x")
        finally:
            os._exit(0 if sys.exception() is None else 9)
    return str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


@task
def wander(folder: str) -> str:
    here = os.getcwd()
    os.chdir(folder)
    return here


@task
def burn(cpu_s: float, size_bytes: int, path: str) -> None:
    """Use CPU in a child of a child, and write and sync a file."""
    code = (
        "import os, sys, time\n"
        "while time.process_time() < float(sys.argv[1]): pass\n"
        "block = bytearray(int(sys.argv[2])); block[::4096] = b'x' * len(block[::4096])\n"
        "fd = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT); os.write(fd, block); os.fsync(fd)\n"
    )
    inner = [sys.executable, "-c", code, str(cpu_s), str(size_bytes), path]
    wrap = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"
    subprocess.run([sys.executable, "-c", wrap, *inner], check=True)
