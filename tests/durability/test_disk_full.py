"""I14: a disk that fills up. New jobs are refused before anything fails, the others are worked off, none is lost."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

import zq.protocol.messages as m
from tests.broker.process import Broker, Connect, Peer, job, running
from tests.waiting import wait_until
from zq.broker.ballast import Ballast
from zq.broker.check import check
from zq.broker.lmdb_view import open_to_read
from zq.protocol.errors import Code
from zq.protocol.job import Outcome, State, job_id_from
from zq.protocol.messages import BrokerMessage, Receipt, ReceiptStatus, Role

T = TypeVar("T", bound=BrokerMessage)
MIB = 1 << 20
SLOTS = 40


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB."""
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: a full disk. Mounting a small file system needs root")
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=48m,mode=0700", "tmpfs", str(place)]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"NOT TESTED: a full disk. No tmpfs can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def make_broker(disk: Path) -> Broker:
    return Broker(disk / "var", ZQ_BROKER_DISK_RESERVE_MIB="16", ZQ_BROKER_BALLAST_MIB="4")


def leave(disk: Path, free_bytes: int) -> None:
    """Fill the disk, as somebody else would, until only this much is free."""
    with (disk / "filler").open("ab") as filler:
        while True:
            state = os.statvfs(disk)
            excess = state.f_bavail * state.f_frsize - free_bytes
            if excess <= 0:
                return
            try:
                filler.write(bytes(min(excess, MIB)))
                filler.flush()
            except OSError:
                return


class Work:
    """A client and a worker of one broker."""

    def __init__(self, broker: Broker, connect: Connect, claims: list[m.LeaseClaim] | None = None) -> None:
        self._client, self._worker = connect(broker.address), connect(broker.address)
        self._session = self._client.hello().session
        queues = [m.QueueSlots("q", SLOTS)]
        self.work = self._worker.ask(m.Hello(1, 1, Role.WORKER, "worker", bytes(16), queues, ["t"])).session
        self.resumed: m.Resumed = self._worker.ask(m.Resume(self.work, claims or []))
        self._worker.send(m.Credit(self.work, queues))
        self._leases: list[m.Lease] = []
        self._tries = 0

    def submit(self, name: str) -> Receipt:
        receipt: Receipt = self._client.ask(m.Submit(self._session, 1, [job(name)])).receipts[0]
        return receipt

    def refused(self) -> bool:
        self._tries += 1
        receipt = self.submit(f"try {self._tries}")
        if receipt.status is ReceiptStatus.REFUSED:
            assert receipt.code is Code.DISK_LOW
            assert receipt.retry_after_ms > 0
        return receipt.status is ReceiptStatus.REFUSED

    def cancel(self, name: str) -> State | None:
        change: m.Change = self._client.ask(m.Cancel(self._session, 2, [job_id_from(name)])).changes[0]
        return change.state

    def lease(self) -> m.Lease:
        while not self._leases:
            self._leases += self._hear(self._worker, m.Dispatch).leases
        return self._leases.pop(0)

    def finish(self, lease: m.Lease, result_bytes: int) -> None:
        word = m.Result(lease.job_id, lease.attempt, lease.token, Outcome.DONE, result=b"\x01" * result_bytes)
        self._worker.send(m.Ack(self.work, [word]))
        assert self._hear(self._worker, m.Acked).accepted == [lease.token]

    def state(self, name: str) -> State:
        found: m.JobDetail = self._client.ask(m.AskJob(self._session, 1, job_id_from(name)))
        return found.job.state

    def _hear(self, peer: Peer, kind: type[T]) -> T:
        while not isinstance(message := peer.hear(), kind):
            assert message is not None, "the broker is silent"
            if isinstance(message, m.Dispatch):
                self._leases += message.leases
        return message


def whole(broker: Broker) -> None:
    with open_to_read(broker.folder / "journal", shared=True) as reader:
        assert check(reader) == []


def test_a_disk_that_fills_up_stops_new_jobs_and_nothing_else(small_disk: Path, connect: Connect) -> None:
    broker = make_broker(small_disk)
    ballast = broker.folder / "journal.ballast"
    with running(broker):
        work = Work(broker, connect)
        names = [f"job-{n}" for n in range(100)]
        for name in [*names, "unwanted"]:
            assert work.submit(name).status is ReceiptStatus.ACCEPTED
        wait_until(lambda: ballast.exists() and ballast.stat().st_blocks * 512 == 4 * MIB, what="ballast")
        leave(small_disk, 10 * MIB)
        wait_until(work.refused, what="a refusal on a disk that is low")
        assert ballast.exists()
        for _ in range(20):
            work.finish(work.lease(), 10_000)
        leave(small_disk, MIB)
        wait_until(lambda: not ballast.exists(), what="the ballast's end on a disk that is nearly full")
        for _ in range(79):
            work.finish(work.lease(), 10_000)
        assert work.cancel("unwanted") in (State.CANCELLED, State.RUNNING)
        assert work.refused()
        whole(broker)
        (small_disk / "filler").unlink()
        wait_until(lambda: not work.refused(), what="taking jobs where there is room")
        wait_until(ballast.exists, what="ballast where there is room")
        work.finish(work.lease(), 10)
        whole(broker)


def test_a_broker_whose_disk_is_full_at_once_comes_back_on_its_ballast(small_disk: Path, connect: Connect) -> None:
    broker = make_broker(small_disk)
    ballast = broker.folder / "journal.ballast"
    with running(broker):
        work = Work(broker, connect)
        names = [f"job-{n}" for n in range(20)]
        for name in names:
            assert work.submit(name).status is ReceiptStatus.ACCEPTED
        leases = [work.lease() for _ in names]
        wait_until(ballast.exists, what="ballast")
        broker.end(signal.SIGKILL)
    leave(small_disk, 0)
    with running(broker):
        work = Work(broker, connect, [m.LeaseClaim(lease.job_id, lease.attempt, lease.token) for lease in leases])
        assert sorted(work.resumed.held) == sorted(lease.token for lease in leases)
        assert not ballast.exists()
        assert work.refused()
        for lease in leases:
            work.finish(lease, 10_000)
        assert {work.state(name) for name in names} == {State.DONE}
        whole(broker)


def test_a_limit_on_the_file_ends_the_broker_with_everything_kept(tmp_path: Path, connect: Connect) -> None:
    """Needs no root: RLIMIT_FSIZE is a full disk that cannot be seen coming."""
    broker = Broker(tmp_path / "var", ZQ_BROKER_BALLAST_MIB="16")
    broker.start("sh", "-c", 'ulimit -f 20480; exec "$@"', "sh")
    peer = connect(broker.address)
    session = peer.hello().session
    accepted = 0
    while (answer := _answer(broker, peer, session, accepted)) is not None:
        assert answer.receipts[0].status is ReceiptStatus.ACCEPTED
        accepted += 1
    code, log = broker.wait()
    assert code == 74
    assert "no ballast can be kept" in log
    assert accepted > 10
    with running(broker):
        peer = connect(broker.address)
        session = peer.hello().session
        assert all(
            isinstance(peer.ask(m.AskJob(session, 1, job_id_from(str(n)))), m.JobDetail) for n in range(accepted)
        )
        whole(broker)


def _answer(broker: Broker, peer: Peer, session: int, number: int) -> m.Receipts | None:
    assert broker.process is not None
    data = job(str(number), arguments=b"\x92\x90\x80" + bytes(20_000))
    peer.send(m.Submit(session, 1, [data]))
    while True:
        gone = broker.process.poll() is not None
        answer = peer.hear(100)
        if isinstance(answer, m.Receipts):
            return answer
        if gone and answer is None:
            return None


@pytest.mark.parametrize(
    ("free_mib", "before", "after"),
    [
        (100, False, True), (21, False, True), (20, False, False), (4, True, True), (3, True, False), (0, False, False),
    ],
)  # fmt: skip
def test_when_ballast_is_made_and_dropped(tmp_path: Path, free_mib: int, before: bool, after: bool) -> None:
    """With a reserve of 16 MiB and a ballast of 4."""
    ballast = Ballast(tmp_path / "ballast", 4 * MIB)
    if before:
        ballast.adjust(1000 * MIB, 16 * MIB)
        assert (tmp_path / "ballast").stat().st_size == 4 * MIB
    ballast.adjust(free_mib * MIB, 16 * MIB)
    assert (tmp_path / "ballast").exists() is after


def test_a_ballast_cut_short_by_a_crash_is_made_whole(tmp_path: Path) -> None:
    (tmp_path / "ballast").write_bytes(b"\0" * 1000)
    Ballast(tmp_path / "ballast", 4 * MIB).adjust(1000 * MIB, 16 * MIB)
    assert (tmp_path / "ballast").stat().st_size == 4 * MIB
    Ballast(tmp_path / "none", 0).adjust(1000 * MIB, 16 * MIB)
    assert not (tmp_path / "none").exists()
