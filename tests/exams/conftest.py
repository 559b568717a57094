"""Each test of the store runs on SQLite, on PostgreSQL and on MariaDB: real servers, started by the first test."""

from __future__ import annotations

from pathlib import Path

import pytest

DATABASES = (
    "sqlite",
    pytest.param("postgres", marks=pytest.mark.xdist_group("postgres")),
    pytest.param("mariadb", marks=pytest.mark.xdist_group("mariadb")),
)


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of the test's own."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'data' / 'exams.db'}"
    url: str = request.getfixturevalue("postgres_url" if request.param == "postgres" else "mysql_url")
    return url
