"""The list of accepted segments: what is written is read, and nothing else is believed."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zq.exams.segment_index import INDEX_NAME, MissingSegments, list_segments, parse_index, read_index, record_segment
from zq.exams.segments import MergeRefused, Segment

SHA = "a" * 64


def test_what_was_recorded_is_read_and_the_last_word_counts(tmp_path: Path) -> None:
    hostile = ["a b.webm", "it's\nnew.webm", '"x".webm', "-y.webm", "王小明.webm", "字" * 85]
    for number, name in enumerate(hostile):
        record_segment(tmp_path, Segment(name, number, 5, 10, SHA))
    record_segment(tmp_path, Segment(hostile[0], 9, 5, 11, "b" * 64))
    found = read_index(tmp_path)
    assert list(found) == hostile
    assert found[hostile[0]] == Segment(hostile[0], 9, 5, 11, "b" * 64)
    assert found["王小明.webm"].seq == 4


@pytest.mark.parametrize(
    "segment",
    [Segment("a/b.webm"), Segment(".x"), Segment("a.webm", -1), Segment("a.webm", sha256="A" * 64), Segment("\ud800")],
)
def test_what_may_not_be_recorded_leaves_no_trace(tmp_path: Path, segment: Segment) -> None:
    with pytest.raises(ValueError, match=r"segment|seq|sha256"):
        record_segment(tmp_path, segment)
    assert not (tmp_path / INDEX_NAME).exists()


def test_a_record_torn_at_any_byte_loses_just_itself(tmp_path: Path) -> None:
    record_segment(tmp_path, Segment("a.webm", 0))
    path = tmp_path / INDEX_NAME
    whole_bytes = path.stat().st_size
    record_segment(tmp_path, Segment("b.webm", 1))
    content = path.read_bytes()
    for cut in range(whole_bytes, len(content) - 1):
        path.write_bytes(content[:cut])
        assert list(read_index(tmp_path)) == ["a.webm"]
        record_segment(tmp_path, Segment("c.webm", 2))
        assert list(read_index(tmp_path)) == ["a.webm", "c.webm"]


@pytest.mark.parametrize(
    "record",
    [
        {"v": 2, "name": "a"},
        {"v": 1},
        {"v": 1, "name": 7},
        {"v": 1, "name": "../a"},
        {"v": 1, "name": "a", "seq": True},
        {"v": 1, "name": "a", "seq": 1.5},
        {"v": 1, "name": "a", "size_bytes": -1},
        {"v": 1, "name": "a", "sha256": "x"},
        {"v": 1, "name": "a", "sha256": SHA + "\n"},
        {"v": 1, "name": "a", "path": "/etc/passwd"},
        [1],
    ],
)
def test_a_whole_record_of_nonsense_is_refused(record: object) -> None:
    with pytest.raises(MergeRefused, match="bad_index"):
        parse_index(json.dumps(record).encode() + b"\n")


_pieces = st.lists(st.sampled_from([b'{"v":1,"name":"a"', b"}", b"\n", b'"seq":', b"9", b",", b"[" * 2000]))


@given(st.binary(max_size=400) | _pieces.map(b"".join))
def test_any_bytes_are_read_or_refused(text: bytes) -> None:
    with contextlib.suppress(MergeRefused):
        parse_index(text)


def test_many_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    def write(first: int) -> None:
        for n in range(first, first + 25):
            record_segment(tmp_path, Segment(f"{n}.webm", n))

    threads = [threading.Thread(target=write, args=(k * 25,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {s.seq for s in read_index(tmp_path).values()} == set(range(100))


def test_the_index_is_not_read_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text('{"v":1,"name":"a"}\n')
    (tmp_path / INDEX_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        read_index(tmp_path)
    with pytest.raises(OSError, match="symbolic links"):
        record_segment(tmp_path, Segment("a"))


def test_a_folder_is_listed_with_what_is_known(tmp_path: Path) -> None:
    for name in ("00001-1795449373936.webm", "odd name.bin", "unknown.bin", ".upload-1.part", "s1_20260630_090000.MP4"):
        (tmp_path / name).write_bytes(b"x")
    record_segment(tmp_path, Segment("odd name.bin", 3, 4, 1, SHA, mtime_ms=9))
    found = {s.name: s for s in list_segments(tmp_path)}
    assert sorted(found) == ["00001-1795449373936.webm", "odd name.bin", "s1_20260630_090000.MP4"]
    assert found["odd name.bin"] == Segment("odd name.bin", 3, 4, 1, SHA, 9)
    assert found["00001-1795449373936.webm"].seq == 1


def test_a_recorded_segment_that_is_gone_is_named(tmp_path: Path) -> None:
    record_segment(tmp_path, Segment("a.webm", 0))
    with pytest.raises(MissingSegments) as missing:
        list_segments(tmp_path)
    assert [s.name for s in missing.value.missing] == ["a.webm"]


def test_what_is_not_a_plain_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1.webm")
    with pytest.raises(MergeRefused, match="bad_segment"):
        list_segments(tmp_path)
