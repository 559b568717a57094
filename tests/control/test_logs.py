"""The log's two faces."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from zq import logs


@pytest.fixture(autouse=True)
def root_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_json_lines_hold_the_facts_and_chinese_as_it_is() -> None:
    out = io.StringIO()
    logs.configure("info", json=True, stream=out)
    logging.getLogger("zq.x").info("merged %s", "张伟", extra={"job": "ab", "bytes": 3, "path": object})
    line = out.getvalue()
    assert "张伟" in line
    event = json.loads(line)
    assert (event["message"], event["level"], event["logger"], event["bytes"]) == ("merged 张伟", "info", "zq.x", 3)


def test_json_is_one_line_even_with_a_traceback() -> None:
    out = io.StringIO()
    logs.configure("info", json=True, stream=out)
    try:
        raise ValueError("no\nway")
    except ValueError:
        logging.getLogger("zq.x").exception("failed")
    assert out.getvalue().count("\n") == 1
    assert "no\nway" in json.loads(out.getvalue())["exception"]


def test_text_has_colours_on_a_terminal_only() -> None:
    file, terminal = io.StringIO(), Terminal()
    logs.configure("info", stream=file)
    logging.getLogger("zq.x").warning("low disk", extra={"free_mib": 3, "why": "a b"})
    logs.configure("info", stream=terminal)
    logging.getLogger("zq.x").warning("low disk")
    assert "warning zq.x: low disk  free_mib=3 why='a b'" in file.getvalue()
    assert "\x1b" not in file.getvalue()
    assert "\x1b[33m" in terminal.getvalue()


def test_text_does_not_let_others_drive_the_terminal() -> None:
    out = Terminal()
    logs.configure("info", stream=out)
    logging.getLogger("zq.x").info("got %s", "\x1b[2J\r\n2026 forged", extra={"name_": "\x1b]0;x\x07"})
    assert "\x1b[2J" not in out.getvalue()
    assert "\x1b]0" not in out.getvalue()
    assert "\n    2026 forged" in out.getvalue()


def test_the_level_holds_and_a_second_call_replaces_the_first() -> None:
    first, second = io.StringIO(), io.StringIO()
    logs.configure("debug", stream=first)
    logs.configure("error", stream=second)
    logging.getLogger("zq.x").warning("quiet")
    logging.getLogger("zq.x").error("loud")
    assert first.getvalue() == ""
    assert "loud" in second.getvalue()
    assert "quiet" not in second.getvalue()


def test_a_wrong_log_call_still_says_something() -> None:
    out = io.StringIO()
    logs.configure("info", stream=out)
    logging.getLogger("zq.x").info("two %s %s", "one")  # noqa: PLE1206 (the mistake is the point)
    assert "two %s %s ('one',)" in out.getvalue()


def test_a_long_message_is_cut() -> None:
    out = io.StringIO()
    logs.configure("info", stream=out)
    logging.getLogger("zq.x").info("x" * 100_000)
    assert len(out.getvalue()) < 20_000


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="debug, info, warning, error"):
        logs.configure("loud")
