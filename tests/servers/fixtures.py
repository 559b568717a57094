"""Fixtures with real servers behind them, for every test of the suite (the root conftest loads this file).

    postgres_url   an empty PostgreSQL database of the test's own: postgresql+psycopg://zq@127.0.0.1:PORT/NAME
    mysql_url      an empty MariaDB database of the test's own:    mysql+pymysql://root@127.0.0.1:PORT/NAME?charset=utf8mb4
    redis_url      an empty Redis database of the test's own:      redis://127.0.0.1:PORT/NUMBER
    s3             an empty bucket of the test's own: s3.endpoint, .bucket, .access_key_id, .secret_access_key, .region

    postgres_server, mariadb_server, redis_server, s3_server
                   the servers themselves (`tests.servers.processes`), for a test that needs two databases, or the port:
                   postgres_server.new_database(NAME) gives an URL

A server starts when the first test asks for it (0.1 to 1.5 s) and serves all tests of its process. Tests that name
one of these fixtures are kept together in one process when the suite runs in several; a test that comes by one through
`request.getfixturevalue` gets it too, but marks itself `@pytest.mark.xdist_group("postgres")` (or "mariadb", "redis",
"s3"), or a second server is started in the other process. A missing program skips the test and says so.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.servers.processes import REDIS_DATABASES, MariaDB, Postgres, Redis, S3Server

_redis_numbers = itertools.count()


class Bucket(NamedTuple):
    endpoint: str
    """http://127.0.0.1:PORT; the bucket is a part of the path, not of the host's name."""
    bucket: str
    access_key_id: str = "zq"
    secret_access_key: str = "zq-secret"
    region: str = "us-east-1"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One group, hence one process, for the tests of each server."""
    for item in items:
        names: list[str] = getattr(item, "fixturenames", [])
        for server in ("postgres", "mariadb", "redis", "s3"):
            if f"{server}_server" in names:
                item.add_marker(pytest.mark.xdist_group(server))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariaDB]:
    with MariaDB() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    with Redis() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: Postgres) -> Iterator[str]:
    name = _name()
    yield postgres_server.new_database(name)
    postgres_server.drop_database(name)


@pytest.fixture
def mysql_url(mariadb_server: MariaDB) -> Iterator[str]:
    name = _name()
    yield mariadb_server.new_database(name)
    mariadb_server.drop_database(name)


@pytest.fixture
def redis_url(redis_server: Redis) -> str:
    number = next(_redis_numbers) % REDIS_DATABASES
    # Answered as one line: SELECT holds for the connection, so both go in one.
    redis_server.ask(f"SELECT {number}\r\nFLUSHDB")
    return f"redis://127.0.0.1:{redis_server.port}/{number}"


@pytest.fixture
def s3(s3_server: S3Server) -> Bucket:
    name = f"zq-{uuid.uuid4().hex[:12]}"
    s3_server.new_bucket(name)
    return Bucket(s3_server.endpoint, name)


def _name() -> str:
    return f"zq_{uuid.uuid4().hex[:12]}"
