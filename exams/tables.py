"""The tables. Names as the first users' databases have them; `recordings` and `listening` are zq's own.

Every time is Unix milliseconds in UTC (`times` reads and shows them in the zone); a database that was there before zq
keeps its own form (`shape`). What the check looks for is always reached by an index, so that its cost does not grow
with the exams that are over. A change here needs a migration (`migrations`); a test compares the two.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, MetaData, String, Table, UniqueConstraint

from zq.exams import names
from zq.exams.shape import EpochMs, ExamId, exact_text

metadata = MetaData()

# SQLite numbers rows by itself only in an INTEGER primary key.
_RowId = BigInteger().with_variant(Integer, "sqlite")


def _required(name: str, kind: Any, *args: Any, **options: Any) -> Column[Any]:
    return Column(name, kind, *args, nullable=False, **options)


exams = Table(
    "exams",
    metadata,
    Column("id", ExamId, primary_key=True),
    _required("name", String(names.NAME_CHARS_MAX)),
    _required("start_time", EpochMs),
    _required("end_time", EpochMs),
    _required("status", String(10)),
    _required("created_at", EpochMs),
    Index("ix_exams_status_start", "status", "start_time"),
    Index("ix_exams_status_end", "status", "end_time"),
    Index("ix_exams_start", "start_time", "id"),
)

exam_students = Table(
    "exam_students",
    metadata,
    Column("id", _RowId, primary_key=True, autoincrement=True),
    _required("student_id", exact_text(names.STUDENT_ID_CHARS_MAX)),
    _required("student_name", String(names.NAME_CHARS_MAX)),
    _required("exam_id", ExamId, ForeignKey("exams.id")),
    _required("status", String(10)),
    Column("last_active", EpochMs),
    UniqueConstraint("exam_id", "student_id", name="uq_exam_students"),
)

UNTOUCHED: Final = {"last_active": exam_students.c.last_active}
"""For an update of a student that is no sign of life: an older database may have the column ON UPDATE
CURRENT_TIMESTAMP, of the server's own zone at that, and what is set to itself is left alone."""

history = Table(
    "student_login_history",
    metadata,
    Column("id", _RowId, primary_key=True, autoincrement=True),
    _required("student_exam_id", _RowId, ForeignKey("exam_students.id")),
    _required("action", String(10)),
    _required("timestamp", EpochMs),
    _required("ip", String(names.IP_CHARS_MAX)),
    Index("ix_history_student", "student_exam_id", "id"),
)

recordings = Table(
    "recordings",
    metadata,
    Column("student_exam_id", _RowId, ForeignKey("exam_students.id"), primary_key=True, autoincrement=False),
    _required("state", String(10)),
    _required("job_id", String(36)),
    _required("requested_at", BigInteger),
    Column("finished_at", BigInteger),
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
    _required("since_ms", BigInteger),
    _required("until_ms", BigInteger),
)
"""One row: since when, and until when, the service has been able to hear heartbeats without a gap."""
