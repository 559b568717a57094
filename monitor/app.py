"""The live screen: the only file that knows a terminal. It asks, draws lines and passes keys on; it decides nothing.

Asking and drawing are apart: however long the broker takes, the screen redraws, shows how old its data is, and
answers the keyboard.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import ClassVar

from rich import style as rich_style
from rich.segment import Segment
from textual import events
from textual.app import App, ComposeResult
from textual.strip import Strip
from textual.widget import Widget

from zq.exceptions import ZqError
from zq.monitor import views
from zq.monitor.drawing import UTF8, Line, Signs, Style
from zq.monitor.fetch import Source
from zq.monitor.keys import Mode
from zq.monitor.model import Board, History, board
from zq.monitor.state import Change, Look, Open, Order, Pause, Quit, Ui
from zq.monitor.tables import short_id
from zq.protocol.job import State

REDRAW_S = 0.5
"""Ages on the screen grow in this step when nothing else happens."""
WAITING = frozenset({State.SCHEDULED, State.READY})
_LOOKS: dict[Style, rich_style.Style] = {
    Style.PLAIN: rich_style.Style(),
    Style.STRONG: rich_style.Style(bold=True),
    Style.QUIET: rich_style.Style(dim=True),
    Style.GOOD: rich_style.Style(color="green"),
    Style.BUSY: rich_style.Style(color="cyan"),
    Style.WARN: rich_style.Style(color="yellow"),
    Style.BAD: rich_style.Style(color="red", bold=True),
    Style.HEAD: rich_style.Style(color="cyan", bold=True),
    Style.HERE: rich_style.Style(reverse=True),
    Style.ALARM: rich_style.Style(color="white", bgcolor="red", bold=True),
}


class Canvas(Widget, can_focus=True):
    """Shows lines, and hands every key to the application."""

    DEFAULT_CSS = "Canvas { width: 100%; height: 100%; background: ansi_default; color: ansi_default; }"

    def __init__(self) -> None:
        super().__init__()
        self._strips: list[Strip] = []

    def show_lines(self, lines: list[Line]) -> None:
        strips = [Strip([Segment(span.text, _LOOKS[span.style]) for span in line]) for line in lines]
        if strips != self._strips:
            self._strips = strips
            self.refresh()

    def render_line(self, y: int) -> Strip:
        strip = self._strips[y] if y < len(self._strips) else Strip.blank(0)
        return strip.adjust_cell_length(self.size.width, self.rich_style).apply_style(self.rich_style)


class ZqTop(App[None]):
    """`source` is asked every `interval_s`; it is not closed here."""

    TITLE = "zq-top"
    ENABLE_COMMAND_PALETTE: ClassVar[bool] = False
    CSS = "Screen { background: ansi_default; }"

    def __init__(
        self,
        source: Source,
        address: str,
        *,
        interval_s: float = 1.0,
        signs: Signs = UTF8,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(ansi_color=True)
        self._source = source
        self._address = address
        self._interval_s = interval_s
        self._signs = signs
        self._clock = clock
        self._zone = datetime.now().astimezone().tzinfo or UTC
        self._history = History(clock(), interval_s)
        self._hurry = asyncio.Event()
        self._seen: Board = board(self._history, address, clock())
        self.ui = Ui()

    def compose(self) -> ComposeResult:
        yield Canvas()

    def on_mount(self) -> None:
        self.query_one(Canvas).focus()
        self.set_interval(min(REDRAW_S, self._interval_s), self.draw)
        self.run_worker(self._watch(), exit_on_error=True)
        self.draw()

    def on_resize(self) -> None:
        self.draw()

    # ------------------------------------------------------------------------------------------ asking

    async def _watch(self) -> None:
        """One round after the other, for ever; a round that fails is shown and the next one tries again."""
        while True:
            started_s = self._clock()
            self._hurry.clear()
            try:
                self._history.observe(await self._source.snapshot(self.ui.query))
                if self.ui.opened is not None:
                    await self._fetch_detail(self.ui.opened)
            except ZqError as error:
                self._history.miss(str(error))
            self.draw()
            wait_s = max(0.0, self._interval_s - (self._clock() - started_s))
            try:
                await asyncio.wait_for(self._hurry.wait(), wait_s)
            except TimeoutError:
                continue

    async def _fetch_detail(self, job_id: bytes) -> None:
        try:
            detail = await self._source.detail(job_id)
            self.ui.show(detail, await self._source.why(job_id) if detail.job.state in WAITING else None)
        except ZqError as error:
            if self.ui.opened == job_id:
                self.ui.say(str(error))
        self.draw()

    async def _pause(self, order: Pause) -> None:
        try:
            queue = await self._source.pause(order.queue, order.paused)
        except ZqError as error:
            self.ui.say(str(error))
        else:
            self.ui.say(f"queue {queue.name} {'is paused' if queue.paused else 'starts jobs again'}")
        self._hurry.set()
        self.draw()

    async def _change(self, order: Change) -> None:
        doing = {"cancel": "cancelling", "retry": "retrying"}[order.verb]
        self.ui.say(f"{doing} {short_id(order.job_id)}")
        try:
            change = await self._source.change(order.verb, order.job_id)
        except ZqError as error:
            self.ui.say(str(error))
        else:
            self.ui.say(views.outcome(order, change))
        self._hurry.set()
        self.draw()

    # ----------------------------------------------------------------------------------------- drawing

    def draw(self) -> None:
        """Bring the screen up to date. Cheap when nothing has changed."""
        if not self.is_running or not self.screen_stack:
            return
        canvas = self.query_one(Canvas)
        self._seen = self.ui.frozen or board(self._history, self._address, self._clock())
        width, height = self.size
        lines = views.screen(self._seen, self.ui, width, height, self._signs, self._zone)
        canvas.show_lines(lines)

    # ---------------------------------------------------------------------------------------- keyboard

    def on_key(self, event: events.Key) -> None:
        event.stop()
        event.prevent_default()
        character = event.character if event.is_printable and event.character else ""
        if self.ui.mode is Mode.FILTER and character:
            self.ui.type_text(character)
        else:
            name = character if character and character != " " else event.key
            for order in self.ui.press(self._seen, name):
                self._carry_out(order)
        self.draw()

    def on_paste(self, event: events.Paste) -> None:
        self.ui.type_text("".join(c if c.isprintable() else " " for c in event.text))
        self.draw()

    def _carry_out(self, order: Order) -> None:
        match order:
            case Quit():
                self.exit()
            case Look():
                self._hurry.set()
            case Open(job_id):
                self.run_worker(self._fetch_detail(job_id))
            case Change():
                self.run_worker(self._change(order))
            case Pause():
                self.run_worker(self._pause(order))
