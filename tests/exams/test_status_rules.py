from __future__ import annotations

import itertools

import pytest

from zq.exams.status import (
    MERGE_TRANSITIONS,
    TRANSITIONS,
    Action,
    Event,
    ExamStatus,
    IllegalStep,
    Listening,
    MergeState,
    Seen,
    StudentStatus,
    exam_status,
    is_silent,
    judge,
    listened,
    step,
)

LIMIT_MS = 60_000
ALWAYS = Listening(0, 1_000_000)


@pytest.mark.parametrize(
    ("now_ms", "status"),
    [(99, ExamStatus.PENDING), (100, ExamStatus.ACTIVE), (199, ExamStatus.ACTIVE), (200, ExamStatus.COMPLETED)],
)
def test_the_edges_of_an_exam_are_exact(now_ms: int, status: ExamStatus) -> None:
    assert exam_status(100, 200, now_ms) is status


def test_every_pair_is_listed_or_illegal() -> None:
    for status, event in itertools.product(StudentStatus, Event):
        if (status, event) in TRANSITIONS:
            after, action = step(status, event)
            # A change of status is always in the history.
            assert action is not None or after is status
        else:
            assert event is Event.SILENT
            with pytest.raises(IllegalStep):
                step(status, event)


def test_only_a_login_brings_back_who_has_finished() -> None:
    for event in (Event.SEEN, Event.FINISH, Event.EXAM_OVER):
        assert step(StudentStatus.LOGOUT, event) == (StudentStatus.LOGOUT, None)
    assert step(StudentStatus.LOGOUT, Event.LOGIN) == (StudentStatus.ONLINE, Action.LOGIN)


def test_merges_can_be_asked_for_in_every_state_and_no_failure_hides_a_video() -> None:
    for state in [None, *MergeState]:
        assert any(before is state and event == "request" for before, event in MERGE_TRANSITIONS)
    assert not any(before is MergeState.DONE and event == "fail" for before, event in MERGE_TRANSITIONS)


def test_silence_is_more_than_the_limit() -> None:
    now_ms = ALWAYS.until_ms
    assert not is_silent(now_ms - LIMIT_MS, ALWAYS, now_ms, LIMIT_MS)
    assert is_silent(now_ms - LIMIT_MS - 1, ALWAYS, now_ms, LIMIT_MS)
    assert is_silent(None, ALWAYS, now_ms, LIMIT_MS)


def test_silence_is_counted_only_while_the_service_listens() -> None:
    # Down since 100 s: at 500 s nobody can know whether the student, heard at 90 s, is there.
    assert not is_silent(90_000, Listening(0, 100_000), 500_000, LIMIT_MS)
    # Up again since 500 s: the clock starts anew.
    assert not is_silent(90_000, Listening(500_000, 560_000), 560_000, LIMIT_MS)
    assert is_silent(90_000, Listening(500_000, 560_001), 560_001, LIMIT_MS)
    # Silent for long enough before the service went down.
    assert is_silent(30_000, Listening(0, 100_000), 500_000, LIMIT_MS)


def test_a_clock_that_is_put_back_makes_nobody_online_for_ever() -> None:
    window = listened(Listening(0, 10_000_000), 5_000_000, after_gap=True)
    assert window == Listening(5_000_000, 5_000_000)
    assert not is_silent(9_990_000, window, 5_000_000, LIMIT_MS)
    later = listened(window, 5_060_001, after_gap=False)
    assert is_silent(9_990_000, later, 5_060_001, LIMIT_MS)


def test_the_window_of_listening() -> None:
    assert listened(None, 50, after_gap=False) == Listening(50, 50)
    assert listened(Listening(10, 40), 50, after_gap=False) == Listening(10, 50)
    assert listened(Listening(10, 40), 50, after_gap=True) == Listening(50, 50)
    assert listened(Listening(10, 40), 5, after_gap=False) == Listening(5, 5)


def test_judge() -> None:
    now_ms = ALWAYS.until_ms
    old, new = now_ms - LIMIT_MS - 1, now_ms - 1
    students = [
        Seen(1, StudentStatus.ONLINE, old, old),
        Seen(2, StudentStatus.ONLINE, new, new),
        Seen(3, StudentStatus.OFFLINE, new, old),  # heard of elsewhere
        Seen(4, StudentStatus.OFFLINE, new, new),  # e.g. set offline by hand: no news
        Seen(5, StudentStatus.OFFLINE, old, old - 1),  # news, but too old
        Seen(6, StudentStatus.PENDING, None, None),
        Seen(7, StudentStatus.PENDING, new, None),
    ]
    changes = judge(students, ALWAYS, now_ms, LIMIT_MS)
    assert [(c.row_id, c.after, c.action) for c in changes] == [
        (1, StudentStatus.OFFLINE, Action.OFFLINE),
        (3, StudentStatus.ONLINE, Action.ONLINE),
        (7, StudentStatus.ONLINE, Action.ONLINE),
    ]
