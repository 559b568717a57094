"""The quick way through a regular WebM: what is in it and when, without a decoder's library.

Nearly every recording is VP8 or VP9 with Opus in plain WebM, and so is the film it becomes. Reading those packet by
packet through PyAV takes as long as FFmpeg takes to merge them; here it is half of that. What comes out is to the
bit what PyAV says of the same file (a test compares them), but for the length of a last picture that has none: PyAV
guesses one from the pace of the others, here it is nothing. Whatever is not perfectly regular - another codec,
lacing, a cut end, an element that is not where it belongs - is `Irregular` and left to PyAV. The bytes are hostile:
nothing is trusted that was not bounded, and each byte is looked at once.
"""

from __future__ import annotations

import hashlib
import itertools
import operator
import os
import struct
from collections.abc import Callable
from typing import Any, NoReturn

WINDOW_BYTES = 1 << 18
"""Larger ones are given back to the system and taken from it again, page by page: a fifth slower."""
ELEMENT_BYTES_MAX = 64 << 20
HEAD_BYTES_MAX = 1 << 20
TRACKS_MAX = 8
MOMENT_MS_MAX = 1 << 40
SIZE_PX_MAX = 1 << 16
_HEAD_MAX = 12
_EBML, _SEGMENT, _CLUSTER, _TRACKS, _INFO = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0x1654AE6B, 0x1549A966
_VOID = 0xEC
_BESIDE = frozenset({0x114D9B74, 0x1C53BB6B, 0x1254C367, _VOID})
"""SeekHead, Cues, Tags, Void: nothing in them matters here."""
_KEY, _LACED = 0x80, 0x06
_SHORT_BLOCK, _LONG_BLOCK = struct.Struct(">BhB").unpack_from, struct.Struct(">BBhB").unpack_from
_IS_KEY = bytes(flags >= _KEY for flags in range(256))
_FIRST = operator.itemgetter(0)
_TIMESTAMP, _SIMPLE_BLOCK, _BLOCK_GROUP, _BLOCK = 0xE7, 0xA3, 0xA0, 0xA1
_IN_CLUSTER_BESIDE = frozenset({0xA7, 0xAB, 0xEC})
_IN_GROUP = frozenset({_BLOCK, 0x9B, 0xFB, 0x75A1, 0x75A2})
"""And how long it is, what it refers to, its transparency, and how much of its sound is not to be heard."""
_CODECS = {b"V_VP8": ("video", "vp8"), b"V_VP9": ("video", "vp9"), b"A_OPUS": ("audio", "opus")}
_PLAIN_TRACK = frozenset({
    0xD7, 0x73C5, 0x83, 0x86, 0x63A2, 0xE0, 0xE1, 0x22B59C, 0x22B59D, 0x23E383, 0x9C, 0x88, 0xB9, 0x56AA, 0x56BB,
    0x536E, 0x55AA, 0x55EE, 0xEC, 0x55B0,
})  # fmt: skip
"""What the description of a regular track may have; with anything else, such as an encoding, it is not regular."""
_MS = 1_000_000
_OPUS_MS = (10, 20, 40, 60) * 3 + (10, 20) * 2 + (2.5, 5, 10, 20) * 4
"""Of a frame, by the five bits that begin its packet."""


Takers = tuple[Callable[[int], None], Callable[[int], None], Callable[[bytes], None]]


class Irregular(Exception):
    """Not for this reader."""


def _no(why: str) -> NoReturn:
    raise Irregular(why)


class Track:
    """One stream: its parameters, and what is seen of it. Times are milliseconds, `delay_ms` not yet taken off."""

    def __init__(self, described: dict[str, Any], *, default_ms: int, delay_ms: int) -> None:
        self.described = described
        self.default_ms = default_ms
        self.delay_ms = delay_ms
        self.opus = described["codec"] == "opus"
        self.packets = 0
        self.key_frames = 0
        self.first = 0
        self.last = -1 << 62
        self.last_end = 0
        self.last_duration = 0
        self.held: list[bytes] = []
        """Payloads that nobody has taken yet; of those that are not counted yet the times and flags."""
        self.times: list[int] = []
        self.flags = bytearray()

    def count(self) -> None:
        """Take account of what was held since the last time, all at once: in a loop it would take twice as long."""
        times = self.times
        if not times:
            return
        if times[0] <= self.last or not all(map(operator.lt, times, itertools.islice(times, 1, None))):
            _no("out of order")
        if not self.packets:
            self.first = times[0]
        self.packets += len(times)
        self.key_frames += self.flags.translate(_IS_KEY).count(1)
        self.last = times[-1]
        if self.opus:
            self.count_sound(self.held[-len(times) :])
        else:
            self.end(times[-1] + self.default_ms, self.default_ms)
        times.clear()
        self.flags.clear()

    def count_sound(self, payloads: list[bytes]) -> None:
        kinds = set(map(_FIRST, payloads))
        if len(kinds) == 1 and min(kinds) & 3 != 3:
            # All of one length, as an encoder makes them: the last one ends last.
            duration = _opus_ms(payloads[-1])
            self.end(self.times[-1] + duration, duration)
            return
        for at_ms, payload in zip(self.times, payloads, strict=True):
            duration = _opus_ms(payload)
            self.end(at_ms + duration, duration)

    def end(self, end: int, duration: int) -> None:
        if end >= self.last_end or self.packets == 0:
            self.last_end, self.last_duration = end, duration

    def add(self, payload: bytes, at_ms: int, duration: int | None, *, key: bool) -> None:
        """One packet by itself, which may say how long it is."""
        self.count()
        self.held.append(payload)
        self.times.append(at_ms)
        self.flags.append(_KEY if key else 0)
        if duration is None:
            self.count()
            return
        if at_ms <= self.last:
            _no("out of order")
        if not self.packets:
            self.first = at_ms
        self.packets += 1
        self.key_frames += key
        self.last = at_ms
        self.end(at_ms + duration, duration)
        self.times.clear()
        self.flags.clear()

    def timing(self) -> dict[str, Any]:
        end = self.last_end - self.delay_ms * bool(self.packets)
        if self.packets and not self.last_duration:
            end += 1  # as in probe_child: the last picture has no length
        scale = 1 / 1000
        return {
            "packets": self.packets,
            "key_frames": self.key_frames,
            "first_s": (self.first - self.delay_ms * bool(self.packets)) * scale,
            "end_s": end * scale,
            "last_s": (self.last_end - self.last_duration - self.delay_ms * bool(self.packets)) * scale,
            "rising": True,
            "parameter_sets": 0,
        }


def _opus_ms(payload: bytes) -> int:
    code = payload[0] & 3
    count = (1, 2, 2, 0)[code]
    if code == 3:
        count = payload[1] & 0x3F if len(payload) > 1 else 0
    length = _OPUS_MS[payload[0] >> 3] * count
    if not 0 < length <= 120 or length != int(length):
        _no("a length of sound that is no whole millisecond")
    return int(length)


def scan(handle: int, size_bytes: int, flush: Callable[[Track], None]) -> list[Track]:
    """Read an open file from its first byte to its last; the tracks in the file's order.

    `flush` takes what a track holds, in order. Raises Irregular, after which nothing that `flush` saw counts.
    """
    scanner = _Scanner(handle, size_bytes, flush)
    scanner.run()
    return scanner.ordered


class _Scanner:
    def __init__(self, handle: int, size_bytes: int, flush: Callable[[Track], None]) -> None:
        self.handle = handle
        self.size_bytes = size_bytes
        self._flush = flush
        self.ordered: list[Track] = []
        self.tracks: dict[int, Track] = {}
        """By the first byte of their blocks."""
        self.takers: dict[int, Takers] = {}
        """How each of them takes a block: its time, its flags, its payload. Looked up once, not for each block."""
        self.scale_seen = False
        self.window = b""
        self.start = 0

    def head(self, offset: int) -> bytes:
        """Enough bytes for the head of an element."""
        at = offset - self.start
        if at >= 0 and at + _HEAD_MAX <= len(self.window):
            return self.window[at : at + _HEAD_MAX]
        return os.pread(self.handle, _HEAD_MAX, offset)

    def look(self, offset: int, length: int) -> bytes:
        """The next window. What is held of the one before is handed on: no more than a window is ever held."""
        self.flush()
        self.window, self.start = self.read(offset, length), offset
        return self.window

    def flush(self) -> None:
        for track in self.ordered:
            track.count()
            self._flush(track)
            track.held.clear()

    def read(self, offset: int, length: int) -> bytes:
        if offset + length > self.size_bytes:
            _no("cut")
        found = os.pread(self.handle, length, offset)
        if len(found) != length:
            _no("cut while it was read")
        return found

    def run(self) -> None:
        head = os.pread(self.handle, 64, 0)
        ident, length, width = _element(head, 0)
        if ident != _EBML or length > HEAD_BYTES_MAX:
            _no("no header")
        offset = width + length
        head = os.pread(self.handle, 16, offset)
        ident, length, width = _element(head, 0)
        if ident != _SEGMENT:
            _no("no segment")
        offset += width
        if not _is_unknown(length, head, ident) and offset + length != self.size_bytes:
            _no("the segment does not end with the file")
        self.segment(offset)

    def segment(self, offset: int) -> None:
        while offset < self.size_bytes:
            head = self.head(offset)
            ident, length, width = _element(head, 0)
            body = offset + width
            if ident == _CLUSTER:
                if not self.tracks:
                    _no("media before its description")
                end = self.size_bytes if _is_unknown(length, head, ident) else body + length
                if end > self.size_bytes:
                    _no("cut")
                offset = self.clusters(body, end, open_end=_is_unknown(length, head, ident))
                continue
            if _is_unknown(length, head, ident) or body + length > self.size_bytes:
                _no("cut")
            if ident == _INFO:
                self.info(self.bounded(body, length))
            elif ident == _TRACKS:
                if self.tracks:
                    _no("described twice")
                self.describe(self.bounded(body, length))
            elif ident not in _BESIDE:
                _no("an element that is not known here")
            offset = body + length
        self.flush()
        if not self.scale_seen:
            _no("no time scale")

    def bounded(self, offset: int, length: int) -> bytes:
        if length > HEAD_BYTES_MAX:
            _no("a long head")
        return self.read(offset, length)

    def info(self, content: bytes) -> None:
        for ident, value in _elements(content):
            if ident == 0x2AD7B1 and _number(value) != _MS:
                _no("another time scale")
        self.scale_seen = True

    def describe(self, content: bytes) -> None:
        for ident, value in _elements(content):
            if ident == 0xEC:
                continue
            if ident != 0xAE or len(self.ordered) == TRACKS_MAX:
                _no("what is no track")
            number, track = _track(value)
            if number | 0x80 in self.tracks:
                _no("two tracks of one number")
            self.tracks[number | 0x80] = track
            self.takers[number | 0x80] = track.times.append, track.flags.append, track.held.append
            self.ordered.append(track)

    def clusters(self, offset: int, end: int, *, open_end: bool) -> int:
        """From the first byte of a cluster's body; to where the next element of the segment begins.

        The blocks of a recorder's hour are a quarter of a million: the inner loop is where the time goes.
        """
        window, start, limit = self.window, self.start, len(self.window)
        cluster_ms = -1
        takers: dict[int, Takers] = {}  # none before the cluster has said its time
        while offset < end:
            at = offset - start
            if at + _HEAD_MAX > limit:
                window = self.look(offset, min(WINDOW_BYTES, self.size_bytes - offset))
                start, limit, at = offset, len(window), 0
            first, last = at, min(limit, end - start)
            while at + _HEAD_MAX <= last and window[at] == _SIMPLE_BLOCK:
                # The size is one byte or two; then a byte of track, two of time, one of flags.
                size = window[at + 1]
                if size >= 0x80:
                    number, relative, flags = _SHORT_BLOCK(window, at + 2)
                    begin, stop = at + 6, at + 2 + (size & 0x7F)
                elif size >= 0x40:
                    low, number, relative, flags = _LONG_BLOCK(window, at + 2)
                    begin, stop = at + 7, at + 3 + ((size & 0x3F) << 8 | low)
                else:
                    break
                if not begin < stop <= last or flags & _LACED or number not in takers:
                    break
                take_time, take_flags, take_payload = takers[number]
                take_time(cluster_ms + relative)
                take_flags(flags)
                take_payload(window[begin:stop])
                at = stop
            if at > first:
                offset = start + at
                continue
            ident, length, width = _element(window, at)
            if open_end and (ident == _CLUSTER or (ident in _BESIDE and ident != _VOID)):
                return offset
            if offset + width + length > end or length > ELEMENT_BYTES_MAX:
                _no("cut")
            if at + width + length > limit:
                window = self.look(offset, max(width + length, min(WINDOW_BYTES, self.size_bytes - offset)))
                start, limit, at = offset, len(window), 0
            content = window[at + width : at + width + length]
            if ident == _TIMESTAMP:
                cluster_ms = _number(content, MOMENT_MS_MAX)
                takers = self.takers
            elif ident == _SIMPLE_BLOCK:
                self.block(content, cluster_ms, None, key=len(content) > 3 and content[3] >= _KEY)
            elif ident == _BLOCK_GROUP:
                self.group(content, cluster_ms)
            elif ident not in _IN_CLUSTER_BESIDE:
                _no("an element that is not known in a cluster")
            offset += width + length
        return offset

    def block(self, content: bytes, cluster_ms: int, duration: int | None, *, key: bool) -> None:
        track = self.tracks.get(content[0]) if len(content) > 4 else None
        if track is None or content[3] & _LACED or cluster_ms < 0:
            _no("a block of another form")
        track.add(content[4:], cluster_ms + int.from_bytes(content[1:3], "big", signed=True), duration, key=key)

    def group(self, content: bytes, cluster_ms: int) -> None:
        fields = _elements(content)
        found = dict(fields)
        if len(found) != len(fields) or not set(found) <= _IN_GROUP:
            _no("a group of another form")
        duration = _number(found[0x9B], MOMENT_MS_MAX) if 0x9B in found else None
        self.block(found.get(_BLOCK, b""), cluster_ms, duration, key=0xFB not in found)


def _track(content: bytes) -> tuple[int, Track]:
    fields = _elements(content)
    found = dict(fields)
    if len(found) != len(fields) or not set(found) <= _PLAIN_TRACK:
        _no("a track of another form")
    kind, codec = _CODECS.get(found.get(0x86, b"").rstrip(b"\0"), ("", ""))
    number = _number(found.get(0xD7, b""))
    if not codec or not 0 < number < 0x80 or found.get(0x83) != (b"\x01" if kind == "video" else b"\x02"):
        _no("another codec")
    private = found.get(0x63A2, b"")
    described: dict[str, Any] = {
        "type": kind,
        "codec": codec,
        "time_base": "1/1000",
        "extradata": hashlib.sha256(private).hexdigest() if private else "",
    }
    if kind == "video":
        picture = dict(_elements(found.get(0xE0, b"")))
        if 0x55B2 in picture or 0x7670 in picture:  # other shapes than the plain
            _no("a projection")
        width, height = (_number(picture.get(ident, b""), SIZE_PX_MAX) for ident in (0xB0, 0xBA))
        described |= {"width_px": width, "height_px": height, "byte_stream": False}
        if not width or not height:
            _no("no size")
    else:
        sound = dict(_elements(found.get(0xE1, b"")))
        channels = _number(sound.get(0x9F, b"\x01"))
        if channels not in (1, 2) or private[:8] != b"OpusHead" or len(private) < 19 or private[9] != channels:
            _no("sound of another form")
        described |= {"sample_rate_hz": 48_000, "layout": ("mono", "stereo")[channels - 1]}
    delay_ns = _number(found.get(0x56AA, b""), MOMENT_MS_MAX * _MS)
    default_ns = _number(found.get(0x23E383, b""), MOMENT_MS_MAX * _MS)
    return number, Track(described, default_ms=default_ns // _MS, delay_ms=(delay_ns + _MS // 2) // _MS)


def _number(value: bytes, most: int = 1 << 32) -> int:
    """Of a field, which may be of any length and is nobody's friend."""
    number = int.from_bytes(value[:9], "big")
    if len(value) > 8 or number > most:
        _no("a number that is too large")
    return number


def _is_unknown(length: int, head: bytes, ident: int) -> bool:
    at = (ident.bit_length() + 7) // 8
    return length == (1 << (7 * (9 - head[at].bit_length()))) - 1


def _element(window: bytes, at: int) -> tuple[int, int, int]:
    """(identifier, length of the body, length of the head)."""
    if at >= len(window) or not window[at]:
        _no("no element")
    width = 9 - window[at].bit_length()
    place = at + width
    if width > 4 or place >= len(window) or not window[place]:
        _no("no element")
    size_width = 9 - window[place].bit_length()
    if place + size_width > len(window):
        _no("cut")
    length = int.from_bytes(window[place : place + size_width], "big") & ((1 << (7 * size_width)) - 1)
    return int.from_bytes(window[at:place], "big"), length, width + size_width


def _elements(content: bytes) -> list[tuple[int, bytes]]:
    found = []
    at = 0
    while at < len(content):
        ident, length, width = _element(content, at)
        if at + width + length > len(content):
            _no("cut")
        found.append((ident, content[at + width : at + width + length]))
        at += width + length
    return found
