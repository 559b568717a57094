"""Reads recordings packet by packet and says what is in them. A program of its own: the bytes are hostile.

    python -I probe_child.py LIST        LIST: lines "<demuxer> <name>", names relative to the working directory

It is started by its path with limits on memory and time (`zq.workers.probe`), imports nothing of zq's, opens only the
demuxer it is told, and writes one JSON line per file, then one with the totals over all files. A file that cannot be
read gives a line with "error" and ends the run, for nothing after it could be merged.
"""

from __future__ import annotations

import array
import hashlib
import heapq
import json
import re
import sys
from typing import Any

import av
import xxhash

STREAMS_MAX = 8
REORDER_MAX = 32
"""Frames may come out of order by this much (H.264 allows 16)."""
ERROR_CHARS_MAX = 300
SETS_MAX = 64
HELD_MAX = 512
HELD_BYTES_MAX = 1 << 20
"""Packets are hashed so many at once."""
_FORMATS = {"matroska": "matroska,webm", "mov": "mov,mp4", "mpegts": "mpegts", "avi": "avi"}
_JUMP_BACK_S = 0.1
_JUMP_AHEAD_S = 10.0
"""MPEG-TS only: what FFmpeg takes for a clock that was set anew, and closes up."""
_UNIT = re.compile(rb"\x00\x00\x01(?P<unit>.)(?P<body>(?:(?!\x00\x00\x01).){0,256})", re.DOTALL)


class _Clock:
    """The time of a file whose clock may begin anew: what to add, in seconds, to its time stamps."""

    def __init__(self, *, may_jump: bool) -> None:
        self.may_jump = may_jump
        self.offset_s = 0.0

    def step(self, last_s: float, expected_s: float, now_s: float) -> None:
        """`expected_s` is where the stream was to go on, `now_s` where it does, `last_s` where it was."""
        if self.may_jump and not last_s - _JUMP_BACK_S <= now_s <= expected_s + _JUMP_AHEAD_S:
            self.offset_s += expected_s - now_s


class _Stream:
    """One stream of one file, in constant memory."""

    def __init__(self, stream: Any, totals: tuple[Any, Any], clock: _Clock) -> None:
        self.total, self.lengths = totals
        self._held: list[Any] = []
        self._held_bytes = 0
        self.base = stream.time_base
        self.scale = float(self.base)
        self.clock = clock
        self.packets = 0
        self.key_frames = 0
        self.first_pts: int | None = None
        self.last_end = 0
        self.last_duration = 0
        self.rising = True
        self.parameter_sets: set[bytes] = set()
        self._dts: int | None = None
        self._step = 0
        self._popped: int | None = None
        self._waiting: list[int] = []
        self._parameter_unit = _parameter_unit(stream) if clock.may_jump else None

    def add(self, packet: Any, size: int) -> None:
        """Count a packet of `size` bytes. Half of what a merge takes beside FFmpeg is spent here."""
        self._held.append(packet)
        self._held_bytes += size
        if self._held_bytes >= HELD_BYTES_MAX or len(self._held) >= HELD_MAX:
            self._hash()
        self.packets += 1
        key = packet.is_keyframe
        if key:
            self.key_frames += 1
        pts, dts = packet.pts, packet.dts
        duration = packet.duration or 0
        if pts is not None and pts == dts and not self._waiting and not self.clock.may_jump:
            # Nothing is out of order: sound, and the pictures of every recorder in a browser.
            before = self._dts
            if before is None:
                self.first_pts = pts
            elif pts <= before:
                self.rising = False
                self.first_pts = min(self.first_pts or 0, pts)
            self._dts = self._popped = pts
            if pts + duration >= self.last_end:
                self.last_end, self.last_duration = pts + duration, duration
            return
        self._add_reordered(packet, pts if pts is not None else dts, dts, duration, key=key)

    def _add_reordered(self, packet: Any, pts: int | None, dts: int | None, duration: int, *, key: bool) -> None:
        if pts is None:
            self.rising = False
            return
        if self.clock.may_jump:
            pts, dts = self._on_one_clock(pts, dts, duration)
            if key and self._parameter_unit is not None and len(self.parameter_sets) < SETS_MAX:
                self._note_parameters(bytes(memoryview(packet)[:4096]), *self._parameter_unit)
        # Matroska stores no decoding times; of frames out of order the first ones have none.
        if dts is not None:
            self.rising = self.rising and (self._dts is None or dts > self._dts)
            self._dts = dts
        self.first_pts = pts if self.first_pts is None else min(self.first_pts, pts)
        if pts + duration >= self.last_end:
            self.last_end, self.last_duration = pts + duration, duration
        heapq.heappush(self._waiting, pts)
        if len(self._waiting) > REORDER_MAX:
            self._pop()

    def _hash(self) -> None:
        """The lengths as well, so that no other cut into packets gives the same hash."""
        self.lengths.update(array.array("I", [packet.size for packet in self._held]).tobytes())
        self.total.update(b"".join(self._held))
        self._held.clear()
        self._held_bytes = 0

    def _on_one_clock(self, pts: int, dts: int | None, duration: int) -> tuple[int, int | None]:
        if dts is None:
            return pts, dts
        before = self._dts
        if before is not None:
            now_s = dts * self.scale + self.clock.offset_s
            self.clock.step(before * self.scale, (before + self._step) * self.scale, now_s)
        shift = round(self.clock.offset_s / self.scale)
        if before is not None and 0 < dts + shift - before < _JUMP_AHEAD_S / self.scale:
            self._step = duration or dts + shift - before
        return pts + shift, dts + shift

    def _note_parameters(self, head: bytes, mask: int, unit: int) -> None:
        for found in _UNIT.finditer(head):
            if found["unit"][0] & mask == unit:
                self.parameter_sets.add(found["body"])

    def _pop(self) -> None:
        pts = heapq.heappop(self._waiting)
        self.rising = self.rising and (self._popped is None or pts > self._popped)
        self._popped = pts

    def timing(self) -> dict[str, Any]:
        self._hash()
        while self._waiting:
            self._pop()
        first = self.first_pts or 0
        end = self.last_end
        if self.packets and not self.last_duration:
            # WebM gives no length to the last picture. A recorder that stops shows it once more at that moment, and
            # again as the first one after a restart: its true length is nearly nothing.
            end = self.last_end + 1
        return {
            "packets": self.packets,
            "key_frames": self.key_frames,
            "first_s": first * self.scale,
            "end_s": end * self.scale,
            "last_s": (self.last_end - self.last_duration) * self.scale,
            "rising": self.rising,
            "parameter_sets": len(self.parameter_sets),
        }


def _parameter_unit(stream: Any) -> tuple[int, int] | None:
    """(mask, value) of the first byte of the unit that says the picture's size; None where there is no such unit."""
    codec = stream.codec_context.name if stream.codec_context is not None else ""
    return {"h264": (0x1F, 7), "hevc": (0x7E, 66)}.get(codec)


def _parameters(stream: Any) -> dict[str, Any]:
    context = stream.codec_context
    if context is None or stream.type not in ("video", "audio"):
        return {"type": str(stream.type), "codec": ""}
    extradata = context.extradata or b""
    found = {
        "type": stream.type,
        "codec": context.codec.canonical_name,
        "time_base": str(stream.time_base),
        "extradata": hashlib.sha256(extradata).hexdigest() if extradata else "",
    }
    if stream.type == "video":
        # In Matroska and MP4 the parameters begin with a 1; else they are a byte stream's, or stand in the pictures.
        byte_stream = context.name in ("h264", "hevc") and extradata[:1] != b"\x01"
        return found | {"width_px": context.width, "height_px": context.height, "byte_stream": byte_stream}
    return found | {"sample_rate_hz": context.sample_rate, "layout": context.layout.name}


def probe(name: str, demuxer: str, totals: dict[str, tuple[Any, Any]]) -> dict[str, Any]:
    options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS[demuxer]}
    with av.open(f"file:{name}", format=demuxer, options=options) as media:
        if len(media.streams) > STREAMS_MAX:
            raise ValueError(f"more than {STREAMS_MAX} streams")
        clock = _Clock(may_jump=demuxer == "mpegts")
        streams = [
            _Stream(stream, totals.setdefault(stream.type, (xxhash.xxh3_128(), xxhash.xxh3_128())), clock)
            for stream in media.streams
        ]
        known = len(streams)
        for packet in media.demux():
            if packet.stream_index >= known:
                raise ValueError("a stream begins in the middle")
            if size := packet.size:
                streams[packet.stream_index].add(packet, size)
        described = [_parameters(s) | t.timing() for s, t in zip(media.streams, streams, strict=True)]
    return {"name": name, "streams": described}


def main(path: str) -> int:
    totals: dict[str, tuple[Any, Any]] = {}
    av.logging.set_level(None)
    with open(path, encoding="ascii") as names:
        for line in names:
            demuxer, _, name = line.strip().partition(" ")
            try:
                answer = probe(name, demuxer, totals)
            except (av.FFmpegError, ValueError, MemoryError, ArithmeticError) as error:
                text = f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
                answer = {"name": name, "error": text[:ERROR_CHARS_MAX]}
            print(json.dumps(answer), flush=True)
            if "error" in answer:
                return 0
    hashes = {kind: a.hexdigest() + b.hexdigest() for kind, (a, b) in totals.items()}
    print(json.dumps({"totals": hashes}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
