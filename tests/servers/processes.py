"""Real servers as processes of a test run: on a free loopback port, data in a folder of its own, gone with the run.

Each ends with its fixture, and by the kernel's hand should the test process be killed. Nothing is synced to disk: these
servers need not survive a power cut, and their tests should be quick.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import pytest

from tests.ports import free_port
from tests.servers.programs import MARIADB, MARIADB_CLIENT, POSTGRES, REDIS, Program

START_S, END_S = 60.0, 10.0
TRIES = 3
"""Of another port, if somebody was quicker to take the one that was free."""
PREFIX = "zq-test-server-"
NEW_S = 60.0
"""A folder so young may not have been locked yet."""
AS_ROOT = os.geteuid() == 0


def need(program: Program) -> Path:
    """Its path; skips the test, loudly, if it is not installed (`make test` installs it where it may)."""
    found = program.find()
    if found is None:
        pytest.skip(f"NOT TESTED: {program.tests}. {program.names[0]} is missing: apt-get install {program.package}")
    return found


def _locked(folder: Path) -> int:
    """Lock a server's folder for as long as this process lives; the descriptor."""
    descriptor = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _sweep(parent: Path) -> None:
    """Remove the folders of test processes that were killed."""
    for lock in parent.glob(f"{PREFIX}*/lock"):
        with contextlib.suppress(OSError):
            if time.time() - lock.stat().st_mtime < NEW_S:
                continue
            descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(descriptor)


class ServerProcess:
    """A server that listens on 127.0.0.1:`port` once it is entered; its log is `folder/log`."""

    ends_by = signal.SIGTERM
    """Quickest without harm; also what the kernel sends should this process die first."""
    account: pwd.struct_passwd | None = None
    """Whom it runs as, if not as we do."""

    def __init__(self) -> None:
        # Not pytest's folder: that one is closed to other accounts, and too deep for a UNIX socket.
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = _locked(self.folder)
        self.port = 0

    def prepare(self) -> None:
        """Make the data that it starts from."""

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), 1):
            return True

    def __enter__(self) -> Self:
        try:
            if self.account is not None:
                os.chown(self.folder, self.account.pw_uid, self.account.pw_gid)
            _sweep(self.folder.parent)
            self.prepare()
            for _ in range(TRIES):
                if self._start():
                    return self
            raise RuntimeError(f"{type(self).__name__} does not start: {self._log()}")
        except BaseException:
            self._clear()
            raise

    def run(self, *command: str) -> str:
        """What the program printed. Raises RuntimeError with what it complained of."""
        done = subprocess.run(
            [*self._as_account(), *command], cwd=self.folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stderr.strip()[-2000:]}")
        return done.stdout

    def _as_account(self) -> list[str]:
        if self.account is None:
            return []
        return ["setpriv", f"--reuid={self.account.pw_uid}", f"--regid={self.account.pw_gid}", "--clear-groups"]

    def _log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-3000:]

    def _start(self) -> bool:
        self.port = free_port()
        bound = [*(self._as_account() or ["setpriv"]), f"--pdeathsig={self.ends_by.name}"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*bound, *self.command()], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until_s = time.monotonic() + START_S
        while self.process.poll() is None and time.monotonic() < until_s:
            try:
                if self.answers():
                    return True
            except OSError:
                pass
            time.sleep(0.02)
        self._end()
        return False

    def _end(self) -> None:
        self.process.send_signal(self.ends_by)
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __exit__(self, *exc: object) -> None:
        self._end()
        self._clear()

    def _clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


class Postgres(ServerProcess):
    ends_by = signal.SIGINT  # its fast shutdown: connections are cut

    def __init__(self) -> None:
        self._programs = need(POSTGRES).parent
        super().__init__()
        if AS_ROOT:  # as which it refuses to run
            self.account = pwd.getpwnam("postgres")

    def _program(self, name: str) -> str:
        return str(self._programs / name)

    def prepare(self) -> None:
        self.run(
            self._program("initdb"), "-D", "data", "-U", "zq", "--auth=trust", "-E", "UTF8", "--locale=C", "--no-sync"
        )

    def command(self) -> Sequence[str]:
        settings = ["fsync=off", "full_page_writes=off", "synchronous_commit=off", "autovacuum=off"]
        return [
            *(self._program("postgres"), "-D", "data", "-h", "127.0.0.1", "-p", str(self.port), "-k", ""),
            *(part for setting in settings for part in ("-c", setting)),
        ]

    def answers(self) -> bool:
        return self._sql("SELECT 1")

    def _sql(self, statement: str) -> bool:
        command = [self._program("psql"), "-qX", "-h", "127.0.0.1", "-p", str(self.port), "-U", "zq", "postgres"]
        done = subprocess.run([*command, "-c", statement], capture_output=True, check=False)
        return done.returncode == 0

    def new_database(self, name: str) -> str:
        """Its URL."""
        assert self._sql(f'CREATE DATABASE "{name}"'), self._log()
        return f"postgresql+psycopg://zq@127.0.0.1:{self.port}/{name}"

    def drop_database(self, name: str) -> None:
        self._sql(f'DROP DATABASE "{name}" WITH (FORCE)')


class MariaDB(ServerProcess):
    def __init__(self) -> None:
        self._server, self._client = need(MARIADB), need(MARIADB_CLIENT)
        super().__init__()
        self._user = pwd.getpwuid(os.geteuid()).pw_name

    def prepare(self) -> None:
        self.run(
            *("mariadb-install-db", "--no-defaults", f"--datadir={self.folder}/data", f"--user={self._user}"),
            *("--auth-root-authentication-method=normal", "--skip-test-db", "--innodb-log-file-size=10M"),
        )

    def command(self) -> Sequence[str]:
        return [
            *(str(self._server), "--no-defaults", f"--datadir={self.folder}/data", f"--user={self._user}"),
            *("--bind-address=127.0.0.1", f"--port={self.port}", f"--socket={self.folder}/socket"),
            *("--skip-name-resolve", "--character-set-server=utf8mb4", "--innodb-log-file-size=10M"),
            *(
                "--innodb-flush-log-at-trx-commit=0",
                "--innodb-flush-method=nosync",
                "--innodb-buffer-pool-size=32M",
                "--innodb-fast-shutdown=2",
            ),
        ]

    def answers(self) -> bool:
        return (self.folder / "socket").exists() and self._sql("SELECT 1")

    def _sql(self, statement: str) -> bool:
        command = [str(self._client), "--no-defaults", f"--socket={self.folder}/socket", "-uroot", "-e", statement]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def new_database(self, name: str) -> str:
        """Its URL."""
        assert self._sql(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4"), self._log()
        return f"mysql+pymysql://root@127.0.0.1:{self.port}/{name}?charset=utf8mb4"

    def drop_database(self, name: str) -> None:
        self._sql(f"DROP DATABASE `{name}`")


class Redis(ServerProcess):
    ends_by = signal.SIGKILL  # nothing of it is to be kept

    def __init__(self) -> None:
        self._server = need(REDIS)
        super().__init__()

    def command(self) -> Sequence[str]:
        # --save "" : no snapshots. 1024 databases, so that each test has one of its own.
        return [
            *("redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)),
            *("--save", "", "--appendonly", "no", "--databases", str(REDIS_DATABASES)),
        ]

    def answers(self) -> bool:
        return self.ask("PING") == b"+PONG\r\n"

    def ask(self, line: str) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            connection.sendall(line.encode() + b"\r\n")
            return connection.recv(1000)


REDIS_DATABASES = 1024


class S3Server(ServerProcess):
    """moto's server: the S3 protocol over HTTP, objects in memory."""

    ends_by = signal.SIGKILL

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def new_bucket(self, name: str) -> None:
        # It asks for no signature, but tells from it which service is meant.
        signature = "AWS4-HMAC-SHA256 Credential=zq/20260101/us-east-1/s3/aws4_request"
        asked = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT", headers={"Authorization": signature})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            assert answer.status == 200
