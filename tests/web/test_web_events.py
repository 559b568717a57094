"""What streams are made of, without a stream: the format and the ring."""

from __future__ import annotations

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from zq.protocol.job import Cause, State
from zq.protocol.messages import EventInfo
from zq.web import sse
from zq.web.event_feed import News, Ring


class Text(msgspec.Struct):
    text: str


@given(st.text(), st.integers(0, 1 << 62))
def test_any_text_is_one_event_with_one_line_of_data(text: str, number: int) -> None:
    block = sse.event(Text(text), number=number, kind="step").decode()
    lines = block.split("\n")
    assert lines[:2] == [f"id: {number}", "event: step"]
    assert lines[3:] == ["", ""]
    assert json.loads(lines[2].removeprefix("data: ")) == {"text": text}
    assert "\r" not in block


def test_a_beat_makes_no_event_and_moves_the_place_to_resume() -> None:
    assert sse.beat(None) == b": beat\n\n"
    assert sse.beat(7) == b": beat\nid: 7\n\n"


@given(st.text() | st.integers(0, 10**20).map(str))
def test_the_place_to_resume_is_a_number_or_refused(text: str) -> None:
    try:
        number = sse.resume_number(text)
    except ValueError:
        return
    assert number is None if not text else str(number) == text.lstrip("0").rjust(1, "0")


def event(number: int) -> EventInfo:
    return EventInfo(number, 1, bytes(16), "q", "t", Cause.ACCEPT, State.READY, 0, "", "")


@given(st.integers(0, 5), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=12), st.integers(1, 6))
def test_the_ring_gives_all_that_came_after_a_number_or_says_it_cannot(
    first: int, news: list[tuple[int, int]], size: int
) -> None:
    """Each of `news`: how many events were forgotten before it, and how many it has."""
    ring = Ring(first, size)
    kept: list[int] = []
    last = first
    for forgotten, count in news:
        numbers = list(range(last + forgotten + 1, last + forgotten + 1 + count))
        if not numbers and not forgotten:
            continue
        last = numbers[-1] if numbers else last + forgotten
        kept = [*([] if forgotten else kept), *numbers]
        ring.add(News([event(number) for number in numbers], last, bool(forgotten)))
        kept = kept[-size:]
    for number in range(last + 3):
        found = ring.after(number)
        if found is None:
            assert number > last or number < (kept[0] - 1 if kept else last)
        else:
            assert number >= (kept[0] - 1 if kept else last), "it has a hole"
            assert [one.number for one in found.events] == [one for one in kept if one > number]
            assert found.last == last
