"""What a power failure may leave: from what was recorded, images of the journal's file at every moment."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.durability.recorder import Event, FolderSync, Rename, Say, Sync, Write

PAGE_BYTES = 4096
SECTOR_BYTES = 512


@dataclass(frozen=True)
class Image:
    data: bytes | None
    """None: the journal does not have its name yet."""
    acked: int
    """Batches that were acknowledged, or -1 before the journal was first opened."""
    epoch: int
    """The last one that was told."""
    moment: str


@dataclass
class _Disk:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes]] = field(default_factory=list)
    named: bool = False
    naming: bool = False

    def write(self, write: Write) -> None:
        if write.synced:
            _put(self.durable, write.offset, write.data)
        else:
            self.pending.append((write.offset, write.data))

    def sync(self) -> None:
        for offset, data in self.pending:
            _put(self.durable, offset, data)
        self.pending.clear()


def images(events: Sequence[Event], seed: int) -> Iterator[Image]:
    """For every write and sync: an image before it with none, with all and with parts of what was not synced, and, of
    a synced write, torn between sectors."""
    rng = random.Random(seed)
    disk = _Disk()
    acked, epoch = -1, 0
    for number, event in enumerate(events):
        if isinstance(event, Say):
            if event.word == "EPOCH":
                epoch, acked = event.number, max(acked, 0)
            else:
                acked = event.number
        elif isinstance(event, Rename):
            disk.naming = True
        elif isinstance(event, FolderSync):
            disk.named = disk.named or disk.naming
        moment = f"event {number}, {type(event).__name__}, after ACK {acked}"
        torn = [(event.offset, event.data)] if isinstance(event, Write) else []
        for kind, part in _parts(rng, disk.pending + torn):
            data = bytearray(disk.durable)
            for offset, piece in part:
                _put(data, offset, piece)
            there = disk.named or (disk.naming and rng.random() < 0.5)
            yield Image(bytes(data) if there else None, acked, epoch, f"{moment}, {kind}")
        if isinstance(event, Write):
            disk.write(event)
        elif isinstance(event, Sync):
            disk.sync()


def _parts(
    rng: random.Random, writes: list[tuple[int, bytes]]
) -> Iterator[tuple[str, list[tuple[int, bytes]]]]:
    yield "nothing unsynced", []
    if not writes:
        return
    yield "everything unsynced", writes
    for kind, size in (("pages", PAGE_BYTES), ("pages", PAGE_BYTES), ("sectors", SECTOR_BYTES)):
        share = rng.choice((0.1, 0.5, 0.9))
        yield f"some {kind}", [piece for piece in _pieces(writes, size) if rng.random() < share]


def _pieces(writes: list[tuple[int, bytes]], size: int) -> Iterator[tuple[int, bytes]]:
    """The writes, cut where a disk may tear them."""
    for offset, data in writes:
        start = 0
        while start < len(data):
            end = start + size - (offset + start) % size
            yield offset + start, data[start:end]
            start = end


def _put(data: bytearray, offset: int, piece: bytes) -> None:
    if len(data) < offset + len(piece):
        data.extend(bytes(offset + len(piece) - len(data)))
    data[offset : offset + len(piece)] = piece
