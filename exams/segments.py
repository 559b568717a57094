"""What is known of a recording's segments, and the order they belong in. Pure: no disk, no clock.

A segment is known by its name, and by what the uploader said of it (`zq.exams.segment_index`). Names that carry
something:

    {student_id}_{YYYYmmdd_HHMMSS}_seq_{NNNN}.ext    sequence and time (local time of the exam)
    {student_id}_{YYYYmmdd_HHMMSS}.ext               time only (old clients)
    {NNNNN}-{unix_ms}[-anything].ext                 sequence and time
    {unix_ms}.ext                                    time only
    one number of at most six digits, as in seg-02.webm     sequence only

Whatever else a name holds, it says nothing, and the file's modification time decides.

Order: recording sessions by time, and inside a session by sequence. A session is one recorder counting up from 0
or 1; a client that restarts begins to count again, and that begins a new session. Where no session splits into an
unbroken count, nothing is guessed: MergeRefused, unless the caller takes recordings with gaps.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, tzinfo
from itertools import pairwise

from zq.exceptions import ZqError

NAME_BYTES_MAX = 255
"""The longest name a Linux file system takes, in UTF-8."""
SEQ_MAX = 10**9
SEGMENTS_MAX = 100_000
"""Of one student; a 24-hour exam in chunks of two seconds is 43,200."""
TS_MS_MAX = 253_402_300_799_999
"""The last millisecond of the year 9999."""
MEDIA_SUFFIXES = frozenset({".mp4", ".webm", ".avi", ".mov", ".mkv"})
MISSING_SHOWN_MAX = 20


class MergeRefused(ZqError):
    """These segments cannot be merged rightly, and trying again changes nothing; every segment stays where it is.

    `reason` is one of REASONS, `detail` says what to do about it, `segment` names the one at fault ("" for none).
    """

    def __init__(self, reason: str, detail: str, segment: str = "") -> None:
        super().__init__(f"{reason}: {detail}" + (f" (segment {segment!r})" if segment else ""))
        self.reason = reason
        self.detail = detail
        self.segment = segment


REASONS = {
    "bad_request": "the job's arguments cannot name a recording",
    "no_segments": "nothing to merge",
    "bad_index": "the list of accepted segments cannot be read",
    "missing_segment": "an accepted segment is not on disk",
    "changed_segment": "a segment is not what the uploader declared",
    "empty_segment": "a segment has no bytes",
    "bad_segment": "a segment's bytes are not a recording",
    "no_header": "a recording does not begin with a header",
    "sequence_gap": "a sequence number is missing",
    "duplicate_sequence": "two different segments have the same sequence number",
    "ambiguous_order": "sequence numbers and times contradict each other",
    "unsupported_format": "a container or stream that is not merged",
    "too_many_runs": "a recorder that began again too often",
    "late_segment": "the recording was merged already and its segments are gone for good",
    "output_exists": "another file has the merged recording's name",
    "output_wrong": "the merged file did not pass verification",
}


@dataclass(frozen=True, slots=True)
class Segment:
    """One uploaded piece of a recording. `size_bytes` and `sha256` are what the uploader declared, if it did."""

    name: str
    seq: int | None = None
    ts_ms: int | None = None
    """When the segment ended by the client's clock: good for order, not for truth."""
    size_bytes: int | None = None
    sha256: str | None = None
    mtime_ms: int = 0


@dataclass(frozen=True, slots=True)
class Ordered:
    """The answer of `order`: sessions in order, each in order; `duplicates` maps a left-out name to the kept one."""

    sessions: tuple[tuple[Segment, ...], ...]
    duplicates: dict[str, str] = field(default_factory=dict)
    gaps: dict[str, str] = field(default_factory=dict)
    """Name of a segment → the numbers missing just before it in its session, as "3" or "3-5"."""


def check_name(name: str) -> str:
    """`name` if a file in a student's folder may have it; else ValueError, saying why.

    Blanks, quotes, newlines, leading dashes and any script are fine: no name ever reaches a shell or a list file.
    """
    if not name or name.startswith("."):
        raise ValueError("a segment's name is empty or begins with a dot")
    if "/" in name or "\\" in name or "\0" in name:
        raise ValueError("a segment's name holds a path separator or a NUL")
    try:
        size_bytes = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        raise ValueError("a segment's name is not valid Unicode") from None
    if size_bytes > NAME_BYTES_MAX:
        raise ValueError(f"a segment's name is longer than {NAME_BYTES_MAX} bytes in UTF-8")
    return name


_EXAM = re.compile(r".+_(?P<when>[0-9]{8}_[0-9]{6})(?:_seq_(?P<seq>[0-9]{1,9}))?", re.DOTALL)
_BROWSER = re.compile(r"(?P<seq>[0-9]{1,9})-(?P<ts>[0-9]{13})(?:-.*)?", re.DOTALL)
_TIME_ONLY = re.compile(r"(?P<ts>[0-9]{13})")
_ONE_NUMBER = re.compile(r"[^0-9]*(?P<seq>[0-9]{1,6})")


def parse_name(name: str, zone: tzinfo = UTC) -> Segment:
    """What the name alone says. Never raises; a name that says nothing has neither seq nor ts_ms."""
    stem, dot, _ = name.rpartition(".")
    stem = stem if dot else name
    if found := _EXAM.fullmatch(stem):
        ts_ms = _local_ms(found["when"], zone)
        if ts_ms is not None:
            return Segment(name, seq=int(found["seq"]) if found["seq"] else None, ts_ms=ts_ms)
    if found := _BROWSER.fullmatch(stem):
        return Segment(name, seq=int(found["seq"]), ts_ms=int(found["ts"]))
    if found := _TIME_ONLY.fullmatch(stem):
        return Segment(name, ts_ms=int(found["ts"]))
    if found := _ONE_NUMBER.fullmatch(stem):
        return Segment(name, seq=int(found["seq"]))
    return Segment(name)


def _local_ms(text: str, zone: tzinfo) -> int | None:
    try:
        moment = datetime.strptime(text, "%Y%m%d_%H%M%S").replace(tzinfo=zone)
        ts_ms = int(moment.timestamp() * 1000)
    except (ValueError, OverflowError):
        return None
    return ts_ms if 0 <= ts_ms <= TS_MS_MAX else None


def order(segments: Iterable[Segment], *, take_gaps: bool = False) -> Ordered:
    """Put segments in recording order, whatever order they came in.

    Two segments with the same number and the same sha256 are one, sent twice: the later name is left out. Raises
    MergeRefused with sequence_gap (not with `take_gaps`), duplicate_sequence or ambiguous_order.
    """
    unique, duplicates = _without_duplicates(sorted(segments, key=lambda s: s.name))
    numbered = [s for s in unique if s.seq is not None]
    unnumbered = [s for s in unique if s.seq is None]
    sessions = _sessions(numbered, take_gaps=take_gaps) if numbered else []
    gaps = {name: missing for session in sessions for name, missing in _gaps(session)}
    if not unnumbered:
        return Ordered(tuple(sessions), duplicates, gaps)
    key = _time if all(s.ts_ms is not None for s in unique) else _mtime
    by_time = sorted(unnumbered, key=lambda s: (key(s), _natural(s.name)))
    if not sessions:
        return Ordered((tuple(by_time),), duplicates)
    return Ordered(_interleave(sessions, by_time, key), duplicates, gaps)


def _without_duplicates(segments: Sequence[Segment]) -> tuple[list[Segment], dict[str, str]]:
    kept: dict[object, Segment] = {}
    duplicates: dict[str, str] = {}
    for segment in segments:
        # Without a number, the same bytes at the same time are the same segment; at another time they are not
        # (a still picture may well encode to the same bytes twice).
        place = ("seq", segment.seq) if segment.seq is not None else ("ts", segment.ts_ms)
        if segment.sha256 is None or place[1] is None:
            kept[("name", segment.name)] = segment
            continue
        first = kept.setdefault((place, segment.sha256), segment)
        if first is not segment:
            duplicates[segment.name] = first.name
    return list(kept.values()), duplicates


def _time(segment: Segment) -> int:
    return segment.ts_ms if segment.ts_ms is not None else segment.mtime_ms


def _mtime(segment: Segment) -> int:
    return segment.mtime_ms


def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    parts = re.split(r"([0-9]+)", name)
    return tuple((0, int(p)) if p.isdigit() and p.isascii() else (1, p) for p in parts if p)


def _seq(segment: Segment) -> int:
    assert segment.seq is not None
    return segment.seq


def _sessions(numbered: Sequence[Segment], *, take_gaps: bool) -> list[tuple[Segment, ...]]:
    """Split into sessions that each count without a hole from 0 or 1.

    One recorder gives every number once, and then the numbers alone decide: client clocks jump. Numbers that come
    twice mean that a recorder began again; then time says which belongs to which, the client's or, if that makes no
    unbroken count, the time of arrival. With `take_gaps`, the client's time has the last word where neither does.
    """
    if len({s.seq for s in numbered}) == len(numbered):
        session = tuple(sorted(numbered, key=_seq))
        if not take_gaps:
            _refuse_gap(session)
        return [session]
    problem: MergeRefused | None = None
    for key in (_time, _mtime):
        try:
            sessions = _split(sorted(numbered, key=lambda s: (key(s), _seq(s), s.name)))
            for session in sessions:
                _refuse_gap(session)
        except MergeRefused as error:
            problem = problem or error
        else:
            return sessions
    assert problem is not None
    if take_gaps and problem.reason == "sequence_gap":
        return _split(sorted(numbered, key=lambda s: (_time(s), _seq(s), s.name)))
    raise problem


def _split(by_time: Sequence[Segment]) -> list[tuple[Segment, ...]]:
    sessions: list[list[Segment]] = [[by_time[0]]]
    for before, segment in pairwise(by_time):
        # A recorder that began again just after its first segment sends that number twice, at another time.
        again = None not in (segment.ts_ms, before.ts_ms) and segment.ts_ms != before.ts_ms
        if segment.seq == before.seq and not again:
            raise MergeRefused(
                "duplicate_sequence",
                f"number {segment.seq} is also that of {before.name!r}, with other bytes; remove the wrong one",
                segment.name,
            )
        if _seq(segment) > _seq(before):
            sessions[-1].append(segment)
        else:
            sessions.append([segment])
    return [tuple(session) for session in sessions]


def _refuse_gap(session: Sequence[Segment]) -> None:
    missing = [numbers for _, numbers in itertools.islice(_gaps(session), MISSING_SHOWN_MAX)]
    if missing:
        raise MergeRefused("sequence_gap", f"missing {', '.join(missing)}; upload them and merge again")


def _gaps(session: Sequence[Segment]) -> Iterator[tuple[str, str]]:
    """(the segment after it, the missing numbers) of each hole in the count of a session."""
    first = _seq(session[0])
    expected = first if first in (0, 1) else 0
    for segment in session:
        if _seq(segment) > expected:
            yield segment.name, str(expected) if _seq(segment) == expected + 1 else f"{expected}-{_seq(segment) - 1}"
        expected = _seq(segment) + 1


def _interleave(
    sessions: Sequence[tuple[Segment, ...]], by_time: Sequence[Segment], key: Callable[[Segment], int]
) -> tuple[tuple[Segment, ...], ...]:
    """Numbered and unnumbered segments in one recording: whole sessions, and the others between them by time."""
    blocks = [(key(session[0]), key(session[-1]), session) for session in sessions]
    blocks += [(key(segment), key(segment), (segment,)) for segment in by_time]
    blocks.sort(key=lambda block: block[:2])
    merged: list[tuple[Segment, ...]] = []
    for before, block in pairwise([(0, 0, ()), *blocks]):
        if block[0] < before[1]:
            raise MergeRefused(
                "ambiguous_order",
                "it has no number, and its time falls inside a numbered recording; give it a number",
                block[2][0].name,
            )
        if merged and merged[-1][-1].seq is None and block[2][0].seq is None:
            merged[-1] += block[2]
        else:
            merged.append(block[2])
    return tuple(merged)


def with_known(found: Segment, record: Segment | None) -> Segment:
    """A file on disk, completed by what was recorded when it was accepted; the record is right where it speaks."""
    if record is None:
        return found
    return replace(
        found,
        seq=record.seq if record.seq is not None else found.seq,
        ts_ms=record.ts_ms if record.ts_ms is not None else found.ts_ms,
        size_bytes=record.size_bytes,
        sha256=record.sha256,
        mtime_ms=record.mtime_ms or found.mtime_ms,
    )
