"""Rates, alarms and rows from snapshots; and what the keys do to the screen's state."""

from __future__ import annotations

import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zq.monitor import tables
from zq.monitor.drawing import UTF8
from zq.monitor.keys import KEYS, Action, Mode, action_for
from zq.monitor.model import CONTACT_LOST_S, SAMPLES_MAX, Board, History, Query, Snapshot, board, fraction_of, last_line
from zq.monitor.report import as_json
from zq.monitor.state import (
    FILTER_CHARS_MAX,
    Change,
    JobSort,
    Look,
    Open,
    Pane,
    Pause,
    QueueSort,
    Quit,
    Ui,
    identity,
    matches,
)
from zq.protocol.job import State
from zq.protocol.messages import BrokerInfo, JobInfo, QueueInfo, QueueSlots, Role, WorkerInfo

NOW_MS = 1_000_000_000


def info(**changes: object) -> BrokerInfo:
    return msgspec.structs.replace(BrokerInfo(1, 1, 5, NOW_MS, 1, 1, 1, 1, 1, {}, True, "zq"), **changes)


def queue(name: str, *, ready: int = 0, done: int = 0, dead: int = 0, consumers: int = 1) -> QueueInfo:
    accepted = ready + done + dead
    return QueueInfo(name, 0, ready, 0, done, dead, 0, 0, accepted, ready * 1000, consumers, 1, 1)


def job(number: int, **changes: object) -> JobInfo:
    made = JobInfo(bytes(15) + bytes([number]), f"task{number}", "q", State.RUNNING, 5, 1, 4, NOW_MS - 9_000, 0,
                   NOW_MS - 1_000 * number, 0, "w", "", "", 10)  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def snap(taken_s: float, *queues: QueueInfo, jobs: tuple[JobInfo, ...] = (), **changes: object) -> Snapshot:
    return Snapshot(taken_s, info(**changes), queues, (), Query(), jobs)


def seen(*snapshots: Snapshot, now_s: float | None = None) -> Board:
    history = History(0.0)
    for one in snapshots:
        history.observe(one)
    return board(history, "tcp://x:1", snapshots[-1].taken_s if now_s is None else now_s)


# -------------------------------------------------------------------------------------------------- model


def test_rates_are_means_over_the_window() -> None:
    shown = seen(*(snap(float(t), queue("a", ready=3, done=10 * t), queue("b", dead=t)) for t in range(20)))
    a, b = shown.queues
    assert a.rates.done == pytest.approx(10)
    assert a.rates.accepted == pytest.approx(10)
    assert b.rates.failed == pytest.approx(1)
    assert shown.totals.rates.ended == pytest.approx(11)


def test_an_old_rush_leaves_the_window() -> None:
    shown = seen(snap(0, queue("a")), *(snap(float(t), queue("a", done=1000)) for t in range(1, 9)))
    assert shown.queues[0].rates.done == 0


def test_one_snapshot_has_no_rates_and_a_retry_is_not_negative() -> None:
    assert seen(snap(0, queue("a", done=5))).queues[0].rates.done is None
    assert seen(snap(0, queue("a", dead=5)), snap(1, queue("a", ready=5))).queues[0].rates.failed == 0


def test_a_queue_that_appears_counts_from_nothing() -> None:
    assert seen(snap(0), snap(2, queue("new", ready=4))).queues[0].rates.accepted == pytest.approx(2)


def test_the_history_is_bounded() -> None:
    history = History(0.0)
    for number in range(10 * SAMPLES_MAX):
        history.observe(snap(number / 1000, queue("a")))
    assert len(history._samples) <= SAMPLES_MAX


@pytest.mark.parametrize(("ready", "consumers", "alarm"), [(1, 0, True), (0, 0, False), (1, 1, False)])
def test_a_queue_without_a_consumer(ready: int, consumers: int, alarm: bool) -> None:
    shown = seen(snap(0, queue("合并", ready=ready, consumers=consumers)))
    assert shown.alarms == (("1 job in 合并 and no worker serves it",) if alarm else ())


def test_a_paused_queue_is_shown_and_an_alarm_when_jobs_wait_in_it() -> None:
    paused = msgspec.structs.replace(queue("合并", ready=2), paused=True)
    shown = seen(snap(0, paused, queue("other", ready=1)))
    assert [row.paused for row in shown.queues] == [True, False]
    assert shown.alarms == ("2 jobs in 合并, which is paused",)
    assert json.loads(as_json(shown))["queues"][0]["paused"] is True
    assert [matches(row, "paused") for row in shown.queues] == [True, False]
    assert tables.QUEUES[3].cell(shown.queues[0], UTF8).text == "paused 0/1"
    assert seen(snap(0, msgspec.structs.replace(queue("q"), paused=True))).alarms == ()


def test_a_broker_that_takes_nothing_and_new_dead_jobs_are_alarms() -> None:
    shown = seen(snap(0, queue("a", dead=7)), snap(1, queue("a", dead=9), accepting=False))
    assert [text.split()[0:2] for text in shown.alarms] == [["the", "broker"], ["2", "jobs"]]


def test_a_silent_worker_is_an_alarm() -> None:
    worker = WorkerInfo("w1", Role.WORKER, [QueueSlots("q", 2)], 1, 1, 6_000, 1, "zq")
    shown = seen(Snapshot(0, info(), (), (worker, msgspec.structs.replace(worker, silent_ms=5_999)), Query(), ()))
    assert [w.state for w in shown.workers] == ["silent", "busy"]
    assert shown.alarms == ("worker w1 has been silent for 6 s",)


def test_a_worker_with_a_stalled_job_is_stuck_and_the_job_says_for_how_long() -> None:
    worker = WorkerInfo("w1", Role.WORKER, [QueueSlots("q", 2)], 2, 1, 100, 1, "zq", stalled=1)
    jobs = (job(1, quiet_ms=125_000, stalled=True), job(2, quiet_ms=90_000))
    shown = seen(Snapshot(0, info(), (), (worker,), Query(), jobs))
    assert shown.workers[0].state == "stuck"
    assert [row.stalled_s for row in shown.jobs] == [125.0, 0.0]
    progress = next(column for column in tables.JOBS if column.title == "PROGRESS")
    assert progress.cell(shown.jobs[0], UTF8).text.startswith("still 2m")


def test_silence_begins_after_its_time_and_not_before() -> None:
    assert not seen(snap(10.0), now_s=10.0 + CONTACT_LOST_S - 0.01).silent
    assert seen(snap(10.0), now_s=10.0 + CONTACT_LOST_S).silent
    slow = History(0.0, interval_s=10)
    assert not slow.silent(29)
    assert slow.silent(30)


def test_ages_are_counted_on_the_brokers_clock() -> None:
    states = {
        State.RUNNING: 4.0, State.READY: 9.0, State.SCHEDULED: 2.5, State.DEAD: 1.5,
    }  # fmt: skip
    for state, age_s in states.items():
        made = job(4, state=state, due_ms=NOW_MS + 2_500, ended_ms=NOW_MS - 1_500 if state is State.DEAD else 0)
        assert seen(snap(0, jobs=(made,))).jobs[0].age_s == age_s
    assert seen(snap(0, jobs=(job(4, started_ms=NOW_MS + 60_000),))).jobs[0].age_s == 0


@given(st.floats(), st.floats())
def test_progress_is_a_share_whatever_a_task_says(done: float, total: float) -> None:
    share = fraction_of(job(1, progress_done=done, progress_total=total))
    assert share is None or 0 <= share <= 1


def test_progress() -> None:
    assert fraction_of(job(1, progress_done=1, progress_total=4)) == 0.25
    assert fraction_of(job(1, progress_done=9, progress_total=4)) == 1
    assert fraction_of(job(1, progress_done=math.nan, progress_total=4)) is None


def test_the_last_line_of_an_error() -> None:
    assert last_line("Traceback\n  File\nValueError: 丢失\n\n") == "ValueError: 丢失"
    assert last_line("") == ""


def test_json_has_everything_and_is_json() -> None:
    shown = seen(snap(0, queue("合并", ready=2, consumers=0)), snap(1, queue("合并", ready=3), jobs=(job(1),)))
    data = json.loads(as_json(shown))
    assert data["queues"][0]["name"] == "合并"
    assert data["queues"][0]["rates_per_s"]["accepted"] == 1
    assert data["jobs"][0]["id"] == "00000000-0000-0000-0000-000000000001"
    assert as_json(shown, ascii_only=True).isascii()


# --------------------------------------------------------------------------------------------------- keys


def test_no_key_means_two_things() -> None:
    for mode in Mode:
        names = [name for key in KEYS if mode in key.modes for name in key.names]
        assert len(names) == len(set(names)), mode


def test_every_action_has_a_key() -> None:
    assert {key.action for key in KEYS} == set(Action)


@given(st.lists(st.sampled_from([name for key in KEYS for name in key.names] + ["x", "F1", ""]), max_size=40))
def test_any_keys_leave_a_state_that_makes_sense(names: list[str]) -> None:
    shown = seen(snap(0, queue("b"), queue("a", ready=1), jobs=(job(1), job(2, state=State.DEAD))))
    ui = Ui()
    for name in names:
        ui.press(ui.frozen or shown, name)
        assert (ui.question is not None) == (ui.mode is Mode.CONFIRM)
        assert ui.opened is not None or ui.mode is not Mode.DETAIL
    ui.press(shown, "escape")
    assert ui.press(shown, "ctrl+c") == [Quit()]


def press(ui: Ui, shown: Board, *names: str) -> list[object]:
    return [order for name in names for order in ui.press(shown, name)]


def test_a_selection_follows_its_row() -> None:
    ui = Ui(pane=Pane.JOBS)
    press(ui, seen(snap(0, jobs=(job(1), job(2), job(3)))), "j")
    moved = seen(snap(0, jobs=(job(3), job(1), job(9), job(2))))
    assert ui.chosen_index(ui.rows(moved, Pane.JOBS), Pane.JOBS) == 3
    assert press(ui, moved, "enter") == [Open(job(2).id)]


def test_a_queue_opens_its_jobs_and_escape_shows_all_again() -> None:
    shown, ui = seen(snap(0, queue("a", ready=1, dead=1), queue("b", dead=2))), Ui()
    assert press(ui, shown, "enter") == [Look(Query("a", State.READY))]
    assert press(ui, shown, "escape") == [Look(Query())]
    press(ui, shown, "1", "j")
    assert press(ui, shown, "enter") == [Look(Query("b", State.DEAD))]  # there is nothing else to see
    assert press(ui, shown, "escape") == [Look(Query())]


def test_only_what_can_be_done_is_asked_for() -> None:
    shown = seen(snap(0, jobs=(job(1), job(2, state=State.DEAD), job(3, state=State.DONE))))
    ui = Ui(pane=Pane.JOBS)
    for keys, asks in (("gc", True), ("gr", False), ("gjc", False), ("gjr", True), ("Gr", False), ("Gc", False)):
        press(ui, shown, *keys)
        assert (ui.mode is Mode.CONFIRM) is asks, keys
        press(ui, shown, "n")


def test_a_queue_is_paused_and_resumed_from_its_own_pane() -> None:
    shown, ui = seen(snap(0, queue("a"), msgspec.structs.replace(queue("b"), paused=True))), Ui()
    assert press(ui, shown, "p", "enter", "y") == []  # enter is a no
    assert press(ui, shown, "p", "y") == [Pause("a", True)]
    assert press(ui, shown, "j", "p", "y") == [Pause("b", False)]
    assert press(ui, shown, "3", "p", "y") == []
    assert ui.mode is Mode.BOARD


def test_enter_is_not_a_yes() -> None:
    shown, ui = seen(snap(0, jobs=(job(1),))), Ui(pane=Pane.JOBS)
    assert press(ui, shown, "c", "enter", "y") == []
    assert press(ui, shown, "c", "y") == [Change("cancel", job(1).id)]


def test_nothing_but_a_y_is_a_yes() -> None:
    names = {name for key in KEYS for name in key.names} | {chr(code) for code in range(32, 127)}
    assert {name for name in names if action_for(Mode.CONFIRM, name) is Action.YES} == {"y", "Y"}


def test_the_question_stays_with_its_job() -> None:
    ui = Ui(pane=Pane.JOBS)
    press(ui, seen(snap(0, jobs=(job(1), job(2)))), "c")
    assert press(ui, seen(snap(1, jobs=(job(2),))), "y") == [Change("cancel", job(1).id)]


def test_sorting() -> None:
    shown = seen(snap(0, queue("b", ready=1), queue("a", ready=5), queue("c")))
    ui = Ui()

    def names() -> str:
        return "".join(str(identity(row)) for row in ui.rows(shown, Pane.QUEUES))

    assert names() == "abc"
    press(ui, shown, "s")
    assert ui.sorts[Pane.QUEUES] is QueueSort.READY
    assert names() == "abc"
    press(ui, shown, "I")
    assert names() == "cba"
    assert ui.sorts[Pane.JOBS] is JobSort.STANDING


def test_filter_words() -> None:
    row = seen(snap(0, jobs=(job(1, key="merge:49:张伟"),))).jobs[0]
    assert matches(row, "张伟 MERGE")
    assert not matches(row, "张伟 李雷")
    assert matches(row, "!李雷")
    assert not matches(row, "!merge")
    assert matches(row, "!")


def test_what_is_typed_is_bounded() -> None:
    shown, ui = seen(snap(0)), Ui()
    ui.type_text("no filter is open")
    press(ui, shown, "/")
    ui.type_text("x" * 1000)
    ui.type_text("\x1b")
    assert ui.typed == "x" * FILTER_CHARS_MAX
    press(ui, shown, "ctrl+u")
    assert ui.typed == ""
    assert action_for(Mode.FILTER, "q") is None
