from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from zq.config import Config, ExamsSection
from zq.exams.at_rest import at_rest
from zq.exams.heartbeats import HeartbeatBuffer
from zq.exams.late_store import LatePresence, LateStore
from zq.exams.model import Heartbeat
from zq.exams.presence import read_listening
from zq.exams.status import Listening
from zq.exams.store import ExamStore

NOW_MS = 1_782_781_200_000


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(data_dir=str(tmp_path))


@pytest.fixture
def store(config: Config) -> ExamStore:
    return ExamStore(config.database_url, "UTC")


def test_it_rests_until_there_is_an_exam_and_again_when_all_is_over(config: Config) -> None:
    assert at_rest(config)
    assert not (config.data_path / "exams.db").exists()
    with contextlib.closing(ExamStore(config.database_url, "UTC")) as store:
        assert at_rest(config)
        store.create_exam("e", "期末", NOW_MS + 90_000_000, NOW_MS + 97_200_000, now_ms=NOW_MS)
        assert not at_rest(config)
        store.edit_times("e", now_ms=NOW_MS, start=NOW_MS - 7_200_000, end=NOW_MS - 1000)
        with store.database.write() as connection:
            connection.exec_driver_sql("UPDATE exams SET status = 'completed'")
        assert at_rest(config)


@pytest.mark.parametrize(("state", "rests"), [("requested", False), ("submitted", False), ("done", True)])
def test_a_merge_under_way_is_no_rest(config: Config, store: ExamStore, state: str, rests: bool) -> None:
    store.create_exam("e", "n", NOW_MS - 2000, NOW_MS + 1000, now_ms=NOW_MS - 2000)
    store.login("e", "s", now_ms=NOW_MS - 1500, ip="", name="张伟")
    store.request_merge("e", "s", now_ms=NOW_MS)
    with store.database.write() as connection:
        connection.exec_driver_sql("UPDATE exams SET status = 'completed'")
        connection.exec_driver_sql(f"UPDATE recordings SET state = '{state}'")
    store.close()
    assert at_rest(config) is rests


def test_what_is_not_certain_is_no_rest(config: Config) -> None:
    elsewhere = msgspec.structs.replace(config, exams=ExamsSection(database="postgresql://h/d"))
    assert not at_rest(elsewhere)
    path = config.data_path / "exams.db"
    path.write_bytes(b"no database" * 100)
    assert not at_rest(config)
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE exams (id)")  # of some other program
    assert not at_rest(config)


def window(store: ExamStore) -> Listening | None:
    with store.database.read() as connection:
        return read_listening(connection)


def test_silence_counts_only_from_when_the_store_was_opened(config: Config) -> None:
    late = LateStore(config)
    buffer = HeartbeatBuffer(LatePresence(late))
    for second in range(0, 20):
        buffer.flush(NOW_MS + second * 1000)
    assert not late.is_open
    assert late.rests()
    with contextlib.closing(ExamStore(config.database_url, "UTC")) as other:  # another process makes an exam
        other.create_exam("e", "n", NOW_MS, NOW_MS + 7_200_000, now_ms=NOW_MS)
    for second in range(20, 30):
        buffer.flush(NOW_MS + second * 1000)
    assert late.is_open
    assert not late.rests()
    assert window(late.open()) == Listening(NOW_MS + 20_000, NOW_MS + 28_000)
    late.close()


def test_a_heartbeat_opens_the_store(config: Config) -> None:
    late = LateStore(config)
    recorded = LatePresence(late).record([Heartbeat("e", "s", NOW_MS, "")], NOW_MS, after_gap=True)
    assert recorded.unknown == (("e", "s"),)
    assert late.is_open
    assert late.list_exams(limit=1) == []
    late.close()


@pytest.mark.parametrize("module", ["zq.workers.status", "zq.workers.merge", "zq.web.app", "zq.exams.late_store"])
def test_what_waits_for_an_exam_has_not_loaded_sqlalchemy(module: str) -> None:
    script = f"import sys, {module}; print([m for m in ('sqlalchemy', 'zq.exams.store') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
