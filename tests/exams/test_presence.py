from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pytest
from sqlalchemy import event

from zq.exams import heartbeats as heartbeats_module
from zq.exams.errors import ExamError
from zq.exams.heartbeats import GAP_MS, MARK_MS, HeartbeatBuffer, Recorded, StatusNews, StudentKey
from zq.exams.model import Heartbeat
from zq.exams.presence import SqlPresence, read_listening
from zq.exams.status import Action, Listening, StudentStatus
from zq.exams.store import ExamStore

NOW_MS = 1_782_781_200_000


@pytest.fixture
def store(database_url: str) -> Iterator[ExamStore]:
    store = ExamStore(database_url, "UTC")
    store.create_exam("e1", "n", NOW_MS - 1000, NOW_MS + 7_200_000, now_ms=NOW_MS)
    store.ensure_students("e1", [("s1", "王小明"), ("s2", "李雷")])
    yield store
    store.close()


@pytest.fixture
def buffer(store: ExamStore) -> HeartbeatBuffer:
    return HeartbeatBuffer(SqlPresence(store.database))


def window(store: ExamStore) -> Listening | None:
    with store.database.read() as connection:
        return read_listening(connection)


def test_a_heartbeat_is_written_with_its_batch(store: ExamStore, buffer: HeartbeatBuffer) -> None:
    buffer.add("e1", "s1", at_ms=NOW_MS, ip="10.0.0.1")
    buffer.add("e1", "s1", at_ms=NOW_MS + 2, ip="10.0.0.3")
    buffer.add("e1", "s1", at_ms=NOW_MS + 1, ip="10.0.0.2")
    assert len(buffer) == 1
    assert store.get_student("e1", "s1").last_active_ms is None
    recorded = buffer.flush(NOW_MS + 500)
    assert recorded == Recorded(1, (("e1", "s1"),), ())
    student = store.get_student("e1", "s1")
    assert (student.status, student.last_active_ms) == (StudentStatus.ONLINE, NOW_MS + 2)
    assert [(r.action, r.ip) for r in store.list_history("e1", "s1")] == [(Action.ONLINE, "10.0.0.3")]
    buffer.add("e1", "s1", at_ms=NOW_MS + 600, ip="10.0.0.3")
    assert buffer.flush(NOW_MS + 1000) == Recorded(1, (), ())
    assert len(store.list_history("e1", "s1")) == 1


def test_a_batch_costs_the_same_statements_whatever_its_size(store: ExamStore, buffer: HeartbeatBuffer) -> None:
    store.ensure_students("e1", [(f"t{n}", "") for n in range(400)])
    statements: list[str] = []
    event.listen(store.database.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    counts = []
    for size in (1, 400):
        statements.clear()
        for n in range(size):
            buffer.add("e1", f"t{n}", at_ms=NOW_MS + size, ip="")
        assert statements == []
        buffer.flush(NOW_MS + size)
        counts.append(len(statements))
    assert counts[1] <= counts[0] <= 8


def test_older_heartbeats_change_nothing(store: ExamStore, buffer: HeartbeatBuffer) -> None:
    store.login("e1", "s1", now_ms=NOW_MS, ip="")
    buffer.add("e1", "s1", at_ms=NOW_MS - 5, ip="")
    assert buffer.flush(NOW_MS + 1) == Recorded(0, (), ())
    assert store.get_student("e1", "s1").last_active_ms == NOW_MS


def test_after_a_clock_put_back_heartbeats_count_again(store: ExamStore, buffer: HeartbeatBuffer) -> None:
    store.login("e1", "s1", now_ms=NOW_MS + 3_600_000, ip="")
    buffer.add("e1", "s1", at_ms=NOW_MS, ip="")
    buffer.flush(NOW_MS)
    assert store.get_student("e1", "s1").last_active_ms == NOW_MS


def test_heartbeats_after_the_finish_change_nothing(store: ExamStore, buffer: HeartbeatBuffer) -> None:
    store.login("e1", "s1", now_ms=NOW_MS, ip="")
    store.finish_student("e1", "s1", now_ms=NOW_MS, ip="", has_segments=False)
    buffer.add("e1", "s1", at_ms=NOW_MS + 5, ip="")
    assert buffer.flush(NOW_MS + 5) == Recorded(0, (), ())
    assert store.get_student("e1", "s1").status is StudentStatus.LOGOUT


def test_unknown_students_are_named_and_forgotten(buffer: HeartbeatBuffer) -> None:
    for exam_id, student_id in (("e1", "s1"), ("e1", "nobody"), ("none", "s1")):
        buffer.learn(exam_id, student_id)
        buffer.add(exam_id, student_id, at_ms=NOW_MS, ip="")
    recorded = buffer.flush(NOW_MS)
    assert recorded is not None
    assert sorted(recorded.unknown) == [("e1", "nobody"), ("none", "s1")]
    assert recorded.written == 1
    assert buffer.knows("e1", "s1")
    assert not buffer.knows("e1", "nobody")


def test_the_memory_of_known_students_is_bounded(buffer: HeartbeatBuffer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats_module, "KNOWN_STUDENTS_MAX", 2)
    for student_id in ("s1", "s2", "s3"):
        buffer.learn("e1", student_id)
    assert [buffer.knows("e1", s) for s in ("s1", "s2", "s3")] == [False, True, True]


def test_bad_heartbeats_are_refused(buffer: HeartbeatBuffer) -> None:
    for exam_id, student_id, ip in (
        ("../e", "s1", ""),
        ("e1", "s 1", ""),
        ("e1", "s1", "x" * 46),
        ("e1", "s1", "a\nb"),
    ):
        with pytest.raises(ExamError) as refused:
            buffer.add(exam_id, student_id, at_ms=NOW_MS, ip=ip)
        assert refused.value.code == "invalid"
    assert len(buffer) == 0


def test_the_buffer_is_bounded(buffer: HeartbeatBuffer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats_module, "PENDING_HEARTBEATS_MAX", 2)
    buffer.add("e1", "s1", at_ms=NOW_MS, ip="")
    buffer.add("e1", "s2", at_ms=NOW_MS, ip="")
    buffer.add("e1", "s2", at_ms=NOW_MS + 1, ip="")
    with pytest.raises(ExamError) as refused:
        buffer.add("e1", "s3", at_ms=NOW_MS, ip="")
    assert refused.value.code == "unavailable"


class Flaky:
    """A presence whose database is away when told so."""

    others_write = False

    def __init__(self) -> None:
        self.away = False
        self.calls: list[tuple[list[Heartbeat], bool]] = []

    def record(self, beats: Sequence[Heartbeat], now_ms: int, *, after_gap: bool) -> Recorded:
        if self.away:
            raise ExamError("unavailable", "away")
        self.calls.append((list(beats), after_gap))
        return Recorded(len(beats), (), ())

    def activity(self, exam_ids: Sequence[str]) -> Mapping[StudentKey, int]:
        return {}

    def tell(self, news: Sequence[StatusNews]) -> None:
        raise AssertionError("the buffer tells nothing")


def test_nothing_is_lost_while_the_database_is_away() -> None:
    presence = Flaky()
    buffer = HeartbeatBuffer(presence)
    presence.away = True
    buffer.add("e1", "s1", at_ms=1, ip="")
    buffer.add("e1", "s2", at_ms=1, ip="")
    with pytest.raises(ExamError):
        buffer.flush(10)
    buffer.add("e1", "s2", at_ms=20, ip="")
    presence.away = False
    buffer.flush(30)
    ((beats, after_gap),) = presence.calls
    assert [(b.student_id, b.at_ms) for b in beats] == [("s1", 1), ("s2", 20)]
    assert after_gap


def test_gaps_and_marks() -> None:
    presence = Flaky()
    buffer = HeartbeatBuffer(presence)
    now_ms = NOW_MS
    buffer.flush(now_ms)
    assert presence.calls == [([], True)], "a start of the process is a gap"
    for _ in range(10):
        now_ms += 1000
        buffer.flush(now_ms)
    assert presence.calls[1:] == [([], False)] * (10_000 // MARK_MS), "idle: a mark now and then"
    presence.calls.clear()
    buffer.flush(now_ms + GAP_MS)
    assert presence.calls == [([], False)]
    buffer.flush(now_ms + GAP_MS + GAP_MS + 1)
    assert presence.calls[1:] == [([], True)]


def test_the_window_of_listening_is_written(store: ExamStore, buffer: HeartbeatBuffer) -> None:
    assert window(store) is None
    buffer.flush(NOW_MS)
    buffer.add("e1", "s1", at_ms=NOW_MS + 900, ip="")
    buffer.flush(NOW_MS + 1000)
    assert window(store) == Listening(NOW_MS, NOW_MS + 1000)
    HeartbeatBuffer(SqlPresence(store.database)).flush(NOW_MS + 2000)
    assert window(store) == Listening(NOW_MS + 2000, NOW_MS + 2000)
