"""The real broker process: receipts survive kill -9, the journal's failure ends it, strangers get nothing."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

import zq.protocol.messages as m
from zq.keys import KeyFile, load_key_file, new_key, revoke
from zq.protocol import codec
from zq.protocol.errors import Code
from zq.protocol.job import JobSpec, encode_spec, job_id_from, new_job_id
from zq.protocol.messages import BrokerMessage, PeerMessage, ReceiptStatus, Role

DEADLINE_MS = 20_000


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Broker:
    """`python -m zq.broker` on a port and a folder of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.folder = folder
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ZQ_")}
        self.environment = {**clean, "ZQ_DATA_DIR": str(folder), "ZQ_BROKER_BIND": self.address, **environment}
        self.process: subprocess.Popen[str] | None = None

    def start(self, *before: str) -> None:
        self.process = subprocess.Popen(
            [*before, sys.executable, "-m", "zq.broker"], env=self.environment, stderr=subprocess.PIPE, text=True
        )

    def end(self, number: int) -> tuple[int, str]:
        """Send a signal and wait; the exit code and what was logged."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        assert self.process is not None
        _, log = self.process.communicate(timeout=DEADLINE_MS / 1000)
        return self.process.returncode, log


class Peer:
    """A DEALER that speaks one message at a time."""

    def __init__(self, context: zmq.Context[Any], address: str, key: KeyFile | None = None) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 20)
        if key is not None:
            self.socket.setsockopt(zmq.CURVE_SERVERKEY, key.server_key)
            self.socket.setsockopt(zmq.CURVE_PUBLICKEY, key.public_key)
            self.socket.setsockopt(zmq.CURVE_SECRETKEY, key.secret_key)
        self.socket.connect(address)

    def send(self, message: PeerMessage) -> None:
        self.socket.send(codec.encode(message))

    def hear(self, timeout_ms: int = DEADLINE_MS) -> BrokerMessage | None:
        if not self.socket.poll(timeout_ms):
            return None
        return codec.decode_from_broker(self.socket.recv())

    def ask(self, message: PeerMessage) -> Any:
        self.send(message)
        return self.hear()

    def hello(self, role: Role = Role.ADMIN, queues: list[m.QueueSlots] | None = None) -> Any:
        return self.ask(m.Hello(1, 1, role, "peer", bytes(16), queues or []))


Connect = Callable[..., Peer]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """connect(address, key=None) → a Peer; all are closed in the end."""
    context: zmq.Context[Any] = zmq.Context()
    peers: list[Peer] = []

    def new(address: str, key: KeyFile | None = None) -> Peer:
        peers.append(Peer(context, address, key))
        return peers[-1]

    yield new
    for peer in peers:
        peer.socket.close()
    context.term()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with running(Broker(tmp_path / "var")) as started:
        yield started


@contextmanager
def running(broker: Broker) -> Iterator[Broker]:
    broker.start()
    try:
        yield broker
    finally:
        if broker.process is not None and broker.process.poll() is None:
            broker.process.kill()
            broker.wait()
        elif broker.process is not None and broker.process.stderr is not None:
            broker.process.stderr.close()


def job(name: str) -> bytes:
    return encode_spec(JobSpec(job_id_from(name), "t", "q"))


def test_a_job_with_a_receipt_survives_kill_9_right_after_it(broker: Broker, connect: Connect) -> None:
    epochs = []
    for number in range(5):
        peer = connect(broker.address)
        welcome = peer.hello()
        epochs.append(welcome.epoch)
        receipts = peer.ask(m.Submit(welcome.session, 1, [job(str(number))])).receipts
        assert broker.process is not None
        broker.process.kill()
        assert receipts[0].status is ReceiptStatus.ACCEPTED
        broker.wait()
        broker.start()
    peer = connect(broker.address)
    session = peer.hello().session
    for number in range(5):
        assert peer.ask(m.AskJob(session, 1, job_id_from(str(number)))).job.id == job_id_from(str(number))
    assert epochs == sorted(set(epochs))


def test_it_stops_on_sigterm_with_everything_kept(broker: Broker, connect: Connect) -> None:
    peer = connect(broker.address)
    peer.ask(m.Submit(peer.hello().session, 1, [job("a")]))
    code, log = broker.end(signal.SIGTERM)
    assert code == 0, log
    assert "stopped" in log


def test_frames_that_are_no_messages_are_answered_and_counted(broker: Broker, connect: Connect) -> None:
    peer = connect(broker.address)
    session = peer.hello().session
    for frame in (b"", b"\xc1", b"GET / HTTP/1.1\r\n\r\n", b"\x91" * 5000, os.urandom(1000)):
        peer.socket.send(frame)
        answer = peer.hear()
        assert isinstance(answer, m.Refusal)
        assert answer.code in (Code.MALFORMED, Code.INVALID)
    peer.socket.send_multipart([b"one", b"two"])
    answer = peer.hear()
    assert isinstance(answer, m.Refusal)
    assert "one frame" in answer.detail
    info = peer.ask(m.AskBroker(session, 1))
    assert sum(info.refused.values()) == 6


def test_an_oversize_frame_costs_its_sender_the_connection_and_nobody_else(
    broker: Broker, connect: Connect
) -> None:
    good, bad = connect(broker.address), connect(broker.address)
    session = good.hello().session
    bad.hello()
    bad.socket.send(bytes(3 << 20))
    assert good.ask(m.AskQueues(session, 1)).queues == []
    assert isinstance(bad.hello(), m.Welcome), "it may connect again"


def test_raw_bytes_on_the_port_hurt_nobody(broker: Broker, connect: Connect) -> None:
    host, port = broker.address.removeprefix("tcp://").split(":")
    peer = connect(broker.address)
    session = peer.hello().session
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(os.urandom(4096))
        assert peer.ask(m.AskQueues(session, 1)).queues == []


def test_a_second_broker_on_the_same_data_is_refused_for_good(broker: Broker, connect: Connect) -> None:
    connect(broker.address).hello()
    second = Broker(broker.folder)
    second.start()
    code, log = second.wait()
    assert code == 78
    assert "another broker has this journal" in log


def test_an_address_in_use_is_said_clearly(broker: Broker, connect: Connect, tmp_path: Path) -> None:
    connect(broker.address).hello()
    second = Broker(tmp_path / "other")
    second.environment["ZQ_BROKER_BIND"] = broker.address
    second.start()
    code, log = second.wait()
    assert code == 1
    assert "cannot listen on" in log


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ZQ_BROKER_BIND": "tcp://0.0.0.0:5599"}, "set broker.curve = true"),
        ({"ZQ_BROKER_BIND": "tcp://*:5599"}, "set broker.curve = true"),
        ({"ZQ_BROKER_HEARTBEAT_SS": "1"}, "did you mean 'heartbeat_s'"),
        ({"ZQ_BROKER_HEARTBEAT_S": "soon"}, "ZQ_BROKER_HEARTBEAT_S"),
        ({"ZQ_CONFIG": "/nonexistent/zq.toml"}, "no such file"),
    ],
)
def test_a_configuration_that_cannot_work_is_said_and_not_tried_again(
    tmp_path: Path, variables: dict[str, str], said: str
) -> None:
    broker = Broker(tmp_path / "var")
    broker.environment.update(variables)
    broker.start()
    code, log = broker.wait()
    assert code == 78
    assert said in log


def test_when_the_journal_fails_not_one_more_word_is_said(tmp_path: Path, connect: Connect) -> None:
    """I13: an injected EIO of fdatasync; LMDB itself would go on as if nothing had happened."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed: no error can be injected into fdatasync (apt install strace)")
    if subprocess.run([strace, "-qq", "-o", "/dev/null", "true"], check=False, capture_output=True).returncode:
        pytest.skip("ptrace is forbidden here: no error can be injected into fdatasync")
    broker = Broker(tmp_path / "var")
    broker.start(strace, "-f", "-qq", "-o", "/dev/null", "-e", "inject=fdatasync:error=EIO:when=10+")
    peer = connect(broker.address)
    session = peer.hello().session
    accepted = []
    for number in range(40):
        peer.send(m.Submit(session, number, [job(str(number))]))
        answer = peer.hear(3000)
        if answer is None:
            break
        assert isinstance(answer, m.Receipts)
        accepted.append(job_id_from(str(number)))
    code, log = broker.wait()
    assert code == 74
    assert "the journal failed" in log
    assert 0 < len(accepted) < 40
    with running(broker):
        peer = connect(broker.address)
        session = peer.hello().session
        for job_id in accepted:
            assert isinstance(peer.ask(m.AskJob(session, 1, job_id)), m.JobDetail)


# ---------------------------------------------------------------------------------------------- CURVE


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Broker]:
    with running(Broker(tmp_path / "var", ZQ_BROKER_CURVE="true")) as started:
        yield started


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def test_only_authorized_keys_get_in_and_only_as_what_they_are(secured: Broker, connect: Connect) -> None:
    keys = secured.folder / "keys"
    wait_for(keys / "local.key")
    camera = load_key_file(new_key(keys, "camera", "submitter", ("thumb*",)))
    peer = connect(secured.address, camera)
    session = peer.hello(Role.SUBMITTER).session
    assert peer.ask(m.Submit(session, 1, [job("a")])).receipts[0].code is Code.FORBIDDEN
    allowed = encode_spec(JobSpec(new_job_id(), "t", "thumbs"))
    assert peer.ask(m.Submit(session, 1, [allowed])).receipts[0].status is ReceiptStatus.ACCEPTED
    assert peer.hello(Role.ADMIN).code is Code.FORBIDDEN
    local = connect(secured.address, load_key_file(keys / "local.key"))
    assert isinstance(local.hello(Role.ADMIN), m.Welcome)


def test_a_strangers_key_and_no_key_get_nothing(secured: Broker, connect: Connect) -> None:
    keys = secured.folder / "keys"
    wait_for(keys / "local.key")
    local = load_key_file(keys / "local.key")
    assert isinstance(connect(secured.address, local).hello(), m.Welcome)
    public, secret = zmq.curve_keypair()
    stranger = connect(secured.address, KeyFile("x", "admin", public, secret, local.server_key))
    plain = connect(secured.address)
    for peer in (stranger, plain):
        peer.send(m.Hello(1, 1, Role.ADMIN, "peer", bytes(16)))
    assert stranger.hear(700) is None
    assert plain.hear(100) is None


def test_a_revoked_key_is_refused_on_the_connection_it_has(secured: Broker, connect: Connect) -> None:
    keys = secured.folder / "keys"
    wait_for(keys / "local.key")
    peer = connect(secured.address, load_key_file(new_key(keys, "camera", "monitor")))
    session = peer.hello(Role.MONITOR).session
    revoke(keys, "camera")
    deadline = time.monotonic() + 20
    while not isinstance(answer := peer.ask(m.AskQueues(session, 1)), m.Refusal):
        assert time.monotonic() < deadline, "the revoked key is still served"
    assert answer.code is Code.FORBIDDEN


def test_secret_files_are_private_and_others_are_refused(secured: Broker) -> None:
    keys = secured.folder / "keys"
    wait_for(keys / "local.key")
    assert keys.stat().st_mode & 0o777 == 0o700
    assert all(file.stat().st_mode & 0o077 == 0 for file in keys.glob("*.key"))
    (keys / "local.key").chmod(0o644)
    with pytest.raises(Exception, match="chmod 600"):
        load_key_file(keys / "local.key")
