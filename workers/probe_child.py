"""Reads recordings packet by packet and says what is in them. A program of its own: the bytes are hostile.

    python -I probe_child.py LIST        LIST: lines "<demuxer> <name>", names relative to the working directory

It is started by its path with limits on memory and time (`zq.workers.probe`), imports nothing of zq's, opens only the
demuxer it is told, and writes one JSON line per file, then one with the totals over all files. A file that cannot be
read gives a line with "error" and ends the run, for nothing after it could be merged.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import sys
from typing import Any

import av

STREAMS_MAX = 8
REORDER_MAX = 32
"""Frames may come out of order by this much (H.264 allows 16)."""
ERROR_CHARS_MAX = 300
OPTIONS = {"protocol_whitelist": "file", "format_whitelist": "matroska,webm,mov,mp4"}


class _Stream:
    """One stream of one file, in constant memory."""

    def __init__(self, stream: Any, total: Any) -> None:
        self.total = total
        self.base = stream.time_base
        self.packets = 0
        self.key_frames = 0
        self.first_pts: int | None = None
        self.last_end = 0
        self.last_duration = 0
        self.rising = True
        self._dts: int | None = None
        self._popped: int | None = None
        self._waiting: list[int] = []

    def add(self, packet: Any) -> None:
        payload = bytes(packet)
        # The length first, so that no other cut into packets gives the same hash.
        self.total.update(len(payload).to_bytes(8, "big"))
        self.total.update(payload)
        self.packets += 1
        self.key_frames += bool(packet.is_keyframe)
        pts = packet.pts if packet.pts is not None else packet.dts
        if pts is None:
            self.rising = False
            return
        # Matroska stores no decoding times; of frames out of order the first ones have none.
        if packet.dts is not None:
            self.rising = self.rising and (self._dts is None or packet.dts > self._dts)
            self._dts = packet.dts
        self.first_pts = pts if self.first_pts is None else min(self.first_pts, pts)
        duration = max(0, packet.duration or 0)
        if pts + duration >= self.last_end:
            self.last_end, self.last_duration = pts + duration, duration
        heapq.heappush(self._waiting, pts)
        if len(self._waiting) > REORDER_MAX:
            self._pop()

    def _pop(self) -> None:
        pts = heapq.heappop(self._waiting)
        self.rising = self.rising and (self._popped is None or pts > self._popped)
        self._popped = pts

    def timing(self) -> dict[str, Any]:
        while self._waiting:
            self._pop()
        scale = float(self.base)
        first = self.first_pts or 0
        end = self.last_end
        if self.packets and not self.last_duration:
            # WebM gives no length to the last picture. A recorder that stops shows it once more at that moment, and
            # again as the first one after a restart: its true length is nearly nothing.
            end = self.last_end + 1
        return {
            "packets": self.packets,
            "key_frames": self.key_frames,
            "first_s": first * scale,
            "end_s": end * scale,
            "rising": self.rising,
        }


def _parameters(stream: Any) -> dict[str, Any]:
    context = stream.codec_context
    if context is None or stream.type not in ("video", "audio"):
        return {"type": str(stream.type), "codec": ""}
    extradata = context.extradata or b""
    found = {
        "type": stream.type,
        "codec": context.name,
        "time_base": str(stream.time_base),
        "extradata": hashlib.sha256(extradata).hexdigest() if extradata else "",
    }
    if stream.type == "video":
        return found | {"width_px": context.width, "height_px": context.height}
    return found | {"sample_rate_hz": context.sample_rate, "layout": context.layout.name}


def probe(name: str, demuxer: str, totals: dict[int, Any]) -> dict[str, Any]:
    with av.open(f"file:{name}", format=demuxer, options=OPTIONS) as media:
        if len(media.streams) > STREAMS_MAX:
            raise ValueError(f"more than {STREAMS_MAX} streams")
        streams = [
            _Stream(stream, totals.setdefault(index, hashlib.sha256())) for index, stream in enumerate(media.streams)
        ]
        known = len(streams)
        for packet in media.demux():
            if packet.stream_index >= known:
                raise ValueError("a stream begins in the middle")
            if packet.size:
                streams[packet.stream_index].add(packet)
        described = [_parameters(s) | t.timing() for s, t in zip(media.streams, streams, strict=True)]
    return {"name": name, "streams": described}


def main(path: str) -> int:
    totals: dict[int, Any] = {}
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
    print(json.dumps({"totals": [totals[index].hexdigest() for index in sorted(totals)]}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
