"""The real broker process: receipts survive kill -9, strangers get nothing. Its disk: see tests/durability."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

import zq.protocol.messages as m
from tests.broker.process import Broker, Connect, job, running
from tests.waiting import wait_until
from zq.broker import program
from zq.config import EXIT_CONFIG
from zq.keys import KeyFile, load_key_file, new_key, revoke
from zq.protocol.errors import Code
from zq.protocol.job import JobSpec, encode_spec, job_id_from, new_job_id
from zq.protocol.messages import ReceiptStatus, Role


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


def test_it_may_have_more_connections_than_it_was_started_with(tmp_path: Path, connect: Connect) -> None:
    """A shell's limit of open files is not how many workers and clients there may be."""
    broker = Broker(tmp_path / "data")
    broker.start("prlimit", "--nofile=64:300")
    try:
        peers = [connect(broker.address) for _ in range(100)]
        for peer in peers:
            assert isinstance(peer.hello(), m.Welcome)
    finally:
        code, log = broker.end(signal.SIGTERM)
    assert code == 0, log


def test_a_defect_ends_the_broker_at_once(tmp_path: Path) -> None:
    broken = "from zq.broker import core, program; core.Core.advance = lambda self, now_ms: 1 // 0; program.run()"
    environment = Broker(tmp_path / "data").environment
    ended = subprocess.run([sys.executable, "-c", broken], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == program.EXIT_DEFECT
    assert "ZeroDivisionError" in ended.stderr


def test_a_libzmq_that_is_not_safe_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(zmq, "zmq_version_info", lambda: (4, 3, 4))
    with pytest.raises(SystemExit) as left:
        program.run()
    assert left.value.code == EXIT_CONFIG
    assert "libzmq is" in capsys.readouterr().err


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


def test_an_oversize_frame_costs_its_sender_the_connection_and_nobody_else(broker: Broker, connect: Connect) -> None:
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


# ---------------------------------------------------------------------------------------------- CURVE


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Broker]:
    with running(Broker(tmp_path / "var", ZQ_BROKER_CURVE="true")) as started:
        yield started


def test_only_authorized_keys_get_in_and_only_as_what_they_are(secured: Broker, connect: Connect) -> None:
    keys = secured.folder / "keys"
    wait_until((keys / "local.key").exists)
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
    wait_until((keys / "local.key").exists)
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
    wait_until((keys / "local.key").exists)
    peer = connect(secured.address, load_key_file(new_key(keys, "camera", "monitor")))
    session = peer.hello(Role.MONITOR).session
    revoke(keys, "camera")
    deadline = time.monotonic() + 20
    while not isinstance(answer := peer.ask(m.AskQueues(session, 1)), m.Refusal):
        assert time.monotonic() < deadline, "the revoked key is still served"
    assert answer.code is Code.FORBIDDEN


def test_secret_files_are_private_and_others_are_refused(secured: Broker) -> None:
    keys = secured.folder / "keys"
    wait_until((keys / "local.key").exists)
    assert keys.stat().st_mode & 0o777 == 0o700
    assert all(file.stat().st_mode & 0o077 == 0 for file in keys.glob("*.key"))
    (keys / "local.key").chmod(0o644)
    with pytest.raises(Exception, match="chmod 600"):
        load_key_file(keys / "local.key")


def test_thousands_of_answers_that_are_read_late_all_come_and_in_order(broker: Broker, connect: Connect) -> None:
    peer = connect(broker.address)
    session = peer.hello().session
    peer.ask(m.Submit(session, 1, [job("a", arguments=bytes(1000))]))
    other = connect(broker.address)
    asked = range(2, 8000)
    for number in asked:
        peer.send(m.AskJob(session, number, job_id_from("a")))
    assert other.ask(m.AskBroker(other.hello().session, 1)).refused == {}
    answers = [peer.hear() for _ in asked]
    assert [answer.request for answer in answers if isinstance(answer, m.JobDetail)] == list(asked)
