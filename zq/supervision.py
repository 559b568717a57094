"""supervisord as the keeper of a zq system: its configuration, its environment, and a client of its XML-RPC.

A system is known by its `data_dir`: supervisord's socket, its pid file and the programs' logs are in there, so any
number of systems live side by side on one machine.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import os
import socket
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast
from xml.parsers.expat import ExpatError

from zq.config import Config, ConfigError
from zq.exceptions import ZqError
from zq.workers.sweep import SYSTEM_MARK

SOCKET_PATH_BYTES_MAX = 96
"""A Unix socket's path has 107 bytes, of which supervisord needs some for a temporary name."""
_BUILT_IN_WORKERS = {"status_check": "status-worker", "video_merge": "merge-worker"}
_ANSWER_S = 10.0
STOP_WAIT_S = 1900
"""stopwaitsecs of the workers in supervisord.conf."""
STOP_MARGIN_S = 15.0
"""What everything but the drain may take when a worker stops."""


class ControlError(ZqError):
    """Controlling the system failed; the text says what to do."""


class _NobodyThere(ControlError):
    """Nobody listens on the socket."""


class Program(NamedTuple):
    """One program as supervisord sees it."""

    name: str
    state: str
    """STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL or UNKNOWN."""
    pid: int
    """0 when it does not run."""
    uptime_s: int
    exit_code: int
    log: str
    trouble: str
    """Why it could not be started; mostly empty."""


def configuration_file() -> Path:
    """supervisord.conf: a link into the checkout, a copy in an installed package."""
    return Path(__file__).with_name("supervisord.conf")


def check_usable(data_dir: Path) -> None:
    """Raises ConfigError for a data_dir in which supervisord could not work."""
    if any(c in str(data_dir) for c in '"\\\n') or not str(data_dir).isprintable():
        raise ConfigError(f"data_dir {str(data_dir)!r}: choose one without quotes, backslashes, control characters")
    length = len(os.fsencode(data_dir / "supervisor.sock"))
    if length > SOCKET_PATH_BYTES_MAX:
        raise ConfigError(
            f"data_dir {data_dir} is too long by {length - SOCKET_PATH_BYTES_MAX} byte(s) for the socket of supervisord"
            " that lies in it; choose a shorter path"
        )


def worker_name(queue: str) -> str:
    return _BUILT_IN_WORKERS.get(queue, f"worker-{queue}")


def stop_wait_s(config: Config) -> int:
    """How long supervisord waits for a worker that was told to stop: always longer than the worker takes."""
    return max(STOP_WAIT_S, math.ceil(config.worker.drain_s + config.worker.kill_grace_s + STOP_MARGIN_S))


def own_configuration(config: Config) -> bool:
    """Whether this system needs more than supervisord.conf says."""
    return not _BUILT_IN_WORKERS.keys() >= config.queues.keys() or stop_wait_s(config) > STOP_WAIT_S


def configuration_text(config: Config) -> str:
    """supervisord.conf, with a program for each queue that it does not have, and time for the workers' drain."""
    text = configuration_file().read_text("utf-8")
    text = text.replace(f"stopwaitsecs={STOP_WAIT_S}\n", f"stopwaitsecs={stop_wait_s(config)}\n")
    # A further worker is what the merge worker is, for another queue.
    section = "[program:merge-worker]" + text.partition("[program:merge-worker]")[2].partition("\n[")[0].rstrip()
    for queue in config.queues:
        if queue not in _BUILT_IN_WORKERS:
            further = section.replace("--queue video_merge", f"--queue {queue}")
            text += "\n" + further.replace("merge-worker", worker_name(queue)) + "\n"
    return text


def environment(config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """What supervisord and every program inherit. The data_dir and the file are absolute: the folder is no matter."""
    data_dir = config.data_dir
    env = {**environ, "ZQ_DATA_DIR": data_dir, SYSTEM_MARK: data_dir}
    if config.source:
        env["ZQ_CONFIG"] = config.source
    # The programs must run in the Python that runs this.
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)])
    return env


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Supervisor:
    """The supervisord of one data_dir. Every call raises ControlError when it does not answer as it should."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.socket_path = data_dir / "supervisor.sock"

    def pid(self) -> int | None:
        """The pid of supervisord; None when none is there. One that is there and does not answer is a ControlError."""
        try:
            return int(self._call("supervisor.getPID"))
        except _NobodyThere:
            return None

    def start(self, config: Config, environ: Mapping[str, str]) -> None:
        """Start supervisord in the background; its programs start by themselves. It answers when this returns."""
        (self.data_dir / "log").mkdir(mode=0o750, parents=True, exist_ok=True)
        file = configuration_file()
        if own_configuration(config):
            file = self.data_dir / "supervisord.conf"
            file.write_text(configuration_text(config), "utf-8")
        run = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisord", "-c", str(file)],
            cwd=Path(config.source).parent if config.source else None,
            env=environment(config, environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if run.returncode != 0:
            said = (run.stderr or run.stdout).strip()
            raise ControlError(f"supervisord did not start (exit code {run.returncode}): {said}")
        until_s = time.monotonic() + _ANSWER_S
        while self.pid() is None:
            if time.monotonic() > until_s:
                raise ControlError(f"supervisord does not answer; see {self.data_dir / 'log' / 'supervisord.log'}")
            time.sleep(0.05)

    def programs(self) -> list[Program]:
        """All programs, by name."""
        rows = cast("list[dict[str, Any]]", self._call("supervisor.getAllProcessInfo"))
        return [
            Program(
                name=row["name"],
                state=row["statename"],
                pid=row["pid"],
                uptime_s=max(0, row["now"] - row["start"]) if row["pid"] else 0,
                exit_code=row["exitstatus"],
                log=row["stdout_logfile"],
                trouble=row["spawnerr"],
            )
            for row in rows
        ]

    def start_program(self, name: str) -> None:
        """Does not wait. One that runs already is left alone."""
        try:
            self._call("supervisor.startProcess", name, False)
        except ControlError as error:
            if "ALREADY_STARTED" not in str(error):
                raise

    def stop_program(self, name: str) -> None:
        """Does not wait. One that does not run is left alone."""
        try:
            self._call("supervisor.stopProcess", name, False)
        except ControlError as error:
            if "NOT_RUNNING" not in str(error):
                raise

    def shut_down(self) -> None:
        """Stop all programs at once, the broker last, and then supervisord. Does not wait.

        supervisord by itself stops one program after the other, and the drains of all workers would add up.
        """
        for program in self.programs():
            if program.name != "broker":
                with contextlib.suppress(ControlError):  # what does not stop so is stopped by the shutdown
                    self.stop_program(program.name)
        self._call("supervisor.shutdown")

    def _call(self, method: str, *arguments: object) -> Any:
        request = xmlrpc.client.dumps(cast("tuple[Any, ...]", arguments), method).encode()
        connection = _Connection(self.socket_path)
        try:
            connection.request("POST", "/RPC2", request, {"Content-Type": "text/xml"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise ControlError(f"supervisord answers {answer.status} on {self.socket_path}")
            return xmlrpc.client.loads(body)[0][0]
        except xmlrpc.client.Fault as fault:
            raise ControlError(f"supervisord: {fault.faultString}") from None
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise _NobodyThere(f"no supervisord listens on {self.socket_path}: {error}") from None
        except (OSError, http.client.HTTPException, ValueError, ExpatError) as error:
            raise ControlError(f"supervisord does not answer on {self.socket_path}: {error}") from None
        finally:
            connection.close()
