"""`zq journal`, beside a broker that runs and without one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

import zq.protocol.messages as m
from tests.broker.process import Broker, Connect, job, running
from zq.broker.backup import EPOCHS_SKIPPED, back_up
from zq.broker.journal import JournalRefused
from zq.broker.lmdb_view import open_to_read
from zq.protocol.job import job_id_from


def journal(broker: Broker, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`zq journal …` with the broker's configuration."""
    words = [sys.executable, "-m", "zq.cli", "journal", *map(str, arguments)]
    return subprocess.run(words, env=broker.environment, capture_output=True, text=True, check=False)


def submit(broker: Broker, connect: Connect, *names: str) -> int:
    """Submit jobs; the broker's epoch."""
    peer = connect(broker.address)
    welcome = peer.hello()
    peer.ask(m.Submit(welcome.session, 1, [job(name) for name in names]))
    return int(welcome.epoch)


def there(broker: Broker, connect: Connect, name: str) -> bool:
    peer = connect(broker.address)
    return isinstance(peer.ask(m.AskJob(peer.hello().session, 1, job_id_from(name))), m.JobDetail)


def damage(folder: Path) -> None:
    """Drop the bodies behind the journal's back: LMDB itself sees nothing wrong."""
    env = lmdb.open(str(folder), max_dbs=32, lib_version=0)
    with env.begin(write=True) as txn:
        txn.drop(env.open_db(b"spec", txn=txn), delete=False)
    env.close()


def test_check_beside_a_running_broker(broker: Broker, connect: Connect) -> None:
    submit(broker, connect, "a", "合并")
    done = journal(broker, "check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("is whole: 2 jobs\n")
    refused = journal(broker, "check", "--pages")
    assert refused.returncode == 1
    assert "another broker has this journal" in refused.stderr
    broker.end(signal.SIGTERM)
    assert journal(broker, "check", "--pages").returncode == 0


def test_check_prints_what_is_wrong(broker: Broker, connect: Connect) -> None:
    submit(broker, connect, "a")
    broker.end(signal.SIGTERM)
    damage(broker.folder / "journal")
    done = journal(broker, "check")
    assert done.returncode == 1
    assert "its body is missing" in done.stdout
    assert "is damaged" in done.stderr


def test_check_says_what_is_no_journal(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "var")
    nothing = journal(broker, "check")
    assert (nothing.returncode, nothing.stderr) == (1, f"zq journal: there is no journal in {tmp_path}/var/journal\n")
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / "data.mdb").write_bytes(b"garbage" * 5000)
    for options in ((), ("--pages",)):
        done = journal(broker, "check", *options, tmp_path / "garbage")
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path / "garbage") == ["data.mdb"]
    broker.environment["ZQ_BROKER_HEARTBEAT_SS"] = "1"
    assert journal(broker, "check").returncode == 78


def test_a_backup_of_a_running_broker_has_what_had_a_receipt(broker: Broker, connect: Connect, tmp_path: Path) -> None:
    submit(broker, connect, *(f"job-{n}" for n in range(200)))
    copy = tmp_path / "备份"
    done = journal(broker, "backup", copy)
    assert (done.returncode, done.stdout) == (0, f"{copy}: 200 jobs\n"), done.stderr
    submit(broker, connect, "later")
    assert copy.stat().st_mode & 0o777 == 0o700
    assert [(f.name, f.stat().st_mode & 0o777) for f in copy.iterdir()] == [("data.mdb", 0o600)]
    assert journal(broker, "check", "--pages", copy).stdout.endswith("200 jobs\n")
    assert os.listdir(copy) == ["data.mdb"], "looking at a backup leaves nothing in it"
    again = journal(broker, "backup", copy)
    assert (again.returncode, "name a new folder" in again.stderr) == (1, True)


def test_backups_are_whole_while_the_broker_commits(broker: Broker, connect: Connect, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "zq.cli", "journal", "backup", str(tmp_path / "copy")]
    peer = connect(broker.address)
    session = peer.hello().session
    copying = subprocess.Popen(words, env=broker.environment, stdout=subprocess.PIPE, text=True)
    receipts = 0
    while copying.poll() is None:
        receipts += len(peer.ask(m.Submit(session, 1, [job(f"{receipts}-{n}") for n in range(5)])).receipts)
    said, _ = copying.communicate()
    assert copying.returncode == 0
    jobs = int(said.split()[-2])
    assert 0 < jobs < receipts
    assert jobs % 5 == 0, "half a batch is in the copy"


def test_restore_puts_a_backup_in_place_and_never_repeats_a_token(
    broker: Broker, connect: Connect, tmp_path: Path
) -> None:
    epoch = submit(broker, connect, "before")
    assert journal(broker, "backup", tmp_path / "copy").returncode == 0
    submit(broker, connect, "after")
    refused = journal(broker, "restore", tmp_path / "copy")
    assert refused.returncode == 1
    assert "another broker has this journal" in refused.stderr
    broker.end(signal.SIGTERM)
    refused = journal(broker, "restore", tmp_path / "copy")
    assert refused.returncode == 1
    assert "--force moves it aside" in refused.stderr
    done = journal(broker, "restore", "--force", tmp_path / "copy")
    assert done.returncode == 0, done.stderr
    aside = Path(done.stdout.splitlines()[0].removeprefix("the journal that was there is in "))
    with running(broker):
        assert there(broker, connect, "before")
        assert not there(broker, connect, "after")
        assert submit(broker, connect, "new") == epoch + EPOCHS_SKIPPED + 1
    with open_to_read(aside, shared=True) as reader:
        assert reader.row(job_id_from("after")) is not None


def test_restore_on_a_new_machine_needs_no_force(broker: Broker, connect: Connect, tmp_path: Path) -> None:
    submit(broker, connect, "a")
    assert journal(broker, "backup", tmp_path / "copy").returncode == 0
    other = Broker(tmp_path / "other" / "var")
    assert journal(other, "restore", tmp_path / "copy").returncode == 0
    with running(other):
        assert there(other, connect, "a")


def test_a_damaged_backup_is_not_put_in_place(broker: Broker, connect: Connect, tmp_path: Path) -> None:
    submit(broker, connect, "a")
    assert journal(broker, "backup", tmp_path / "copy").returncode == 0
    broker.end(signal.SIGTERM)
    damage(tmp_path / "copy")
    done = journal(broker, "restore", "--force", tmp_path / "copy")
    assert done.returncode == 1
    assert "is damaged" in done.stderr
    with running(broker):
        assert there(broker, connect, "a")


def test_a_damaged_journal_and_a_full_disk_leave_no_backup(broker: Broker, connect: Connect, tmp_path: Path) -> None:
    submit(broker, connect, "a")
    broker.end(signal.SIGTERM)
    place = broker.folder / "journal"
    shutil.copytree(place, tmp_path / "damaged")
    damage(tmp_path / "damaged")
    with pytest.raises(JournalRefused, match="is damaged"):
        back_up(tmp_path / "damaged", tmp_path / "copy")
    words = f"ulimit -f 8; exec {sys.executable} -m zq.cli journal backup {tmp_path}/copy"
    full = subprocess.run(["sh", "-c", words], env=broker.environment, capture_output=True, text=True, check=False)
    assert full.returncode == 1
    assert f"{tmp_path}/copy.new cannot be written" in full.stderr
    assert not (tmp_path / "copy").exists()
    assert not (tmp_path / "copy.new").exists()


def test_bytes_that_storage_has_changed_never_crash_the_check(
    broker: Broker, connect: Connect, tmp_path: Path
) -> None:
    """In a process of its own: LMDB may end the process over a damaged file, so its pages are checked before."""
    submit(broker, connect, *(f"job-{n}" for n in range(200)))
    broker.end(signal.SIGTERM)
    back_up(broker.folder / "journal", tmp_path / "copy")
    program = (
        "import random, sys; from pathlib import Path\n"
        "from click.testing import CliRunner; from zq.broker.journal_cli import command\n"
        "file = Path(sys.argv[1]) / 'data.mdb'; whole = file.read_bytes(); codes = []\n"
        "for seed in range(60):\n"
        "    rng = random.Random(seed); data = bytearray(whole)\n"
        "    for _ in range(rng.choice((1, 5, 50))):\n"
        "        data[rng.randrange(len(data))] = rng.randrange(256)\n"
        "    file.write_bytes(data[: rng.choice((len(data), len(data), rng.randrange(len(data))))])\n"
        "    done = CliRunner().invoke(command, ['check', sys.argv[1]])\n"
        "    assert isinstance(done.exception, SystemExit | None), (seed, done.exception)\n"
        "    codes.append(done.exit_code)\n"
        "print(codes.count(0), codes.count(1))\n"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "copy")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    unnoticed, noticed = map(int, done.stdout.split())
    assert unnoticed + noticed == 60
    assert noticed > 30
