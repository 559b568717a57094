"""The whole server over TCP: what uvicorn alone would let hang, and what only a real connection shows."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.waiting import wait_until
from tests.web.conftest import Process, write_config
from zq.config import EXIT_CONFIG
from zq.web import server
from zq.web.connection import LINGER_S

LATE_S = 8.0
"""By so much a loaded machine may be late; less than the clients here wait."""
HEADER_S = 1.0
BODY_S = 3.0
CONNECTIONS = 20
SEGMENT_BYTES_MAX = 48 << 20


class Server:
    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        web = (
            f"port = {self.port}\nheader_timeout_s = {HEADER_S}\nbody_timeout_s = {BODY_S}\n"
            f"max_connections = {CONNECTIONS}\nmax_segment_mib = {SEGMENT_BYTES_MAX >> 20}"
        )
        config = write_config(folder, free_port(), web, client="timeout_s = 0.3")
        self.process = Process("zq.web", config, self.port, folder / "log")
        self.token = (folder / "var" / "token").read_text().strip()
        self.folder = folder
        # It listens before it serves, and only who serves ends well when it is told to stop.
        assert self.ask("GET", "/healthz")[0] == 200

    def head(self, method: str, path: str, *headers: str) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", "Host: zq.test", f"Authorization: Bearer {self.token}", *headers, "", ""]
        return "\r\n".join(lines).encode()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 10)

    def ask(self, method: str, path: str, body: bytes = b"", *headers: str) -> tuple[int, bytes]:
        with self.connect() as connection:
            length = f"Content-Length: {len(body)}"
            connection.sendall(self.head(method, path, "Connection: close", length, *headers) + body)
            return answer(connection)

    def json(self, method: str, path: str, body: object) -> int:
        return self.ask(method, path, json.dumps(body).encode(), "Content-Type: application/json")[0]


def read_all(connection: socket.socket) -> bytes:
    """All until the server closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def answer(connection: socket.socket) -> tuple[int, bytes]:
    head, _, body = read_all(connection).partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), body


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("web"))
    student = {"id": "s", "name": "王"}
    exam = {"id": "e", "name": "n", "start": 0, "end": 2_000_000_000_000, "students": [student]}
    assert made.json("POST", "/v1/exams", {**exam, "start": 1_999_000_000_000}) == 201
    yield made
    assert made.process.stop() == 0


def test_a_header_that_does_not_come_is_cut_off(web: Server) -> None:
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(web.connect()) for _ in range(3)]
        halves = (b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        for connection, sent in zip(connections, halves, strict=True):
            connection.sendall(sent)
        for connection in connections:
            assert answer(connection)[0] == 408
            assert HEADER_S * 0.8 < time.monotonic() - began < HEADER_S + LATE_S


def test_a_trickle_does_not_extend_the_deadline(web: Server) -> None:
    began = time.monotonic()
    with web.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        connection.settimeout(0.1)
        while time.monotonic() - began < HEADER_S + LATE_S:
            with contextlib.suppress(TimeoutError):
                if not connection.recv(4096).startswith(b"HTTP/1.1 408"):
                    raise AssertionError("not refused")
                break
            connection.sendall(b"X: y\r\n")
    assert time.monotonic() - began < HEADER_S + LATE_S


def test_the_second_request_of_a_connection_has_the_same_deadline(web: Server) -> None:
    with web.connect() as connection:
        connection.sendall(web.head("GET", "/healthz"))
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
        began = time.monotonic()
        assert b" 408 " in read_all(connection)
        assert time.monotonic() - began < HEADER_S + LATE_S


def test_half_a_body_is_cut_off(web: Server) -> None:
    halves = [("POST", "/v1/jobs", "application/json"), ("PUT", "/v1/exams/e/students/s/segments/half.webm", "x/y")]
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(web.connect()) for _ in halves]
        began = time.monotonic()
        for connection, (method, path, kind) in zip(connections, halves, strict=True):
            connection.sendall(web.head(method, path, "Content-Length: 1000", f"Content-Type: {kind}") + b"x" * 500)
        for connection in connections:
            assert answer(connection)[0] == 408
            assert BODY_S * 0.8 < time.monotonic() - began < BODY_S + LINGER_S + LATE_S
    assert list((web.folder / "var" / "exams").rglob("*half*")) == []
    assert parts(web.folder) == []


def parts(folder: Path) -> list[Path]:
    """Segments that are being uploaded."""
    return list((folder / "var" / "exams").rglob("*.part"))


def test_a_client_that_hangs_up_leaves_nothing_and_says_nothing(web: Server) -> None:
    before = (web.folder / "log").read_bytes()
    with web.connect() as connection:
        connection.sendall(
            web.head("PUT", "/v1/exams/e/students/s/segments/gone.webm", "Content-Length: 1000000") + b"x" * 300_000
        )
        wait_until(lambda: parts(web.folder) != [], what="the begin of the upload")
    wait_until(lambda: parts(web.folder) == [], what="the end of the upload")
    assert list((web.folder / "var" / "exams").rglob("*gone*")) == []
    assert (web.folder / "log").read_bytes() == before


def test_a_body_that_is_declared_too_large_is_refused_before_it_comes(web: Server) -> None:
    segment = ("PUT", "/v1/exams/e/students/s/segments/big.webm", SEGMENT_BYTES_MAX)
    for method, path, most in (segment, ("POST", "/v1/jobs", 1 << 20), ("POST", "/v1/exams/e/students/s/finish", 4096)):
        with web.connect() as connection:
            length = f"Content-Length: {most + 1}"
            connection.sendall(
                web.head(method, path, length, "Content-Type: application/json", "Expect: 100-continue")
            )
            assert connection.recv(4096).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("method", "path"), [("PUT", "/v1/exams/e/students/s/segments/endless.webm"), ("POST", "/v1/jobs")]
)
def test_a_body_that_is_too_large_in_pieces_is_refused_while_it_comes(web: Server, method: str, path: str) -> None:
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    refused = threading.Event()
    with web.connect() as connection:

        def send() -> None:
            with contextlib.suppress(OSError):
                connection.sendall(
                    web.head(method, path, "Content-Type: application/json", "Transfer-Encoding: chunked")
                )
                for _ in range(SEGMENT_BYTES_MAX >> 15):  # twice what is allowed, were it not refused
                    connection.sendall(chunk)
                    if refused.is_set():
                        return
                connection.sendall(b"0\r\n\r\n")

        sender = threading.Thread(target=send)
        sender.start()
        first = connection.recv(4096)
        refused.set()
        assert first.startswith(b"HTTP/1.1 413")
        read_all(connection)
        sender.join(20)
        assert not sender.is_alive()
    assert list((web.folder / "var" / "exams").rglob("*endless*")) == []


def test_the_connection_goes_on_after_a_refused_body_that_has_come(web: Server) -> None:
    with web.connect() as connection:
        body = b"{}" + b" " * (1 << 20)
        head = web.head("POST", "/v1/jobs", f"Content-Length: {len(body)}", "Content-Type: application/json")
        connection.sendall(head + body)
        refusal = b""
        while not refusal.endswith(b"}"):
            refusal += connection.recv(4096)
        assert refusal.startswith(b"HTTP/1.1 413")
        connection.sendall(web.head("GET", "/healthz"))
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")


def test_what_is_no_http_gets_a_problem(web: Server) -> None:
    for sent in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n"):
        with web.connect() as connection:
            connection.sendall(sent)
            raw = read_all(connection)
            assert raw.startswith(b"HTTP/1.1 400")
            assert b"application/problem+json" in raw
    assert web.ask("GET", "/v1/exams/%ff")[0] == 400
    status, body = web.ask("GET", "/healthz")
    assert (status, b"uvicorn" in body) == (200, False)


def test_connections_are_bounded_and_come_back(web: Server) -> None:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(web.connect()) for _ in range(CONNECTIONS)]
        deadline = time.monotonic() + 5
        while True:
            with web.connect() as late:
                refused = late.recv(4096)
            if refused.startswith(b"HTTP/1.1 503"):
                break
            assert time.monotonic() < deadline
        assert b"retry-after" in refused
        held[0].sendall(web.head("GET", "/healthz"))
        assert held[0].recv(4096).startswith(b"HTTP/1.1 200")
    deadline = time.monotonic() + 5
    while True:
        with contextlib.suppress(OSError, IndexError, ValueError):
            if web.ask("GET", "/healthz")[0] == 200:
                break
        assert time.monotonic() < deadline


def test_who_comes_takes_the_place_of_who_has_been_idle_longest(web: Server) -> None:
    with contextlib.ExitStack() as stack:
        held: list[socket.socket] = []
        while len(held) < CONNECTIONS:
            connection = stack.enter_context(web.connect())
            connection.sendall(web.head("GET", "/healthz"))
            read_ok(connection)
            held.append(connection)
        held[0].sendall(web.head("GET", "/healthz"))
        read_ok(held[0])
        assert web.ask("GET", "/healthz")[0] == 200
        assert read_all(held[1]) == b""
        for connection in (held[0], held[2]):
            connection.sendall(web.head("GET", "/healthz"))
            read_ok(connection)


def read_ok(connection: socket.socket) -> None:
    """One whole answer of /healthz."""
    heard = b""
    while not heard.endswith(b"}"):
        part = connection.recv(4096)
        assert part
        heard += part
    assert heard.startswith(b"HTTP/1.1 200")


def peak_kib(web: Server) -> int:
    status = Path(f"/proc/{web.process.process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def test_a_segment_of_the_largest_size_in_little_memory(web: Server) -> None:
    before_kib = peak_kib(web)
    content = b"0123456789abcdef" * (SEGMENT_BYTES_MAX // 16)
    for path in ("1.webm", "2.webm"):
        status, _ = web.ask("PUT", f"/v1/exams/e/students/s/segments/{path}", content, "X-Zq-Sequence: 1")
        assert status == 201
    status, body = web.ask("PUT", "/v1/exams/e/students/s/segments/1.webm", content)
    assert (status, json.loads(body)["created"]) == (200, False)
    assert peak_kib(web) - before_kib < SEGMENT_BYTES_MAX // 1024 // 3


def test_sigterm_ends_a_long_request_and_the_server(tmp_path: Path) -> None:
    web = Server(tmp_path)
    with web.connect() as connection:
        length, kind = "Content-Length: 1000", "Content-Type: application/json"
        connection.sendall(web.head("POST", "/v1/jobs", length, kind, "Expect: 100-continue"))
        assert connection.recv(4096).startswith(b"HTTP/1.1 100"), "its body is waited for"
        connection.sendall(b"{")
        began = time.monotonic()
        assert web.process.stop() == 0
        assert time.monotonic() - began < 15
    assert b"Traceback" not in (tmp_path / "log").read_bytes()


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zq.web", "--config", str(folder / "zq.toml"), *options],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def test_a_port_in_use_and_a_wrong_configuration_are_told_apart_from_crashes(web: Server, tmp_path: Path) -> None:
    write_config(tmp_path, free_port())
    taken = run(tmp_path, "--port", str(web.port))
    assert (taken.returncode, "is in use" in taken.stderr) == (EXIT_CONFIG, True)
    nowhere = run(tmp_path, "--host", "no.such.host.invalid")
    assert (nowhere.returncode, "not an address" in nowhere.stderr) == (EXIT_CONFIG, True)
    write_config(tmp_path, free_port(), "prot = 1")
    wrong = run(tmp_path)
    assert (wrong.returncode, "did you mean 'port'" in wrong.stderr) == (EXIT_CONFIG, True)
    assert "Traceback" not in taken.stderr + nowhere.stderr + wrong.stderr


def test_open_files_are_raised_for_the_connections_or_these_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    beside = server.DESCRIPTORS_BESIDE_CONNECTIONS
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        assert server.affordable_connections(256) == 256
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 256 + beside
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _which, both: set_to.append(both))
    assert server.affordable_connections(10_000) == 4096 - beside
    assert set_to == [(4096, 4096)]


def test_loopback_is_told_from_the_world() -> None:
    assert all(server.is_loopback(host) for host in ("127.0.0.1", "127.8.9.1", "::1", "localhost"))
    assert not any(server.is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.1", "example.org", ""))


