"""Each test of the store runs on SQLite, on PostgreSQL and on MariaDB: real servers, started by the first test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from tests.servers.processes import MariaDB, Postgres
from zq.exams import tables, times
from zq.exams.database import Database

DATABASES = (
    "sqlite",
    pytest.param("postgres", marks=pytest.mark.xdist_group("postgres")),
    pytest.param("mariadb", marks=pytest.mark.xdist_group("mariadb")),
)


@pytest.fixture(params=DATABASES)
def new_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without a table in it."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'data' / 'exams.db'}"
    url: str = request.getfixturevalue("postgres_url" if request.param == "postgres" else "mysql_url")
    return url


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database for a store, with nothing in it."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'data' / 'exams.db'}"
    ready: Ready = request.getfixturevalue(f"ready_{request.param}")
    ready.empty()
    return ready.url


class Ready:
    """One database for all tests that do not care how its tables were made: making them takes longer than the tests."""

    def __init__(self, url: str) -> None:
        self.url = url
        Database(url, times.zone("UTC")).close()
        self._engine = sqlalchemy.create_engine(url, pool_pre_ping=True)  # some tests cut connections

    def empty(self) -> None:
        with self._engine.begin() as connection:
            for table in reversed(tables.metadata.sorted_tables):
                connection.execute(table.delete())

    def close(self) -> None:
        self._engine.dispose()


@pytest.fixture(scope="session")
def ready_postgres(postgres_server: Postgres) -> Iterator[Ready]:
    ready = Ready(postgres_server.new_database("zq_exams"))
    yield ready
    ready.close()


@pytest.fixture(scope="session")
def ready_mariadb(mariadb_server: MariaDB) -> Iterator[Ready]:
    ready = Ready(mariadb_server.new_database("zq_exams"))
    yield ready
    ready.close()
