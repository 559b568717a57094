"""Where a recording can be taken up again after a chunk that is missing: the next cluster or fragment.

What follows a gap begins in the middle of something. From the next Cluster (WebM) whose first picture is a key frame,
or the next moof (fragmented MP4), the header in front of the run fits again. Browsers make a key frame every hundred
pictures or so: what lies before the next one is lost with the chunk. Pure: bytes in, an offset out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from zq.workers.merge_media import Container, vint

_CLUSTER = b"\x1f\x43\xb6\x75"
_TRACKS, _TRACK_ENTRY, _TRACK_NUMBER, _TRACK_TYPE = 0x1654AE6B, 0xAE, 0xD7, 0x83
_TIMESTAMP, _SIMPLE_BLOCK, _BLOCK_GROUP, _BLOCK, _REFERENCE = 0xE7, 0xA3, 0xA0, 0xA1, 0xFB
_PICTURE = 1
_FRAGMENT = re.compile(rb"\x00.{3}moof\x00\x00\x00\x10mfhd", re.DOTALL)
_TS_SYNC = re.compile(rb"(?=\x47.{187}\x47.{187}\x47)", re.DOTALL)
_BLOCKS_SEEN_MAX = 64
"""Sound may come first in a cluster, but not for ever."""
HEADER_BYTES_MAX = 1 << 20


def resume_at(header: bytes, content: bytes | memoryview, container: Container) -> int | None:
    """The offset in `content` from which it can follow the run that begins with `header`; None if there is none."""
    if container is Container.MP4:
        found = _FRAGMENT.search(content)
        return found.start() if found else None
    if container is Container.MPEG_TS:
        found = _TS_SYNC.search(content)
        return found.start() if found else None
    if container in (Container.WEBM, Container.MATROSKA):
        track = picture_track(header)
        for place in re.finditer(re.escape(_CLUSTER), content):
            if _begins_with_key_frame(bytes(content[place.end() : place.end() + HEADER_BYTES_MAX]), track):
                return place.start()
    return None


def picture_track(header: bytes) -> int | None:
    """The number of the picture's track in the head of a WebM; None if it does not say."""
    place = header.find(_TRACKS.to_bytes(4, "big"))
    while place >= 0:
        for ident, tracks in _elements(header[place:]):
            for entry_ident, entry in _elements(tracks if ident == _TRACKS else b""):
                fields = dict(_elements(entry)) if entry_ident == _TRACK_ENTRY else {}
                if int.from_bytes(fields.get(_TRACK_TYPE, b""), "big") == _PICTURE:
                    return int.from_bytes(fields.get(_TRACK_NUMBER, b""), "big")
            break
        place = header.find(_TRACKS.to_bytes(4, "big"), place + 1)
    return None


def _elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """(identifier, body) of EBML elements that follow each other; ends quietly where they do not."""
    at = 0
    while at < len(content):
        ident = vint(content, at, marker=True, width_max=4)
        length = vint(content, at + ident[1], marker=False, width_max=8) if ident and ident[1] else None
        if ident is None or length is None or not length[1]:
            return
        at += ident[1] + length[1]
        yield ident[0], content[at : at + length[0]]
        at += length[0]


def _begins_with_key_frame(cluster: bytes, track: int | None) -> bool:
    size = vint(cluster, 0, marker=False, width_max=8)
    if size is None or not size[1]:
        return False
    for number, (ident, body) in enumerate(_elements(cluster[size[1] :])):
        if (number == 0 and ident != _TIMESTAMP) or number > _BLOCKS_SEEN_MAX:
            return False
        block, key = body, False
        if ident == _BLOCK_GROUP:
            parts = dict(_elements(body))
            block, key = parts.get(_BLOCK, b""), _REFERENCE not in parts
        elif ident != _SIMPLE_BLOCK:
            continue
        owner = vint(block, 0, marker=False, width_max=8)
        if owner and owner[1] and (track is None or owner[0] == track) and len(block) > owner[1] + 2:
            return key or (ident == _SIMPLE_BLOCK and bool(block[owner[1] + 2] & 0x80))
    return False
