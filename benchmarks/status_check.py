"""`python -m benchmarks.status_check`: what one status check costs, in a database with a university's past in it.

5,000 students in 20 live exams, heartbeats of all of them, 10,000 past exams with 50,000 students: the check that
finds nothing new, the one that finds 250 students gone silent, and the one that ends all exams at once.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from zq.exams.check import StatusReport, check
from zq.exams.model import Heartbeat
from zq.exams.presence import SqlPresence
from zq.exams.status import ExamStatus, StudentStatus
from zq.exams.store import ExamStore
from zq.exams.tables import exam_students, exams

START_MS = 1_782_781_200_000
END_MS = START_MS + 7_200_000
OFFLINE_AFTER_S = 60.0


@click.command()
@click.option("--database", metavar="URL", help="An empty database; default: SQLite in a folder of its own.")
@click.option("--live", type=click.IntRange(1, 1000), default=20, show_default=True, help="Live exams.")
@click.option("--students", type=click.IntRange(1, 100_000), default=5_000, show_default=True, help="In them together.")
@click.option("--past", type=click.IntRange(0, 1_000_000), default=10_000, show_default=True, help="Exams before.")
@click.option("--repetitions", type=click.IntRange(1, 1000), default=20, show_default=True, help="In a database.")
@click.option("--databases", type=click.IntRange(1, 100), default=3, show_default=True, help="New ones, of SQLite.")
def main(database: str | None, live: int, students: int, past: int, repetitions: int, databases: int) -> None:
    took_ms: dict[str, list[float]] = {}
    for _ in range(1 if database else databases):
        with tempfile.TemporaryDirectory(prefix="zq-bench-") as folder:
            store = ExamStore(database or f"sqlite:///{Path(folder) / 'exams.db'}", "Asia/Shanghai")
            fill(store, live, students, past)
            for name, found_ms in measure(store, live, students, repetitions).items():
                took_ms.setdefault(name, []).extend(found_ms)
            store.close()
    for name, all_ms in took_ms.items():
        low_ms, high_ms = min(all_ms), max(all_ms)
        median_ms = statistics.median(all_ms)
        click.echo(f"{name}: median {median_ms:.1f} ms, {low_ms:.1f} to {high_ms:.1f} ms, {len(all_ms)} times")


def fill(store: ExamStore, live: int, students: int, past: int) -> None:
    old = [
        {
            "id": str(1_000_000 + number), "name": "past", "status": ExamStatus.COMPLETED, "created_at": START_MS,
            "start_time": START_MS - (number + 2) * 3_600_000, "end_time": START_MS - (number + 1) * 3_600_000,
        }
        for number in range(past)
    ]  # fmt: skip
    with store.database.write() as connection:
        for start in range(0, len(old), 1000):
            part = old[start : start + 1000]
            connection.execute(exams.insert(), part)
            rows = [
                {
                    "exam_id": exam["id"], "student_id": f"s{n}", "student_name": "考生",
                    "status": StudentStatus.LOGOUT, "last_active": START_MS,
                }
                for exam in part
                for n in range(5)
            ]  # fmt: skip
            connection.execute(exam_students.insert(), rows)
    for number in range(live):
        store.create_exam(str(number + 1), "期末考试", START_MS, END_MS, now_ms=START_MS)
        store.ensure_students(str(number + 1), [(f"s{n}", "考生") for n in range(students // live)])


def measure(store: ExamStore, live: int, students: int, repetitions: int) -> dict[str, list[float]]:
    took_ms: dict[str, list[float]] = {}
    keys = [(str(exam + 1), f"s{n}") for exam in range(live) for n in range(students // live)]
    presence = SqlPresence(store.database)

    def timed(name: str, work: Callable[[], object]) -> None:
        begin_s = time.perf_counter()
        work()
        took_ms.setdefault(name, []).append((time.perf_counter() - begin_s) * 1000)

    def look(now_ms: int) -> StatusReport:
        return check(store, now_ms, OFFLINE_AFTER_S, has_segments=lambda *_: True)

    silent = keys[:: max(1, len(keys) // 250)]
    now_ms = START_MS
    for _ in range(repetitions):
        # All of them are heard, then for 66 seconds all but 250.
        begun_ms = now_ms
        while now_ms <= begun_ms + 66_000:
            heard = keys if now_ms == begun_ms else [key for key in keys if key not in set(silent)]
            beats = [Heartbeat(exam, student, now_ms, "10.0.0.1") for exam, student in heard]
            timed("heartbeats of all, one batch", partial(presence.record, beats, now_ms, after_gap=False))
            now_ms += 33_000
        timed("check, 250 went silent", partial(look, now_ms - 33_000))
        timed("check, nothing new", partial(look, now_ms - 32_000))
    timed("check, all exams end", partial(look, END_MS))
    return took_ms


if __name__ == "__main__":
    main()
