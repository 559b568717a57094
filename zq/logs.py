"""How the log of a zq process looks: coloured text on a terminal, plain text in a file, or JSON lines.

Modules log with `logging.getLogger("zq.<folder>")` and give facts by `extra={...}`; only entry points call `configure`.
Plain standard library on purpose: structlog costs every idle process 10 MiB (15 MiB where rich is installed).
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}
_LINE_CHARS_MAX = 16_384
"""Of one event; what a task or a peer says may be long."""


def configure(level: str = "info", json: bool = False, stream: TextIO | None = None) -> None:
    """Send everything that is logged from `level` (debug, info, warning, error) up to `stream` (standard error).

    Calling it again replaces what was set before. Raises ValueError for another level.
    """
    if level not in _LEVELS:
        raise ValueError(f"{level!r} is not a log level; there are {', '.join(_LEVELS)}")
    out = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonLines() if json else Text(colours=out.isatty()))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(_LEVELS[level])
    # They say at INFO what concerns nobody but their own developers.
    for chatty in ("asyncio", "httpx", "httpcore", "urllib3"):
        logging.getLogger(chatty).setLevel(max(_LEVELS[level], logging.WARNING))


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _message(record: logging.LogRecord) -> str:
    """The message, also where its arguments do not fit: a wrong log call must not cost the event."""
    try:
        text = record.getMessage()
    except (TypeError, ValueError):
        text = f"{record.msg} {record.args!r}"
    return text if len(text) <= _LINE_CHARS_MAX else f"{text[:_LINE_CHARS_MAX]}… ({len(text)} characters)"


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, the facts, and the traceback if there is one."""

    def __init__(self) -> None:
        super().__init__()
        self._encoder = msgspec.json.Encoder(enc_hook=str)

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        event |= {name: value for name, value in _facts(record).items() if name not in event}
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        try:
            return self._encoder.encode(event).decode()
        except (TypeError, ValueError, RecursionError):
            return self._encoder.encode({name: str(value) for name, value in event.items()}).decode()


class Text(logging.Formatter):
    """`time level logger message name=value …`, in local time; a traceback below."""

    def __init__(self, *, colours: bool) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname.lower()
        when = datetime.fromtimestamp(record.created).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        said = _tame(_message(record))
        facts = " ".join(f"{name}={_quoted(value)}" for name, value in _facts(record).items())
        shown = f"{level:<7}"
        if self._colours:
            shown = f"\x1b[{_COLOURS.get(level, '0')}m{shown}\x1b[0m"
        line = f"{when} {shown} {record.name}: {said}"
        if facts:
            line += f"  {facts}"
        if record.exc_info:
            line += _tame("\n" + self.formatException(record.exc_info))
        return line


def _tame(text: str) -> str:
    """Without control characters, further lines indented: what others say must not forge lines or drive a terminal."""
    return "".join(c if c.isprintable() else "\n    " if c == "\n" else ascii(c)[1:-1] for c in text)


def _quoted(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    plain = bool(text) and text.isprintable() and not any(c.isspace() or c in "\"'=" for c in text)
    return text if plain else repr(text)
