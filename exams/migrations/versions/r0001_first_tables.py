"""The first tables; beside tables of this form that are there already, only what is missing.

Every step looks first, because a database without transactional DDL may have been left half-way.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_IDS = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_OPTIONS: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4"}


def _exact(chars: int) -> Any:
    return (
        sa.String(chars)
        .with_variant(sa.String(chars, collation="utf8mb4_bin"), "mysql", "mariadb")
        .with_variant(sa.String(chars, collation="C"), "postgresql")
    )


def _column(name: str, kind: Any, *args: Any, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, *args, nullable=False, **options)


def upgrade() -> None:
    present = set(sa.inspect(op.get_bind()).get_table_names())
    if "exams" not in present:
        op.create_table(
            "exams",
            sa.Column("id", _exact(64), primary_key=True),
            _column("name", sa.String(100)),
            _column("start_time", sa.BigInteger()),
            _column("end_time", sa.BigInteger()),
            _column("status", sa.String(10)),
            _column("created_at", sa.BigInteger()),
            **_OPTIONS,
        )
    if "exam_students" not in present:
        op.create_table(
            "exam_students",
            sa.Column("id", _IDS, primary_key=True, autoincrement=True),
            _column("student_id", _exact(20)),
            _column("student_name", sa.String(100)),
            _column("exam_id", _type_of("exams"), sa.ForeignKey("exams.id")),
            _column("status", sa.String(10)),
            sa.Column("last_active", sa.BigInteger()),
            sa.UniqueConstraint("exam_id", "student_id", name="uq_exam_students"),
            **_OPTIONS,
        )
    students = _type_of("exam_students")
    if "student_login_history" not in present:
        op.create_table(
            "student_login_history",
            sa.Column("id", _IDS, primary_key=True, autoincrement=True),
            _column("student_exam_id", students, sa.ForeignKey("exam_students.id")),
            _column("action", sa.String(10)),
            _column("timestamp", sa.BigInteger()),
            _column("ip", sa.String(45)),
            **_OPTIONS,
        )
    _zq_tables(present, students)
    _indexes()
    if "exam_schema" in present:
        op.drop_table("exam_schema")


def _zq_tables(present: set[str], students: Any) -> None:
    if "recordings" not in present:
        op.create_table(
            "recordings",
            sa.Column(
                "student_exam_id", students, sa.ForeignKey("exam_students.id"), primary_key=True, autoincrement=False
            ),
            _column("state", sa.String(10)),
            _column("job_id", sa.String(36)),
            _column("requested_at", sa.BigInteger()),
            sa.Column("finished_at", sa.BigInteger()),
            sa.Column("video", sa.String(200)),
            _column("segments", sa.Integer()),
            _column("size_bytes", sa.BigInteger()),
            _column("duration_ms", sa.BigInteger()),
            _column("error", sa.String(2000)),
            **_OPTIONS,
        )
    if "listening" not in present:
        op.create_table(
            "listening",
            sa.Column("name", sa.String(20), primary_key=True),
            _column("since_ms", sa.BigInteger()),
            _column("until_ms", sa.BigInteger()),
            **_OPTIONS,
        )


def _type_of(table: str) -> Any:
    """Of the table's `id`: a foreign key must have the very type, also where the table is not ours."""
    (kind,) = [c["type"] for c in sa.inspect(op.get_bind()).get_columns(table) if c["name"] == "id"]
    return _IDS if isinstance(kind, sa.BigInteger) else kind


def _indexes() -> None:
    _index("ix_exams_status_start", "exams", ["status", "start_time"])
    _index("ix_exams_status_end", "exams", ["status", "end_time"])
    _index("ix_exams_start", "exams", ["start_time", "id"])
    _index("uq_exam_students", "exam_students", ["exam_id", "student_id"], unique=True)
    _index("ix_history_student", "student_login_history", ["student_exam_id", "id"])
    _index("ix_recordings_state", "recordings", ["state", "requested_at"])


def _index(name: str, table: str, columns: list[str], *, unique: bool = False) -> None:
    inspector = sa.inspect(op.get_bind())
    found: list[Any] = [*inspector.get_indexes(table), *inspector.get_unique_constraints(table)]
    for index in found:
        same = index["column_names"] == columns and (not unique or index.get("unique", True))
        if same or index["name"] == name:
            return
    op.create_index(name, table, columns, unique=unique)
