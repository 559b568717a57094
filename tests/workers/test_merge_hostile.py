"""Bytes and files that are meant to do harm: nothing outside is read, nothing hangs, and every segment stays.

What was declared at upload is not there in these tests: the bytes have to speak for themselves.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from tests.workers.merge_recordings import FFMPEGS, MEDIA, ONE_AND_LONG, Job, Recording, made, put
from zq.exams.segments import MergeRefused
from zq.workers.merge_film import FfmpegFailed
from zq.workers.merge_verify import OutputWrong
from zq.workers.probe import ProbeFailed

SEEN_S = 20.0
"""Within this each of them is done with, on a machine that has other work, too."""
WHOLE = [path.read_bytes() for path in sorted((MEDIA / "restart-vp8-opus").iterdir())]
CHUNKS = [path.read_bytes() for path in sorted((MEDIA / "ts-vp8-opus").iterdir())]
MP4 = [path.read_bytes() for path in sorted((MEDIA / "mp4-uniform").iterdir())]
pytestmark = pytest.mark.parametrize("ffmpeg", ONE_AND_LONG, ids=[Path(path).name for path in FFMPEGS])

LISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{canary}\n#EXT-X-ENDLIST\n",
    "hls-file-url": '#EXTM3U\n#EXT-X-MAP:URI="file://{canary}"\n#EXTINF:2,\nfile://{canary}\n',
    "hls-in-webm": "\x1aE\n#EXTM3U\n#EXTINF:2,\n{canary}\n",
    "ffconcat": "ffconcat version 1.0\nfile '{canary}'\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{canary}</BaseURL></MPD>',
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
    "subtitles": "1\n00:00:00,000 --> 00:00:01,000\n{canary}\n",
}


def refusal(recording: Recording, ffmpeg: str) -> MergeRefused:
    """How it is refused, soon, with everything as it was and nothing beside it."""
    before_s = time.monotonic()
    with pytest.raises(MergeRefused) as refused:
        recording.merge(ffmpeg=ffmpeg)
    assert time.monotonic() - before_s < SEEN_S
    assert recording.beside() == []
    return refused.value


@pytest.mark.parametrize("kind", sorted(LISTS))
@pytest.mark.parametrize("place", [0, 1])
def test_a_list_of_other_files_is_no_recording(tmp_path: Path, ffmpeg: str, kind: str, place: int) -> None:
    canary = tmp_path / "canary.ts"
    made(MEDIA / "mp4-uniform" / "00000.mp4", canary, "-c", "copy", "-f", "mpegts")
    os.utime(canary, (1, 1))
    parts = [*WHOLE[:2]]
    parts[place] = LISTS[kind].format(canary=canary).encode("latin-1")
    recording = put(tmp_path, ".webm", parts)
    assert refusal(recording, ffmpeg).reason in ("no_header", "bad_segment")
    recording.assert_kept()
    assert canary.stat().st_atime == 1, "it was read"


@pytest.mark.parametrize("kind", ["fifo", "folder", "link", "link-to-folder", "device"])
def test_what_is_no_file_is_no_segment(tmp_path: Path, ffmpeg: str, kind: str) -> None:
    recording = put(tmp_path, ".webm", WHOLE[:2])
    place = recording.request.folder / "00002-1795449377838.webm"
    match kind:
        case "fifo":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
        case "link":
            (tmp_path / "else").write_bytes(WHOLE[2])
            place.symlink_to(tmp_path / "else")
        case "link-to-folder":
            place.symlink_to(tmp_path)
        case _:
            place.symlink_to("/dev/zero")
    refused = refusal(recording, ffmpeg)
    assert (refused.reason, refused.segment) == ("bad_segment", place.name)


def with_size(content: bytes, width: int, height: int) -> bytes:
    """A WebM whose head says that its pictures are so large."""
    found = content
    for element, value in ((b"\xb0", width), (b"\xba", height)):
        at = found.index(element + b"\x82")
        found = found[: at + 2] + value.to_bytes(2, "big") + found[at + 4 :]
    return found


@pytest.mark.parametrize("chunked", [False, True])
def test_enormous_pictures_are_refused_before_they_are_decoded(tmp_path: Path, ffmpeg: str, chunked: bool) -> None:
    options = ("-vf", "scale=320:300", "-c:v", "libvpx", "-deadline", "realtime", "-c:a", "copy")
    film = with_size(made(MEDIA / "restart-vp8-opus" / "00000.webm", tmp_path / "x.webm", *options), 65535, 65535)
    parts = [film[:20_000], film[20_000:]] if chunked else [film, WHOLE[1]]
    recording = put(tmp_path, ".webm", parts)
    job = Job()
    with pytest.raises(MergeRefused) as refused:
        recording.merge(job, ffmpeg)
    assert refused.value.reason in ("unsupported_format", "bad_segment")
    assert not [argv for argv in job.programs if argv[0] == ffmpeg]


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 25))])
def test_damaged_recordings_end_in_a_whole_video_or_none(tmp_path: Path, ffmpeg: str, seed: int) -> None:
    """Cut, flipped, doubled, swapped, and with sizes that lie: anything but a hang, a crash or half a video."""
    random_ = random.Random(seed)
    suffix, source = random_.choice([(".webm", WHOLE), (".webm", CHUNKS), (".mp4", MP4)])
    parts = [bytearray(part) for part in source]
    for _ in range(random_.randint(1, 4)):
        part = random_.choice(parts)
        match random_.randrange(5):
            case 0:
                del part[random_.randrange(1, len(part)) :]
            case 1:
                part[random_.randrange(len(part))] ^= 1 << random_.randrange(8)
            case 2:
                at = random_.randrange(len(part))
                part[at:at] = part[at : at + random_.randrange(1, 5000)]
            case 3:
                at = random_.randrange(min(400, len(part)))
                part[at : at + 8] = bytes(random_.choice([0, 0xFF, 0x7F]) for _ in range(8))
            case _:
                other = random_.choice(parts)
                part[:], other[:] = bytes(other), bytes(part)
    recording = put(tmp_path, suffix, [bytes(part) for part in parts])
    before_s = time.monotonic()
    try:
        result = recording.merge(ffmpeg=ffmpeg)
    except (MergeRefused, OutputWrong, FfmpegFailed, ProbeFailed):
        assert recording.beside() == []
    else:
        assert recording.beside() == [result.video, result.video + ".zq.json"]
    assert time.monotonic() - before_s < SEEN_S
    recording.assert_kept()
