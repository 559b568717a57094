"""What the user has done to the screen: pane, selection, order, filter, open dialogs. Pure: a key in, orders out.

A selection is remembered by what is selected, not by its line, so rows may move while somebody aims. Whatever is to
be done outside (ask for a job, cancel it, leave) is returned as an order and carried out by the application.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum
from typing import Any, Literal

from zq.monitor import cells
from zq.monitor.keys import Action, Mode, action_for
from zq.monitor.model import Board, JobRow, Query, QueueRow, WorkerRow
from zq.protocol.job import ENDED, State
from zq.protocol.messages import JobDetail, Why

FILTER_CHARS_MAX = 200


class Pane(IntEnum):
    QUEUES = 1
    WORKERS = 2
    JOBS = 3


Row = QueueRow | WorkerRow | JobRow
Identity = str | bytes


@dataclass(frozen=True, slots=True)
class Quit:
    pass


@dataclass(frozen=True, slots=True)
class Look:
    """Show these jobs in the job pane, now."""

    query: Query


@dataclass(frozen=True, slots=True)
class Open:
    """Fetch this job's detail, now and with every refresh until it is closed."""

    job_id: bytes


@dataclass(frozen=True, slots=True)
class Change:
    verb: Literal["cancel", "retry"]
    job_id: bytes


@dataclass(frozen=True, slots=True)
class Pause:
    """Start no more jobs of a queue, or go on."""

    queue: str
    paused: bool


Order = Quit | Look | Open | Change | Pause


class Sort(Enum):
    """An order of rows: name in the table's head, key, largest first."""

    def __init__(self, title: str, key: Callable[[Any], Any], falling: bool = False) -> None:
        self.title = title
        self.key = key
        self.falling = falling


class QueueSort(Sort):
    NAME = ("QUEUE", lambda q: q.name)
    READY = ("READY", lambda q: q.ready, True)
    OLDEST = ("OLDEST", lambda q: q.oldest_s, True)
    RUNNING = ("RUNNING", lambda q: q.running, True)
    SCHEDULED = ("SCHED", lambda q: q.scheduled, True)
    DEAD = ("DEAD", lambda q: q.dead, True)
    IN = ("IN/S", lambda q: q.rates.accepted or 0.0, True)
    OUT = ("OUT/S", lambda q: q.rates.ended or 0.0, True)
    CONSUMERS = ("CONS", lambda q: q.consumers)


class WorkerSort(Sort):
    NAME = ("WORKER", lambda w: w.name)
    RUNNING = ("RUNNING", lambda w: w.running, True)
    SILENT = ("HEARD", lambda w: w.silent_s, True)
    UP = ("UP", lambda w: w.connected_s, True)


class JobSort(Sort):
    STANDING = ("ID", lambda j: 0)
    """As the broker has them: the order in which they stand in the queue."""
    TASK = ("TASK", lambda j: j.task)
    PROGRESS = ("PROGRESS", lambda j: -1.0 if j.fraction is None else j.fraction, True)
    AGE = ("AGE", lambda j: j.age_s, True)
    ATTEMPT = ("TRY", lambda j: j.attempt, True)
    WORKER = ("WORKER", lambda j: j.worker)


SORTS: dict[Pane, type[Sort]] = {Pane.QUEUES: QueueSort, Pane.WORKERS: WorkerSort, Pane.JOBS: JobSort}
STATES = (
    State.RUNNING, State.READY, State.SCHEDULED, State.DEAD, State.DONE, State.CANCELLED, State.EXPIRED,
)  # fmt: skip


def identity(row: Row) -> Identity:
    return row.id if isinstance(row, JobRow) else row.name


def searchable(row: Row) -> str:
    """The text that a filter is matched against, in lower case."""
    if isinstance(row, QueueRow):
        return f"{row.name} {'paused' if row.paused else ''}".casefold()
    if isinstance(row, WorkerRow):
        return f"{row.name} {row.role} {row.queues} {row.state} {row.software}".casefold()
    return f"{row.id.hex()} {row.task} {row.queue} {row.worker} {row.summary} {row.message}".casefold()


def matches(row: Row, words: str) -> bool:
    """Every word is in the row; no word after a '!' is."""
    text = searchable(row)
    for word in words.casefold().split():
        if word.startswith("!"):
            if len(word) > 1 and word[1:] in text:
                return False
        elif word not in text:
            return False
    return True


def _first_sorts() -> dict[Pane, Sort]:
    return {pane: next(iter(sorts)) for pane, sorts in SORTS.items()}


@dataclass(slots=True)
class Ui:
    """The state of one screen. Changed only by `press`, `type_text` and the application's `say` and `show`."""

    mode: Mode = Mode.BOARD
    pane: Pane = Pane.QUEUES
    query: Query = field(default_factory=Query)
    chosen: dict[Pane, Identity] = field(default_factory=dict)
    sorts: dict[Pane, Sort] = field(default_factory=_first_sorts)
    inverted: dict[Pane, bool] = field(default_factory=dict)
    filters: dict[Pane, str] = field(default_factory=dict)
    typed: str = ""
    frozen: Board | None = None
    opened: bytes | None = None
    """The job whose detail is shown."""
    detail: JobDetail | None = None
    why: Why | None = None
    """Why that job waits, if it does."""
    scroll: int = 0
    scroll_max: int = 0
    """Set by the application when it has drawn: how far the help or detail can scroll."""
    page_rows: int = 10
    """Set by the application when it has drawn."""
    question: Change | Pause | None = None
    asked_from: Mode = Mode.BOARD
    """Where to go back to when the question or the help is closed."""
    note: str = ""
    """What came of the last order; shown until the next key."""

    @property
    def words(self) -> str:
        """The filter of the pane that has the keyboard."""
        return self.filters.get(self.pane, "")

    def rows(self, board: Board, pane: Pane) -> list[Row]:
        """What the pane shows: filtered and in order."""
        all_rows: dict[Pane, Sequence[Row]] = {
            Pane.QUEUES: board.queues, Pane.WORKERS: board.workers, Pane.JOBS: board.jobs,
        }  # fmt: skip
        kept = [row for row in all_rows[pane] if matches(row, self.filters.get(pane, ""))]
        order = self.sorts[pane]
        kept.sort(key=order.key, reverse=order.falling)
        if self.inverted.get(pane):
            kept.reverse()
        return kept

    def chosen_index(self, rows: Sequence[Row], pane: Pane) -> int:
        """The line of the selected row; the first when it is gone or nothing was selected; −1 when there is none."""
        wanted = self.chosen.get(pane)
        return next((i for i, row in enumerate(rows) if identity(row) == wanted), 0 if rows else -1)

    def press(self, board: Board, name: str) -> list[Order]:
        """Do what the key does. `board` is what the user sees (the frozen one, if it is frozen)."""
        action = action_for(self.mode, name)
        if action is None:
            return []
        self.note = ""
        return _HANDLERS[action](self, board)

    def type_text(self, text: str) -> None:
        """Characters, when a line is being typed."""
        if self.mode is Mode.FILTER and text.isprintable():
            self.typed = (self.typed + text)[:FILTER_CHARS_MAX]

    def show(self, detail: JobDetail, why: Why | None = None) -> None:
        """The detail that was ordered has come; dropped when it is no longer wanted, or the screen is frozen."""
        if detail.job.id == self.opened and (self.frozen is None or self.detail is None):
            self.detail, self.why = detail, why

    def say(self, note: str) -> None:
        self.note = cells.clean(note)

    # ------------------------------------------------------------------------------- what the keys do

    def _quit(self, board: Board) -> list[Order]:
        return [Quit()]

    def _help(self, board: Board) -> list[Order]:
        if self.mode is Mode.HELP:
            return self._back(board)
        self.asked_from, self.mode, self.scroll = self.mode, Mode.HELP, 0
        return []

    def _to_pane(self, pane: Pane) -> list[Order]:
        self.pane = pane
        return []

    def _turn_pane(self, step: int) -> list[Order]:
        return self._to_pane(Pane((self.pane - 1 + step) % len(Pane) + 1))

    def _move(self, board: Board, step: int) -> list[Order]:
        if self.mode is not Mode.BOARD:
            self.scroll = max(0, min(self.scroll + step, self.scroll_max))
            return []
        rows = self.rows(board, self.pane)
        if rows:
            index = self.chosen_index(rows, self.pane) + step
            self.chosen[self.pane] = identity(rows[max(0, min(index, len(rows) - 1))])
        return []

    def _open(self, board: Board) -> list[Order]:
        rows = self.rows(board, self.pane)
        if not rows:
            return []
        row = rows[self.chosen_index(rows, self.pane)]
        if isinstance(row, QueueRow):
            self.pane = Pane.JOBS
            return self._look(replace(self.query, queue=row.name, state=self._state_to_see(row)))
        if isinstance(row, JobRow):
            self.mode, self.opened, self.detail, self.why, self.scroll = Mode.DETAIL, row.id, None, None, 0
            return [Open(row.id)]
        self.say("a worker has no more to show")
        return []

    def _state_to_see(self, row: QueueRow) -> State:
        """The state that was chosen; where none was and nothing runs, the first that the queue has jobs in."""
        if self.query.state is not State.RUNNING or row.running:
            return self.query.state
        there = ((State.READY, row.ready), (State.SCHEDULED, row.scheduled), (State.DEAD, row.dead))
        return next((state for state, jobs in there if jobs), State.RUNNING)

    def _back(self, board: Board) -> list[Order]:
        if self.mode is Mode.HELP:
            self.mode, self.scroll = self.asked_from, 0
        elif self.mode is Mode.DETAIL:
            self.mode, self.opened, self.detail, self.why, self.scroll = Mode.BOARD, None, None, None, 0
        elif self.words:
            self.filters[self.pane] = ""
        elif self.query != Query():
            return self._look(Query())
        return []

    def _look(self, query: Query) -> list[Order]:
        self.query = query
        self.frozen = None  # a frozen screen has no other jobs to show
        return [Look(query)]

    def _state(self, board: Board) -> list[Order]:
        following = STATES[(STATES.index(self.query.state) + 1) % len(STATES)]
        self.pane = Pane.JOBS
        return self._look(replace(self.query, state=following))

    def _filter(self, board: Board) -> list[Order]:
        self.mode, self.typed = Mode.FILTER, self.words
        return []

    def _accept(self, board: Board) -> list[Order]:
        self.mode, self.filters[self.pane] = Mode.BOARD, self.typed.strip()
        return []

    def _erase(self, board: Board) -> list[Order]:
        self.typed = self.typed[:-1]
        return []

    def _erase_all(self, board: Board) -> list[Order]:
        self.typed = ""
        return []

    def _sort(self, board: Board) -> list[Order]:
        orders = list(SORTS[self.pane])
        self.sorts[self.pane] = orders[(orders.index(self.sorts[self.pane]) + 1) % len(orders)]
        self.inverted[self.pane] = False
        return []

    def _invert(self, board: Board) -> list[Order]:
        self.inverted[self.pane] = not self.inverted.get(self.pane, False)
        return []

    def _freeze(self, board: Board) -> list[Order]:
        self.frozen = board if self.frozen is None else None
        return []

    def _ask(self, board: Board, verb: Literal["cancel", "retry"]) -> list[Order]:
        target = self._target(board)
        if target is None:
            self.say(f"select a job to {verb} first (3 goes to the jobs)")
            return []
        job_id, state = target
        if verb == "retry" and state not in ENDED - {State.DONE}:
            self.say(f"the job is {state.label}: only dead, cancelled and expired jobs can be retried")
        elif verb == "cancel" and state in ENDED:
            self.say(f"the job is {state.label}: there is nothing to cancel")
        else:
            self.asked_from, self.mode, self.question = self.mode, Mode.CONFIRM, Change(verb, job_id)
        return []

    def _pause(self, board: Board) -> list[Order]:
        rows = self.rows(board, self.pane) if self.pane is Pane.QUEUES else []
        row = rows[self.chosen_index(rows, self.pane)] if rows else None
        if isinstance(row, QueueRow):
            self.asked_from, self.mode, self.question = self.mode, Mode.CONFIRM, Pause(row.name, not row.paused)
        else:
            self.say("select a queue to pause or resume first (1 goes to the queues)")
        return []

    def _target(self, board: Board) -> tuple[bytes, State] | None:
        if self.mode is Mode.DETAIL:
            return (self.detail.job.id, self.detail.job.state) if self.detail else None
        rows = self.rows(board, self.pane)
        row = rows[self.chosen_index(rows, self.pane)] if rows else None
        return (row.id, row.state) if isinstance(row, JobRow) else None

    def _yes(self, board: Board) -> list[Order]:
        question = self.question
        self.mode, self.question = self.asked_from, None
        return [question] if question else []

    def _no(self, board: Board) -> list[Order]:
        self.mode, self.question = (Mode.BOARD if self.mode is Mode.FILTER else self.asked_from), None
        return []


_FAR = 1 << 30
_HANDLERS: dict[Action, Callable[[Ui, Board], list[Order]]] = {
    Action.QUIT: Ui._quit,
    Action.HELP: Ui._help,
    Action.NEXT_PANE: lambda ui, board: ui._turn_pane(1),
    Action.PREVIOUS_PANE: lambda ui, board: ui._turn_pane(-1),
    Action.PANE_1: lambda ui, board: ui._to_pane(Pane.QUEUES),
    Action.PANE_2: lambda ui, board: ui._to_pane(Pane.WORKERS),
    Action.PANE_3: lambda ui, board: ui._to_pane(Pane.JOBS),
    Action.DOWN: lambda ui, board: ui._move(board, 1),
    Action.UP: lambda ui, board: ui._move(board, -1),
    Action.PAGE_DOWN: lambda ui, board: ui._move(board, ui.page_rows),
    Action.PAGE_UP: lambda ui, board: ui._move(board, -ui.page_rows),
    Action.FIRST: lambda ui, board: ui._move(board, -_FAR),
    Action.LAST: lambda ui, board: ui._move(board, _FAR),
    Action.OPEN: Ui._open,
    Action.BACK: Ui._back,
    Action.STATE: Ui._state,
    Action.FILTER: Ui._filter,
    Action.SORT: Ui._sort,
    Action.INVERT: Ui._invert,
    Action.FREEZE: Ui._freeze,
    Action.CANCEL: lambda ui, board: ui._ask(board, "cancel"),
    Action.RETRY: lambda ui, board: ui._ask(board, "retry"),
    Action.PAUSE: Ui._pause,
    Action.YES: Ui._yes,
    Action.NO: Ui._no,
    Action.ACCEPT: Ui._accept,
    Action.ERASE: Ui._erase,
    Action.ERASE_ALL: Ui._erase_all,
}
