"""The write-ahead log: what was decided since the tables were last written to disk, one record for each commit.

One file of a fixed size, filled with zeros when it is made, and written over again and again: an `fdatasync` of it is
one flush of data and never one of the file system's own bookkeeping. A record begins at a block of its own, so that
writing it can harm no record before it, and carries the tag of its round: 16 bytes that the tables name, too, and that
nobody else can know. Records of any other tag are leftovers of earlier rounds.

    tag 16 · number u32 · length u32 · CRC-32 of all the rest u32 · payload · zeros up to the next block

A record counts if it and all before it are whole. The last one may be torn by a crash: nobody was told of it. A whole
one behind a broken one means that something was lost that was told, and is refused.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

BLOCK_BYTES = 4096
TAG_BYTES = 16
SIZE_BYTES = 8 << 20
_HEAD = struct.Struct("<16sIII")


class LogDamaged(Exception):
    """A record that was told of cannot be read any more."""


def make_log(path: Path, size_bytes: int = SIZE_BYTES) -> None:
    """Make an empty log in the place of whatever is there, durable but for its name. Raises OSError."""
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        # Real zeros: blocks that are only reserved would each cost a flush of bookkeeping when first written.
        zeros = bytes(1 << 20)
        for offset in range(0, size_bytes, len(zeros)):
            _write(descriptor, zeros[: size_bytes - offset], offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    new.rename(path)


class WriteAheadLog:
    """The log in `path`, which exists. Raises OSError wherever the disk does; the log is of no use then."""

    def __init__(self, path: Path, *, sync: bool = True) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._size_bytes = os.fstat(self._file).st_size // BLOCK_BYTES * BLOCK_BYTES
        self._sync = sync
        self._tag = b""
        self._number = 0
        self._end = 0

    def begin(self, tag: bytes) -> None:
        """Start a round: the next record is the first of this tag. What was in the log is done with."""
        assert len(tag) == TAG_BYTES
        self._tag, self._number, self._end = tag, 0, 0

    def append(self, payload: bytes) -> bool:
        """Add a record; durable when this returns. False, and nothing done, if there is no room for it."""
        length = len(payload)
        blocks_bytes = -(-(_HEAD.size + length) // BLOCK_BYTES) * BLOCK_BYTES
        if self._end + blocks_bytes > self._size_bytes:
            return False
        head = _HEAD.pack(self._tag, self._number, length, _checksum(self._tag, self._number, payload))
        _write(self._file, b"".join((head, payload, bytes(blocks_bytes - _HEAD.size - length))), self._end)
        if self._sync:
            os.fdatasync(self._file)
        self._number += 1
        self._end += blocks_bytes
        return True

    @property
    def empty(self) -> bool:
        return self._number == 0

    @property
    def half_full(self) -> bool:
        return self._end * 2 > self._size_bytes

    def read(self, tag: bytes) -> Iterator[bytes]:
        """The payloads of a round, in order. Raises LogDamaged, behind those that are whole."""
        offset = number = 0
        while (payload := self._payload(tag, number, offset)) is not None:
            yield payload
            offset += -(-(_HEAD.size + len(payload)) // BLOCK_BYTES) * BLOCK_BYTES
            number += 1
        for later in range(offset + BLOCK_BYTES, self._size_bytes, BLOCK_BYTES):
            head = os.pread(self._file, _HEAD.size, later)
            if head.startswith(tag) and self._payload(tag, _HEAD.unpack(head)[1], later) is not None:
                raise LogDamaged(f"record {number} of the log cannot be read, and there are later ones")

    def _payload(self, tag: bytes, number: int, offset: int) -> bytes | None:
        head = os.pread(self._file, _HEAD.size, offset)
        if len(head) < _HEAD.size:
            return None
        found, its_number, length, checksum = _HEAD.unpack(head)
        if (found, its_number) != (tag, number) or length > self._size_bytes - offset - _HEAD.size:
            return None
        payload = os.pread(self._file, length, offset + _HEAD.size)
        return payload if _checksum(tag, number, payload) == checksum and len(payload) == length else None

    def close(self) -> None:
        os.close(self._file)


def _checksum(tag: bytes, number: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(tag + number.to_bytes(4, "little") + len(payload).to_bytes(4, "little")))


def _write(descriptor: int, data: bytes, offset: int) -> None:
    """All of it; a disk that fills up may take a part first."""
    done = os.pwrite(descriptor, data, offset)
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)
