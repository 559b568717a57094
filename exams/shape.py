"""How a database keeps times and exam ids: as zq does, or as a database that was there before zq does.

zq's own tables keep Unix milliseconds and text ids. A university's older tables keep naive local times and numbers.
`Shape` says which of the two an engine's tables are; the two column types below convert accordingly, so that nothing
above them knows the difference. It is set on the engine's dialect, before the first statement that uses the types.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, Connection, DateTime, Integer, String, TypeDecorator, inspect
from sqlalchemy import types as sql_types
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Dialect

from zq.exams import names
from zq.exams.errors import ExamError

_ATTRIBUTE = "zq_shape"
_NO_SUCH_ID = -1
_SQLITE_SECONDS: Any = sqlite.DATETIME(truncate_microseconds=True)  # type: ignore[no-untyped-call]
TEXT_FORMAT = "%Y-%m-%d %H:%M:%S"


class Times(StrEnum):
    EPOCH_MS = "epoch_ms"
    LOCAL = "local"
    """Naive DATETIME of the configured zone, whole seconds."""
    INSTANT = "instant"
    """PostgreSQL's `timestamp with time zone`."""
    LOCAL_TEXT = "local_text"
    """The same as text, `YYYY-mm-dd HH:MM:SS`."""


@dataclass(frozen=True)
class Shape:
    times: Times = Times.EPOCH_MS
    numeric_ids: bool = False
    """Exam ids are numbers."""
    zone: tzinfo = UTC
    required: tuple[str, ...] = ()
    """Columns of `exams` that zq does not know and that an insert must give: zq cannot make exams here."""

    @property
    def native(self) -> bool:
        return self.times is Times.EPOCH_MS and not self.numeric_ids


NATIVE = Shape()


def shape_of(dialect: Dialect) -> Shape:
    found = getattr(dialect, _ATTRIBUTE, NATIVE)
    assert isinstance(found, Shape)
    return found


def set_shape(dialect: Dialect, shape: Shape) -> None:
    setattr(dialect, _ATTRIBUTE, shape)


def find_shape(connection: Connection, zone: tzinfo) -> Shape:
    """The shape of the tables that are there. Raises ExamError("invalid") for columns that are neither."""
    columns = {column["name"]: column for column in inspect(connection).get_columns("exams")}
    required = tuple(
        name
        for name, column in columns.items()
        if name not in _KNOWN_EXAM_COLUMNS and not column["nullable"] and column.get("default") is None
    )
    return Shape(
        _times(columns["start_time"]["type"]), isinstance(columns["id"]["type"], sql_types.Integer), zone, required
    )


_KNOWN_EXAM_COLUMNS = frozenset({"id", "name", "start_time", "end_time", "status", "created_at"})


def _times(kind: sql_types.TypeEngine[Any]) -> Times:
    if isinstance(kind, sql_types.Integer):
        return Times.EPOCH_MS
    if isinstance(kind, sql_types.DateTime):
        return Times.INSTANT if kind.timezone else Times.LOCAL
    if isinstance(kind, sql_types.String):
        return Times.LOCAL_TEXT
    raise ExamError("invalid", f"exams.start_time is {kind}; zq reads DATETIME, text, or whole milliseconds")


def to_local(ms: int, zone: tzinfo) -> datetime:
    """Naive local time, the second in which `ms` lies."""
    return datetime.fromtimestamp(ms // 1000, zone).replace(tzinfo=None)


def from_local(moment: datetime, zone: tzinfo, now_ms: int) -> int:
    """Unix milliseconds of a naive local time.

    In the hour that the clock passes twice it is the later of the two moments unless that is still to come: so a sign
    of life of a minute ago is read as that, in either pass.
    """
    early, late = (_ms(moment.replace(tzinfo=zone, fold=fold)) for fold in (0, 1))
    return late if early < late <= now_ms else early


def _ms(moment: datetime) -> int:
    return int(moment.astimezone(UTC).timestamp() * 1000)


class EpochMs(TypeDecorator[int]):
    """Unix milliseconds in Python; in the database what its shape says."""

    impl = BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        kind: Any = BigInteger()
        times = shape_of(dialect).times
        if times is Times.LOCAL:
            kind = _SQLITE_SECONDS if dialect.name == "sqlite" else DateTime()
        elif times is Times.INSTANT:
            kind = DateTime(timezone=True)
        elif times is Times.LOCAL_TEXT:
            kind = String(19)
        return dialect.type_descriptor(kind)

    def process_bind_param(self, value: int | None, dialect: Dialect) -> Any:
        shape = shape_of(dialect)
        if value is None or shape.times is Times.EPOCH_MS:
            return value
        if shape.times is Times.INSTANT:
            return datetime.fromtimestamp(value / 1000, UTC)
        local = to_local(value, shape.zone)
        return local if shape.times is Times.LOCAL else local.strftime(TEXT_FORMAT)

    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:
        shape = shape_of(dialect)
        if value is None or shape.times is Times.EPOCH_MS:
            return None if value is None else int(value)
        try:
            moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        except ValueError:
            return 0  # MySQL's 0000-00-00 and other text that is no time: long ago
        if moment.tzinfo is not None:
            return _ms(moment)
        return from_local(moment, shape.zone, time.time_ns() // 1_000_000)


class ExamId(TypeDecorator[str]):
    """Text in Python. Where ids are numbers, a text that is not one stands for an exam that does not exist."""

    impl = String(names.EXAM_ID_CHARS_MAX)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        if shape_of(dialect).numeric_ids:
            return dialect.type_descriptor(Integer())
        return dialect.type_descriptor(exact_text(names.EXAM_ID_CHARS_MAX))

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        if value is None or not shape_of(dialect).numeric_ids:
            return value
        return int(value) if is_numeric_id(value) else _NO_SUCH_ID

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else str(value)


def is_numeric_id(text: str) -> bool:
    """Whether a table with numbers as ids can have this exam: one text for each number."""
    return text.isascii() and text.isdigit() and len(text) <= 9 and text == str(int(text))


def exact_text(chars: int) -> Any:
    """Compared exactly, also by MySQL, whose default is to take 'a', 'A' and 'á' for the same, and in the order of its
    bytes, also by PostgreSQL, whose default is the order of some language."""
    return (
        String(chars)
        .with_variant(String(chars, collation="utf8mb4_bin"), "mysql", "mariadb")
        .with_variant(String(chars, collation="C"), "postgresql")
    )
