"""Whether the exam database has nothing that time alone could change, asked without loading SQLAlchemy.

A system between two terms holds exams that are over and waits. SQLAlchemy with what it imports is 15 MiB in each
process, so the status check and the web service open the store when there is something to do, and ask here until
then. The answer is never a guess: whatever is not certain is False.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import Final
from urllib.parse import quote

from zq.config import Config
from zq.exams.status import ExamStatus, MergeState

_OPEN: Final = (
    "SELECT EXISTS (SELECT 1 FROM exams WHERE status IN (?, ?))"
    " OR EXISTS (SELECT 1 FROM recordings WHERE state IN (?, ?))"
)
_OPEN_VALUES: Final = (ExamStatus.PENDING, ExamStatus.ACTIVE, MergeState.REQUESTED, MergeState.SUBMITTED)
_LOCK_S: Final = 0.5


def at_rest(config: Config) -> bool:
    """True if no exam is pending or active and no merge is under way, or if there is no database yet.

    False for every other database than the built-in SQLite file, and for one that cannot be read so.
    """
    if config.exams.database:
        return False
    path = config.data_path / "exams.db"
    if not path.exists():
        return True
    try:
        # rw: a reader of a WAL database may have to make its index; the file itself is never made here.
        uri = f"file:{quote(str(path))}?mode=rw"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_LOCK_S)) as connection:
            (something,) = connection.execute(_OPEN, tuple(map(str, _OPEN_VALUES))).fetchone()
    except sqlite3.Error:
        return False
    return not something
