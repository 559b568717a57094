"""A journal whose bytes are not what was written is refused with a reason, at the start or when they are met."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

import zq.protocol.messages as m
from tests.broker.process import Broker, Connect, job, running
from zq.broker.lmdb_view import DATA_FORMAT, DATABASES_MAX
from zq.broker.server import EXIT_JOURNAL
from zq.config import EXIT_CONFIG
from zq.protocol.job import Outcome, job_id_from
from zq.protocol.messages import Role


def filled(folder: Path, connect: Connect) -> Broker:
    """A broker that has stopped, with one job that is ready and one that is done."""
    broker = Broker(folder / "data")
    with running(broker):
        peer, worker = connect(broker.address), connect(broker.address)
        session = peer.hello().session
        serving = worker.hello(Role.WORKER, [m.QueueSlots("q", 1)]).session
        worker.ask(m.Resume(serving, []))
        worker.send(m.Credit(serving, [m.QueueSlots("q", 1)]))
        peer.ask(m.Submit(session, 1, [job("done"), job("ready")]))
        dispatch = worker.hear()
        assert isinstance(dispatch, m.Dispatch)
        lease = dispatch.leases[0]
        worker.send(m.Credit(serving, [m.QueueSlots("q", 0)]))
        worker.ask(m.Ack(serving, [m.Result(lease.job_id, 1, lease.token, Outcome.DONE)]))
        assert broker.end(15)[0] == 0
    return broker


def put(broker: Broker, table: str, key: bytes, value: bytes) -> None:
    """Write into the tables behind the broker's back."""
    with opened(broker) as env, env.begin(write=True) as txn:
        assert txn.replace(key, value, db=env.open_db(table.encode(), txn=txn)) is not None, "nothing was there"


def opened(broker: Broker) -> Any:
    folder = str(broker.folder / "journal")
    return lmdb.open(folder, max_dbs=DATABASES_MAX, map_size=1 << 30, lib_version=DATA_FORMAT)


def unreadable(broker: Broker) -> None:
    put(broker, "row", job_id_from("ready"), b"\xc1")


def no_text(broker: Broker) -> None:
    """The name of its queue is not UTF-8."""
    with opened(broker) as env, env.begin(write=True) as txn:
        table = env.open_db(b"row", txn=txn)
        row = txn.get(job_id_from("ready"), db=table)
        assert b"\xa1q" in row
        txn.put(job_id_from("ready"), row.replace(b"\xa1q", b"\xa1\xc3"), db=table)


def of_another_shape(broker: Broker) -> None:
    put(broker, "row", job_id_from("ready"), b"\x93\x01\x02\x03")


def gone(broker: Broker) -> None:
    """The index has it and the table does not."""
    with opened(broker) as env, env.begin(write=True) as txn:
        assert txn.delete(job_id_from("ready"), db=env.open_db(b"row", txn=txn))


@pytest.mark.parametrize("damage", [unreadable, no_text, of_another_shape, gone])
def test_what_the_start_needs_is_refused_with_what_to_do(
    damage: Callable[[Broker], None], tmp_path: Path, connect: Connect
) -> None:
    broker = filled(tmp_path, connect)
    damage(broker)
    broker.start()
    code, log = broker.wait()
    assert (code, "zq journal check" in log) == (EXIT_CONFIG, True), log
    assert "Traceback" not in log


def test_what_is_met_later_ends_the_broker_without_another_word(tmp_path: Path, connect: Connect) -> None:
    broker = filled(tmp_path, connect)
    put(broker, "row", job_id_from("done"), b"\xc1")
    with running(broker):
        peer = connect(broker.address)
        session = peer.hello().session
        peer.send(m.AskJob(session, 1, job_id_from("done")))
        code, log = broker.wait()
        assert (code, "zq journal check" in log) == (EXIT_JOURNAL, True), log
        assert peer.hear(100) is None


def test_a_file_that_has_become_shorter_is_told_of(tmp_path: Path, connect: Connect) -> None:
    """LMDB reads through a map: the kernel ends who reads behind a file's end."""
    broker = filled(tmp_path, connect)
    tables = broker.folder / "journal" / "data.mdb"
    with tables.open("rb+") as file:
        file.truncate(3 * 4096)
    broker.start()
    code, log = broker.wait()
    assert (code, "shorter than it was" in log) == (EXIT_CONFIG, True), log
    command = [sys.executable, "-m", "zq.broker.journal_cli", "check"]
    said = subprocess.run(command, env=broker.environment, capture_output=True, text=True, check=False)
    assert (said.returncode, "shorter than it was" in said.stderr) == (1, True)
