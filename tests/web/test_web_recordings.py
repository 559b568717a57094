from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.web.conftest import Api, problem
from tests.web.test_web_exams import STUDENT, make_exam, succeed
from zq.exams.storage import RecordingStorage
from zq.web.ranges import NotSatisfiable, Span, wanted
from zq.web.recordings import READ_BYTES

CONTENT = bytes(range(256)) * (READ_BYTES // 256 * 2 + 3)


@pytest.fixture
def recorded(api: Api) -> Api:
    make_exam(api)
    succeed(api, "job", CONTENT)
    return api


def test_the_whole_recording(recorded: Api) -> None:
    answer = recorded("GET", f"{STUDENT}/recording")
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["content-type"] == "video/webm"
    assert answer.headers["accept-ranges"] == "bytes"
    assert "filename*=UTF-8''s1_%E7%8E%8B" in answer.headers["content-disposition"]
    head = recorded("HEAD", f"{STUDENT}/recording")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(CONTENT)))


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("bytes=0-0", 0, 0), ("bytes=5-", 5, len(CONTENT) - 1), ("bytes=-3", len(CONTENT) - 3, len(CONTENT) - 1),
     ("bytes=10-99999999", 10, len(CONTENT) - 1), (f"bytes=1-{READ_BYTES + 9}", 1, READ_BYTES + 9)],
)  # fmt: skip
def test_a_range(recorded: Api, asked: str, first: int, last: int) -> None:
    answer = recorded("GET", f"{STUDENT}/recording", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, CONTENT[first : last + 1])
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(CONTENT)}"


def test_a_range_behind_the_end(recorded: Api) -> None:
    for asked in (f"bytes={len(CONTENT)}-", "bytes=-0"):
        answer = recorded("GET", f"{STUDENT}/recording", headers={"Range": asked})
        problem(answer, 416)
        assert answer.headers["content-range"] == f"bytes */{len(CONTENT)}"


def test_several_ranges_and_nonsense_get_the_whole(recorded: Api) -> None:
    for asked in ("bytes=0-1,3-4", "bytes=5-1", "bytes=-", "items=0-1", "bytes=" + "0-1," * 5000, "bytes=٣-٤".encode()):
        answer = recorded("GET", f"{STUDENT}/recording", headers={"Range": asked})
        assert (answer.status_code, len(answer.content)) == (200, len(CONTENT))


def test_what_the_client_has_is_not_sent_again(recorded: Api) -> None:
    tag = recorded("GET", f"{STUDENT}/recording").headers["etag"]
    assert recorded("GET", f"{STUDENT}/recording", headers={"If-None-Match": tag}).status_code == 304
    for same, status in ((tag, 206), ('"other"', 200)):
        headers = {"Range": "bytes=0-1", "If-Range": same}
        assert recorded("GET", f"{STUDENT}/recording", headers=headers).status_code == status


def test_a_video_that_is_gone_and_a_link_in_its_place(recorded: Api) -> None:
    folder = RecordingStorage(recorded.services.config.storage_path).exam_folder("math")
    (video,) = folder.glob("*.webm")
    video.unlink()
    problem(recorded("GET", f"{STUDENT}/recording"), 404)
    video.symlink_to("/etc/passwd")
    problem(recorded("GET", f"{STUDENT}/recording"), 404)


@given(st.text(max_size=120), st.integers(0, 1000))
def test_any_range_is_inside_the_file(header: str, size_bytes: int) -> None:
    check(header, size_bytes)


@given(st.one_of(st.none(), st.integers(0, 10**20)), st.one_of(st.none(), st.integers(0, 10**20)), st.integers(0, 1000))
def test_any_numbers_are_inside_the_file(first: int | None, last: int | None, size_bytes: int) -> None:
    check(f"bytes={'' if first is None else first}-{'' if last is None else last}", size_bytes)


def check(header: str, size_bytes: int) -> None:
    try:
        span = wanted(header, size_bytes)
    except NotSatisfiable:
        return
    if span is not None:
        assert 0 <= span.first <= span.last < size_bytes


def test_a_span_counts_both_ends() -> None:
    assert Span(2, 4).size_bytes == 3
    assert wanted("bytes=2-4", 5) == Span(2, 4)
    assert wanted("bytes=2-4", 3) == Span(2, 2)
