"""I16: what a peer sends makes the broker as large as its limit allows, and no accepted job is lost by it."""

from __future__ import annotations

import itertools
import os
import resource
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

import zq.protocol.messages as m
from tests.broker.hostile import connect as connect_raw
from tests.broker.hostile import last, more
from tests.broker.process import Broker, Connect, job, running
from tests.waiting import wait_until
from zq.broker import memory
from zq.broker.server import ANSWERS_UNREAD_MAX
from zq.protocol import codec
from zq.protocol.errors import Code
from zq.protocol.job import State, job_id_from
from zq.protocol.messages import ReceiptStatus, Role

MIB = 1 << 20
LIMIT_MIB = 256
FILES_MIB = 32
"""What is mapped of libraries and the journal, on top of the limit."""


def own_bytes(pid: int) -> int:
    pages = [int(field) for field in Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()]
    return (pages[1] - pages[2]) * os.sysconf("SC_PAGE_SIZE")


def flood(broker: Broker, frame: bytes, total_bytes: int) -> tuple[bool, int]:
    """Begin a message and never end it: whether the broker cut that off, and the largest it was meanwhile."""
    assert broker.process is not None
    largest = 0
    chunk = frame * max(1, MIB // len(frame))
    with connect_raw(broker.address) as peer:
        try:
            for _ in range(total_bytes // len(chunk)):
                peer.sendall(chunk)
                largest = max(largest, own_bytes(broker.process.pid))
        except OSError:
            return True, largest
    return False, largest


def test_a_message_that_never_ends_costs_its_sender_the_connection(tmp_path: Path, connect: Connect) -> None:
    broker = Broker(tmp_path / "data", ZQ_BROKER_MEMORY_LIMIT_MIB=str(LIMIT_MIB))
    with running(broker):
        peer = connect(broker.address)
        session = peer.hello().session
        peer.ask(m.Submit(session, 1, [job("before")]))
        for _ in range(3):
            cut, largest = flood(broker, more(60_000), 4 * LIMIT_MIB * MIB)
            assert cut, "it took four times its limit"
            assert largest < (LIMIT_MIB + FILES_MIB) * MIB
        assert broker.process is not None
        pid = broker.process.pid
        wait_until(lambda: own_bytes(pid) < LIMIT_MIB // 2 * MIB, what="memory that is given back")
        receipts = peer.ask(m.Submit(session, 2, [job("after", arguments=bytes(200_000))])).receipts
        assert receipts[0].status is ReceiptStatus.ACCEPTED, "another peer's session has gone on"
        assert peer.ask(m.AskJob(session, 3, job_id_from("before"))).job.queue == "q"


def test_who_asks_for_much_and_reads_nothing_loses_its_session_and_nobody_else_does(
    tmp_path: Path, connect: Connect
) -> None:
    broker = Broker(tmp_path / "data")
    with running(broker), ExitStack() as stack:
        peer = connect(broker.address)
        session = peer.hello().session
        deaf = stack.enter_context(connect_raw(broker.address))
        specs = [job(str(number), arguments=bytes(100_000)) for number in range(6)]
        peer.ask(m.Submit(session, 1, specs))
        question = codec.encode(m.AskJobs(session + 1, 1, "q", State.READY, b"", 1000, True))
        deaf.sendall(last(codec.encode(m.Hello(1, 1, Role.MONITOR, "deaf", bytes(16)))))
        for _ in range(3 * ANSWERS_UNREAD_MAX):
            deaf.sendall(last(question))
        wait_until(lambda: peer.ask(m.AskBroker(session, 2)).refused.get(Code.UNKNOWN_SESSION, 0) > 0)
        assert peer.ask(m.AskJob(session, 3, job_id_from("0"))).job.queue == "q"


@pytest.mark.long
def test_a_message_of_endless_tiny_parts_ends_the_broker_and_loses_nothing(tmp_path: Path, connect: Connect) -> None:
    """libzmq ends the process when it has no memory for something small. What was answered is on disk."""
    broker = Broker(tmp_path / "data", ZQ_BROKER_MEMORY_LIMIT_MIB=str(LIMIT_MIB))
    with running(broker):
        peer = connect(broker.address)
        peer.ask(m.Submit(peer.hello().session, 1, [job("before")]))
        cut, largest = flood(broker, more(1), LIMIT_MIB * MIB)
        assert cut
        assert largest < (LIMIT_MIB + FILES_MIB) * MIB
        code, _ = broker.wait()
        assert code != 0
        broker.start()
        again = connect(broker.address)
        assert again.ask(m.AskJob(again.hello().session, 1, job_id_from("before"))).job.queue == "q"


def test_when_python_has_no_memory_not_one_more_word_is_said(tmp_path: Path, connect: Connect) -> None:
    """The limit falls below what is in use while the broker runs, as it would if everything else grew."""
    broker = Broker(tmp_path / "data")
    with running(broker):
        connect(broker.address).hello()
        process = broker.process
        assert process is not None
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (MIB, resource.RLIM_INFINITY))
        answers: list[m.BrokerMessage] = []
        numbers = itertools.count()

        def has_ended() -> bool:
            """Send more, over a new connection: libzmq may have cut the last one off."""
            peer = connect(broker.address)
            peer.send(m.Hello(1, 1, Role.ADMIN, "peer", bytes(16)))
            welcome = peer.hear(500)
            for number in itertools.islice(numbers, 200):
                # A lane each, which the broker keeps in memory.
                jobs = [job(f"{number}-{n}", tags=(f"{number}-{n}",)) for n in range(20)]
                peer.send(m.Submit(getattr(welcome, "session", 0), number, jobs))
            answers.extend(iter(lambda: peer.hear(200), None))
            return process.poll() is not None

        wait_until(has_ended, what="the broker's end")
        code, log = broker.wait()
        assert code in (memory.EXIT_MEMORY, -signal.SIGABRT), f"{code}: {log}"  # libzmq's way to end
        receipts = [one for answer in answers if isinstance(answer, m.Receipts) for one in answer.receipts]
        broker.start()
        again = connect(broker.address)
        session = again.hello().session
        for receipt in receipts:
            assert again.ask(m.AskJob(session, 1, receipt.job_id)).job.queue == "q"
