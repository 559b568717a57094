"""What only servers do: they say things beside their answers, and they go away."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, text

from tests.exams.conftest import Ready
from tests.exams.test_store import END, NOW_MS, START
from tests.servers.processes import MariaDB
from zq.exams.errors import ExamError
from zq.exams.store import ExamStore


@pytest.fixture
def postgres(ready_postgres: Ready) -> Iterator[ExamStore]:
    ready_postgres.empty()
    store = ExamStore(ready_postgres.url, "Asia/Shanghai")
    yield store
    store.close()


@pytest.fixture
def mariadb(ready_mariadb: Ready) -> Iterator[ExamStore]:
    ready_mariadb.empty()
    store = ExamStore(ready_mariadb.url, "Asia/Shanghai")
    yield store
    store.close()


def test_a_commit_that_did_not_wait_for_its_standby_is_not_taken_for_one(postgres: ExamStore) -> None:
    """The server reports success and warns; the row is there, and may be lost with it."""
    warning = "DO $$ BEGIN RAISE WARNING 'canceling wait for synchronous replication due to user request'; END $$"

    def write(connection: Connection) -> None:
        connection.execute(text("UPDATE exams SET name = 'x'"))
        connection.execute(text(warning))

    with pytest.raises(ExamError, match="standby") as error, postgres.database.write() as connection:
        write(connection)
    assert error.value.code == "unavailable"
    postgres.create_exam("e1", "n", START, END, now_ms=NOW_MS)  # what was said before is forgotten


def test_a_postgres_that_was_restarted_is_connected_anew(postgres: ExamStore) -> None:
    postgres.create_exam("e1", "n", START, END, now_ms=NOW_MS)
    with postgres.database.read() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
        )
    assert postgres.get_exam("e1").name == "n"


def test_a_connection_that_is_cut_inside_a_transaction_changes_nothing(postgres: ExamStore) -> None:
    postgres.create_exam("e1", "n", START, END, now_ms=NOW_MS)

    def write(connection: Connection) -> None:
        connection.execute(text("UPDATE exams SET name = 'x'"))
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(ExamError) as error, postgres.database.write() as connection:
        write(connection)
    assert error.value.code == "unavailable"
    assert postgres.get_exam("e1").name == "n"


def test_a_lock_that_somebody_keeps_is_waited_for_and_then_unavailable(
    mariadb: ExamStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zq.exams.database.BUSY_TIMEOUT_S", 1.0)
    mariadb.create_exam("e1", "n", START, END, now_ms=NOW_MS)
    other = ExamStore(mariadb.database.engine.url.render_as_string(hide_password=False), "Asia/Shanghai")
    with mariadb.database.write() as connection:
        connection.execute(text("SELECT id FROM exams FOR UPDATE"))
        with pytest.raises(ExamError) as error:
            other.edit_times("e1", now_ms=NOW_MS, end=END)
    assert error.value.code == "unavailable"
    assert other.edit_times("e1", now_ms=NOW_MS, end=END).id == "e1"
    other.close()


@pytest.mark.xdist_group("mariadb")
def test_a_server_that_has_stopped_answering_is_not_waited_for_without_end(
    mariadb: ExamStore, mariadb_server: MariaDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zq.exams.database.ANSWER_TIMEOUT_S", 0.5)
    store = ExamStore(mariadb.database.engine.url.render_as_string(hide_password=False), "Asia/Shanghai")
    mariadb_server.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(ExamError) as error:
            store.list_exams()
    finally:
        mariadb_server.process.send_signal(signal.SIGCONT)
    assert error.value.code == "unavailable"
    assert store.list_exams() == []
    store.close()


def test_a_statement_that_takes_too_long_is_broken_off(ready_postgres: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zq.exams.database.ANSWER_TIMEOUT_S", 0.3)
    store = ExamStore(ready_postgres.url, "Asia/Shanghai")
    with pytest.raises(ExamError) as error, store.database.read() as connection:
        connection.execute(text("SELECT pg_sleep(60)"))
    assert error.value.code == "unavailable"
    store.close()
