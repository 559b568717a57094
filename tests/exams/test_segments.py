"""Names of segments and the order they belong in."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zq.exams.segments import MergeRefused, Segment, check_name, order, parse_name

SHANGHAI = ZoneInfo("Asia/Shanghai")
MS = 1_795_449_373_000


def names(*segments: Segment) -> list[list[str]]:
    return [[s.name for s in session] for session in order(segments).sessions]


@pytest.mark.parametrize(
    ("name", "seq", "ts_ms"),
    [
        ("s1_20260630_090000_seq_0001.mp4", 1, 1_782_781_200_000),
        ("2026_王_20260630_090000_seq_12.webm", 12, 1_782_781_200_000),
        ("s1_20260630_090000.mp4", None, 1_782_781_200_000),
        ("s1_20261330_090000_seq_0001.mp4", None, None),
        ("00007-1795449384137.webm", 7, 1_795_449_384_137),
        ("00007-1795449384137-retry.webm", 7, 1_795_449_384_137),
        ("1795449384137.webm", None, 1_795_449_384_137),
        ("seg-02.webm", 2, None),
        ("7.webm", 7, None),
        ("7\n.webm", None, None),
        ("it's 5 o'clock.webm", None, None),
        ("2026-screen-3.webm", None, None),
        ("", None, None),
        ("no suffix", None, None),
    ],
)
def test_what_a_name_says(name: str, seq: int | None, ts_ms: int | None) -> None:
    assert parse_name(name, SHANGHAI) == Segment(name, seq, ts_ms)


@given(st.text())
def test_any_name_is_read_and_within_bounds(name: str) -> None:
    found = parse_name(name)
    assert found.name == name
    assert found.seq is None or 0 <= found.seq < 10**9
    assert found.ts_ms is None or 0 <= found.ts_ms < 10**15


@pytest.mark.parametrize("name", ["", ".hidden", "a/b.mp4", "a\\b.mp4", "a\0.mp4", "字" * 86, "\ud800.mp4", ".."])
def test_names_that_may_not_be(name: str) -> None:
    with pytest.raises(ValueError, match="segment's name"):
        check_name(name)


@pytest.mark.parametrize("name", ["-y.webm", "a b\nc.webm", '"x".webm', "王.mp4", "%d.webm", "file:x.webm", "字" * 85])
def test_names_that_may_be(name: str) -> None:
    assert check_name(name) == name


def test_the_number_decides_and_not_the_clock() -> None:
    assert names(Segment("b", 2, MS), Segment("c", 3, MS + 9), Segment("a", 1, MS + 5)) == [["a", "b", "c"]]


def test_a_restarted_count_begins_a_new_session() -> None:
    first = [Segment(f"a{n}", n, MS + n) for n in (1, 2, 3)]
    second = [Segment(f"b{n}", n, MS + 100 + n) for n in (1, 2)]
    assert names(*second, *first) == [["a1", "a2", "a3"], ["b1", "b2"]]


def test_when_the_clock_misleads_the_time_of_arrival_is_tried() -> None:
    # The client's clock went back an hour between two starts: by its time the sessions would interleave.
    first = [Segment(f"a{n}", n, MS + n, mtime_ms=n) for n in (1, 2, 3)]
    second = [Segment(f"b{n}", n, MS + n - 2, mtime_ms=10 + n) for n in (1, 2, 3)]
    assert names(*first, *second) == [["a1", "a2", "a3"], ["b1", "b2", "b3"]]


@pytest.mark.parametrize(
    ("numbers", "missing"),
    [((0, 1, 3), "missing 2"), ((1, 2, 6), "missing 3-5"), ((2, 3), "missing 0-1"), ((0, 2, 4), "missing 1, 3")],
)
def test_a_gap_is_refused_with_what_is_missing(numbers: tuple[int, ...], missing: str) -> None:
    with pytest.raises(MergeRefused, match=f"sequence_gap: {missing};") as refused:
        order([Segment(str(n), n) for n in numbers])
    assert refused.value.reason == "sequence_gap"


def test_a_gap_in_the_second_session_is_refused() -> None:
    segments = [Segment(f"a{n}", n, MS + n, mtime_ms=n) for n in (1, 2)]
    segments += [Segment(f"b{n}", n, MS + 9 + n, mtime_ms=9 + n) for n in (1, 3)]
    with pytest.raises(MergeRefused, match="sequence_gap: missing 2"):
        order(segments)


def test_a_recorder_that_began_again_after_its_first_segment() -> None:
    first, second = Segment("a1", 1, MS), [Segment("b1", 1, MS + 60_000), Segment("b2", 2, MS + 120_000)]
    assert names(*second, first) == [["a1"], ["b1", "b2"]]


def test_gaps_are_taken_where_that_is_wished_and_told() -> None:
    found = order([Segment(str(n), n) for n in (1, 2, 6, 8)], take_gaps=True)
    assert [[s.name for s in session] for session in found.sessions] == [["1", "2", "6", "8"]]
    assert found.gaps == {"6": "3-5", "8": "7"}
    restarted = [Segment(f"a{n}", n, MS + n, mtime_ms=n) for n in (1, 3)]
    restarted += [Segment(f"b{n}", n, MS + 9 + n, mtime_ms=9 + n) for n in (1, 2)]
    found = order(restarted, take_gaps=True)
    assert [[s.name for s in session] for session in found.sessions] == [["a1", "a3"], ["b1", "b2"]]
    assert found.gaps == {"a3": "2"}


def test_identical_bytes_sent_twice_are_left_out_once() -> None:
    found = order([Segment("a", 0, sha256="x"), Segment("b", 1, sha256="y"), Segment("b2", 1, sha256="y")])
    assert [[s.name for s in session] for session in found.sessions] == [["a", "b"]]
    assert found.duplicates == {"b2": "b"}


def test_other_bytes_under_the_same_number_are_refused() -> None:
    with pytest.raises(MergeRefused, match="duplicate_sequence") as refused:
        order([Segment("a", 0, MS), Segment("b", 1, MS + 1, sha256="y"), Segment("c", 1, MS + 1, sha256="z")])
    assert refused.value.segment == "c"


def test_the_same_picture_at_another_time_is_no_duplicate() -> None:
    assert names(Segment("a", None, MS, sha256="x"), Segment("b", None, MS + 1, sha256="x")) == [["a", "b"]]


def test_without_numbers_time_decides_over_midnight() -> None:
    late = parse_name("s1_20260630_235900.mp4", SHANGHAI)
    early = parse_name("s1_20260701_000100.mp4", SHANGHAI)
    assert names(early, late) == [[late.name, early.name]]


def test_numbered_and_unnumbered_are_put_by_time() -> None:
    old = [Segment("o1", None, MS), Segment("o2", None, MS + 50)]
    new = [Segment("n1", 1, MS + 10), Segment("n2", 2, MS + 20)]
    assert names(*old, *new) == [["o1"], ["n1", "n2"], ["o2"]]


def test_an_unnumbered_one_inside_a_numbered_recording_is_refused() -> None:
    with pytest.raises(MergeRefused, match="ambiguous_order"):
        order([Segment("n1", 1, MS), Segment("n2", 2, MS + 20), Segment("o", None, MS + 10)])


_segments = st.lists(
    st.builds(
        Segment,
        name=st.text(min_size=1, max_size=4),
        seq=st.none() | st.integers(0, 6),
        ts_ms=st.none() | st.integers(MS, MS + 20),
        sha256=st.none() | st.sampled_from(["x", "y"]),
        mtime_ms=st.integers(0, 20),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda s: s.name,
)


@given(_segments, st.randoms(use_true_random=False))
def test_order_does_not_depend_on_arrival_and_loses_nothing(segments: list[Segment], random: object) -> None:
    shuffled = list(segments)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    try:
        found = order(segments)
    except MergeRefused as refused:
        reason = refused.reason
        with pytest.raises(MergeRefused, match=reason):
            order(shuffled)
        return
    assert order(shuffled) == found
    kept = [s.name for session in found.sessions for s in session]
    assert sorted([*kept, *found.duplicates]) == sorted(s.name for s in segments)
    assert set(found.duplicates.values()) <= set(kept)
    for session in found.sessions:
        numbers = [s.seq for s in session if s.seq is not None]
        assert numbers == sorted(set(numbers))
