"""What a power failure may leave: from what was recorded, images of the journal's files at every moment."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.durability.recorder import Event, FolderSync, Rename, Say, Sync, Write

PAGE_BYTES = 4096
SECTOR_BYTES = 512


Piece = tuple[str, int, bytes]
"""File, offset, bytes."""


@dataclass(frozen=True)
class Image:
    data: dict[str, bytes] | None
    """By file. None: the journal does not have its name yet."""
    acked: int
    """Batches that were acknowledged, or -1 before the journal was first opened."""
    epoch: int
    """The last one that was told."""
    moment: str


@dataclass
class _Disk:
    durable: dict[str, bytearray] = field(default_factory=dict)
    pending: list[Piece] = field(default_factory=list)
    named: bool = False
    naming: bool = False

    def write(self, write: Write) -> None:
        # The file itself is there from its first write on: its name was made before, in a folder that is synced later.
        self.durable.setdefault(write.file, bytearray())
        if write.synced:
            _put(self.durable, (write.file, write.offset, write.data))
        else:
            self.pending.append((write.file, write.offset, write.data))

    def sync(self, file: str) -> None:
        for piece in self.pending:
            if piece[0] == file:
                _put(self.durable, piece)
        self.pending = [piece for piece in self.pending if piece[0] != file]


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
        torn = [(event.file, event.offset, event.data)] if isinstance(event, Write) else []
        for kind, part in _parts(rng, disk.pending + torn):
            data = {name: bytearray(content) for name, content in disk.durable.items()}
            for piece in part:
                _put(data, piece)
            there = disk.named or (disk.naming and rng.random() < 0.5)
            files = {name: bytes(content) for name, content in data.items()} if there else None
            yield Image(files, acked, epoch, f"{moment}, {kind}")
        if isinstance(event, Write):
            disk.write(event)
        elif isinstance(event, Sync):
            disk.sync(event.file)


def _parts(rng: random.Random, writes: list[Piece]) -> Iterator[tuple[str, list[Piece]]]:
    yield "nothing unsynced", []
    if not writes:
        return
    yield "everything unsynced", writes
    for kind, size in (("pages", PAGE_BYTES), ("pages", PAGE_BYTES), ("sectors", SECTOR_BYTES)):
        share = rng.choice((0.1, 0.5, 0.9))
        yield f"some {kind}", [piece for piece in _pieces(writes, size) if rng.random() < share]


def _pieces(writes: list[Piece], size: int) -> Iterator[Piece]:
    """The writes, cut where a disk may tear them."""
    for file, offset, data in writes:
        start = 0
        while start < len(data):
            end = start + size - (offset + start) % size
            yield file, offset + start, data[start:end]
            start = end


def _put(files: dict[str, bytearray], piece: Piece) -> None:
    file, offset, part = piece
    data = files.setdefault(file, bytearray())
    if len(data) < offset + len(part):
        data.extend(bytes(offset + len(part) - len(data)))
    data[offset : offset + len(part)] = part
