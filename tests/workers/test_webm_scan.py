"""The quick reader says what PyAV says, or nothing."""

from __future__ import annotations

import os
import random
import re
import tempfile
from pathlib import Path
from typing import Any

import av
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.merge_recordings import MEDIA, made
from zq.workers import probe_child, webm_scan
from zq.workers.probe import StreamProbe, scan

RUNS = {
    "ts-vp8-opus": [path.read_bytes() for path in sorted((MEDIA / "ts-vp8-opus").iterdir())],
    "ts-vp9-mute": [path.read_bytes() for path in sorted((MEDIA / "ts-vp9-mute").iterdir())],
    **{f"restart-{n}": [path.read_bytes()] for n, path in enumerate(sorted((MEDIA / "restart-vp8-opus").iterdir()))},
}
GUESSED_S = 0.2
"""PyAV guesses how long a last picture is that does not say it."""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    av.logging.set_level(None)
    monkeypatch.chdir(tmp_path)


def quick(content: bytes) -> tuple[list[dict[str, Any]], dict[str, str]] | None:
    Path("r00000.webm").write_bytes(content)
    found = scan(Path(), ["r00000.webm"])
    if found is None:
        return None
    return [msgspec.to_builtins(stream) for stream in found.files[0].streams], found.payload_hash


def by_pyav(content: bytes) -> tuple[list[dict[str, Any]], dict[str, str]]:
    Path("r00000.webm").write_bytes(content)
    totals: dict[str, tuple[Any, Any]] = {}
    streams = probe_child.probe("r00000.webm", "matroska", totals)["streams"]
    hashes = {kind: a.hexdigest() + b.hexdigest() for kind, (a, b) in totals.items()}
    return [msgspec.to_builtins(msgspec.convert(stream, StreamProbe)) for stream in streams], hashes


def assert_same(content: bytes) -> None:
    mine, theirs = quick(content), by_pyav(content)
    assert mine is not None
    assert mine[1] == theirs[1]
    for a, b in zip(mine[0], theirs[0], strict=True):
        assert abs(a.pop("end_s") - b.pop("end_s")) < (GUESSED_S if a["type"] == "video" else 1e-9)
        assert a == b


@pytest.mark.parametrize("run", sorted(RUNS))
def test_of_a_recorders_run(run: str) -> None:
    assert_same(b"".join(RUNS[run]))


@pytest.mark.parametrize(
    "options",
    [
        ("-c", "copy", "-cues_to_front", "1", "-fflags", "+bitexact"),
        ("-c", "copy", "-live", "1", "-cluster_time_limit", "300"),
        ("-c:v", "libvpx", "-auto-alt-ref", "1", "-lag-in-frames", "10", "-c:a", "copy"),
        ("-c:v", "libvpx-vp9", "-cpu-used", "8", "-deadline", "realtime", "-c:a", "libopus", "-ac", "2"),
        ("-c:v", "copy", "-c:a", "libopus", "-frame_duration", "60"),
        ("-c:v", "copy", "-c:a", "libopus", "-frame_duration", "5"),
    ],
    ids=lambda options: " ".join(options[:4]),
)
def test_of_what_ffmpeg_made(tmp_path: Path, options: tuple[str, ...]) -> None:
    assert_same(made(MEDIA / "restart-vp8-opus" / "00001.webm", tmp_path / "x.webm", *options))


@pytest.mark.parametrize(
    "options",
    [
        ("-c:v", "copy", "-c:a", "libvorbis"),
        ("-c:v", "copy", "-c:a", "libopus", "-frame_duration", "2.5"),
        ("-c:v", "libx264", "-preset", "ultrafast", "-an", "-f", "matroska"),
    ],
    ids=lambda options: " ".join(options[:4]),
)
def test_what_it_leaves_to_pyav(tmp_path: Path, options: tuple[str, ...]) -> None:
    assert quick(made(MEDIA / "restart-vp8-opus" / "00001.webm", tmp_path / "x.webm", *options)) is None


def test_what_goes_back_in_time_is_left_to_pyav(tmp_path: Path) -> None:
    options = ("-c", "copy", "-live", "1", "-cluster_time_limit", "300")
    film = made(MEDIA / "restart-vp8-opus" / "00001.webm", tmp_path / "x.webm", *options)
    clusters = [place.start() for place in re.finditer(re.escape(b"\x1f\x43\xb6\x75"), film)]
    assert quick(film) is not None
    twice = film[: clusters[2]] + film[clusters[1] :]
    assert quick(twice) is None
    assert not all(stream["rising"] for stream in by_pyav(twice)[0])


@pytest.mark.parametrize("seed", range(40))
def test_of_damaged_bytes_it_says_what_pyav_says_or_nothing(seed: int) -> None:
    random_ = random.Random(seed)
    content = bytearray(b"".join(RUNS[random_.choice(sorted(RUNS))]))
    for _ in range(random_.randint(1, 3)):
        at = random_.randrange(len(content))
        match random_.randrange(4):
            case 0:
                content[at] ^= 1 << random_.randrange(8)
            case 1:
                content[at : at + random_.randrange(1, 300)] = b""
            case 2:
                content[at:at] = content[at : at + random_.randrange(1, 300)]
            case _:
                del content[at:]
    found = quick(bytes(content))
    if found is None:
        return
    theirs = by_pyav(bytes(content))
    assert found[1] == theirs[1]
    assert [(s["packets"], s["first_s"]) for s in found[0]] == [(s["packets"], s["first_s"]) for s in theirs[0]]


@pytest.mark.parametrize("value", [b"\xff" * 9, b"\xff" * 200, b"\x01" + bytes(8), b"\xff" * 8])
def test_a_number_of_any_length_is_no_trouble(value: bytes) -> None:
    with pytest.raises(webm_scan.Irregular, match="too large"):
        webm_scan._number(value)
    scanner = webm_scan._Scanner(-1, 0, lambda track: None)
    with pytest.raises(webm_scan.Irregular, match="too large"):
        scanner.group(b"\x9b" + (0x4000 | len(value)).to_bytes(2, "big") + value, 0)
    # PixelWidth of a track that is whole but for it.
    picture = b"\xb0" + (0x4000 | len(value)).to_bytes(2, "big") + value + b"\xba\x81\x01"
    track = b"\xd7\x81\x01\x83\x81\x01\x86\x85V_VP8\xe0" + (0x4000 | len(picture)).to_bytes(2, "big") + picture
    with pytest.raises(webm_scan.Irregular, match="too large"):
        webm_scan._track(track)


_FIRST = RUNS["restart-0"][0]


@settings(max_examples=200)
@given(st.binary(max_size=300), st.integers(0, len(_FIRST)), st.integers(0, 300))
def test_any_bytes_end_in_an_answer(noise: bytes, at: int, replaced: int) -> None:
    content = _FIRST[:at] + noise + _FIRST[at + replaced :]
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            tracks = webm_scan.scan(file.fileno(), len(content), lambda track: None)
        except (webm_scan.Irregular, IndexError):
            return
    assert sum(track.packets for track in tracks) <= len(content)


def test_a_long_recording_is_hashed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many windows."""
    monkeypatch.setattr(webm_scan, "WINDOW_BYTES", 3000)
    assert_same(b"".join(RUNS["ts-vp8-opus"]))
    assert os.stat("r00000.webm").st_size > 10 * 3000
