"""What the monitor shows, as lines for a given width and height. Pure: the same board and state give the same lines."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, tzinfo
from typing import Any

from zq.monitor import tables
from zq.monitor.detail import detail_lines, wrapped
from zq.monitor.drawing import UTF8, Line, Signs, Span, Style, clip, fitting, head, row, spread, width
from zq.monitor.keys import KEYS, Action, Mode, shown
from zq.monitor.model import Board
from zq.monitor.state import Change, Pane, Pause, Ui
from zq.monitor.units import count, duration, microseconds, rate, size
from zq.protocol import messages
from zq.protocol.job import State

PANE_ROWS_MIN = 1
"""Rows a pane keeps under its head, however little room there is."""
ALARMS_SHOWN = 2
TROUBLE_LINES_MAX = 3
"""For what the last attempt to reach the broker said: it tells what to do."""
_COLUMNS: dict[Pane, Sequence[Any]] = {
    Pane.QUEUES: tables.QUEUES, Pane.WORKERS: tables.WORKERS, Pane.JOBS: tables.JOBS,
}  # fmt: skip


def screen(
    board: Board, ui: Ui, width_cells: int, height_rows: int, signs: Signs = UTF8, zone: tzinfo = UTC
) -> list[Line]:
    """The whole screen: exactly `height_rows` lines of at most `width_cells` cells."""
    top = header(board, width_cells, signs, frozen=ui.frozen is not None)
    bottom = footer(ui, board, width_cells, signs)
    room = max(0, height_rows - len(top) - 1)
    if ui.mode is Mode.HELP or (ui.mode is Mode.CONFIRM and ui.asked_from is Mode.HELP):
        middle = _scrolled(help_lines(signs), ui, room)
    elif ui.opened is not None:
        middle = _scrolled(_detail(board, ui, width_cells, signs, zone), ui, room)
    else:
        middle = panes(board, ui, width_cells, room, signs)
    middle = [clip(line, width_cells, signs) for line in middle]
    if board.silent:
        middle = [_dimmed(line) for line in middle]
    blank: list[Line] = [()] * (room - len(middle))
    above = [*top, *middle, *blank][: height_rows - 1]
    return [*above, bottom]


def _dimmed(line: Line) -> Line:
    """Old data: nothing of it stands out, except where the user is."""
    return tuple(Span(s.text, s.style if s.style is Style.HERE else Style.QUIET) for s in line)


def _scrolled(lines: list[Line], ui: Ui, room: int) -> list[Line]:
    ui.scroll_max = max(0, len(lines) - room)
    ui.page_rows = max(1, room - 1)
    ui.scroll = min(ui.scroll, ui.scroll_max)
    return lines[ui.scroll : ui.scroll + room]


# ------------------------------------------------------------------------------------------------- header


def header(board: Board, width_cells: int, signs: Signs, *, frozen: bool = False) -> list[Line]:
    """Three lines about the broker, then one for each alarm, at most ALARMS_SHOWN; no line when all is well."""
    lines = [spread(_who(board, signs), _contact(board, signs, frozen), width_cells, signs)]
    if board.broker is None:
        if board.trouble:
            parts = wrapped(signs.clean(board.trouble), width_cells)[:TROUBLE_LINES_MAX]
            lines += [(Span(part, Style.WARN),) for part in parts]
        return lines
    lines += [_wrap_parts(parts, width_cells, signs) for parts in (_totals(board), _journal(board))]
    if board.silent:
        lines = [lines[0], *(_dimmed(line) for line in lines[1:])]
    lines += _alarm_lines(board, width_cells, signs)
    return lines


def _who(board: Board, signs: Signs) -> Line:
    parts = [Span("zq-top", Style.HEAD), Span(" "), Span(signs.clean(board.address), Style.STRONG)]
    if board.broker is not None:
        software = signs.clean(board.broker.software)
        text = f"  up {duration(board.broker.uptime_ms / 1000)}  epoch {board.broker.epoch}  {software}"
        parts.append(Span(text.rstrip()))
    return tuple(parts)


def _contact(board: Board, signs: Signs, frozen: bool) -> Line:
    if board.silent:
        word = "no contact" if board.broker is not None else "no answer"
        return (Span(f" {signs.alarm} {word} {duration(board.age_s)} ", Style.ALARM),)
    if frozen:
        return (Span(" FROZEN ", Style.HERE),)
    if board.broker is None:
        return (Span("connecting", Style.QUIET),)
    return (Span(f"{duration(board.age_s)} ago", Style.QUIET),)


Part = tuple[str, str, Style]
"""A label, its value, and what the value means."""


def _totals(board: Board) -> list[Part]:
    t = board.totals
    return [
        ("ready", count(t.ready), Style.STRONG),
        ("running", f"{count(t.running)}/{count(t.slots)}", Style.BUSY if t.running else Style.PLAIN),
        ("scheduled", count(t.scheduled), Style.PLAIN),
        ("dead", count(t.dead), Style.WARN if t.dead else Style.PLAIN),
        ("in", f"{rate(t.rates.accepted)}/s", Style.PLAIN),
        ("done", f"{rate(t.rates.done)}/s", Style.GOOD if t.rates.done else Style.PLAIN),
        ("failed", f"{rate(t.rates.failed)}/s", Style.BAD if t.rates.failed else Style.PLAIN),
        ("done in all", count(t.done), Style.PLAIN),
    ]


def _journal(board: Board) -> list[Part]:
    broker = board.broker
    assert broker is not None
    refused = sum(broker.refused.values())
    return [
        ("journal", size(broker.journal_bytes), Style.PLAIN),
        ("disk free", size(broker.disk_free_bytes), Style.PLAIN),
        ("commit p99", microseconds(broker.commit_p99_us), Style.PLAIN),
        ("commits", count(broker.commits), Style.PLAIN),
        ("peers", count(broker.sessions), Style.PLAIN),
        ("bad messages", count(refused), Style.WARN if refused else Style.PLAIN),
    ]


def _wrap_parts(parts: Sequence[Part], width_cells: int, signs: Signs) -> Line:
    """As many whole parts as the width holds: half a number is worse than none."""
    spans: list[Span] = []
    for label, value, style in parts:
        part = (Span("  " if spans else ""), Span(f"{label} ", Style.QUIET), Span(value, style))
        if width((*spans, *part)) > width_cells:
            break
        spans += part
    return tuple(spans)


def _alarm_lines(board: Board, width_cells: int, signs: Signs) -> list[Line]:
    lines: list[Line] = []
    if board.silent:
        reason = signs.clean(board.trouble or f"the broker is silent; what is shown is {duration(board.age_s)} old")
        parts = wrapped(reason, width_cells - 2)[:TROUBLE_LINES_MAX]
        lines += [(Span(f"{signs.alarm if i == 0 else ' '} {part}", Style.BAD),) for i, part in enumerate(parts)]
    hidden = len(board.alarms) - ALARMS_SHOWN
    for index, text in enumerate(board.alarms[:ALARMS_SHOWN]):
        more = f"  (+{hidden} more)" if hidden > 0 and index == ALARMS_SHOWN - 1 else ""
        right: Line = (Span(more, Style.BAD),) if more else ()
        lines.append(spread((Span(f"{signs.alarm} {signs.clean(text)}", Style.BAD),), right, width_cells, signs))
    return lines


# -------------------------------------------------------------------------------------------------- panes


def share(room: int, wants: Sequence[int], favourite: int) -> list[int]:
    """Rows for each of several panes: what they want where it fits, else the favourite's wish first.

    Nobody gets more than it wants; everybody gets PANE_ROWS_MIN while there are that many.
    """
    given = [min(want, PANE_ROWS_MIN) for want in wants]
    order = sorted(range(len(wants)), key=lambda i: i != favourite)
    left = room - sum(given)
    fair = max(PANE_ROWS_MIN, room // max(1, len(wants)))
    for limit in (fair, room):
        for i in order:
            more = max(0, min(wants[i], limit) - given[i])
            take = max(0, min(more, left))
            given[i] += take
            left -= take
    return given


def panes(board: Board, ui: Ui, width_cells: int, room: int, signs: Signs) -> list[Line]:
    """The three tables, each under its head, in `room` rows."""
    rows = {pane: ui.rows(board, pane) for pane in Pane}
    wants = [max(1, len(rows[pane])) for pane in Pane]
    heights = share(max(0, room - len(Pane)), wants, ui.pane - 1)
    lines: list[Line] = []
    for pane, height in zip(Pane, heights, strict=True):
        lines += _pane(board, ui, pane, rows[pane], width_cells, height, signs)
    ui.page_rows = max(1, heights[ui.pane - 1])
    return lines


def _pane(
    board: Board, ui: Ui, pane: Pane, rows: Sequence[Any], width_cells: int, height: int, signs: Signs
) -> list[Line]:
    sized = fitting(_COLUMNS[pane], width_cells - 2)
    order = ui.sorts[pane]
    falling = order.falling != ui.inverted.get(pane, False)
    style = Style.HERE if pane is ui.pane else Style.HEAD
    titles = head(sized, order.title, falling, signs)
    lines: list[Line] = [(Span(f"{pane.value} {titles}", style),)]
    if not rows:
        return [*lines, (Span(f"  {_nothing(board, ui, pane)}", Style.QUIET),)][: height + 1]
    chosen = ui.chosen_index(rows, pane)
    first = max(0, min(chosen // max(1, height) * height, len(rows) - height))
    for index, record in enumerate(rows[first : first + height], start=first):
        here = pane is ui.pane and index == chosen
        line = (Span(f"{signs.pointer} " if here else "  "), *row(record, sized, signs))
        lines.append(tuple(Span(s.text, Style.HERE) for s in line) if here else line)
    return lines


def _nothing(board: Board, ui: Ui, pane: Pane) -> str:
    if board.broker is None:
        return "waiting for the broker"
    if ui.filters.get(pane):
        return "nothing matches the filter"
    if pane is Pane.JOBS:
        return f"no {jobs_title(ui)}"
    return "no queues yet: the first job makes one" if pane is Pane.QUEUES else "no workers are connected"


def jobs_title(ui: Ui) -> str:
    where = f" in {ui.query.queue}" if ui.query.queue else ""
    return f"{ui.query.state.label} jobs{where}"


def _detail(board: Board, ui: Ui, width_cells: int, signs: Signs, zone: tzinfo) -> list[Line]:
    if ui.detail is None:
        return [(Span("asking the broker …" if not signs.ascii_only else "asking the broker ...", Style.QUIET),)]
    now_ms = board.broker.now_ms if board.broker is not None else 0
    return detail_lines(ui.detail, now_ms, width_cells, signs, zone, ui.why)


# ------------------------------------------------------------------------------------------- footer, help


def footer(ui: Ui, board: Board, width_cells: int, signs: Signs) -> Line:
    """The question, the line that is typed, the last answer, or the keys; at the right what is filtered."""
    if ui.mode is Mode.CONFIRM and ui.question is not None:
        return spread((Span(_question(ui.question, board, ui, signs), Style.WARN),), (), width_cells, signs)
    if ui.mode is Mode.FILTER:
        typed = signs.clean(ui.typed)
        while typed and width((Span(typed),)) > width_cells - 10:
            typed = typed[1:]
        return (Span("filter: ", Style.STRONG), Span(typed), Span(" ", Style.HERE))
    if ui.note:
        return spread((Span(signs.clean(ui.note), Style.WARN),), (), width_cells, signs)
    where = clip(_where(board, ui, signs), width_cells, signs)
    return spread(_labels(ui, width_cells - width(where) - 1), where, width_cells, signs)


def _labels(ui: Ui, room: int) -> Line:
    """The keys of use here, as many whole ones as there is room for."""
    keys = [key for key in KEYS if key.label and ui.mode in key.modes]
    if ui.mode is Mode.BOARD:
        idle = (Action.SORT, Action.FREEZE) if ui.pane is Pane.JOBS else (Action.STATE, Action.CANCEL, Action.RETRY)
        keys = [key for key in keys if key.action not in idle]
    labels = [(shown(key.names[0]), key.label) for key in keys]
    if ui.mode is not Mode.BOARD:
        labels.insert(0, ("Esc", "back"))
    spans: list[Span] = []
    for name, label in labels:
        room -= len(name) + len(label) + 3
        if room < -2:
            break
        spans += [Span(name, Style.STRONG), Span(f" {label}  ", Style.QUIET)]
    return tuple(spans)


def _where(board: Board, ui: Ui, signs: Signs) -> Line:
    texts = []
    if ui.words:
        texts.append(f"/{signs.clean(ui.words)}")
    if ui.query.state is not State.RUNNING or ui.query.queue:
        texts.append(signs.clean(jobs_title(ui)))
    if board.more:
        texts.append(f"first {len(board.jobs)}")
    return (Span(" ".join(texts), Style.WARN),) if texts else ()


def _question(question: Change | Pause, board: Board, ui: Ui, signs: Signs) -> str:
    if isinstance(question, Pause):
        return f"{'Pause' if question.paused else 'Resume'} queue {signs.clean(question.queue)}? y/n"
    doing = {"cancel": "Cancel", "retry": "Run again"}[question.verb]
    task = next((job.task for job in board.jobs if job.id == question.job_id), "")
    if ui.detail is not None and ui.detail.job.id == question.job_id:
        task = ui.detail.job.task
    named = f" ({signs.clean(task)})" if task else ""
    return f"{doing} job {tables.short_id(question.job_id)}{named}? y/n"


def outcome(order: Change, change: messages.Change) -> str:
    """What the broker said to an order, in words."""
    named = f"job {tables.short_id(order.job_id)}"
    if change.code is None:
        done = {"cancel": "is cancelled", "retry": "will run again"}[order.verb]
        if order.verb == "cancel" and change.state is State.RUNNING:
            done = "is told to stop"
        return f"{named} {done}"
    state = f"; it is {change.state.label}" if change.state is not None else ""
    return f"the broker refused ({change.code.value}): {named} was not changed{state}"


def help_lines(signs: Signs = UTF8) -> list[Line]:
    """The keys, from the table of keys, and what the signs mean."""
    lines: list[Line] = [(Span("Keys", Style.HEAD),)]
    for key in KEYS:
        if key.help:
            names = " ".join(shown(name) for name in key.names)
            lines.append((Span(f"  {names:<14}", Style.STRONG), Span(key.help)))
    lines += [(), (Span("What stands there", Style.HEAD),)]
    for word, meaning in _MEANINGS:
        lines.append((Span(f"  {word:<14}", Style.STRONG), Span(meaning)))
    return [tuple(Span(signs.clean(s.text), s.style) for s in line) for line in lines]


_MEANINGS = (
    ("OLDEST", "how long the job at the head of the queue has been ready"),
    ("RUNNING", "jobs that run, of the slots that workers offer"),
    ("IN/S OUT/S", "jobs accepted and ended per second, mean of the last seconds"),
    ("CONS", "workers that serve the queue; red: jobs wait and none does"),
    ("DISK MEMORY", "what the worker has left for jobs that say what they need"),
    ("HEARD", "since the worker's last heartbeat"),
    ("AGE LIMIT", "running time, and the time limit after which the job is ended"),
    ("stuck, still", "a job shows no sign of life: no CPU time, no bytes, no progress"),
    ("TRY", "this attempt, of those the job has"),
)


def report(board: Board, width_cells: int, signs: Signs = UTF8) -> list[Line]:
    """Everything at once, every row, for a stream: what `zq-top --once` prints."""
    ui = Ui(query=board.query)
    lines = header(board, width_cells, signs)
    for pane in Pane:
        rows = ui.rows(board, pane)
        sized = fitting(_COLUMNS[pane], width_cells)
        lines += [(), (Span(head(sized, "", False, signs), Style.HEAD),)]
        lines += [row(record, sized, signs) for record in rows]
        if not rows:
            lines.append((Span(_nothing(board, ui, pane), Style.QUIET),))
    if board.more:
        lines.append((Span(f"the first {len(board.jobs)} jobs; there are more", Style.QUIET),))
    return [clip(line, width_cells, signs) for line in lines]


