from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zq.exams import names
from zq.exams.errors import ExamError


@pytest.mark.parametrize("text", ["1", "2021010101", "math-101", "a.b", "_x", "A" * 20])
def test_good_ids(text: str) -> None:
    assert names.student_id(text) == text
    assert names.exam_id(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "-rf",
        ".hidden",
        "a/b",
        "a\\b",
        "a:b",
        "a b",
        "a\0",
        "a\n",
        "数学",
        "A" * 21,
        7,
        None,
        b"x",
        "a|b",
        "１",
    ],
)
def test_bad_student_ids(text: object) -> None:
    with pytest.raises(ExamError) as refused:
        names.student_id(text)
    assert refused.value.code == "invalid"


def test_bounds() -> None:
    assert names.exam_id("e" * names.EXAM_ID_CHARS_MAX)
    assert names.person_name("王" * names.NAME_CHARS_MAX)
    assert names.file_name("b" * names.FILE_NAME_BYTES_MAX)
    for call, text in [
        (names.exam_id, "e" * (names.EXAM_ID_CHARS_MAX + 1)),
        (names.person_name, "王" * (names.NAME_CHARS_MAX + 1)),
        (names.file_name, "b" * (names.FILE_NAME_BYTES_MAX + 1)),
        (names.client_ip, "1" * (names.IP_CHARS_MAX + 1)),
    ]:
        with pytest.raises(ExamError):
            call(text)


def test_names_of_people() -> None:
    assert names.person_name(" 王小明 ") == "王小明"
    assert names.person_name("Ame\u0301lie O'Brien") == "Am\u00e9lie O'Brien"
    for bad in ("a\nb", "a\0", "\ud800", "a\u2028b", "\u202egnp.exe"):
        with pytest.raises(ExamError):
            names.person_name(bad)


@pytest.mark.parametrize(
    "name",
    [
        *("00001-1764000000000.webm", "s1_20260630_090000_seq_0001.mp4", "录像 1.MKV", "a'b.mov", "x.avi"),
        *("-y.webm", "--.webm", 'say "x".webm', "a b c.webm"),
    ],
)
def test_good_segment_names(name: str) -> None:
    assert names.segment_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".mp4",
        "../x.mp4",
        "a/b.mp4",
        "a\\b.mp4",
        "a|b.mp4",
        "a\nb.mp4",
        "a.txt",
        "mp4",
        "a.mp4.part",
        "\ud800.mp4",
    ],
)
def test_bad_segment_names(name: str) -> None:
    with pytest.raises(ExamError):
        names.segment_name(name)


@given(st.text(max_size=300))
def test_whatever_is_accepted_is_one_plain_component(text: str) -> None:
    for check in (names.exam_id, names.student_id, names.file_name, names.segment_name):
        try:
            name = check(text)
        except ExamError:
            continue
        assert PurePosixPath(name).parts == (name,)
        assert name not in (".", "..")
        assert len(name.encode("utf-8")) <= names.FILE_NAME_BYTES_MAX


@given(st.text(max_size=300))
def test_a_name_in_a_file_name_is_harmless(text: str) -> None:
    part = names.in_file_name(text)
    assert len(part.encode("utf-8")) <= 120
    assert names.file_name(f"s_{part}_1.mp4")
