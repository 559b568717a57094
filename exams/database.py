"""The connection to the exam store's database: transactions, SQLite's settings, the schema and its version."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy import Connection, Engine, event, select
from sqlalchemy import exc as sql_errors

from zq.exams import tables
from zq.exams.errors import ExamError

BUSY_TIMEOUT_S = 10.0
"""How long a write waits for other writers before it is refused as unavailable."""
POOL_CONNECTIONS = 4

_WRITES = "zq_writes"
_DEFECTS = (
    sql_errors.IntegrityError,
    sql_errors.ProgrammingError,
    sql_errors.DataError,
    sql_errors.InternalError,
    sql_errors.NotSupportedError,
)
_CHUNK_ROWS = 500

_Item = TypeVar("_Item")


def chunks(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    """Parts that are small enough for one list of parameters on every database."""
    for start in range(0, len(items), _CHUNK_ROWS):
        yield items[start : start + _CHUNK_ROWS]


class Database:
    """A small pool of connections. Safe to share between threads; make a new one after a fork.

    Opening it creates what is missing of the schema, also when several processes do so at once. Raises
    ExamError("invalid") for a URL that cannot be used, ExamError("unavailable") if the database cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)
        self._writer = self._engine.execution_options(**{_WRITES: True})
        try:
            self._create_schema()
        except BaseException:
            self._engine.dispose()
            raise

    @property
    def engine(self) -> Engine:
        return self._engine

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with _translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that writes: committed (durably) on a clean exit, undone by an exception.

        On SQLite there is one writer at a time, from the first statement on. On other databases, rows that a decision
        rests on must be read with `with_for_update()`, in the order of their keys.
        """
        with _translated(), self._writer.begin() as connection:
            yield connection

    def close(self) -> None:
        self._engine.dispose()

    def _create_schema(self) -> None:
        with self.write() as connection:
            tables.metadata.create_all(connection, checkfirst=True)
            found = connection.execute(select(tables.schema.c.version)).scalar_one_or_none()
            if found is None:
                connection.execute(tables.schema.insert().values(id=1, version=tables.SCHEMA_VERSION))
            elif found != tables.SCHEMA_VERSION:
                raise ExamError(
                    "invalid",
                    f"the exam database has schema version {found}, this zq knows {tables.SCHEMA_VERSION}; "
                    "use the zq that made it, or a newer one",
                )


@contextmanager
def _translated() -> Iterator[None]:
    """A database that is away, locked or full is `unavailable`; anything else is a defect and stays as it is."""
    try:
        yield
    except (sql_errors.DatabaseError, sql_errors.InterfaceError, sql_errors.TimeoutError) as error:
        if isinstance(error, _DEFECTS):
            raise
        cause = str(getattr(error, "orig", None) or error).splitlines()[0][:200]
        raise ExamError("unavailable", f"the exam database cannot be used now ({cause}); try again") from error


def _engine(url: str) -> Engine:
    try:
        parsed = sqlalchemy.make_url(url)
        sqlite = parsed.get_backend_name() == "sqlite"
        if sqlite and parsed.database in {None, "", ":memory:"}:
            raise ExamError("invalid", "exams.database: SQLite needs a file, such as sqlite:////var/lib/zq/exams.db")
        options: dict[str, Any] = {"connect_args": {"timeout": BUSY_TIMEOUT_S}} if sqlite else {"pool_pre_ping": True}
        engine = sqlalchemy.create_engine(
            parsed, pool_size=POOL_CONNECTIONS, max_overflow=0, pool_timeout=BUSY_TIMEOUT_S, **options
        )
    except ModuleNotFoundError as error:
        raise ExamError("invalid", f"exams.database: the driver is not installed: {error}") from None
    except sql_errors.ArgumentError as error:
        raise ExamError("invalid", f"exams.database is not a database URL: {error}") from None
    if sqlite:
        _make_file(Path(str(parsed.database)))
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _make_file(path: Path) -> None:
    """Readable by its owner alone: it holds names. SQLite gives its side files the same mode."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise ExamError("unavailable", f"the exam database {path} cannot be opened: {error.strerror}") from None


def _set_up_sqlite(connection: Any, _record: object) -> None:
    # SQLAlchemy, not the driver, begins transactions (see _begin_sqlite).
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        _use_wal(cursor)
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
    finally:
        cursor.close()


def _use_wal(cursor: Any) -> None:
    """Several processes may open a new file at once, and this change is refused at once instead of waiting."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later would be refused at once when another one wrote meanwhile.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
