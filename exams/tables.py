"""The tables. Names as the first users' databases have them; `recordings`, `listening` and `exam_schema` are zq's own.

Every time is Unix milliseconds in UTC (`times` reads and shows them in the zone). What the check looks for is always
reached by an index, so that its cost does not grow with the exams that are over.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, MetaData, String, Table, UniqueConstraint

from zq.exams import names

SCHEMA_VERSION = 1

metadata = MetaData()

# SQLite numbers rows by itself only in an INTEGER primary key.
_RowId = BigInteger().with_variant(Integer, "sqlite")
_EpochMs = BigInteger


def _text(chars: int) -> String:
    """Compared exactly, also by MySQL, whose default is to take 'a', 'A' and 'á' for the same."""
    return String(chars).with_variant(String(chars, collation="utf8mb4_bin"), "mysql", "mariadb")


def _required(name: str, kind: Any, *args: Any, **options: Any) -> Column[Any]:
    return Column(name, kind, *args, nullable=False, **options)


exams = Table(
    "exams",
    metadata,
    Column("id", _text(names.EXAM_ID_CHARS_MAX), primary_key=True),
    _required("name", String(names.NAME_CHARS_MAX)),
    _required("start_time", _EpochMs),
    _required("end_time", _EpochMs),
    _required("status", String(10)),
    _required("created_at", _EpochMs),
    Index("ix_exams_status_start", "status", "start_time"),
    Index("ix_exams_status_end", "status", "end_time"),
    Index("ix_exams_start", "start_time", "id"),
)

exam_students = Table(
    "exam_students",
    metadata,
    Column("id", _RowId, primary_key=True, autoincrement=True),
    _required("student_id", _text(names.STUDENT_ID_CHARS_MAX)),
    _required("student_name", String(names.NAME_CHARS_MAX)),
    _required("exam_id", _text(names.EXAM_ID_CHARS_MAX), ForeignKey("exams.id")),
    _required("status", String(10)),
    Column("last_active", _EpochMs),
    UniqueConstraint("exam_id", "student_id", name="uq_exam_students"),
)

history = Table(
    "student_login_history",
    metadata,
    Column("id", _RowId, primary_key=True, autoincrement=True),
    _required("student_exam_id", _RowId, ForeignKey("exam_students.id")),
    _required("action", String(10)),
    _required("timestamp", _EpochMs),
    _required("ip", String(names.IP_CHARS_MAX)),
    Index("ix_history_student", "student_exam_id", "id"),
)

recordings = Table(
    "recordings",
    metadata,
    Column("student_exam_id", _RowId, ForeignKey("exam_students.id"), primary_key=True, autoincrement=False),
    _required("state", String(10)),
    _required("job_id", String(36)),
    _required("requested_at", _EpochMs),
    Column("finished_at", _EpochMs),
    Column("video", String(names.FILE_NAME_BYTES_MAX)),
    _required("segments", Integer),
    _required("size_bytes", BigInteger),
    _required("duration_ms", BigInteger),
    _required("error", String(2000)),
    Index("ix_recordings_state", "state", "requested_at"),
)
"""At most one row a student, from the first request of a merge on. `video` is the file's name in the exam's folder of
recordings; it stays while a later merge is under way."""

listening = Table(
    "listening",
    metadata,
    Column("name", String(20), primary_key=True),
    _required("since_ms", _EpochMs),
    _required("until_ms", _EpochMs),
)
"""One row: since when, and until when, the service has been able to hear heartbeats without a gap."""

schema = Table(
    "exam_schema",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    _required("version", Integer),
)
