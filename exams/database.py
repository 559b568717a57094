"""The connection to the exam store's database: transactions, SQLite's settings, the schema and its version."""

from __future__ import annotations

import os
import sqlite3
import time
import zoneinfo
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy import Connection, Engine, event
from sqlalchemy import exc as sql_errors

from zq.exams import migrate, shape
from zq.exams.errors import ExamError

BUSY_TIMEOUT_S = 10.0
"""How long a write waits for other writers before it is refused as unavailable."""
ANSWER_TIMEOUT_S = 30.0
"""A server that has not answered a statement by then is away: it may have been stopped, or be behind a cable that was
pulled. Its locks are given up long before (BUSY_TIMEOUT_S)."""
POOL_CONNECTIONS = 4

_WRITES = "zq_writes"
_NOTICES = "zq_notices"
_NOT_REPLICATED = "canceling wait for synchronous replication"
_DEFECTS = (
    sql_errors.IntegrityError,
    sql_errors.ProgrammingError,
    sql_errors.InternalError,
    sql_errors.NotSupportedError,
)
_CHUNK_ROWS = 500
_DRIVERS = {
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}
"""What a URL without a driver means: those of the extras."""

_Item = TypeVar("_Item")


def chunks(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    """Parts that are small enough for one list of parameters on every database."""
    for start in range(0, len(items), _CHUNK_ROWS):
        yield items[start : start + _CHUNK_ROWS]


class Database:
    """A small pool of connections. Safe to share between threads; make a new one after a fork.

    Opening it brings the schema to the newest revision, also when several processes do so at once. `zone` is that of
    the local times in a database that was there before zq. Raises ExamError: "invalid" for a URL or a database that
    cannot be used, "conflict" for one with duplicates, "unavailable" if it cannot be reached.
    """

    def __init__(self, url: str, zone: zoneinfo.ZoneInfo, *, merge_duplicates: bool = False) -> None:
        self._engine = _engine(url)
        self._writer = _writer(self._engine)
        try:
            with self.read() as connection:
                ready = migrate.version_of(connection) == migrate.HEAD
            if not ready:
                _upgrade(url, merge_duplicates)
            with self.read() as connection:
                shape.set_shape(self._engine.dialect, shape.find_shape(connection, zone))
        except BaseException:
            self._engine.dispose()
            raise

    @property
    def engine(self) -> Engine:
        return self._engine

    @property
    def shape(self) -> shape.Shape:
        """How its tables keep times and ids."""
        return shape.shape_of(self._engine.dialect)

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
        with _writing(self._writer) as connection:
            yield connection

    def close(self) -> None:
        self._engine.dispose()


def _writer(engine: Engine) -> Engine:
    return engine.execution_options(**{_WRITES: True})


@contextmanager
def _writing(writer: Engine) -> Iterator[Connection]:
    with _translated():
        with writer.begin() as connection:
            notices = _notices_of(connection)
            notices.clear()
            yield connection
        _refuse_unsure(notices)


def _upgrade(url: str, merge_duplicates: bool) -> None:
    """On a connection of its own, which waits as long as it takes to index a university's years."""
    engine = _engine(url, patient=True)
    try:
        with _writing(_writer(engine)) as connection:
            migrate.upgrade(connection, merge_duplicates=merge_duplicates)
    finally:
        engine.dispose()


def plan(url: str) -> migrate.Plan:
    """What opening this database would do to its schema. Looks only, but for an SQLite file that is made if missing."""
    engine = _engine(url, patient=True)
    try:
        with _translated(), engine.begin() as connection:
            return migrate.plan(connection)
    finally:
        engine.dispose()


def _notices_of(connection: Connection) -> list[str]:
    """What PostgreSQL has said on this connection beside its answers."""
    found: list[str] = connection.info.setdefault(_NOTICES, [])
    return found


def _refuse_unsure(notices: list[str]) -> None:
    """A commit whose wait for the standby was broken off looks like a success, and may be lost with this server."""
    if any(_NOT_REPLICATED in notice for notice in notices):
        raise ExamError("unavailable", "PostgreSQL did not wait for its standby, so this may not last; try again")


@contextmanager
def _translated() -> Iterator[None]:
    """A database that is away, locked or full is `unavailable`; anything else is a defect and stays as it is."""
    try:
        yield
    except sql_errors.DataError as error:
        raise ExamError("invalid", f"the exam database does not take a value: {_cause(error)}") from error
    except (sql_errors.DatabaseError, sql_errors.InterfaceError, sql_errors.TimeoutError) as error:
        if isinstance(error, _DEFECTS):
            raise
        raise ExamError("unavailable", f"the exam database cannot be used now ({_cause(error)}); try again") from error


def _cause(error: BaseException) -> str:
    return (str(getattr(error, "orig", None) or error).splitlines() or [""])[0][:200]


def _engine(url: str, *, patient: bool = False) -> Engine:
    try:
        parsed = sqlalchemy.make_url(url)
        if parsed.drivername in _DRIVERS:
            parsed = parsed.set(drivername=_DRIVERS[parsed.drivername])
        sqlite = parsed.get_backend_name() == "sqlite"
        if sqlite and parsed.database in {None, "", ":memory:"}:
            raise ExamError("invalid", "exams.database: SQLite needs a file, such as sqlite:////var/lib/zq/exams.db")
        options = {"connect_args": {"timeout": BUSY_TIMEOUT_S}} if sqlite else _server_options(parsed, patient)
        engine = sqlalchemy.create_engine(
            parsed, pool_size=POOL_CONNECTIONS, max_overflow=0, pool_timeout=BUSY_TIMEOUT_S, **options
        )
    except ModuleNotFoundError as error:
        raise ExamError(
            "invalid",
            f"exams.database: the driver is not installed ({error}); pip install 'zq[postgres]' or 'zq[mysql]'",
        ) from None
    except sql_errors.ArgumentError as error:
        raise ExamError("invalid", f"exams.database is not a database URL: {error}") from None
    if sqlite:
        _make_file(Path(str(parsed.database)))
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    elif parsed.drivername == "postgresql+psycopg":
        event.listen(engine, "connect", _hear_notices)
    return engine


def _server_options(url: sqlalchemy.URL, patient: bool) -> dict[str, Any]:
    # READ COMMITTED: a statement behind a lock must see what the holder of the lock has written.
    options: dict[str, Any] = {"pool_pre_ping": True, "isolation_level": "READ COMMITTED"}
    if url.get_backend_name() in {"mysql", "mariadb"}:
        wait_s = int(BUSY_TIMEOUT_S)
        # Strict: a value that does not fit is an error, not cut off.
        settings = f"SET SESSION innodb_lock_wait_timeout={wait_s}, sql_mode=CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')"
        arguments: dict[str, Any] = {"connect_timeout": wait_s, "init_command": settings}
        if not patient and url.drivername.endswith("+pymysql"):
            arguments |= {"read_timeout": ANSWER_TIMEOUT_S, "write_timeout": ANSWER_TIMEOUT_S}
        options |= {"connect_args": arguments, "pool_recycle": 3600}
    elif url.drivername == "postgresql+psycopg":
        wait_ms = int(BUSY_TIMEOUT_S * 1000)
        # A connection that died in a transaction must not hold its locks for long.
        settings = f"-c lock_timeout={wait_ms} -c idle_in_transaction_session_timeout=60000"
        arguments = {"connect_timeout": int(BUSY_TIMEOUT_S), "keepalives_idle": 10, "keepalives_interval": 5}
        if not patient:
            answer_ms = int(ANSWER_TIMEOUT_S * 1000)
            settings += f" -c statement_timeout={answer_ms}"
            arguments["tcp_user_timeout"] = answer_ms
        options |= {"connect_args": {**arguments, "options": settings}}
    return options


def _hear_notices(connection: Any, record: Any) -> None:
    notices: list[str] = record.info.setdefault(_NOTICES, [])
    connection.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))


def _make_file(path: Path) -> None:
    """Readable by its owner alone: it holds names. SQLite gives its side files the same mode.

    A file that is there is not opened: closing it would take away the locks that this process's other connections have
    on it. Another process would then find itself alone, and delete the log that these connections go on writing to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
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
