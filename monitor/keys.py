"""The keyboard as data: what each key does. The help screen and the footer are made from this table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class Mode(Enum):
    """What the keyboard acts on."""

    BOARD = auto()
    """The three panes."""
    DETAIL = auto()
    """One job."""
    HELP = auto()
    CONFIRM = auto()
    """A question that wants a y."""
    FILTER = auto()
    """A line is being typed; keys that are not in the table are text."""


class Action(Enum):
    QUIT = auto()
    HELP = auto()
    NEXT_PANE = auto()
    PREVIOUS_PANE = auto()
    PANE_1 = auto()
    PANE_2 = auto()
    PANE_3 = auto()
    DOWN = auto()
    UP = auto()
    PAGE_DOWN = auto()
    PAGE_UP = auto()
    FIRST = auto()
    LAST = auto()
    OPEN = auto()
    BACK = auto()
    STATE = auto()
    FILTER = auto()
    SORT = auto()
    INVERT = auto()
    FREEZE = auto()
    CANCEL = auto()
    RETRY = auto()
    PAUSE = auto()
    YES = auto()
    NO = auto()
    ACCEPT = auto()
    ERASE = auto()
    ERASE_ALL = auto()


@dataclass(frozen=True, slots=True)
class Key:
    """`names` are characters, or the terminal library's names for keys that are none."""

    names: tuple[str, ...]
    action: Action
    help: str
    """For the help screen; empty leaves the key out."""
    modes: frozenset[Mode]
    label: str = ""
    """For the footer; empty leaves the key out of it."""


_BOARD = frozenset({Mode.BOARD})
_DETAIL = frozenset({Mode.DETAIL})
_LISTS = frozenset({Mode.BOARD, Mode.DETAIL, Mode.HELP})
_JOB = frozenset({Mode.BOARD, Mode.DETAIL})
_LINE = frozenset({Mode.FILTER})
_QUESTION = frozenset({Mode.CONFIRM})

KEYS: tuple[Key, ...] = (
    Key(("q",), Action.QUIT, "quit", _LISTS, "quit"),
    Key(("ctrl+c",), Action.QUIT, "quit, from anywhere", frozenset(Mode)),
    Key(("?",), Action.HELP, "this help", _LISTS, "help"),
    Key(("tab",), Action.NEXT_PANE, "next pane", _BOARD, "pane"),
    Key(("shift+tab",), Action.PREVIOUS_PANE, "previous pane", _BOARD),
    Key(("1",), Action.PANE_1, "queues", _BOARD),
    Key(("2",), Action.PANE_2, "workers", _BOARD),
    Key(("3",), Action.PANE_3, "jobs", _BOARD),
    Key(("j", "down"), Action.DOWN, "down", _LISTS),
    Key(("k", "up"), Action.UP, "up", _LISTS),
    Key(("pagedown", "space"), Action.PAGE_DOWN, "a page down", _LISTS),
    Key(("pageup",), Action.PAGE_UP, "a page up", _LISTS),
    Key(("g", "home"), Action.FIRST, "to the first row", _LISTS),
    Key(("G", "end"), Action.LAST, "to the last row", _LISTS),
    Key(("enter",), Action.OPEN, "a queue: its jobs; a job: its attempts and errors", _BOARD, "open"),
    Key(("escape",), Action.BACK, "back; clears the filter; the jobs of all queues again", _LISTS),
    Key(("v",), Action.STATE, "jobs: running, ready, scheduled, dead, done, cancelled, expired", _BOARD, "state"),
    Key(("/",), Action.FILTER, "rows of this pane with these words; !word leaves rows out", _BOARD, "filter"),
    Key(("s",), Action.SORT, "sort by the next column", _BOARD, "sort"),
    Key(("I",), Action.INVERT, "turn the order round", _BOARD),
    Key(("Z",), Action.FREEZE, "freeze the screen, and go on", _JOB, "freeze"),
    Key(("c",), Action.CANCEL, "cancel the selected job (asks first)", _JOB, "cancel"),
    Key(("r",), Action.RETRY, "run a dead, cancelled or expired job again (asks first)", _JOB, "retry"),
    Key(("p",), Action.PAUSE, "pause the selected queue, or resume it (asks first)", _BOARD, "pause"),
    Key(("y", "Y"), Action.YES, "", _QUESTION),
    Key(("n", "N", "escape", "q", "enter"), Action.NO, "", _QUESTION),
    Key(("enter",), Action.ACCEPT, "", _LINE),
    Key(("escape",), Action.NO, "", _LINE),
    Key(("backspace", "ctrl+h"), Action.ERASE, "", _LINE),
    Key(("ctrl+u",), Action.ERASE_ALL, "", _LINE),
)

_BY_NAME: dict[tuple[Mode, str], Action] = {
    (mode, name): key.action for key in KEYS for mode in key.modes for name in key.names
}
_SHOWN = {"space": "Space", "pagedown": "PgDn", "pageup": "PgUp", "shift+tab": "Shift-Tab", "ctrl+c": "Ctrl-C"}


def action_for(mode: Mode, name: str) -> Action | None:
    """What the key does in this mode; None for nothing."""
    return _BY_NAME.get((mode, name))


def shown(name: str) -> str:
    """A key's name for people."""
    return _SHOWN.get(name, name if len(name) == 1 else name.capitalize())
