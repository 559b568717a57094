"""The live screen on textual's own test driver, with a source that is made to answer, to fail and to hang."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Literal

import pytest

from zq.exceptions import Refused, Unavailable
from zq.monitor.app import Canvas, ZqTop
from zq.monitor.keys import Mode
from zq.monitor.model import Query, Snapshot
from zq.monitor.state import Pane
from zq.protocol.errors import Code
from zq.protocol.job import JobSpec, Outcome, State, encode_spec
from zq.protocol.messages import AttemptInfo, BrokerInfo, Change, JobDetail, JobInfo, QueueInfo, Usage, Why, WhyReason

NOW_MS = 1_767_225_600_000
DEADLINE_S = 10.0


def made_job(number: int, state: State = State.RUNNING) -> JobInfo:
    job_id = bytes(15) + bytes([number])
    return JobInfo(job_id, f"task{number}", "合并", state, 5, 1, 4, NOW_MS - 5_000, 0, NOW_MS - 900, 0, "w1",
                   f"键{number}", "", 40)  # fmt: skip


class Made:
    """A source with three running jobs and two dead ones."""

    def __init__(self) -> None:
        self.trouble: Exception | None = None
        self.hang = False
        self.state = State.RUNNING
        """Of the first three."""
        self.asked = 0
        self.changes: list[tuple[str, bytes]] = []
        self.pauses: list[tuple[str, bool]] = []

    async def snapshot(self, query: Query) -> Snapshot:
        self.asked += 1
        if self.hang:
            await asyncio.Event().wait()
        if self.trouble is not None:
            raise self.trouble
        broker = BrokerInfo(1, 1, 60_000, NOW_MS, 1 << 20, 1 << 34, 9, 800, 2, {}, True, "zq/0.1.0")
        queue = QueueInfo("合并", 0, 0, 3, 4, 2, 0, 0, 9, 0, 1, 3, 0)
        numbers = (1, 2, 3) if query.state is State.RUNNING else (7, 8) if query.state is State.DEAD else ()
        jobs = [made_job(number, query.state) for number in numbers]
        return Snapshot(time.monotonic(), broker, [queue], [], query, jobs)

    async def detail(self, job_id: bytes) -> JobDetail:
        info = made_job(job_id[15], State.DEAD if job_id[15] > 6 else self.state)
        error = "Traceback\nValueError: 片段丢失"
        attempts = [AttemptInfo(1, "w1", NOW_MS - 900, NOW_MS - 100, Outcome.FAILED, error, Usage())]
        return JobDetail(1, info, encode_spec(JobSpec(info.id, info.task, info.queue)), attempts)

    async def change(self, verb: Literal["cancel", "retry"], job_id: bytes) -> Change:
        self.changes.append((verb, job_id))
        if self.trouble is not None:
            raise self.trouble
        return Change(job_id, None, State.RUNNING if verb == "cancel" else State.READY)

    async def why(self, job_id: bytes) -> Why:
        return Why(1, WhyReason.CONCURRENCY, "1 of 1 with its key run", [bytes(15) + b"\x07"])

    async def pause(self, queue: str, paused: bool) -> QueueInfo:
        self.pauses.append((queue, paused))
        return QueueInfo(queue, 0, 0, 3, 4, 2, 0, 0, 9, 0, 1, 3, 0, paused=paused)

    async def close(self) -> None:
        pass


def shown(app: ZqTop) -> str:
    canvas = app.query_one(Canvas)
    return "\n".join(canvas.render_line(y).text.rstrip() for y in range(canvas.size.height))


async def until(app: ZqTop, text: str, *, gone: bool = False) -> str:
    """The screen, once `text` is on it."""
    deadline_s = time.monotonic() + DEADLINE_S
    while (text in shown(app)) is gone:
        assert time.monotonic() < deadline_s, f"{text!r} {'still' if gone else 'not'} in\n{shown(app)}"
        await asyncio.sleep(0.01)
    return shown(app)


def on_screen(
    source: Made, play: Callable[[ZqTop, object], object], *, clock: Callable[[], float] = time.monotonic
) -> None:
    async def run() -> None:
        app = ZqTop(source, "tcp://127.0.0.1:5570", interval_s=0.05, clock=clock)
        async with app.run_test(size=(80, 24)) as pilot:
            await play(app, pilot)  # type: ignore[misc]

    asyncio.run(run())


def test_it_shows_the_broker_and_fills_the_screen() -> None:
    async def play(app: ZqTop, pilot: object) -> None:
        text = await until(app, "task3")
        assert "合并" in text
        assert text.count("\n") == 23
        assert "? help" in text.splitlines()[-1]

    on_screen(Made(), play)


def test_a_dead_broker_blocks_nothing_and_comes_back() -> None:
    source = Made()
    ahead = [0.0]

    async def play(app: ZqTop, pilot) -> None:  # type: ignore[no-untyped-def]
        await until(app, "task3")
        source.trouble = Unavailable("no answer within 2 s")
        ahead[0] = 12.0
        text = await until(app, "no contact 12s")
        assert "task3" in text  # the last data stay
        await pilot.press("?")
        await until(app, "previous pane")  # and the keyboard works
        await pilot.press("?")
        source.trouble, ahead[0] = None, 0.0
        await until(app, "no contact", gone=True)

    on_screen(source, play, clock=lambda: time.monotonic() + ahead[0])


def test_a_hanging_question_does_not_stop_the_clock() -> None:
    source = Made()
    ahead = [0.0]

    async def play(app: ZqTop, pilot) -> None:  # type: ignore[no-untyped-def]
        await until(app, "task3")
        source.hang = True
        ahead[0] = 40.0
        await until(app, "no contact 40s")
        await pilot.press("q")

    on_screen(source, play, clock=lambda: time.monotonic() + ahead[0])


def test_enter_shows_a_job_with_its_attempts_and_escape_leaves_it() -> None:
    async def play(app: ZqTop, pilot) -> None:  # type: ignore[no-untyped-def]
        await until(app, "task3")
        await pilot.press("3", "j", "enter")
        text = await until(app, "ValueError: 片段丢失")
        assert "00000000-0000-0000-0000-000000000002" in text
        await pilot.press("escape")
        await until(app, "QUEUE")

    on_screen(Made(), play)


def test_cancel_asks_first_and_only_a_y_does_it() -> None:
    source = Made()

    async def play(app: ZqTop, pilot) -> None:  # type: ignore[no-untyped-def]
        await until(app, "task3")
        await pilot.press("3", "down", "c")
        await until(app, "Cancel job 00000002 (task2)? y/n")
        await pilot.press("n")
        await until(app, "y/n", gone=True)
        assert source.changes == []
        await pilot.press("c", "y")
        await until(app, "job 00000002 is told to stop")
        assert source.changes == [("cancel", bytes(15) + b"\x02")]

    on_screen(source, play)


def test_a_waiting_job_says_why_it_waits() -> None:
    source = Made()
    source.state = State.READY

    async def play(app: ZqTop, pilot) -> None:  # type: ignore[no-untyped-def]
        await until(app, "task3")
        await pilot.press("3", "enter")
        text = await until(app, "1 of 1 with its key run")
        assert "held by     00000000-0000-0000-0000-000000000007" in text

    on_screen(source, play)


def test_a_queue_is_paused_after_a_question() -> None:
    source = Made()

    async def play(app: ZqTop, pilot) -> None:  # type: ignore[no-untyped-def]
        await until(app, "task3")
        await pilot.press("p")
        await until(app, "Pause queue 合并? y/n")
        await pilot.press("y")
        await until(app, "queue 合并 is paused")
        assert source.pauses == [("合并", True)]

    on_screen(source, play)


def test_retry_of_a_dead_job_and_a_refusal_is_told() -> None:
    source = Made()

    async def play(app: ZqTop, pilot) -> None:  # type: ignore[no-untyped-def]
        await until(app, "task3")
        await pilot.press("v", "v", "v")
        await until(app, "task8")
        await pilot.press("r", "y")
        await until(app, "job 00000007 will run again")
        source.trouble = Refused(Code.FORBIDDEN, "a monitor may not send RetryEnded")
        await pilot.press("r", "y")
        await until(app, "forbidden: a monitor may not send RetryEnded")
        assert [verb for verb, _ in source.changes] == ["retry", "retry"]

    on_screen(source, play)


def test_the_filter_takes_chinese_and_keys_are_text_meanwhile() -> None:
    async def play(app: ZqTop, pilot) -> None:  # type: ignore[no-untyped-def]
        await until(app, "task3")
        await pilot.press("3", "slash", "键", "2", "q", "backspace", "enter")
        text = await until(app, "task1", gone=True)
        assert "task2" in text
        await pilot.press("escape")
        await until(app, "task1")

    on_screen(Made(), play)


def test_tab_and_digits_choose_the_pane() -> None:
    async def play(app: ZqTop, pilot) -> None:  # type: ignore[no-untyped-def]
        await until(app, "task3")
        for key, pane in (("tab", Pane.WORKERS), ("shift+tab", Pane.QUEUES), ("3", Pane.JOBS), ("tab", Pane.QUEUES)):
            await pilot.press(key)
            assert app.ui.pane is pane

    on_screen(Made(), play)


def test_frozen_is_frozen() -> None:
    source = Made()

    async def play(app: ZqTop, pilot) -> None:  # type: ignore[no-untyped-def]
        await until(app, "task3")
        await pilot.press("Z")
        before = await until(app, "FROZEN")
        asked = source.asked
        while source.asked < asked + 3:
            await asyncio.sleep(0.01)
        app.draw()
        assert shown(app) == before
        await pilot.press("Z")
        await until(app, "FROZEN", gone=True)

    on_screen(source, play)


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
def test_leaving(key: str) -> None:
    async def play(app: ZqTop, pilot) -> None:  # type: ignore[no-untyped-def]
        await until(app, "task3")
        await pilot.press(key)
        assert not app.is_running or app._exit

    on_screen(Made(), play)


def test_ctrl_c_leaves_from_a_question_too() -> None:
    async def play(app: ZqTop, pilot) -> None:  # type: ignore[no-untyped-def]
        await until(app, "task3")
        await pilot.press("3", "c")
        assert app.ui.mode is Mode.CONFIRM
        await pilot.press("ctrl+c")
        assert app._exit

    on_screen(Made(), play)


def test_a_defect_is_not_hidden() -> None:
    source = Made()
    source.trouble = ZeroDivisionError("a defect")

    async def play(app: ZqTop, pilot: object) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while app.is_running and time.monotonic() < deadline_s:
            await asyncio.sleep(0.01)

    with pytest.raises(Exception, match="a defect"):
        on_screen(source, play)
