"""Reading on from a number: what is fetched, what is handed out, what is missing. No broker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from zq import Gap
from zq.client.follow import POLL_S, AsyncFollow, Follow
from zq.client.requests import JobIdLike
from zq.client.verbs import NEWEST
from zq.exceptions import Unavailable
from zq.protocol.job import Cause, State
from zq.protocol.messages import EventInfo, Events


def event(number: int) -> EventInfo:
    return EventInfo(number, 0, bytes(16), "q", "m.f", Cause.ACCEPT, State.READY, 0, "", "")


class Journal:
    """Has the events `first` to `newest`; is away as often as it is told."""

    def __init__(self, first: int, newest: int, queue_has: Sequence[int] | None = None) -> None:
        self.first, self.newest = first, newest
        self.queue_has = queue_has
        self.away = 0
        self.asked: list[tuple[int, float]] = []

    def events(
        self, after: int = 0, queue: str = "", job_id: JobIdLike | None = None, wait_s: float = 0.0, limit: int = 500
    ) -> Events:
        self.asked.append((after, wait_s))
        if self.away:
            self.away -= 1
            raise Unavailable("away")
        if after > self.newest:
            return Events(1, [], self.newest, True)
        numbers = list(range(max(after + 1, self.first), self.newest + 1))[:2]
        last = numbers[-1] if numbers else after
        kept = [event(n) for n in numbers if self.queue_has is None or n in self.queue_has]
        if not numbers:
            self.newest += 1  # while it waited, one more has come
            return self.events(after, queue, job_id, wait_s, limit)
        return Events(1, kept, last, bool(numbers) and numbers[0] > after + 1)


def test_events_come_in_order_page_after_page_and_the_broker_waits_for_the_next() -> None:
    journal = Journal(1, 5)
    follow = Follow(journal, 0, "", None)
    assert [next(follow) for _ in range(7)] == [event(n) for n in range(1, 8)]
    assert {wait_s for _, wait_s in journal.asked} == {POLL_S}
    assert follow.last == 7


def test_what_is_missing_is_said_where_it_is_missing() -> None:
    follow = Follow(Journal(10, 11), 3, "", None)
    assert [next(follow) for _ in range(3)] == [Gap(3, 9), event(10), event(11)]


def test_another_journal_is_a_gap_and_read_on_from_its_newest() -> None:
    follow = Follow(Journal(1, 4), 900, "", None)
    assert next(follow) == Gap(900, 4)
    assert follow.last == 4
    assert next(follow) == event(5)


def test_a_reader_that_begins_now_sees_what_comes_after_and_no_gap() -> None:
    journal = Journal(5, 8)
    follow = Follow(journal, None, "", None)
    assert follow.last is None
    assert next(follow) == event(9)
    assert journal.asked[0] == (NEWEST, 0.0)


def test_after_a_broker_that_was_away_nothing_is_lost_and_nothing_comes_twice() -> None:
    journal = Journal(1, 4)
    follow = Follow(journal, 0, "", None)
    assert [next(follow), next(follow)] == [event(1), event(2)]
    journal.away = 2
    for _ in range(2):
        with pytest.raises(Unavailable):
            next(follow)
    assert next(follow) == event(3)


def test_the_place_stands_behind_what_was_handed_out_not_what_was_fetched() -> None:
    follow = Follow(Journal(1, 4), 0, "", None)
    next(follow)
    assert follow.last == 1


def test_events_of_others_move_the_place_on() -> None:
    follow = Follow(Journal(1, 4, queue_has=[6]), 0, "q", None)
    assert next(follow) == event(6)
    assert follow.last == 6


def test_the_same_for_asyncio() -> None:
    class Asks:
        def __init__(self) -> None:
            self.journal = Journal(10, 11)

        async def events(
            self,
            after: int = 0,
            queue: str = "",
            job_id: JobIdLike | None = None,
            wait_s: float = 0.0,
            limit: int = 500,
        ) -> Events:
            return self.journal.events(after, queue, job_id, wait_s, limit)

    async def read() -> list[EventInfo | Gap]:
        found: list[EventInfo | Gap] = []
        async for item in AsyncFollow(Asks(), 3, "", None):
            found.append(item)
            if len(found) == 4:
                break
        return found

    assert asyncio.run(read()) == [Gap(3, 9), event(10), event(11), event(12)]
