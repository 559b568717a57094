"""Whether a merged file holds everything its runs held. Pure: probes in, the first problem out.

FFmpeg exits 0 with frames missing, sound dropped or the film cut short, so nothing is published on its word. A copy
keeps every packet: counts and hashes over all runs must be equal to those of the output (counts alone where a muxer
has to frame the bytes anew: H.264 with start codes, AAC in MPEG-TS). What was encoded anew keeps
every picture, and its sound lasts as long as they do.
"""

from __future__ import annotations

from collections.abc import Sequence

from zq.workers.merge_media import Container
from zq.workers.merge_plan import Plan, Run
from zq.workers.probe import FileProbe, Probe

DURATION_TOLERANCE_S = 0.1
TS_DURATION_TOLERANCE_S = 0.25
"""The clock of an MPEG-TS begins anew at each start of its recorder, and how long the last picture was is lost."""
PART_TOLERANCE_S = 0.05
"""More for each part that was encoded: sound comes in packets of 20 ms with a start of its own."""
SOUND_MISSING_S_MAX = 1.0


class OutputWrong(Exception):
    """The merged file is not what it should be. It was not published, and nothing was deleted."""


def check_merge(probed: Probe, output: Probe, plan: Plan, runs: Sequence[Run]) -> None:
    """Raises OutputWrong if `output`, one file, is not all that was in `probed`, the `runs`, one after the other."""
    merged = output.files[0]
    # A track without a packet is left out of parts that were made anew.
    kinds = sorted({s.type for f in probed.files for s in f.streams if s.packets or not plan.groups})
    if sorted(s.type for s in merged.streams) != kinds:
        raise OutputWrong(f"it has the streams {[s.type for s in merged.streams]}, not {kinds}")
    rewritten = {
        "video": any(s.byte_stream for f in probed.files for s in f.streams),
        "audio": any(run.container is Container.MPEG_TS for run in runs),
    }
    encoded = {"video": plan.encodes_picture, "audio": plan.encodes_sound}
    for stream in merged.streams:
        packets = sum(s.packets for f in probed.files for s in f.streams if s.type == stream.type)
        if not stream.rising:
            raise OutputWrong(f"its {stream.type} time stamps repeat or go back")
        if encoded[stream.type] and stream.type == "audio":
            _check_sound(merged, probed.files[-1], plan)
            continue
        if stream.packets != packets:
            raise OutputWrong(f"{stream.packets} of {packets} {stream.type} packets are in it")
        same = output.payload_hash[stream.type] == probed.payload_hash[stream.type]
        if not (same or encoded[stream.type] or rewritten[stream.type]):
            raise OutputWrong(f"its {stream.type} packets are not those of the segments")
    duration_s = duration_of(merged)
    off_s = abs(duration_s - plan.total_s)
    # A muxer gives the last picture a length where its recorder gave none: then the place where it begins counts.
    last = probed.files[-1]
    off_s = min(off_s, abs(merged.last_s - merged.first_s - (plan.total_s - (last.end_s - last.last_s))))
    if off_s > tolerance_s(plan, runs):
        raise OutputWrong(f"it lasts {duration_s:.3f} s, its parts {plan.total_s:.3f} s")


def shows_the_same(probed: Probe, output: Probe) -> bool:
    """Whether the pictures of `output`, which `check_merge` found to be those of `probed`, also decode as they do.

    The same packets in the same order for the same decoder: the codec, the size and the decoder's own header.
    """
    pictures = [s for s in (f.of_type("video") for f in (*probed.files, *output.files)) if s is not None and s.packets]
    return len({(s.codec, s.extradata, s.width_px, s.height_px, s.byte_stream) for s in pictures}) == 1


def _check_sound(merged: FileProbe, last: FileProbe, plan: Plan) -> None:
    """Filled with silence where there was none; only at the very end it may stop as early as it did."""
    sound, end = merged.of_type("audio"), last.of_type("audio")
    lasts_s = sound.end_s - sound.first_s if sound is not None and sound.packets else 0.0
    ends_early_s = last.end_s - end.end_s if end is not None and end.packets else 0.0
    if plan.total_s - lasts_s > ends_early_s + max(SOUND_MISSING_S_MAX, PART_TOLERANCE_S * len(plan.groups)):
        raise OutputWrong(f"its sound lasts {lasts_s:.3f} s, its parts {plan.total_s:.3f} s")


def tolerance_s(plan: Plan, runs: Sequence[Run]) -> float:
    """By how much the merged file may be longer or shorter than its parts."""
    ts = any(run.container is Container.MPEG_TS for run in runs)
    encoded_parts = len(plan.groups) if plan.groups else 0
    return (TS_DURATION_TOLERANCE_S if ts else DURATION_TOLERANCE_S) + PART_TOLERANCE_S * encoded_parts


def duration_of(probed: FileProbe) -> float:
    """From the first time stamp to the end of the last packet, in seconds."""
    return probed.end_s - probed.first_s
