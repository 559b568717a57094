"""Magic bytes and structure: real recordings hold, anything else is named or harmless."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zq.workers.merge_media import HEAD_BYTES, Container, Structure, sniff, walk

MEDIA = Path(__file__).parents[1] / "media"
CHUNKS = [p.read_bytes() for p in sorted((MEDIA / "ts-vp8-opus").iterdir())]
WHOLE = (MEDIA / "restart-vp8-opus" / "00001.webm").read_bytes()
MP4 = (MEDIA / "mp4-uniform" / "00000.mp4").read_bytes()


def walked(content: bytes, container: Container = Container.WEBM) -> Structure:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        return walk(file.fileno(), len(content), container)


@pytest.mark.parametrize(
    ("head", "container"),
    [
        (CHUNKS[0], Container.WEBM),
        (CHUNKS[0][:HEAD_BYTES].replace(b"\x42\x82\x84webm", b"\x42\x82\x88matroska"), Container.MATROSKA),
        (MP4, Container.MP4),
        (b"RIFF\0\0\0\0AVI LIST", Container.AVI),
        ((b"G" + b"\xff" * 187) * 3, Container.MPEG_TS),
        (b"\0\0\x10\0moov", Container.MP4),  # QuickTime
        (b"\0\0\0\x08wide\0\0\x10\0mdat", Container.MP4),
        (b"\0\0\x10\0moof", Container.NONE),  # a fragment continues
        (b"G" + b"\xff" * 511, Container.NONE),  # a continuation may begin with the sync byte of MPEG-TS
        (CHUNKS[1], Container.NONE),
        (b"#EXTM3U\n", Container.NONE),
        (b"", Container.NONE),
        (b"\x1a\x45\xdf\xa3", Container.NONE),
        (b"\xff\xff\xff\xffftyp", Container.NONE),
    ],
)
def test_what_a_file_begins_as(head: bytes, container: Container) -> None:
    assert sniff(head[:HEAD_BYTES]) is container


_STARTS = [b"", b"\x1a\x45\xdf\xa3", b"\0\0\0\x18ftyp", b"\x1a\x45\xdf\xa3\x42\x82"]


@given(st.binary(max_size=600), st.sampled_from(_STARTS))
def test_any_bytes_are_sniffed(rest: bytes, start: bytes) -> None:
    assert isinstance(sniff(start + rest), Container)


def test_chunks_in_order_hold_wherever_the_last_is_cut() -> None:
    content = b"".join(CHUNKS[:3])
    for cut in (*range(1, 300, 7), *range(len(CHUNKS[0]), len(content), 997), len(content)):
        assert walked(content[:cut]).bad_at is None


def test_a_chunk_left_out_or_swapped_or_foreign_is_named() -> None:
    # Chunk 1 ends inside an element. (Chunk 3 would continue it as chunk 2 does: only numbers tell those apart.)
    for second in (CHUNKS[4], b"#EXTM3U\nhttp://x/\n" * 400, (MEDIA / "bad" / "garbage.webm").read_bytes() * 3):
        found = walked(CHUNKS[0] + CHUNKS[1] + second)
        assert found.bad_at is not None
        assert found.bad_at >= len(CHUNKS[0])


def test_garbage_behind_a_whole_file_is_named_where_it_begins() -> None:
    for garbage in ((MEDIA / "bad" / "garbage.webm").read_bytes(), b"#EXTM3U\n", b"\0" * 100):
        assert walked(WHOLE + garbage).bad_at == len(WHOLE)
    for garbage in ((MEDIA / "bad" / "text.mp4").read_bytes(), b"#EXTM3U\nsegment.ts\n", b"\0" * 100):
        assert walked(MP4 + garbage, Container.MP4).bad_at == len(MP4)


def test_whole_and_seekable() -> None:
    # Chromium writes its Cues behind.
    assert walked(WHOLE) == Structure(None, seekable=False, whole=True, whole_bytes=len(WHOLE))
    assert walked(MP4, Container.MP4).whole
    assert not walked(MP4[:-1], Container.MP4).whole
    boxes = b"\0\0\0\x08ftyp\0\0\0\x08moov\0\0\0\x0amdatxx"
    assert walked(boxes, Container.MP4) == Structure(None, seekable=True, whole=True, whole_bytes=len(boxes))
    behind = b"\0\0\0\x08ftyp\0\0\0\x0amdatxx\0\0\0\x08moov"
    assert not walked(behind, Container.MP4).seekable


def test_mpeg_ts_packets_follow_each_other_over_the_seams() -> None:
    packets = (b"G" + b"\xff" * 187) * 12_000
    assert walked(packets, Container.MPEG_TS).whole
    assert walked(packets[:-100], Container.MPEG_TS).whole_bytes == len(packets) - 188
    assert walked(packets[: 188 * 9000] + b"x" + packets, Container.MPEG_TS).bad_at == 188 * 9000


def test_an_avi_is_one_riff_after_the_other() -> None:
    one = b"RIFF\x06\0\0\0AVI xx"
    assert walked(one + one.replace(b"AVI ", b"AVIX"), Container.AVI).whole
    assert walked(one + b"garbage", Container.AVI).bad_at == len(one)
    assert walked(b"RIFF\0\0\0\0AVI LIST", Container.AVI).whole


def test_the_fast_way_through_blocks_is_the_slow_way() -> None:
    head = b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01" + b"\xff" * 7 + b"\x1f\x43\xb6\x75\x01" + b"\xff" * 7
    for size in (0, 1, 126, 127, 16_382, 16_383, 70_000, 2_097_150):
        for width in (1, 2, 3, 4):
            if size < (1 << 7 * width) - 1:
                block = b"\xa3" + (size | 1 << 7 * width).to_bytes(width, "big") + b"\xa3" * size
                content = head + b"\xe7\x81\x00" + block * 3
                found = walked(content)
                assert (found.bad_at, found.whole, found.whole_bytes) == (None, True, len(content))
                assert walked(content + b"\x00").bad_at == len(content)
                cut = walked(content[:-1])
                assert (cut.bad_at, cut.whole, cut.whole_bytes) == (None, size + width < 1, len(content) - len(block))


@settings(max_examples=300)
@given(
    st.sampled_from([(CHUNKS[0] + CHUNKS[1], Container.WEBM), (WHOLE, Container.WEBM), (MP4, Container.MP4)]),
    st.lists(st.tuples(st.integers(0, 2**15), st.integers(0, 255)), max_size=8),
)
def test_any_change_is_walked_in_bounded_time(
    start: tuple[bytes, Container], changes: list[tuple[int, int]]
) -> None:
    content = bytearray(start[0])
    for at, value in changes:
        content[at % len(content)] = value
    found = walked(bytes(content), start[1])
    assert found.bad_at is None or 0 <= found.bad_at < len(content)


@given(st.binary(max_size=300), st.sampled_from(Container))
def test_any_bytes_are_walked(content: bytes, container: Container) -> None:
    walked(content, container)
