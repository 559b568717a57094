"""Whole screens as text, compared with the files in `screens/`. `ZQ_GOLDEN=write pytest …` writes them anew."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest

from zq.client.arguments import arguments_of
from zq.monitor import cells, views
from zq.monitor.drawing import ASCII, UTF8, Line, Signs, Style, text_of, to_text
from zq.monitor.keys import KEYS, Mode
from zq.monitor.model import Board, History, Query, Snapshot, board
from zq.monitor.state import Pane, Ui
from zq.protocol.job import JobSpec, Outcome, State, encode_spec
from zq.protocol.messages import (
    AttemptInfo,
    BrokerInfo,
    JobDetail,
    JobInfo,
    QueueInfo,
    QueueSlots,
    Role,
    Room,
    Usage,
    WorkerInfo,
)

SCREENS = Path(__file__).parent / "screens"
ADDRESS = "tcp://127.0.0.1:5570"
NOW_MS = 1_767_225_600_000  # 2026-01-01 00:00 UTC
TROUBLE = (
    "no answer from the broker at tcp://127.0.0.1:5570 within 5 s; no connection: is it running (`zq status`,"
    " `zq broker`), is the address right (client.broker in zq.toml), and does it want a key (client.key)?"
)
BEIJING = timezone(timedelta(hours=8))


def broker(**changes: object) -> BrokerInfo:
    made = BrokerInfo(
        request=1, epoch=4, uptime_ms=11_520_000, now_ms=NOW_MS, journal_bytes=1_288_490_188,
        disk_free_bytes=44_023_414_784, commits=81_244, commit_p99_us=3_210, sessions=7, refused={},
        accepting=True, software="zq/0.1.0",
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def queue(name: str, **counts: Any) -> QueueInfo:
    seven = {s: counts.pop(s, 0) for s in ("scheduled", "ready", "running", "done", "dead", "cancelled", "expired")}
    rest = {"oldest_ready_ms": 0, "consumers": 1, "slots": 2, "free": 0} | counts
    return QueueInfo(name=name, accepted=sum(seven.values()), **seven, **rest)


def job(number: int, task: str, **changes: object) -> JobInfo:
    made = JobInfo(
        id=bytes([1, 0x9B] * 7 + [0, number]), task=task, queue="video_merge", state=State.RUNNING, priority=5,
        attempt=1, attempts_max=4, accepted_ms=NOW_MS - 400_000, due_ms=0, started_ms=NOW_MS - 95_000, ended_ms=0,
        worker="merge-A", key="", error="", size_bytes=90, hard_limit_ms=1_800_000,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def spec(info: JobInfo, *args: object, **kwargs: object) -> bytes:
    arguments = msgspec.msgpack.encode([args, kwargs])
    return encode_spec(JobSpec(info.id, info.task, info.queue, arguments))


JOBS = (
    job(1, "zq.workers.merge.merge", key="merge:49:张伟", progress_done=63, progress_total=100),
    job(2, "zq.workers.merge.merge", key="merge:49:欧阳娜娜", attempt=2, started_ms=NOW_MS - 1_700_000,
        progress_done=2, progress_total=8, progress_message="verifying"),
    job(3, "reports.成绩单", queue="reports", worker="机房-3", started_ms=NOW_MS - 2_000),
)  # fmt: skip


def snapshot(**changes: object) -> Snapshot:
    made = Snapshot(
        taken_s=100.0,
        broker=broker(),
        queues=(
            queue("status_check", running=0, done=4031, slots=1),
            queue("video_merge", ready=12, running=2, done=310, dead=3, scheduled=5, oldest_ready_ms=182_000,
                  slots=2, consumers=1),
            queue("reports", running=1, done=7, slots=1),
        ),
        workers=(
            WorkerInfo("merge-A", Role.WORKER, [QueueSlots("video_merge", 2)], 2, 1, 400, 7_200_000, "zq/0.1.0",
                       room=Room(38 << 30, 700 << 20)),
            WorkerInfo("机房-3", Role.WORKER, [QueueSlots("reports", 1), QueueSlots("status_check", 1)], 1, 2, 1_900,
                       90_000, "zq/0.1.0"),
        ),
        query=Query(),
        jobs=JOBS,
        arguments={JOBS[2].id: arguments_of(spec(JOBS[2], 49, student="张伟", formats=["pdf", "csv"]))},
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def seen(*snapshots: Snapshot, now_s: float | None = None, trouble: str = "") -> Board:
    history = History(started_s=90.0)
    for one in snapshots:
        history.observe(one)
    if trouble:
        history.miss(trouble)
    return board(history, ADDRESS, snapshots[-1].taken_s + 0.4 if now_s is None else now_s)


def two_seconds() -> Board:
    """Two snapshots: 10 more accepted and 8 more done in two seconds."""
    before = snapshot(taken_s=98.0)
    after = snapshot()
    busy = after.queues[1]
    older = msgspec.structs.replace(busy, done=busy.done - 8, ready=busy.ready - 2, accepted=busy.accepted - 10)
    return seen(replace(before, queues=(after.queues[0], older, after.queues[2])), after)


def unserved() -> Board:
    lost = queue("vidoe_merge", ready=3, oldest_ready_ms=61_000, consumers=0, slots=0)
    return seen(snapshot(queues=(*snapshot().queues, lost)))


def detail() -> JobDetail:
    info = job(9, "zq.workers.merge.merge", state=State.DEAD, attempt=2, attempts_max=2, key="merge:49:李雷",
               started_ms=NOW_MS - 70_000, ended_ms=NOW_MS - 60_000, error="ValueError: 没有可合并的片段")  # fmt: skip
    trace = 'Traceback (most recent call last):\n  File "merge.py", line 40\nValueError: 没有可合并的片段\x1b[2J'
    usage = Usage(cpu_ms=4_200, peak_rss_bytes=88 << 20, read_bytes=12 << 20, write_bytes=0, processes=3)
    attempts = [
        AttemptInfo(1, "merge-A", NOW_MS - 200_000, NOW_MS - 190_000, Outcome.LOST, "", Usage()),
        AttemptInfo(2, "merge-A", NOW_MS - 70_000, NOW_MS - 60_000, Outcome.FAILED, trace, usage),
    ]
    return JobDetail(1, info, spec(info, 49, student="李雷"), attempts)


def compare(name: str, lines: list[Line], width: int) -> None:
    text = to_text(lines, colour=False)
    for line in text.splitlines():
        assert cells.width(line) <= width, line
    path = SCREENS / f"{name}.txt"
    if os.environ.get("ZQ_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (132, 40), (40, 12)])
def test_the_board(width: int, height: int) -> None:
    ui = Ui(pane=Pane.JOBS)
    lines = views.screen(two_seconds(), ui, width, height)
    assert len(lines) == height
    compare(f"board-{width}x{height}", lines, width)


def test_a_queue_that_nobody_serves_is_an_alarm() -> None:
    lines = views.screen(unserved(), Ui(), 80, 24)
    compare("unserved", lines, 80)
    assert any(span.style is Style.BAD and "vidoe_merge" in span.text for line in lines for span in line)


def test_a_silent_broker_leaves_the_last_data_dimmed() -> None:
    lines = views.screen(seen(snapshot(), now_s=112.0, trouble=TROUBLE), Ui(), 80, 24)
    compare("silent", lines, 80)
    below = [span for line in lines[6:-1] for span in line if span.text.strip()]
    assert {span.style for span in below} <= {Style.QUIET, Style.HERE}


def test_before_the_first_contact() -> None:
    history = History(started_s=0.0)
    history.miss(TROUBLE)
    compare("no-contact-yet", views.screen(board(history, ADDRESS, 12.0), Ui(), 80, 24), 80)


def test_ascii_has_nothing_else() -> None:
    lines = views.screen(two_seconds(), Ui(pane=Pane.JOBS), 80, 24, ASCII)
    assert to_text(lines, colour=False).isascii()
    compare("ascii", lines, 80)


def test_the_report() -> None:
    compare("report-100", views.report(two_seconds(), 100), 100)


@pytest.mark.parametrize("signs", [UTF8, ASCII])
def test_one_job(signs: Signs) -> None:
    ui = Ui(mode=Mode.DETAIL, opened=detail().job.id)
    ui.show(detail())
    lines = views.screen(two_seconds(), ui, 80, 24, signs, BEIJING)
    compare("detail-ascii" if signs.ascii_only else "detail", lines, 80)
    assert "\x1b" not in to_text(lines, colour=False)


def test_the_help_is_made_from_the_keys() -> None:
    lines = views.help_lines()
    compare("help", lines, 80)
    text = "\n".join(map(text_of, lines))
    assert all(key.help in text for key in KEYS)


def test_a_question_stands_in_the_footer() -> None:
    shown, ui = two_seconds(), Ui(pane=Pane.JOBS)
    ui.press(shown, "c")
    compare("question", views.screen(shown, ui, 80, 24), 80)


@pytest.mark.parametrize("width", range(1, 140, 7))
@pytest.mark.parametrize("height", [1, 2, 5, 9, 50])
def test_any_size_is_filled_and_never_overrun(width: int, height: int) -> None:
    filtered = Ui(pane=Pane.JOBS, filters={Pane.JOBS: "张"})
    for ui in (Ui(), filtered, Ui(mode=Mode.HELP), Ui(mode=Mode.FILTER, typed="欧阳" * 90)):
        lines = views.screen(unserved(), ui, width, height)
        assert len(lines) == height
        assert all(cells.width(text_of(line)) <= max(width, 12) for line in lines)


def test_chinese_names_leave_the_columns_where_they_are() -> None:
    lines = [text_of(line) for line in views.report(two_seconds(), 100)]
    rows = [line for line in lines if "merge:49" in line or "成绩单" in line]
    assert len(rows) == 3
    assert len({cells.width(row[: row.index("/4 ")]) for row in rows}) == 1


def test_colour_is_only_where_it_is_asked_for() -> None:
    lines = views.report(unserved(), 100)
    assert "\x1b" not in to_text(lines, colour=False)
    assert "\x1b[1;31mvidoe_merge" in to_text(lines, colour=True)
