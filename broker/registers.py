"""Small values that others keep with the broker: durable, told to all, changed by compare-and-set.

The scheduler's progress and the orders that operators give it are such: two schedulers see the same, and none of them
can undo what the other has written. The broker does not look into a value.
"""

from __future__ import annotations

import msgspec

import zq.protocol.messages as m
from zq.broker.book import Book
from zq.protocol import limits
from zq.protocol.errors import Code

_FACT = "register:"


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    revision: int
    value: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Kept).decode


class Registers:
    def __init__(self, book: Book) -> None:
        self._book = book
        self._kept = {
            name.removeprefix(_FACT): _decode(value)
            for name, value in book.view.facts().items()
            if name.startswith(_FACT)
        }

    def read(self, ask: m.AskRegisters) -> m.Registers:
        """Those whose names begin with the prefix, by name. All of them fit into one message."""
        found = [
            m.Register(name, kept.revision, kept.value)
            for name, kept in sorted(self._kept.items())
            if name.startswith(ask.prefix)
        ]
        return m.Registers(ask.request, found)

    def set(self, order: m.SetRegister) -> m.RegisterSet | tuple[Code, str]:
        """Durable with this round's commit. One that somebody else has changed stays as it is, and is the answer; the
        same order again is done."""
        kept = self._kept.get(order.name, _Kept(0, b""))
        if order.revision == kept.revision and order.value == kept.value:
            return m.RegisterSet(order.request, m.Register(order.name, kept.revision, kept.value), True)
        if order.revision != kept.revision + 1:
            return m.RegisterSet(order.request, m.Register(order.name, kept.revision, kept.value), False)
        if kept.revision == 0 and len(self._kept) >= limits.REGISTERS_MAX:
            return Code.BUSY, f"there are {limits.REGISTERS_MAX} registers already"
        kept = self._kept[order.name] = _Kept(order.revision, order.value)
        self._book.facts[_FACT + order.name] = _encode(kept)
        return m.RegisterSet(order.request, m.Register(order.name, kept.revision, kept.value), True)
