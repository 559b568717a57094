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
_HEAD_BOX_BYTES = {b"ftyp": 4096, b"moov": 1 << 28, b"wide": 8}


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
    # QuickTime files of old recorders have no ftyp. What may stand inside of a fragmented MP4 is not taken for a head.
    if head[4:8] in (b"ftyp", b"moov", b"wide") and 8 <= int.from_bytes(head[:4], "big") <= _HEAD_BOX_BYTES[head[4:8]]:
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
    whole_bytes: int = 0
    """Where the last element ends that is all there."""


NOT_CONTINUED = "the bytes do not continue the recording before them"


def walk(handle: int, size_bytes: int, container: Container, *, into_clusters: bool = True) -> Structure:
    """Check the structure of an open file from its first byte to its last. Raises OSError only.

    Not `into_clusters`: those of a WebM that say their size are taken at their word.
    """

    def read(offset: int, length: int) -> bytes:
        return os.pread(handle, length, offset)

    match container:
        case Container.MP4:
            return _walk_boxes(read, size_bytes)
        case Container.MPEG_TS:
            return _walk_ts(read, size_bytes)
        case Container.AVI:
            return _walk_riff(read, size_bytes)
        case _:
            return _walk_ebml(read, size_bytes, into_clusters=into_clusters)


_Reader = Callable[[int, int], bytes]

_EBML, _SEGMENT, _CLUSTER, _CUES, _TRACKS = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0x1C53BB6B, 0x1654AE6B
# Children of Segment; then children of Cluster. Void and CRC-32 may be anywhere.
_IN_SEGMENT = frozenset(
    {0x114D9B74, 0x1549A966, _TRACKS, _CLUSTER, _CUES, 0x1043A770, 0x1941A469, 0x1254C367, 0xEC, 0xBF}
)
_IN_CLUSTER = frozenset({0xE7, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF, 0x5854, 0xEC, 0xBF})
_BLOCKS = frozenset({0xA3, 0xA0})
_HEAD_WINDOW_BYTES = 4096
_WINDOW_BYTES = 1 << 20
_HEAD_MAX = 12
"""The longest identifier and the longest size."""


def vint(head: bytes, at: int, *, marker: bool, width_max: int) -> tuple[int, int] | None:
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


def _walk_ebml(read: _Reader, size_bytes: int, *, into_clusters: bool) -> Structure:
    offset, whole_bytes, in_cluster, seen_segment = 0, 0, False, False
    blocks = cues_before = False
    window, start = b"", 0
    while offset < size_bytes:
        at = offset - start
        if at < 0 or at + _HEAD_MAX > len(window):
            window, start, at = read(offset, _WINDOW_BYTES if into_clusters else _HEAD_WINDOW_BYTES), offset, 0
        # Nearly all of a recording is short SimpleBlocks with sizes of one to three bytes; an hour has 100,000 of them.
        first = window[at + 1] if in_cluster and at + _HEAD_MAX <= len(window) and window[at] == 0xA3 else 0
        if first >= 0x80:
            ident, length, head_bytes = 0xA3, first & 0x7F, 2
        elif first >= 0x40:
            ident, length, head_bytes = 0xA3, (first & 0x3F) << 8 | window[at + 2], 3
        elif first >= 0x20:
            ident, length, head_bytes = 0xA3, (first & 0x1F) << 16 | window[at + 2] << 8 | window[at + 3], 4
        else:
            number = vint(window, at, marker=True, width_max=4)
            size = vint(window, at + number[1], marker=False, width_max=8) if number and number[1] else number
            if number is None or size is None:
                break
            ident, length, head_bytes = number[0], size[0], number[1] + size[1]
            known = number[1] > 0 and size[1] > 0 and _belongs(ident, offset, seen_segment, in_cluster)
            unknown_size = length == (1 << (7 * size[1])) - 1
            if not known or (unknown_size and ident not in (_SEGMENT, _CLUSTER)):
                return Structure(offset, NOT_CONTINUED, whole_bytes=whole_bytes)
            if ident == _SEGMENT or (ident == _CLUSTER and (into_clusters or unknown_size)):
                length = 0
        if ident in _BLOCKS or ident == _CLUSTER:
            blocks = True
        elif ident == _CUES:
            cues_before = cues_before or not blocks
        elif ident == _SEGMENT:
            seen_segment = True
        in_cluster = ident == _CLUSTER or (in_cluster and ident not in _IN_SEGMENT - _IN_CLUSTER)
        offset += head_bytes + length
        whole_bytes = offset if offset <= size_bytes else whole_bytes
    return Structure(None, seekable=cues_before, whole=offset == size_bytes, whole_bytes=whole_bytes)


def _belongs(name: int, offset: int, seen_segment: bool, in_cluster: bool) -> bool:
    if not seen_segment:
        return name == (_EBML if offset == 0 else _SEGMENT) or (offset > 0 and name in (0xEC, 0xBF))
    return name in _IN_SEGMENT or (in_cluster and name in _IN_CLUSTER)


_BOXES = frozenset(
    {
        *(b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"mfra", b"sidx", b"ssix", b"free", b"skip", b"wide", b"pdin"),
        *(b"uuid", b"meta", b"udta", b"prft", b"emsg"),
    }
)


def _walk_boxes(read: _Reader, size_bytes: int) -> Structure:
    offset, whole_bytes, moov_first, seen_media = 0, 0, False, False
    while offset < size_bytes:
        head = read(offset, 16)
        if len(head) < 8:
            break
        kind, length = head[4:8], int.from_bytes(head[:4], "big")
        if kind not in _BOXES or (kind == b"ftyp" and offset > 0):
            return Structure(offset, NOT_CONTINUED, whole_bytes=whole_bytes)
        if length == 1:
            if len(head) < 16:
                break
            length = int.from_bytes(head[8:16], "big")
            if length < 16:
                return Structure(offset, "a box is shorter than its own head", whole_bytes=whole_bytes)
        elif length == 0:
            length = size_bytes - offset
        elif length < 8:
            return Structure(offset, "a box is shorter than its own head", whole_bytes=whole_bytes)
        moov_first = moov_first or (kind == b"moov" and not seen_media)
        seen_media = seen_media or kind in (b"mdat", b"moof")
        offset += length
        # A moof is nothing without the mdat behind it.
        whole_bytes = offset if offset <= size_bytes and kind != b"moof" else whole_bytes
    return Structure(None, seekable=moov_first, whole=offset == size_bytes, whole_bytes=whole_bytes)


def _walk_ts(read: _Reader, size_bytes: int) -> Structure:
    """Every packet begins with the sync byte, over the seams of its chunks too."""
    block_bytes = 5000 * _TS_PACKET_BYTES
    whole_bytes = size_bytes - size_bytes % _TS_PACKET_BYTES
    for offset in range(0, size_bytes, block_bytes):
        firsts = read(offset, min(block_bytes, size_bytes - offset))[::_TS_PACKET_BYTES]
        if firsts.count(0x47) != len(firsts):
            place = next(i for i, byte in enumerate(firsts) if byte != 0x47)
            return Structure(offset + place * _TS_PACKET_BYTES, NOT_CONTINUED)
    return Structure(None, whole=whole_bytes == size_bytes, whole_bytes=whole_bytes)


def _walk_riff(read: _Reader, size_bytes: int) -> Structure:
    """One RIFF chunk, or several (OpenDML), one behind the other. The sizes of a recorder that was cut off may be 0."""
    offset = 0
    while offset < size_bytes:
        head = read(offset, 12)
        if head[:4] != b"RIFF" or (len(head) == 12 and head[8:12] not in (b"AVI ", b"AVIX")):
            return Structure(offset, NOT_CONTINUED, whole_bytes=offset)
        length = int.from_bytes(head[4:8], "little")
        offset = offset + 8 + length + length % 2 if length else size_bytes
    return Structure(None, whole=offset == size_bytes, whole_bytes=min(offset, size_bytes))
