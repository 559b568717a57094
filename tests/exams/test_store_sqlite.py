"""What is SQLite's own: the file, its settings, its lock."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.exams.test_store import END, NOW_MS, START, refused, with_student
from zq.exams.errors import ExamError
from zq.exams.store import ExamStore


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'data' / 'exams.db'}"


@pytest.fixture
def store(url: str) -> Iterator[ExamStore]:
    store = ExamStore(url, "Asia/Shanghai")
    yield store
    store.close()


def test_the_database_enforces_one_row_a_student(store: ExamStore, tmp_path: Path) -> None:
    with_student(store)
    with sqlite3.connect(tmp_path / "data" / "exams.db") as raw, pytest.raises(sqlite3.IntegrityError):
        raw.execute(
            "INSERT INTO exam_students (student_id, student_name, exam_id, status) VALUES ('s1', '', 'e1', 'x')"
        )
    raw.close()


def test_settings_of_sqlite(store: ExamStore, tmp_path: Path) -> None:
    with store.database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 10_000
    assert stat.S_IMODE((tmp_path / "data" / "exams.db").stat().st_mode) == 0o600


def test_another_opening_in_this_process_takes_no_lock_away(store: ExamStore, url: str, tmp_path: Path) -> None:
    """A second opening in this process must not take away the locks of the first: another process that comes and goes
    would delete the log to which the first goes on writing."""
    ids = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); print(*c.execute('SELECT id FROM exams')); c.close()"

    def seen() -> str:
        ask = [sys.executable, "-c", ids, str(tmp_path / "data" / "exams.db")]
        return subprocess.run(ask, check=True, capture_output=True, text=True).stdout

    with_student(store)
    assert "e1" in seen()
    ExamStore(url, "UTC").close()
    assert "e1" in seen()
    store.create_exam("e2", "x", START, END, now_ms=NOW_MS)
    assert "e2" in seen()


def test_a_file_that_is_no_database_and_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 5000)
    for url in (f"sqlite:///{tmp_path}/file", f"sqlite:///{tmp_path}/file/exams.db"):
        with pytest.raises(ExamError) as error:
            ExamStore(url, "UTC")
        assert error.value.code in ("invalid", "unavailable")


def test_a_locked_database_is_unavailable_and_nothing_is_changed(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zq.exams.database.BUSY_TIMEOUT_S", 0.05)
    store = ExamStore(url, "UTC")
    raw = sqlite3.connect(tmp_path / "data" / "exams.db", isolation_level=None)
    raw.execute("BEGIN IMMEDIATE")
    assert refused(lambda: store.create_exam("e1", "n", START, END, now_ms=NOW_MS)) == "unavailable"
    raw.execute("ROLLBACK")
    raw.close()
    assert store.list_exams() == []
    store.close()
