"""Where the parts of a recording are in a bucket, and how what was said of a segment is kept in a key. Pure.

    {exam_id}/recordings/{student_id}/{segment}                      segments
    {exam_id}/recordings/.zq-segments/{student_id}/{segment}/{said}  what was accepted: empty objects, all is in the key
    {exam_id}/recordings/.zq-manifests/{student_id}.json             what the student's video was made of
    {exam_id}/recordings/.zq-trash/{student_id}/{segment}            merged segments, until they are gone for good
    {exam_id}/recordings/{video}                                     merged videos

A bucket cannot append to a file as a folder can, and a list of 1800 small objects to be fetched would be 1800 requests.
Keys come back with a listing, a thousand at a time.

Letters and digits of any script, `-`, `_` and `.` stand for themselves; every other byte of a name is `=XX`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from zq.config import BUCKET_URL
from zq.exams import names
from zq.exams.errors import ExamError
from zq.exams.segments import SEQ_MAX, TS_MS_MAX, Segment, check_name

KEY_BYTES_MAX = 1024
"""The longest key that S3 takes."""
_PLAIN = frozenset("-_.")
_SAID = re.compile(
    r"(?P<seq>-|[0-9]{1,10})_(?P<ts>-|[0-9]{1,15})_(?P<size>[0-9]{1,18})_(?P<sha256>[0-9a-f]{64})_(?P<mtime>[0-9]{1,15})"
)


def encoded(name: str) -> str:
    """`name` as one part of a key."""
    return "".join(
        c if c in _PLAIN or c.isalnum() else "".join(f"={byte:02X}" for byte in c.encode("utf-8")) for c in name
    )


def decoded(part: str) -> str:
    """The name that `part` of a key stands for. What is no escape stands for itself: others may have put it there."""
    escaped = re.sub(r"=(?=[0-9A-F]{2})", "%", part.replace("%", "=25"))
    return unquote_to_bytes(escaped).decode("utf-8", "replace")


def recordings(exam_id: str) -> str:
    return f"{names.exam_id(exam_id)}/recordings"


def segments(exam_id: str, student_id: str) -> str:
    return f"{recordings(exam_id)}/{names.student_id(student_id)}"


def records(exam_id: str, student_id: str) -> str:
    return f"{recordings(exam_id)}/.zq-segments/{names.student_id(student_id)}"


def manifest(exam_id: str, student_id: str) -> str:
    return f"{recordings(exam_id)}/.zq-manifests/{names.student_id(student_id)}.json"


def trash(exam_id: str, student_id: str = "") -> str:
    """Of a student, or of the whole exam."""
    of_exam = f"{recordings(exam_id)}/.zq-trash"
    return f"{of_exam}/{names.student_id(student_id)}" if student_id else of_exam


def segment(exam_id: str, student_id: str, name: str) -> str:
    return _bounded(f"{segments(exam_id, student_id)}/{encoded(name)}", name)


def video(exam_id: str, name: str) -> str:
    return _bounded(f"{recordings(exam_id)}/{encoded(names.file_name(name, 'video name'))}", name)


def record(exam_id: str, student_id: str, said: Segment) -> str:
    """Raises ExamError("invalid") for what cannot be kept in a key: too long a name, an unknown size or hash."""
    if said.size_bytes is None or said.sha256 is None:
        raise ExamError("invalid", f"size and sha256 of {said.name!r} are not known")
    number, time_ms = ("-" if value is None else str(value) for value in (said.seq, said.ts_ms))
    fields = f"{number}_{time_ms}_{said.size_bytes}_{said.sha256}_{said.mtime_ms}"
    return _bounded(f"{records(exam_id, student_id)}/{encoded(said.name)}/{fields}", said.name)


def read_record(key: str) -> Segment | None:
    """What the key of a record says; None for a key that is none."""
    place, _, said = key.rpartition("/")
    found = _SAID.fullmatch(said)
    name = decoded(place.rpartition("/")[2])
    if found is None:
        return None
    try:
        check_name(name)
    except ValueError:
        return None
    seq, ts_ms = (None if found[part] == "-" else int(found[part]) for part in ("seq", "ts"))
    if (seq or 0) > SEQ_MAX or (ts_ms or 0) > TS_MS_MAX:
        return None
    return Segment(name, seq, ts_ms, int(found["size"]), found["sha256"], int(found["mtime"]))


@dataclass(frozen=True, slots=True)
class Place:
    """What `exams.storage` names: `s3://BUCKET` or `s3://BUCKET/PREFIX`."""

    bucket: str
    prefix: str


def parse_url(url: str) -> Place:
    """Raises ExamError("invalid")."""
    found = BUCKET_URL.fullmatch(url)
    if found is None:
        raise ExamError("invalid", f"exams.storage is {url!r}; a bucket is named s3://BUCKET or s3://BUCKET/PREFIX")
    return Place(found["bucket"], (found["prefix"] or "").strip("/"))


def _bounded(key: str, name: str) -> str:
    if len(key.encode("utf-8")) > KEY_BYTES_MAX:
        raise ExamError("invalid", f"{name!r} is too long for a bucket's key; give it a shorter name")
    return key
