"""Is a merged video what the recording's manifest says? Measured here, not taken from zq's own verification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av

from demo.http_api import Deviation


def check_video(path: Path, expect: dict[str, Any]) -> str:
    """What it is, in words. Raises Deviation unless length, packets and frames are as expected."""
    packets = {"video": 0, "audio": 0}
    end_s = 0.0
    first_s: float | None = None
    with av.open(str(path)) as media:
        for packet in media.demux():
            if packet.size == 0 or packet.pts is None or packet.time_base is None:
                continue
            packets[packet.stream.type] += 1
            start_s = float(packet.pts * packet.time_base)
            first_s = start_s if first_s is None else min(first_s, start_s)
            end_s = max(end_s, start_s + float((packet.duration or 0) * packet.time_base))
    with av.open(str(path)) as media:
        frames = sum(1 for _ in media.decode(video=0))
    length_s = end_s - (first_s or 0.0)
    if packets != expect["packets"]:
        raise Deviation(f"{path.name}: {packets} packets, expected {expect['packets']}")
    if frames != expect["frames"]:
        raise Deviation(f"{path.name}: {frames} pictures decode, expected {expect['frames']}")
    if abs(length_s - expect["duration_s"]) > expect["tolerance_s"]:
        raise Deviation(f"{path.name}: lasts {length_s:.2f} s, expected {expect['duration_s']:.2f} s")
    return f"{length_s:.1f} s, {frames} pictures and {packets['audio']} sound packets: every one that was recorded"
