from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from zq.exams.errors import ExamError
from zq.exams.model import MergeRequest
from zq.exams.status import Action, ExamStatus, MergeState, StudentStatus
from zq.exams.store import ExamStore
from zq.protocol.job import parse_id

START, END = "2026-06-30 09:00:00", "2026-06-30 11:00:00"
START_MS = 1_782_781_200_000
END_MS = START_MS + 7_200_000
NOW_MS = START_MS + 1_000


@pytest.fixture
def store(database_url: str) -> Iterator[ExamStore]:
    store = ExamStore(database_url, "Asia/Shanghai")
    yield store
    store.close()


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ExamError) as error:
        call()
    assert error.value.detail
    return error.value.code


def with_student(store: ExamStore) -> None:
    store.create_exam("e1", "数据库期末", START, END, now_ms=NOW_MS)
    store.login("e1", "s1", now_ms=NOW_MS, ip="10.0.0.1", name="王小明")


def test_create_is_idempotent(store: ExamStore) -> None:
    exam, created = store.create_exam("e1", "数据库期末", START, END, now_ms=NOW_MS)
    assert (created, exam.start_ms, exam.end_ms, exam.status) == (True, START_MS, END_MS, ExamStatus.ACTIVE)
    assert store.create_exam("e1", "数据库期末", START_MS, END_MS, now_ms=NOW_MS + 5) == (exam, False)
    assert refused(lambda: store.create_exam("e1", "other", START, END, now_ms=NOW_MS)) == "conflict"
    assert store.get_exam("e1") == exam


@pytest.mark.parametrize(
    ("exam_id", "name", "start", "end"),
    [
        ("../e", "n", START, END),
        ("e1", " ", START, END),
        ("e1", "n", END, START),
        ("e1", "n", START, START),
        ("e1", "n", START, "2027-06-30"),
        ("e1", "n", "soon", END),
    ],
)
def test_bad_exams(store: ExamStore, exam_id: str, name: str, start: str, end: str) -> None:
    assert refused(lambda: store.create_exam(exam_id, name, start, end, now_ms=NOW_MS)) == "invalid"
    assert store.list_exams() == []


def test_ids_are_case_sensitive(store: ExamStore) -> None:
    for exam_id in ("a", "A"):
        assert store.create_exam(exam_id, exam_id, START, END, now_ms=NOW_MS)[1]


def test_list_exams_in_pages(store: ExamStore) -> None:
    for number in range(5):
        store.create_exam(f"e{number}", "n", START_MS + number // 2, END_MS, now_ms=0)
    pages, last = [], None
    while page := store.list_exams(limit=2, before_id=last):
        pages.append([exam.id for exam in page])
        last = page[-1].id
    assert pages == [["e4", "e3"], ["e2", "e1"], ["e0"]]
    assert refused(lambda: store.list_exams(limit=0)) == "invalid"
    assert refused(lambda: store.list_exams(limit=1001)) == "invalid"
    assert refused(lambda: store.list_exams(before_id="none")) == "not_found"


def test_edit_times(store: ExamStore) -> None:
    store.create_exam("e1", "n", START, END, now_ms=NOW_MS)
    assert store.edit_times("e1", now_ms=NOW_MS, start=END_MS - 1).status is ExamStatus.PENDING
    assert store.edit_times("e1", now_ms=NOW_MS, start=START).status is ExamStatus.ACTIVE
    # Completing is the check's: it closes the students in the same step.
    assert store.edit_times("e1", now_ms=NOW_MS, end=START_MS + 1).status is ExamStatus.ACTIVE
    assert store.get_exam("e1").end_ms == START_MS + 1
    assert refused(lambda: store.edit_times("e1", now_ms=NOW_MS, start=END)) == "invalid"
    assert refused(lambda: store.edit_times("e2", now_ms=NOW_MS, end=END)) == "not_found"


def test_ensure_students(store: ExamStore) -> None:
    store.create_exam("e1", "n", START, END, now_ms=NOW_MS)
    assert store.ensure_students("e1", [("s1", "王小明"), ("s2", "")]) == 2
    assert store.ensure_students("e1", [("s1", ""), ("s2", "李雷"), ("s3", "韩梅梅")]) == 1
    assert [(s.student_id, s.name, s.status) for s in store.list_students("e1")] == [
        ("s1", "王小明", StudentStatus.PENDING),
        ("s2", "李雷", StudentStatus.PENDING),
        ("s3", "韩梅梅", StudentStatus.PENDING),
    ]
    assert [s.student_id for s in store.list_students("e1", limit=2, after_id="s1")] == ["s2", "s3"]
    assert refused(lambda: store.ensure_students("none", [("s1", "")])) == "not_found"
    assert refused(lambda: store.ensure_students("e1", [("s9", "x"), ("../x", "x")])) == "invalid"
    assert store.count_students("e1")[StudentStatus.PENDING] == 3


def test_bounds_of_a_roster(store: ExamStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create_exam("e1", "n", START, END, now_ms=NOW_MS)
    assert store.ensure_students("e1", [(f"s{n}", "") for n in range(5000)]) == 5000
    assert refused(lambda: store.ensure_students("e1", [(f"t{n}", "") for n in range(5001)])) == "too_large"
    monkeypatch.setattr("zq.exams.store.STUDENTS_PER_EXAM_MAX", 5001)
    assert store.ensure_students("e1", [("t1", "")]) == 1
    assert refused(lambda: store.ensure_students("e1", [("t2", "")])) == "too_large"


def test_login(store: ExamStore) -> None:
    store.create_exam("e1", "n", START, END, now_ms=0)
    assert refused(lambda: store.login("e1", "s1", now_ms=NOW_MS, ip="")) == "not_found"
    assert refused(lambda: store.login("e2", "s1", now_ms=NOW_MS, ip="", name="")) == "not_found"
    early = store.login("e1", "s1", now_ms=START_MS - 1, ip="10.0.0.1", name="王小明")
    assert (early.status, early.last_active_ms, early.name) == (StudentStatus.ONLINE, START_MS - 1, "王小明")
    assert store.get_student("e1", "s1") == early
    store.login("e1", "s1", now_ms=END_MS - 1, ip="10.0.0.2")
    assert refused(lambda: store.login("e1", "s1", now_ms=END_MS, ip="10.0.0.2")) == "conflict"
    assert [(row.action, row.ip) for row in store.list_history("e1", "s1")] == [
        (Action.LOGIN, "10.0.0.2"),
        (Action.LOGIN, "10.0.0.1"),
    ]


def test_finish_is_idempotent_and_asks_for_one_merge(store: ExamStore) -> None:
    with_student(store)
    done = store.finish_student("e1", "s1", now_ms=NOW_MS, ip="10.0.0.1", has_segments=True)
    assert done.first
    assert done.student.status is StudentStatus.LOGOUT
    assert done.merge is not None
    assert done.merge.key == "merge:e1:s1"
    assert done.merge.kwargs == {"exam_id": "e1", "student_id": "s1", "student_name": "王小明"}
    parse_id(done.merge.job_id)
    again = store.finish_student("e1", "s1", now_ms=NOW_MS + 9, ip="10.0.0.1", has_segments=True)
    assert (again.first, again.merge) == (False, done.merge)
    assert store.merge_submitted("e1", "s1", done.merge.job_id)
    third = store.finish_student("e1", "s1", now_ms=NOW_MS + 9, ip="10.0.0.1", has_segments=True)
    assert (third.first, third.merge) == (False, None)
    assert third.student.recording is not None
    assert third.student.recording.state is MergeState.SUBMITTED
    assert [row.action for row in store.list_history("e1", "s1")] == [Action.LOGOUT, Action.LOGIN]


def test_finish_without_segments_asks_for_no_merge(store: ExamStore) -> None:
    with_student(store)
    assert store.finish_student("e1", "s1", now_ms=NOW_MS, ip="", has_segments=False).merge is None
    assert store.get_student("e1", "s1").recording is None
    late = store.finish_student("e1", "s1", now_ms=NOW_MS, ip="", has_segments=True)
    assert not late.first
    assert late.merge is not None


def finish(store: ExamStore) -> MergeRequest:
    with_student(store)
    merge = store.finish_student("e1", "s1", now_ms=NOW_MS, ip="", has_segments=True).merge
    assert merge is not None
    return merge


def succeed(store: ExamStore, job_id: str, video: str = "s1_x.mp4") -> MergeState:
    return store.merge_succeeded(
        "e1", "s1", job_id, now_ms=NOW_MS, video=video, segments=3, size_bytes=99, duration_ms=180_000
    )


def test_a_merge_that_is_faster_than_its_receipt(store: ExamStore) -> None:
    merge = finish(store)
    assert succeed(store, merge.job_id) is MergeState.DONE
    assert not store.merge_submitted("e1", "s1", merge.job_id)
    recording = store.get_student("e1", "s1").recording
    assert recording is not None
    assert (recording.state, recording.video, recording.segments) == (MergeState.DONE, "s1_x.mp4", 3)
    assert (recording.size_bytes, recording.duration_ms, recording.finished_ms) == (99, 180_000, NOW_MS)


def test_a_failure_and_its_correction(store: ExamStore) -> None:
    merge = finish(store)
    assert store.merge_failed("e1", "s1", merge.job_id, now_ms=NOW_MS, error="no header\0") is MergeState.FAILED
    recording = store.get_student("e1", "s1").recording
    assert recording is not None
    assert recording.error == "no header\ufffd"
    assert succeed(store, merge.job_id) is MergeState.DONE
    assert store.merge_failed("e1", "s1", merge.job_id, now_ms=NOW_MS, error="late") is MergeState.DONE
    recording = store.get_student("e1", "s1").recording
    assert recording is not None
    assert recording.error == ""


def test_another_jobs_failure_says_nothing(store: ExamStore) -> None:
    merge = finish(store)
    store.merge_submitted("e1", "s1", merge.job_id, "the-live-one")
    assert store.merge_failed("e1", "s1", merge.job_id, now_ms=NOW_MS, error="x") is MergeState.SUBMITTED
    assert store.merge_failed("e1", "s1", "the-live-one", now_ms=NOW_MS, error="x") is MergeState.FAILED


def test_a_late_segment_asks_for_a_new_merge_and_the_video_stays(store: ExamStore) -> None:
    first = finish(store)
    assert store.request_merge("e1", "s1", now_ms=NOW_MS) == first, "an open request stays as it is"
    succeed(store, first.job_id)
    second = store.request_merge("e1", "s1", now_ms=NOW_MS)
    assert second.job_id != first.job_id
    # The first job runs once more (its worker was lost) and ends late: its video counts, the request stays open.
    assert succeed(store, first.job_id, "s1_y.mp4") is MergeState.REQUESTED
    recording = store.get_student("e1", "s1").recording
    assert recording is not None
    assert (recording.state, recording.video, recording.job_id) == (MergeState.REQUESTED, "s1_y.mp4", second.job_id)
    assert store.merge_submitted("e1", "s1", second.job_id)
    assert not store.merge_submitted("e1", "s1", first.job_id)
    assert succeed(store, second.job_id, "s1_z.mp4") is MergeState.DONE


def test_a_student_who_comes_back_and_finishes_again_gets_a_new_merge(store: ExamStore) -> None:
    first = finish(store)
    succeed(store, first.job_id)
    assert store.login("e1", "s1", now_ms=NOW_MS + 5, ip="").status is StudentStatus.ONLINE
    again = store.finish_student("e1", "s1", now_ms=NOW_MS + 6, ip="", has_segments=True)
    assert again.first
    assert again.merge is not None
    assert again.merge.job_id != first.job_id


def test_bad_outcomes(store: ExamStore) -> None:
    merge = finish(store)
    assert refused(lambda: succeed(store, merge.job_id, "../x.mp4")) == "invalid"
    assert refused(lambda: succeed(store, "", "x.mp4")) == "invalid"
    assert refused(lambda: store.request_merge("e1", "s2", now_ms=NOW_MS)) == "not_found"
    assert refused(lambda: store.merge_failed("e1", "s2", "j", now_ms=NOW_MS, error="x")) == "not_found"


def test_many_threads_one_row_each(store: ExamStore) -> None:
    store.create_exam("e1", "n", START, END, now_ms=NOW_MS)
    with ThreadPoolExecutor(8) as pool:
        logins = [pool.submit(store.login, "e1", f"s{n % 4}", now_ms=NOW_MS, ip="", name="n") for n in range(40)]
        for login in logins:
            login.result()
        ends = [
            pool.submit(store.finish_student, "e1", f"s{n % 4}", now_ms=NOW_MS, ip="", has_segments=True)
            for n in range(40)
        ]
        finished = [end.result() for end in ends]
    assert sum(f.first for f in finished) == 4
    assert len({f.merge.job_id for f in finished if f.merge}) == 4
    assert len(store.list_students("e1")) == 4


def test_what_was_written_is_there_after_a_restart(store: ExamStore, database_url: str) -> None:
    with_student(store)
    before = store.get_student("e1", "s1")
    store.close()
    again = ExamStore(database_url, "Asia/Shanghai")
    try:
        assert again.get_student("e1", "s1") == before
    finally:
        again.close()


def open_and_login(url: str, student_id: str) -> None:
    store = ExamStore(url, "Asia/Shanghai")
    store.create_exam("e1", "n", START, END, now_ms=NOW_MS)
    store.login("e1", student_id, now_ms=NOW_MS, ip="", name="n")
    store.close()


def test_several_processes_make_the_schema_at_once(new_database_url: str) -> None:
    code = (
        "import sys; from zq.exams.store import ExamStore\n"
        "store = ExamStore(sys.argv[1], 'Asia/Shanghai')\n"
        "store.create_exam('e1', 'n', 1000, 2000, now_ms=0)\n"
        "store.login('e1', sys.argv[2], now_ms=0, ip='', name='n')\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, new_database_url, f"s{n}"]) for n in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    store = ExamStore(new_database_url, "Asia/Shanghai")
    assert len(store.list_students("e1")) == 3
    store.close()


def test_several_threads_make_the_schema_at_once(new_database_url: str) -> None:
    barrier = threading.Barrier(8)

    def run(number: int) -> None:
        barrier.wait()
        open_and_login(new_database_url, f"s{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(8)))


@pytest.mark.parametrize(
    "bad", ["sqlite://", "sqlite:///:memory:", "nonsense", "mysql+nodriver://h/d", "postgresql+nodriver://h/d"]
)
def test_urls_that_cannot_be_used(bad: str) -> None:
    with pytest.raises(ExamError, match=r"exams\.database") as error:
        ExamStore(bad, "UTC")
    assert error.value.code == "invalid"
