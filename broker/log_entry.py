"""A commit as it stands in the log: where each job has gone. Where it came from is known by the commits before."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from zq.broker.journal import Notes, Step
from zq.broker.records import AttemptRow, EventRow, JobRow, KeptResult


class LoggedStep(msgspec.Struct, frozen=True, array_like=True):
    id: bytes
    after: JobRow | None
    spec: bytes | None
    attempts: tuple[AttemptRow, ...]
    result: KeptResult | None
    events: tuple[EventRow, ...]
    anew: bool


class Entry(msgspec.Struct, frozen=True, array_like=True):
    time_ms: int
    steps: list[LoggedStep]
    facts: dict[str, bytes]
    events: list[EventRow]

    @property
    def notes(self) -> Notes:
        return Notes(self.facts, self.events)

    def steps_from(self, row: Callable[[bytes], JobRow | None]) -> list[Step]:
        """The steps, from where `row` has each job before this commit."""
        return [
            Step(row(one.id), one.after, one.spec, one.attempts, one.result, one.events, one.anew) for one in self.steps
        ]


UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError)
"""What decoding raises of bytes that are not what was written."""
_encode = msgspec.msgpack.Encoder().encode
decode_entry = msgspec.msgpack.Decoder(Entry).decode
"""Raises one of UNREADABLE."""


def encode_entry(steps: Sequence[Step], now_ms: int, notes: Notes) -> bytes:
    # As plain tuples, which are what the structs look like in msgpack: one object less to make for each step.
    logged = [(_id(one), one.after, one.spec, one.attempts, one.result, one.events, one.anew) for one in steps]
    return _encode((now_ms, logged, notes.facts, notes.events))


def _id(step: Step) -> bytes:
    row = step.after or step.before
    assert row is not None
    return row.id
