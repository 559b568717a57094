"""What bytes are, without a decoder: the container by its magic bytes, and whether its structure holds.

A chunk after the first of a time-sliced recording has no header and may begin in the middle of anything, so it cannot
be told from garbage by its first bytes. Joined behind its header it can: from there on the elements must follow each
other without a hole. `walk` checks that, and names the place where it fails. Pure Python over `pread`: hostile bytes
cost time in proportion to their number, and memory not at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

HEAD_BYTES = 512
"""How much of a file `sniff` wants to see."""

_TS_PACKET_BYTES = 188


class Container(Enum):
    """What a file begins as. NONE: no header known to us (a continuation, or not a recording at all)."""

    WEBM = "webm"
    MATROSKA = "mkv"
    MP4 = "mp4"
    MPEG_TS = "ts"
    AVI = "avi"
    NONE = ""


def sniff(head: bytes) -> Container:
    """The container that begins with `head` (the first HEAD_BYTES, or the whole of a shorter file)."""
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _doctype(head)
    if head[4:8] == b"ftyp" and 8 <= int.from_bytes(head[:4], "big") <= 4096:
        return Container.MP4
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return Container.AVI
    if len(head) > 2 * _TS_PACKET_BYTES and all(head[i * _TS_PACKET_BYTES] == 0x47 for i in range(3)):
        return Container.MPEG_TS
    return Container.NONE


def _doctype(head: bytes) -> Container:
    at = head.find(b"\x42\x82", 4, 128)
    if at < 0:
        return Container.NONE
    name = head[at + 3 : at + 3 + (head[at + 2] & 0x7F)] if at + 2 < len(head) else b""
    return {b"webm": Container.WEBM, b"matroska": Container.MATROSKA}.get(name.rstrip(b"\0"), Container.NONE)


@dataclass(frozen=True, slots=True)
class Structure:
    """What `walk` found. `bad_at` is the offset where the structure breaks, None if it holds (a cut end is no break).

    `seekable`: the index (Cues or moov) stands before the media.
    """

    bad_at: int | None
    problem: str = ""
    seekable: bool = False
    whole: bool = False
    """The last element ends where the file ends."""


def walk(handle: int, size_bytes: int, container: Container) -> Structure:
    """Check the structure of an open file from its first byte to its last. Raises OSError only."""

    def read(offset: int, length: int) -> bytes:
        return os.pread(handle, length, offset)

    return (_walk_boxes if container is Container.MP4 else _walk_ebml)(read, size_bytes)


_Reader = Callable[[int, int], bytes]

_EBML, _SEGMENT, _CLUSTER, _CUES, _TRACKS = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0x1C53BB6B, 0x1654AE6B
# Children of Segment; then children of Cluster. Void and CRC-32 may be anywhere.
_IN_SEGMENT = {0x114D9B74, 0x1549A966, _TRACKS, _CLUSTER, _CUES, 0x1043A770, 0x1941A469, 0x1254C367, 0xEC, 0xBF}
_IN_CLUSTER = {0xE7, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF, 0x5854, 0xEC, 0xBF}
_BLOCKS = {0xA3, 0xA0}


class _Window:
    """Sequential small reads at rising offsets, out of one buffer."""

    def __init__(self, read: _Reader) -> None:
        self._read = read
        self._start = 0
        self._bytes = b""

    def at(self, offset: int, length: int) -> bytes:
        begin = offset - self._start
        if begin < 0 or begin + length > len(self._bytes):
            self._bytes = self._read(offset, 65536)
            self._start, begin = offset, 0
        return self._bytes[begin : begin + length]


def _vint(head: bytes, at: int, *, marker: bool, width_max: int) -> tuple[int, int] | None:
    """(value, width) of the number at `at`; None if it is cut off; width 0 if it is not a number."""
    if at >= len(head):
        return None
    width = 9 - head[at].bit_length()
    if width > width_max:
        return 0, 0
    if at + width > len(head):
        return None
    value = int.from_bytes(head[at : at + width], "big")
    return (value if marker else value & ((1 << (7 * width)) - 1)), width


def _walk_ebml(read: _Reader, size_bytes: int) -> Structure:
    window = _Window(read)
    offset, in_cluster, seen_segment = 0, False, False
    blocks = cues_before = 0
    while offset < size_bytes:
        head = window.at(offset, 12)
        ident = _vint(head, 0, marker=True, width_max=4)
        if ident is None:
            break
        length = _vint(head, ident[1], marker=False, width_max=8) if ident[1] else (0, 0)
        if length is None:
            break
        name = ident[0]
        known = ident[1] > 0 and length[1] > 0 and _belongs(name, offset, seen_segment, in_cluster)
        unknown_size = length[0] == (1 << (7 * length[1])) - 1
        if not known or (unknown_size and name not in (_SEGMENT, _CLUSTER)):
            return Structure(offset, "the bytes do not continue the recording before them")
        if name in _BLOCKS:
            blocks += 1
        elif name == _CUES and not blocks:
            cues_before += 1
        elif name == _SEGMENT:
            seen_segment = True
        in_cluster = name == _CLUSTER or (in_cluster and name not in _IN_SEGMENT - _IN_CLUSTER)
        offset += ident[1] + length[1] + (0 if name in (_SEGMENT, _CLUSTER) else length[0])
    return Structure(None, seekable=cues_before > 0, whole=offset == size_bytes)


def _belongs(name: int, offset: int, seen_segment: bool, in_cluster: bool) -> bool:
    if not seen_segment:
        return name == (_EBML if offset == 0 else _SEGMENT) or (offset > 0 and name in (0xEC, 0xBF))
    return name in _IN_SEGMENT or (in_cluster and name in _IN_CLUSTER)


_BOXES = {
    *(b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"mfra", b"sidx", b"ssix", b"free", b"skip", b"wide", b"pdin"),
    *(b"uuid", b"meta", b"udta", b"prft", b"emsg"),
}


def _walk_boxes(read: _Reader, size_bytes: int) -> Structure:
    offset, moov_first, seen_media = 0, False, False
    while offset < size_bytes:
        head = read(offset, 16)
        if len(head) < 8:
            break
        kind, length = head[4:8], int.from_bytes(head[:4], "big")
        if kind not in _BOXES or (kind == b"ftyp" and offset > 0):
            return Structure(offset, "the bytes do not continue the recording before them")
        if length == 1:
            if len(head) < 16:
                break
            length = int.from_bytes(head[8:16], "big")
            if length < 16:
                return Structure(offset, "a box is shorter than its own head")
        elif length == 0:
            length = size_bytes - offset
        elif length < 8:
            return Structure(offset, "a box is shorter than its own head")
        moov_first = moov_first or (kind == b"moov" and not seen_media)
        seen_media = seen_media or kind in (b"mdat", b"moof")
        offset += length
    return Structure(None, seekable=moov_first, whole=offset == size_bytes)
