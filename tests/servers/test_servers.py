"""The servers that tests lean on are real, fresh for each test, and leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import sqlalchemy

from tests.ports import HIGHEST, LOWEST, free_port
from tests.servers import programs
from tests.servers.fixtures import Bucket
from tests.servers.processes import Redis, ServerProcess
from tests.waiting import wait_gone


@pytest.mark.parametrize("fixture", ["postgres_url", "mysql_url"])
@pytest.mark.parametrize("again", [False, True])
def test_each_test_has_an_empty_database_that_keeps_chinese(
    request: pytest.FixtureRequest, fixture: str, again: bool
) -> None:
    engine = sqlalchemy.create_engine(request.getfixturevalue(fixture))
    assert sqlalchemy.inspect(engine).get_table_names() == []
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE exams (name VARCHAR(40))")
        connection.exec_driver_sql("INSERT INTO exams VALUES ('期末考试 𠮷')")
        assert connection.exec_driver_sql("SELECT name FROM exams").scalar() == "期末考试 𠮷"
    engine.dispose()


@pytest.mark.parametrize("again", [False, True])
def test_each_test_has_an_empty_redis_database(redis_url: str, redis_server: Redis, again: bool) -> None:
    number = redis_url.rpartition("/")[2]
    assert redis_server.ask(f"SELECT {number}\r\nDBSIZE\r\nSET k v").endswith(b":0\r\n+OK\r\n")


def test_the_bucket_is_empty_and_takes_objects(s3: Bucket) -> None:
    place = f"{s3.endpoint}/{s3.bucket}"
    assert b"<Key>" not in urllib.request.urlopen(place, timeout=10).read()
    signed = {"Authorization": f"AWS4-HMAC-SHA256 Credential={s3.access_key_id}/20260101/{s3.region}/s3/aws4_request"}
    put = urllib.request.Request(f"{place}/segment", b"\x1aE\xdf\xa3", signed, method="PUT")
    urllib.request.urlopen(put, timeout=10).close()
    assert b"<Key>segment</Key>" in urllib.request.urlopen(place, timeout=10).read()


class Sleeper(ServerProcess):
    def __init__(self, code: str) -> None:
        super().__init__()
        self._code = code

    def command(self) -> list[str]:
        return [sys.executable, "-c", self._code, str(self.port)]


LISTEN = "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(600)"


def test_a_server_that_does_not_start_says_why_and_leaves_nothing() -> None:
    server = Sleeper("raise SystemExit('no disk')")
    with pytest.raises(RuntimeError, match="Sleeper does not start: no disk"), server:
        pass
    assert not server.folder.exists()


def test_a_server_ends_with_the_process_of_its_tests_though_that_be_killed(tmp_path: Path) -> None:
    code = (
        "from tests.servers.test_servers import LISTEN, Sleeper\n"
        "import time\n"
        "with Sleeper(LISTEN) as server:\n"
        "    print(server.process.pid, server.folder, flush=True)\n"
        "    time.sleep(600)\n"
    )
    tests = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert tests.stdout is not None
    pid, folder = tests.stdout.readline().split()
    tests.kill()
    tests.wait()
    tests.stdout.close()
    wait_gone([int(pid)], 10.0)
    # What is left of it goes when the next server starts.
    os.utime(Path(folder, "lock"), (0, 0))
    with Sleeper(LISTEN) as living:
        os.utime(living.folder / "lock", (0, 0))
        assert not Path(folder).exists()
        with Sleeper(LISTEN):
            assert living.folder.exists()


def test_free_ports_are_out_of_the_way_of_outgoing_connections() -> None:
    first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert LOWEST <= free_port() < HIGHEST <= first_outgoing
    assert len({free_port() for _ in range(20)}) > 10


def test_what_is_missing_is_said_with_its_remedy(tmp_path: Path) -> None:
    """A machine without any of the programs, and one that must not be changed."""
    lonely = {"PATH": str(tmp_path), "HOME": str(tmp_path), "ZQ_TESTS_INSTALL": "no"}
    script = Path(programs.__file__)
    said = subprocess.run(
        [sys.executable, str(script)], env=lonely, capture_output=True, text=True, check=False, timeout=60
    )
    assert said.returncode == 0, said.stderr
    assert "NOT TESTED: presence in Redis. Debian's package redis-server is not installed." in said.stdout
    assert "because: ZQ_TESTS_INSTALL=no. As root: apt-get install" in said.stdout


def test_apt_get_is_asked_for_what_is_missing_and_no_service_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apt = tmp_path / "apt-get"
    apt.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncat {tmp_path}/policy >> {tmp_path}/asked\n')
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("ZQ_TESTS_INSTALL", raising=False)
    monkeypatch.setattr(programs.NoServiceStarts, "path", tmp_path / "policy")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert programs.install(["redis-server"]) == ""
    asked = (tmp_path / "asked").read_text()
    assert "--no-install-recommends --no-remove redis-server\n#!/bin/sh\nexit 101\n" in asked
    assert not (tmp_path / "policy").exists()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert programs.install(["redis-server"]) == "only root may install"


def test_a_package_that_does_not_exist_keeps_no_other_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt = tmp_path / "apt-get"
    apt.write_text(
        '#!/bin/sh\ncase "$*" in *chromium*) echo "E: no chromium" >&2; exit 100;; esac\n'
        f'echo "$@" >> {tmp_path}/asked\n'
    )
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("ZQ_TESTS_INSTALL", raising=False)
    monkeypatch.setattr(programs.NoServiceStarts, "path", tmp_path / "policy")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    reason = programs.install(["redis-server", "chromium", "strace"])
    assert reason.endswith("--no-remove chromium` failed: E: no chromium")
    installed = [line.split()[-1] for line in (tmp_path / "asked").read_text().splitlines() if " install " in line]
    assert installed == ["redis-server", "strace"]
