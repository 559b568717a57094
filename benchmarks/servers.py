"""Servers of the systems under measurement, each on a free loopback port with its data in a folder of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path

from benchmarks.processes import Started, free_port, wait_until


class Missing(Exception):
    """A server's program is not installed; the text says how to get it."""


def as_installed() -> dict[str, str]:
    """The environment without PYTHONDONTWRITEBYTECODE: modules that each process compiles anew weigh more than those
    that it reads, and no system would be run so.
    """
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class Server(ABC):
    """Made started; `url` is what a driver needs to know."""

    url: str
    process: Started

    @abstractmethod
    def fresh(self, name: str) -> str:
        """An url under which nothing is stored yet."""

    def end(self) -> None:
        self.process.end()


class Redis(Server):
    """redis-server with Debian's defaults for persistence, or with every write synced before it is answered."""

    def __init__(self, folder: Path, *, always: bool) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise Missing("redis-server is not installed: apt-get install redis-server")
        folder.mkdir()
        port = free_port()
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--daemonize", "no"]
        if always:
            command += ["--appendonly", "yes", "--appendfsync", "always"]
        self.process = Started(command, folder / "redis.log")
        self.url = f"redis://127.0.0.1:{port}/0"
        self._database = -1
        wait_until(lambda: _answers(port, self.process), 10, "the start of redis-server")

    def fresh(self, name: str) -> str:
        self._database += 1
        return self.url.removesuffix("/0") + f"/{self._database}"


class PostgreSQL(Server):
    """PostgreSQL with the defaults of `initdb`, which sync every commit."""

    def __init__(self, folder: Path) -> None:
        programs = _postgresql_programs()
        account = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        user = account.pw_uid if os.geteuid() == 0 else None
        folder.mkdir()
        if user is not None:
            os.chown(folder, account.pw_uid, account.pw_gid)
        data, port = folder / "data", free_port()
        made = subprocess.run(
            [str(programs / "initdb"), "-D", str(data), "-U", "bench", "--auth=trust", "-E", "UTF8", "--locale=C"],
            capture_output=True, text=True, check=False, user=user, group=user, cwd=folder,
        )  # fmt: skip
        if made.returncode:
            raise RuntimeError(f"initdb: {made.stderr}")
        log = folder / "postgresql.log"
        command = [str(programs / "postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", ""]
        self.process = Started(command, log, user=user, cwd=folder)
        self.url = f"postgresql://bench@127.0.0.1:{port}/"
        self._psql = [str(programs / "psql"), "-q", "-h", "127.0.0.1", "-p", str(port), "-U", "bench", "postgres", "-c"]
        wait_until(lambda: self._says("SELECT 1"), 30, "the start of PostgreSQL", 0.1)

    def _says(self, statement: str) -> bool:
        self.process.check()
        return subprocess.run([*self._psql, statement], capture_output=True, check=False).returncode == 0

    def fresh(self, name: str) -> str:
        if not self._says(f'CREATE DATABASE "{name}"'):
            raise RuntimeError(f"no database {name} could be made")
        return self.url + name

    def end(self) -> None:
        self.process.end(2)  # SIGINT is PostgreSQL's fast shutdown


def _postgresql_programs() -> Path:
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    if not versions:
        raise Missing("PostgreSQL is not installed: apt-get install postgresql")
    return versions[-1]


def _answers(port: int, process: Started) -> bool:
    process.check()
    with socket.socket() as client:
        client.settimeout(1)
        try:
            client.connect(("127.0.0.1", port))
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
        except OSError:
            return False


class Zq(Server):
    """A zq broker with its defaults; `url` is the path of its zq.toml."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.config_file = folder / "zq.toml"
        self.config_file.write_text(
            f'data_dir = "var"\n[broker]\nbind = "{self.address}"\n[client]\nbroker = "{self.address}"\n'
            '[queues.bench]\nslots = 1\n[log]\nlevel = "warning"\n'
        )
        self.url = str(self.config_file)
        self.start()

    def start(self) -> None:
        """Returns when the broker answers."""
        from zq.client.sync import Client
        from zq.config import load

        env = {name: value for name, value in as_installed().items() if not name.startswith("ZQ_")}
        env["ZQ_CONFIG"] = self.url
        command = [sys.executable, "-m", "zq.supervised", "zq.broker"]  # what `zq up` runs
        self.process = Started(command, self.config_file.with_name("broker.log"), env=env)
        try:
            with Client(load(self.url, {}), timeout_s=60) as client:
                client.broker()
        finally:
            self.process.check()

    def fresh(self, name: str) -> str:
        return self.url


def start(kind: str, folder: Path) -> Server:
    """`kind` is a contestant's `server`. Raises Missing."""
    if kind == "zq":
        return Zq(folder)
    if kind == "postgresql":
        return PostgreSQL(folder)
    return Redis(folder, always=kind == "redis-always")


def work_folder() -> Path:
    """A new folder on a real disk: where a sync costs nothing, nothing can be compared."""
    for parent in (Path(tempfile.gettempdir()), Path(__file__).resolve().parent.parent / "var"):
        if _file_system(parent) not in ("tmpfs", "ramfs"):
            parent.mkdir(exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix="zq-bench-", dir=parent))
            folder.chmod(0o755)  # PostgreSQL runs as another user
            return folder
    raise Missing("no folder on a real disk was found: set TMPDIR to one")


def _file_system(folder: Path) -> str:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    path = str(folder.resolve()) + "/"
    inside = [(mount[1], mount[2]) for mount in mounts if path.startswith(mount[1].rstrip("/") + "/")]
    return max(inside, key=lambda mount: len(mount[0]))[1]
