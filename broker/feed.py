"""The events of the journal, for who wants to follow: asked for by number, so a reader can resume and sees every gap.

Readers ask, the broker never pushes: a slow reader costs nothing but the answers it asks for.
"""

from __future__ import annotations

from dataclasses import dataclass

import zq.protocol.messages as m
from zq.broker.book import Book
from zq.broker.records import EventRow
from zq.broker.sessions import Session
from zq.protocol import limits

_SCAN_MAX = 5000
"""Events looked at for one answer; a filter that finds none in them answers empty, with the number to go on from."""


@dataclass(eq=False, slots=True)
class _Reader:
    session: Session
    ask: m.AskEvents
    until_ms: int


class Feed:
    def __init__(self, book: Book) -> None:
        self._book = book
        self._readers: list[_Reader] = []

    def ask(self, session: Session, ask: m.AskEvents, now_ms: int) -> m.Events | None:
        """The answer, or None if it will come later."""
        answer = self._answer(ask)
        if answer.events or answer.gap or not ask.wait_ms or len(self._readers) >= limits.WAITERS_MAX:
            return answer
        self._readers.append(_Reader(session, _from(ask, answer.last), now_ms + ask.wait_ms))
        return None

    def committed(self, now_ms: int) -> list[tuple[Session, m.Events]]:
        """Answers to those who wait and for whom something has come, or whose time is over."""
        if not self._readers:
            return []
        answers: list[tuple[Session, m.Events]] = []
        waiting: list[_Reader] = []
        newest = self._book.view.last_event
        for reader in self._readers:
            if reader.session.ended:
                continue
            if reader.ask.after >= newest and now_ms < reader.until_ms:
                waiting.append(reader)
                continue
            answer = self._answer(reader.ask)
            if answer.events or answer.gap or now_ms >= reader.until_ms:
                answers.append((reader.session, answer))
            else:
                waiting.append(_Reader(reader.session, _from(reader.ask, answer.last), reader.until_ms))
        self._readers = waiting
        return answers

    def _answer(self, ask: m.AskEvents) -> m.Events:
        rows = self._book.view.events(ask.after, _SCAN_MAX)
        newest = self._book.view.last_event
        # A number that is still to come was read before an older journal was restored, or asks what the newest one is.
        gap = (bool(rows) and rows[0].number > ask.after + 1) or ask.after > newest
        found: list[m.EventInfo] = []
        size_bytes = 0
        last = ask.after if rows else newest
        for row in rows:
            last = row.number
            if (not ask.queue or row.queue == ask.queue) and (not ask.job_id or row.job_id == ask.job_id):
                found.append(info(row))
                size_bytes += _size_bytes(row)
                if len(found) == ask.limit or size_bytes > limits.PAGE_BYTES:
                    break
        return m.Events(ask.request, found, last, gap)

    def history(self, newest: int) -> list[m.EventInfo]:
        """A job's events up to its newest, oldest first, as far as they are kept; committed ones only."""
        found: list[m.EventInfo] = []
        number = newest
        size_bytes = 0
        while number and len(found) < limits.HISTORY_EVENTS_MAX and size_bytes < limits.HISTORY_BYTES_MAX:
            row = self._book.view.event(number)
            if row is None:
                break
            size_bytes += _size_bytes(row)
            found.append(info(row))
            number = row.before
        return found[::-1]


def _from(ask: m.AskEvents, after: int) -> m.AskEvents:
    return m.AskEvents(ask.session, ask.request, after, ask.queue, ask.job_id, ask.wait_ms, ask.limit)


def _size_bytes(row: EventRow) -> int:
    """What the event takes on the wire, at most."""
    return 120 + 4 * (len(row.queue) + len(row.task) + len(row.worker) + len(row.detail))


def info(row: EventRow) -> m.EventInfo:
    return m.EventInfo(
        row.number, row.at_ms, row.job_id, row.queue, row.task, row.cause, row.state, row.attempt, row.worker,
        row.detail,
    )  # fmt: skip
