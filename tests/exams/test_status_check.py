from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, update

from zq.exams import times
from zq.exams.check import RESUBMIT_AFTER_MS, StatusReport, check
from zq.exams.heartbeats import HeartbeatBuffer, Recorded, StatusNews, StudentKey
from zq.exams.model import Heartbeat
from zq.exams.presence import SqlPresence
from zq.exams.status import Action, ExamStatus, StudentStatus
from zq.exams.store import ExamStore
from zq.exams.tables import exams as exams_table

START_MS = 1_782_781_200_000
END_MS = START_MS + 7_200_000


class Service:
    """A store with the process that listens for heartbeats."""

    def __init__(self, url: str) -> None:
        self.store = ExamStore(url, "Asia/Shanghai")
        self.start()

    def start(self) -> None:
        self.buffer = HeartbeatBuffer(SqlPresence(self.store.database))

    def listen(self, from_ms: int, to_ms: int, beats: Mapping[str, Sequence[int]] | None = None) -> None:
        """Flush once a second; `beats` are the times of each student's heartbeats."""
        due = sorted((at, student) for student, times in (beats or {}).items() for at in times)
        for now_ms in range(from_ms, to_ms + 1, 1000):
            while due and due[0][0] <= now_ms:
                at_ms, student = due.pop(0)
                self.buffer.add("e1", student, at_ms=at_ms, ip="10.0.0.9")
            self.buffer.flush(now_ms)

    def check(self, now_ms: int, has_segments: bool = True, **options: Any) -> StatusReport:
        """Everybody has segments, or nobody; a student called s3 never has any."""
        return check(
            self.store, now_ms, 60.0, has_segments=lambda _exam, student: has_segments and student != "s3", **options
        )

    def status(self, student_id: str) -> StudentStatus:
        return self.store.get_student("e1", student_id).status

    def actions(self, student_id: str) -> list[tuple[Action, str]]:
        return [(row.action, row.ip) for row in reversed(self.store.list_history("e1", student_id))]


@pytest.fixture
def service(database_url: str) -> Iterator[Service]:
    service = Service(database_url)
    service.store.create_exam("e1", "期末", START_MS, END_MS, now_ms=START_MS - 1)
    for student_id in ("s1", "s2"):
        service.store.login("e1", student_id, now_ms=START_MS - 1, ip="10.0.0.9", name="王小明")
    yield service
    service.store.close()


def test_the_exam_follows_the_clock(service: Service) -> None:
    exam = service.store.get_exam
    assert service.check(START_MS - 1).started == ()
    assert exam("e1").status is ExamStatus.PENDING
    report = service.check(START_MS)
    assert (report.started, report.live) == (("e1",), 1)
    assert exam("e1").status is ExamStatus.ACTIVE
    assert [e.id for e in service.store.live_exams()] == ["e1"]
    assert service.check(END_MS - 1).completed == ()
    report = service.check(END_MS)
    assert (report.completed, report.live) == (("e1",), 0)
    assert exam("e1").status is ExamStatus.COMPLETED
    assert service.check(END_MS + 1).completed == ()


def test_silence_makes_offline_and_a_heartbeat_brings_back(service: Service) -> None:
    beats = range(START_MS, START_MS + 120_000, 30_000)
    service.listen(START_MS, START_MS + 90_000, {"s1": beats, "s2": [START_MS]})
    report = service.check(START_MS + 90_000)
    assert report.went_offline == (("e1", "s2"),)
    assert report.online == 1
    assert (service.status("s1"), service.status("s2")) == (StudentStatus.ONLINE, StudentStatus.OFFLINE)
    assert service.actions("s2") == [(Action.LOGIN, "10.0.0.9"), (Action.OFFLINE, "system")]
    assert service.check(START_MS + 91_000).went_offline == (), "each transition is written once"
    service.listen(START_MS + 91_000, START_MS + 92_000, {"s2": [START_MS + 91_500]})
    assert service.status("s2") is StudentStatus.ONLINE
    assert service.actions("s2")[2:] == [(Action.ONLINE, "10.0.0.9")]


def test_sixty_seconds_are_not_more_than_sixty_seconds(service: Service) -> None:
    service.store.ensure_students("e1", [("s3", "whose heartbeats are heard throughout")])
    beats = {"s1": [START_MS], "s3": range(START_MS, START_MS + 70_000, 1000)}
    service.listen(START_MS - 10_000, START_MS + 60_000, beats)
    # s2 was last heard one millisecond before s1.
    assert service.check(START_MS + 60_000).went_offline == (("e1", "s2"),)
    service.listen(START_MS + 61_000, START_MS + 61_000, {"s3": [START_MS + 61_000]})
    assert service.check(START_MS + 61_000).went_offline == (("e1", "s1"),)


@pytest.mark.parametrize("restart", [True, False])
def test_an_outage_of_the_service_is_not_a_students_silence(service: Service, restart: bool) -> None:
    beats = [START_MS, START_MS + 30_000]
    service.listen(START_MS, START_MS + 40_000, {"s1": beats, "s2": beats})
    # Ten minutes in which nobody listens: the process was killed, or stood still.
    assert service.check(START_MS + 600_000).went_offline == ()
    if restart:
        service.start()
    back_ms = START_MS + 640_000
    service.listen(back_ms, back_ms + 55_000, {"s1": [back_ms + 10_000]})
    assert service.check(back_ms + 55_000).went_offline == ()
    service.listen(back_ms + 56_000, back_ms + 65_000)
    assert service.check(back_ms + 65_000).went_offline == (("e1", "s2"),)


def test_fault_07_who_is_still_there_at_the_end_is_closed_and_merged(service: Service) -> None:
    service.store.ensure_students("e1", [("s3", "never came"), ("s4", "has finished")])
    service.store.login("e1", "s4", now_ms=START_MS, ip="")
    done = service.store.finish_student("e1", "s4", now_ms=START_MS, ip="", has_segments=True)
    assert done.merge is not None
    service.store.merge_submitted("e1", "s4", done.merge.job_id)
    service.listen(START_MS, START_MS + 70_000, {"s1": [START_MS + 60_000]})
    service.check(START_MS + 70_000)
    assert service.status("s2") is StudentStatus.OFFLINE
    report = service.check(END_MS)
    assert report.closed == (("e1", "s1"), ("e1", "s2"))
    assert [(m.exam_id, m.student_id, m.student_name) for m in report.merges] == [
        ("e1", "s1", "王小明"),
        ("e1", "s2", "王小明"),
    ]
    assert [service.status(s) for s in ("s1", "s2", "s3", "s4")] == [
        StudentStatus.LOGOUT,
        StudentStatus.LOGOUT,
        StudentStatus.PENDING,
        StudentStatus.LOGOUT,
    ]
    assert service.actions("s1")[-1] == (Action.LOGOUT, "system")
    assert service.check(END_MS + 1).closed == ()


def test_fault_01_one_merge_however_often_it_is_asked_for(service: Service) -> None:
    (first, second) = service.check(END_MS).merges
    assert service.check(END_MS + RESUBMIT_AFTER_MS - 1).merges == (), "its asker has time to submit it"
    # Nobody said that they were submitted: the same requests again, never new ones.
    assert service.check(END_MS + RESUBMIT_AFTER_MS).merges == (first, second)
    service.store.merge_submitted("e1", "s1", first.job_id)
    service.store.merge_failed("e1", "s2", second.job_id, now_ms=END_MS, error="no header")
    for later_ms in range(END_MS + 30_000, END_MS + 7_200_000, 600_000):
        assert service.check(later_ms).merges == ()
    # Finish, pressed after the end, asks for nothing new either.
    assert service.store.finish_student("e1", "s1", now_ms=END_MS + 5, ip="", has_segments=True).merge is None


def test_a_finish_whose_submit_was_lost_is_handed_out(service: Service) -> None:
    merge = service.store.finish_student("e1", "s1", now_ms=START_MS, ip="", has_segments=True).merge
    assert service.check(START_MS + 30_000).merges == (merge,)


def test_nothing_to_merge_asks_for_nothing(service: Service) -> None:
    report = service.check(END_MS, has_segments=False)
    assert len(report.closed) == 2
    assert report.merges == ()
    assert service.store.get_student("e1", "s1").recording is None


def test_a_failing_look_at_the_disk_changes_nothing(service: Service) -> None:
    def broken(_exam_id: str, _student_id: str) -> bool:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        check(service.store, END_MS, 60.0, has_segments=broken)
    assert service.status("s1") is StudentStatus.ONLINE
    assert service.store.get_exam("e1").status is ExamStatus.PENDING
    assert len(service.check(END_MS).merges) == 2


def test_an_exam_whose_end_is_moved(service: Service) -> None:
    service.check(START_MS)
    service.store.edit_times("e1", now_ms=START_MS, end=END_MS + 600_000)
    assert service.check(END_MS).completed == ()
    service.store.edit_times("e1", now_ms=END_MS, end=END_MS)
    assert service.check(END_MS + 1).completed == ("e1",)
    # Over, and then it goes on after all: students can come back, and are closed again.
    assert service.store.edit_times("e1", now_ms=END_MS + 2, end=END_MS + 9_000).status is ExamStatus.ACTIVE
    service.store.login("e1", "s1", now_ms=END_MS + 3, ip="")
    assert service.check(END_MS + 9_000).closed == (("e1", "s1"),)


@pytest.mark.parametrize(
    ("zone", "start", "end", "hours"),
    [
        ("Asia/Shanghai", "2026-06-30 22:30:00", "2026-07-01 00:30:00", 2.0),
        ("Asia/Shanghai", "2026-12-31 23:00:00", "2027-01-01 01:00:00", 2.0),
        ("Europe/Berlin", "2026-03-29 01:30:00", "2026-03-29 03:30:00", 1.0),  # an hour of the night is left out
        ("Europe/Berlin", "2026-10-25 01:30:00", "2026-10-25 03:30:00", 3.0),  # one comes twice
        ("America/New_York", "2026-10-31 23:00:00", "2026-11-01 04:00:00", 6.0),
    ],
)
def test_an_exam_over_midnight_and_where_clocks_change_begins_and_ends_to_the_millisecond(
    tmp_path: Path, zone: str, start: str, end: str, hours: float
) -> None:
    store = ExamStore(f"sqlite:///{tmp_path / 'exams.db'}", zone)
    exam, _ = store.create_exam("e1", "夜间考试", start, end, now_ms=0)
    assert exam.end_ms - exam.start_ms == hours * 3_600_000
    store.login("e1", "s1", now_ms=exam.start_ms, ip="", name="王小明")
    found = [
        (report.started, report.completed, report.closed)
        for now_ms in (exam.start_ms - 1, exam.start_ms, exam.end_ms - 1, exam.end_ms, exam.end_ms + 1)
        for report in [check(store, now_ms, 60, has_segments=lambda *_: True)]
    ]
    nothing = ((), (), ())
    assert found == [nothing, (("e1",), (), ()), nothing, ((), ("e1",), (("e1", "s1"),)), nothing]
    assert times.show(exam.start_ms, store.zone).startswith(start.replace(" ", "T"))
    store.close()


def test_a_start_that_is_moved_while_the_exam_is_live(service: Service) -> None:
    service.check(START_MS)
    exam = service.store.edit_times("e1", now_ms=START_MS + 1, start=START_MS + 600_000)
    assert exam.status is ExamStatus.PENDING
    report = service.check(START_MS + 2)
    assert (report.live, report.closed, report.merges) == (0, (), ())
    assert service.status("s1") is StudentStatus.ONLINE, "who is there stays"
    assert service.check(START_MS + 600_000).started == ("e1",)


def test_times_that_another_application_has_moved(service: Service) -> None:
    """It writes the columns and knows nothing of zq's statuses."""
    service.check(END_MS)
    assert service.store.get_exam("e1").status is ExamStatus.COMPLETED

    def move(**columns: int) -> None:
        with service.store.database.write() as connection:
            connection.execute(update(exams_table).values(**columns))

    move(end_time=END_MS + 600_000)
    assert service.check(END_MS + 1).started == ("e1",)
    move(start_time=END_MS + 300_000)
    assert service.check(END_MS + 2).live == 0
    assert service.store.get_exam("e1").status is ExamStatus.PENDING
    assert service.check(END_MS + 300_000).started == ("e1",)
    assert service.check(END_MS + 600_000).completed == ("e1",)


def test_a_kill_loses_a_second_of_heartbeats_and_turns_nobody_offline(service: Service) -> None:
    service.listen(START_MS, START_MS + 50_000, {"s1": [START_MS + 40_000], "s2": [START_MS]})
    service.buffer.add("e1", "s2", at_ms=START_MS + 50_400, ip="")
    # Killed half a second after the last flush: the heartbeat of s2 is gone with the process.
    service.start()
    service.listen(START_MS + 75_000, START_MS + 130_000, {"s1": [START_MS + 100_000]})
    assert service.check(START_MS + 130_000).went_offline == ()
    assert service.store.get_student("e1", "s2").last_active_ms == START_MS


def test_heartbeats_after_the_end_bring_nobody_back(service: Service) -> None:
    service.store.ensure_students("e1", [("s3", "")])
    service.check(END_MS)
    service.listen(END_MS, END_MS, {"s1": [END_MS], "s3": [END_MS]})
    assert service.status("s1") is StudentStatus.LOGOUT
    assert service.status("s3") is StudentStatus.PENDING


def test_an_early_login_that_falls_silent(service: Service) -> None:
    before_ms = START_MS - 600_000
    service.store.edit_times("e1", now_ms=before_ms, start=START_MS + 60_000)
    service.listen(START_MS, START_MS + 70_000)
    assert len(service.check(START_MS + 59_999 + 5_000).went_offline) == 2


def test_two_checks_at_once_write_each_transition_once(service: Service) -> None:
    service.store.ensure_students("e1", [(f"t{n}", "") for n in range(200)])
    service.listen(START_MS, START_MS, {f"t{n}": [START_MS] for n in range(200)})
    service.listen(START_MS + 1000, START_MS + 66_000)
    for now_ms, action in ((START_MS + 66_000, Action.OFFLINE), (END_MS, Action.LOGOUT)):
        barrier = threading.Barrier(4)

        def run(at_ms: int, together: threading.Barrier) -> StatusReport:
            together.wait()
            return service.check(at_ms)

        with ThreadPoolExecutor(4) as pool:
            reports = [f.result() for f in [pool.submit(run, now_ms, barrier) for _ in range(4)]]
        assert sum(len(r.went_offline) + len(r.closed) for r in reports) == 202
        assert sum(len(r.merges) for r in reports) == (202 if action is Action.LOGOUT else 0)
        for student_id in ("s1", "t0", "t199"):
            assert [a for a, _ip in service.actions(student_id)].count(action) == 1


class Elsewhere:
    """Presence that is kept elsewhere, and only this service hears heartbeats."""

    others_write = False

    def __init__(self, at_ms: int) -> None:
        self.at_ms = at_ms

    def tell(self, news: Sequence[StatusNews]) -> None:
        raise AssertionError("the check does not write presence")

    def record(self, beats: Sequence[Heartbeat], now_ms: int, *, after_gap: bool) -> Recorded:
        raise AssertionError("the check does not write presence")

    def activity(self, exam_ids: Sequence[str]) -> Mapping[StudentKey, int]:
        return {(exam_id, "s1"): self.at_ms for exam_id in exam_ids}


def test_signs_of_life_that_are_kept_elsewhere(service: Service) -> None:
    service.check(START_MS)
    now_ms = START_MS + 100_000
    assert service.check(now_ms).went_offline == (("e1", "s1"), ("e1", "s2"))
    report = service.check(now_ms, presence=Elsewhere(now_ms - 10_000))
    assert report.came_online == (("e1", "s1"),)
    assert service.store.get_student("e1", "s1").last_active_ms == now_ms - 10_000
    assert service.check(now_ms + 50_000, presence=Elsewhere(now_ms - 10_000)).came_online == ()
    assert service.check(now_ms + 50_000, presence=Elsewhere(now_ms - 10_000)).went_offline == ()
    assert service.check(now_ms + 50_001, presence=Elsewhere(now_ms - 10_000)).went_offline == (("e1", "s1"),)


def _steps_of_a_check(service: Service, now_ms: int) -> int:
    """What a check costs, in instructions of SQLite's machine: the same on every computer."""
    counted = 0

    def count() -> int:
        nonlocal counted
        counted += 1
        return 0

    def begin(connection: Any) -> None:
        connection.connection.driver_connection.set_progress_handler(count, 1)

    event.listen(service.store.database.engine, "begin", begin)
    service.check(now_ms)
    event.remove(service.store.database.engine, "begin", begin)
    return counted


def test_fault_15_exams_that_are_over_cost_nothing(tmp_path: Path) -> None:
    service = Service(f"sqlite:///{tmp_path / 'exams.db'}")
    service.store.create_exam("e1", "期末", START_MS, END_MS, now_ms=START_MS - 1)
    service.store.login("e1", "s1", now_ms=START_MS - 1, ip="", name="王小明")
    service.listen(START_MS, START_MS + 10_000, {"s1": [START_MS]})
    service.check(START_MS)
    alone = _steps_of_a_check(service, START_MS + 1)
    past = [
        {
            "id": f"past-{number}",
            "name": "n",
            "start_time": START_MS - (number + 4) * 3_600_000,
            "end_time": START_MS - (number + 3) * 3_600_000,
            "status": ExamStatus.COMPLETED,
            "created_at": 0,
        }
        for number in range(10_000)
    ]
    with service.store.database.write() as connection:
        connection.execute(exams_table.insert(), past)
        rows = [{"e": exam["id"], "s": f"s{n}"} for exam in past[:500] for n in range(10)]
        connection.exec_driver_sql(
            "INSERT INTO exam_students (student_id, student_name, exam_id, status, last_active) "
            "VALUES (:s, '', :e, 'logout', 1)",
            rows,
        )
        connection.exec_driver_sql(
            "INSERT INTO recordings SELECT id, 'done', 'j', 1, 1, 'v', 1, 1, 1, '' FROM exam_students "
            "WHERE status = 'logout'"
        )
    assert alone > 100
    assert _steps_of_a_check(service, START_MS + 2) <= alone * 1.2
    assert service.store.get_student("past-1", "s1").recording is not None
    assert service.check(START_MS + 3).live == 1
    service.store.close()
