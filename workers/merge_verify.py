"""Whether a merged file holds everything its runs held. Pure: probes in, the first problem out.

FFmpeg exits 0 with frames missing, sound dropped or the film cut short, so nothing is published on its word. A copy
keeps every packet: counts and hashes over all runs must be equal to those of the output.
"""

from __future__ import annotations

from zq.workers.merge_plan import Plan
from zq.workers.probe import FileProbe, Probe

DURATION_TOLERANCE_S = 0.1


class OutputWrong(Exception):
    """The merged file is not what it should be. It was not published, and nothing was deleted."""


def check_copy(runs: Probe, output: Probe, plan: Plan) -> None:
    """Raises OutputWrong if `output`, one file, is not a complete copy of `runs`."""
    merged = output.files[0]
    first = runs.files[0]
    kinds = [s.type for s in merged.streams]
    if kinds != [s.type for s in first.streams]:
        raise OutputWrong(f"it has the streams {kinds}, not {[s.type for s in first.streams]}")
    for index, stream in enumerate(merged.streams):
        packets = sum(f.streams[index].packets for f in runs.files)
        if stream.packets != packets:
            raise OutputWrong(f"{stream.packets} of {packets} {stream.type} packets are in it")
        if output.payload_sha256[index] != runs.payload_sha256[index]:
            raise OutputWrong(f"its {stream.type} packets are not those of the segments")
        if not stream.rising:
            raise OutputWrong(f"its {stream.type} time stamps repeat or go back")
    duration_s = duration_of(merged)
    if abs(duration_s - plan.total_s) > DURATION_TOLERANCE_S:
        raise OutputWrong(f"it lasts {duration_s:.3f} s, its parts {plan.total_s:.3f} s")


def duration_of(probed: FileProbe) -> float:
    """From the first time stamp to the end of the last packet, in seconds."""
    return probed.end_s - probed.first_s
