"""What went wrong in the exam system before zq, by its number in the list of nineteen: the store, order and rules.

Faults of merges and of processes are in tests/workers/test_faults.py; `test_each_fault_has_its_test` knows them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import event

from tests.conftest import LiveBroker
from zq.client.sync import Client
from zq.config import load
from zq.exams.check import LOOK_FAR_BACK_MS, check
from zq.exams.heartbeats import HeartbeatBuffer
from zq.exams.merging import submit_merges
from zq.exams.presence import SqlPresence
from zq.exams.segments import Segment, order, parse_name
from zq.exams.status import MergeState, StudentStatus
from zq.exams.storage import RecordingStorage, video_name
from zq.exams.store import ExamStore
from zq.exams.times import zone
from zq.protocol.job import State

TESTS = Path(__file__).resolve().parents[1]
SHANGHAI = zone("Asia/Shanghai")
START_MS = 1_782_781_200_000
END_MS = START_MS + 7_200_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ExamStore]:
    store = ExamStore(f"sqlite:///{tmp_path / 'exams.db'}", "Asia/Shanghai")
    store.create_exam("e1", "期末", START_MS, END_MS, now_ms=START_MS)
    yield store
    store.close()


def in_order(*names: str) -> list[str]:
    found = order([parse_name(name, SHANGHAI) for name in names])
    return [segment.name for session in found.sessions for segment in session]


def test_each_fault_has_its_test() -> None:
    text = "\n".join(path.read_text("utf-8") for path in TESTS.rglob("test_*.py"))
    found = {int(number) for number in re.findall(r"^def test_fault_(\d\d)_", text, re.MULTILINE)}
    assert found == set(range(1, 20))


def test_fault_01_an_hour_of_checks_makes_one_merge_a_student(store: ExamStore, live_broker: LiveBroker) -> None:
    """Merge storm: the checker enqueued the same merges every 30 s while the folders existed."""
    for number in range(5):
        store.login("e1", f"s{number}", now_ms=START_MS, ip="", name="王小明")
    with Client(live_broker.config) as client:
        for now_ms in range(END_MS, END_MS + 3_600_000, 30_000):
            report = check(store, now_ms, 60, has_segments=lambda *_: True)
            submit_merges(client, store, live_broker.config, report.merges)
            # Whoever asks on his own account is told of the same job.
            merge = store.finish_student("e1", "s0", now_ms=now_ms, ip="", has_segments=True).merge
            assert merge is None
        (queue,) = [queue for queue in client.queues() if queue.name == "video_merge"]
        assert queue.accepted == 5
        keys = [job.key for job in client.jobs("video_merge", State.READY).jobs]
    assert sorted(keys) == [f"merge:e1:s{number}" for number in range(5)]


def test_fault_04_a_recorder_that_begins_again_at_1_does_not_interleave() -> None:
    first = [f"s1_20260630_09{n:02}00_seq_{n:04}.mp4" for n in (1, 2, 3)]
    second = [f"s1_20260630_10{n:02}00_seq_{n:04}.mp4" for n in (1, 2)]
    assert in_order(*second, *first) == [*first, *second]


def test_fault_05_over_midnight_and_with_and_without_numbers() -> None:
    before, after = "s1_20260630_235900.mp4", "s1_20260701_000100.mp4"
    assert in_order(after, before) == [before, after]
    old = ["s1_20260630_090000.mp4", "s1_20260630_090100.mp4"]
    numbered = ["s1_20260630_093000_seq_0001.mp4", "s1_20260630_093100_seq_0002.mp4"]
    assert in_order(*numbered, *old) == [*old, *numbered], "numbered ones are not all first"


@pytest.mark.parametrize("status", [StudentStatus.PENDING, StudentStatus.LOGOUT])
def test_fault_07_whoever_has_segments_is_merged_whatever_his_status(store: ExamStore, status: StudentStatus) -> None:
    """Students still online at the end were logged out, and then skipped as logged out. Nobody is skipped: not who
    finished before his first segment came, nor who was never seen."""
    store.ensure_students("e1", [("s1", "王小明"), ("s2", "never came")])
    if status is StudentStatus.LOGOUT:
        store.login("e1", "s1", now_ms=START_MS, ip="")
        assert store.finish_student("e1", "s1", now_ms=START_MS, ip="", has_segments=False).merge is None
    report = check(store, END_MS + 30_000, 60, has_segments=lambda _exam, student: student == "s1")
    assert [merge.student_id for merge in report.merges] == ["s1"]
    recording = store.get_student("e1", "s1").recording
    assert recording is not None
    assert recording.state is MergeState.REQUESTED
    assert store.get_student("e1", "s2").recording is None
    store.merge_failed("e1", "s1", report.merges[0].job_id, now_ms=END_MS, error="no_header")
    # Refused with a reason: it is not asked for again and again.
    assert check(store, END_MS + 60_000, 60, has_segments=lambda _exam, student: student == "s1").merges == ()


def test_fault_07_an_exam_found_by_the_first_check_after_a_week(store: ExamStore) -> None:
    store.ensure_students("e1", [("s1", "王小明")])
    check(store, END_MS, 60, has_segments=lambda *_: False)
    later_ms = END_MS + 6 * 24 * 3_600_000
    assert check(store, later_ms, 60, has_segments=lambda *_: True).merges == ()
    (merge,) = check(store, later_ms, 60, has_segments=lambda *_: True, look_back_ms=LOOK_FAR_BACK_MS).merges
    assert merge.student_id == "s1"


def test_fault_08_a_relative_folder_is_the_same_place_for_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zq.toml").write_text(
        'data_dir = "var"\n[exams]\nstorage = "recordings"\ndatabase = "sqlite:///exams.db"\n', "utf-8"
    )
    (tmp_path / "elsewhere").mkdir()
    found = []
    for folder in (tmp_path, tmp_path / "elsewhere"):
        monkeypatch.chdir(folder)
        config = load(tmp_path / "zq.toml", {})
        found.append((config.data_path, config.storage_path, config.database_url))
    root = tmp_path.resolve()
    assert found == [(root / "var", root / "recordings", f"sqlite:///{root / 'exams.db'}")] * 2


def test_fault_13_a_name_from_the_client_is_no_path(tmp_path: Path) -> None:
    nasty = "../../etc/passwd\x00/\\..\u202e王\n" + "长" * 300
    name = video_name("s1", nasty, START_MS, SHANGHAI, ".mp4")
    assert "/" not in name
    assert "\x00" not in name
    assert len(name.encode()) <= 255
    folder = RecordingStorage(tmp_path).exam_folder("e1")
    assert (folder / name).resolve().parent == folder.resolve()


def test_fault_17_heartbeats_cost_one_transaction_a_flush_and_none_a_heartbeat(store: ExamStore) -> None:
    store.ensure_students("e1", [(f"s{n}", "") for n in range(500)])
    buffer = HeartbeatBuffer(SqlPresence(store.database))
    begun: list[object] = []
    event.listen(store.database.engine, "begin", begun.append)
    for second in range(5):
        for number in range(500):
            buffer.learn("e1", f"s{number}")
            assert buffer.knows("e1", f"s{number}")
            buffer.add("e1", f"s{number}", at_ms=START_MS + second, ip="10.0.0.1")
    assert begun == []
    recorded = buffer.flush(START_MS + 1000)
    assert recorded is not None
    assert (recorded.written, len(begun)) == (500, 1)


def test_fault_04_two_files_of_one_number_are_both_in_the_film() -> None:
    twice = [Segment("a1", 1, START_MS), Segment("a2", 2, START_MS + 60_000), Segment("b1", 1, START_MS + 120_000)]
    assert [[s.name for s in session] for session in order(twice).sessions] == [["a1", "a2"], ["b1"]]
