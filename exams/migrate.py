"""Bringing a database to the schema that this zq knows: its own, made step by step, or one that was there before.

Any number of processes may do so at once: one of them works, the others wait and find it done. Alembic is imported
only where there is something to do.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, String, bindparam, column, delete, func, inspect, select, table, text, update

from zq.exams.errors import ExamError

VERSION_TABLE = "zq_exam_version"
"""Not Alembic's default name: the application that the tables belong to may use Alembic itself."""
HEAD = "0001"
"""The newest revision, so that a process that finds it need not import Alembic."""
LOCK_WAIT_S = 60
_SHOWN_MAX = 10

_NEEDED = {
    "exams": ("id", "name", "start_time", "end_time", "status", "created_at"),
    "exam_students": ("id", "student_id", "student_name", "exam_id", "status", "last_active"),
    "student_login_history": ("id", "student_exam_id", "action", "timestamp", "ip"),
}
_students = table("exam_students", column("id"), column("exam_id"), column("student_id"), column("last_active"))
_history = table("student_login_history", column("student_exam_id"))


@dataclass(frozen=True)
class Plan:
    """What `upgrade` would do."""

    version: str
    """The revision that is there; empty for none."""
    adopted: tuple[str, ...] = ()
    """Tables that another application made, and that zq would use as they are."""
    duplicates: tuple[tuple[str, str, int], ...] = ()
    """(exam id, student id, rows): at most one row may be left."""

    @property
    def up_to_date(self) -> bool:
        return self.version == HEAD


def version_of(connection: Connection) -> str:
    """The revision of the database; empty for one that zq has not been in."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return ""
    version = column("version_num", String)
    found = connection.execute(select(version).select_from(table(VERSION_TABLE))).scalar_one_or_none()
    return str(found or "")


def plan(connection: Connection) -> Plan:
    """Looks only. Raises ExamError("invalid") for tables that have our names and are something else."""
    version = version_of(connection)
    if version:
        return Plan(version)
    inspector = inspect(connection)
    present = set(inspector.get_table_names())
    adopted = () if "exam_schema" in present else tuple(name for name in _NEEDED if name in present)
    for name in adopted:
        there = {found["name"] for found in inspector.get_columns(name)}
        missing = [needed for needed in _NEEDED[name] if needed not in there]
        if missing:
            raise ExamError(
                "invalid",
                f"the database has a table {name} without {', '.join(missing)}: it is not an exam system's; "
                "give zq a database of its own",
            )
    return Plan(version, adopted, _duplicates(connection) if "exam_students" in adopted else ())


def _duplicates(connection: Connection) -> tuple[tuple[str, str, int], ...]:
    pair = (_students.c.exam_id, _students.c.student_id)
    rows = connection.execute(select(*pair, func.count()).group_by(*pair).having(func.count() > 1).order_by(*pair))
    return tuple((str(exam_id), str(student_id), int(count)) for exam_id, student_id, count in rows)


def upgrade(connection: Connection, *, merge_duplicates: bool = False) -> Plan:
    """Do what is to be done, within the connection's transaction; returns what was found.

    Raises ExamError: "invalid" for a newer database or a foreign one that does not fit, "conflict" for students who
    are twice in an exam (with `merge_duplicates` the row that was active last stays, with the history of all).
    """
    with _alone(connection):
        found = plan(connection)
        if found.up_to_date:
            return found
        _refuse_newer(found.version)
        if found.duplicates and not merge_duplicates:
            raise ExamError("conflict", _tell_duplicates(found.duplicates))
        if found.duplicates:
            _merge_duplicates(connection)
        _run_alembic(connection)
    return found


def _refuse_newer(version: str) -> None:
    if version > HEAD:
        raise ExamError(
            "invalid", f"the exam database has revision {version}, this zq knows up to {HEAD}; use a newer zq"
        )


def _tell_duplicates(duplicates: Sequence[tuple[str, str, int]]) -> str:
    shown = ", ".join(f"{student} in exam {exam} ({rows} rows)" for exam, student, rows in duplicates[:_SHOWN_MAX])
    more = f" and {len(duplicates) - _SHOWN_MAX} more" if len(duplicates) > _SHOWN_MAX else ""
    return (
        f"students are in an exam more than once: {shown}{more}; "
        "`zq exam migrate --merge-duplicates` makes one row of each"
    )


def _merge_duplicates(connection: Connection) -> None:
    for exam_id, student_id in [(row[0], row[1]) for row in _raw_duplicates(connection)]:
        rows = connection.execute(
            select(_students.c.id, _students.c.last_active).where(
                _students.c.exam_id == exam_id, _students.c.student_id == student_id
            )
        ).all()
        kept = max(rows, key=lambda row: (row.last_active is not None, row.last_active or 0, row.id)).id
        gone = [row.id for row in rows if row.id != kept]
        moved = update(_history).where(_history.c.student_exam_id == bindparam("gone")).values(student_exam_id=kept)
        connection.execute(moved, [{"gone": row_id} for row_id in gone])
        connection.execute(
            delete(_students).where(_students.c.id == bindparam("gone")), [{"gone": row_id} for row_id in gone]
        )


def _raw_duplicates(connection: Connection) -> Sequence[Any]:
    pair = (_students.c.exam_id, _students.c.student_id)
    return connection.execute(select(*pair).group_by(*pair).having(func.count() > 1)).all()


def _run_alembic(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    # ConfigParser reads '%' as its own.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    """Inside, no other process changes the schema. SQLite's writers are alone anyway."""
    name = connection.dialect.name
    if name == "postgresql":
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_WAIT_S}s'"))
        connection.execute(select(func.pg_advisory_xact_lock(zlib.crc32(VERSION_TABLE.encode()))))
        yield
    elif name in {"mysql", "mariadb"}:
        # A lock of the whole server, so it has the database's name in it.
        lock = f"{VERSION_TABLE}:{zlib.crc32(str(connection.engine.url.database).encode())}"
        if connection.execute(select(func.get_lock(lock, LOCK_WAIT_S))).scalar_one() != 1:
            raise ExamError("unavailable", "another process is changing the exam database's schema; try again")
        try:
            yield
            # What DDL has not committed must be there before the next process looks.
            connection.execute(text("COMMIT"))
        finally:
            connection.execute(select(func.release_lock(lock)))
    else:
        yield
