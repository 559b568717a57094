"""Times: kept as Unix milliseconds, read and shown in the university's zone.

A text without an offset is local time in that zone. A local time that does not exist (the clock was put forward over
it) or exists twice (put back over it) is refused: an exam must not begin an hour off because of a guess.
"""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime, timedelta

from zq.exams.errors import ExamError

EPOCH_MS_MAX = 253_402_214_400_000
"""A day before the end of the year 9999, so that any zone can show it."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Instant = int | str | datetime
"""Unix milliseconds, ISO 8601 text, or a datetime; the last two are local if they carry no offset."""


def zone(name: str) -> zoneinfo.ZoneInfo:
    """The zone with this IANA name. Raises ExamError("invalid") if there is none here."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ExamError(
            "invalid",
            f"no time zone {name!r} on this machine; give an IANA name such as Asia/Shanghai "
            "(if that one is missing too, install the system's tzdata)",
        ) from None


def to_ms(value: object, local: zoneinfo.ZoneInfo, what: str = "time") -> int:
    """Unix milliseconds of an Instant. Raises ExamError("invalid") for anything that is not exactly one moment."""
    if isinstance(value, bool) or not isinstance(value, (int, str, datetime)):
        raise ExamError("invalid", f"the {what} must be ISO 8601 text or Unix milliseconds, not {type(value).__name__}")
    if isinstance(value, int):
        return _bounded(value, what)
    moment = _parse(value, what) if isinstance(value, str) else value
    if moment.tzinfo is None:
        moment = _localise(moment, local, what)
    try:
        return _bounded((moment - _EPOCH) // timedelta(milliseconds=1), what)
    except OverflowError:
        raise ExamError("invalid", f"the {what} {value!s} is out of range") from None


def _parse(text: str, what: str) -> datetime:
    try:
        if len(text) > 40:
            raise ValueError("too long")
        return datetime.fromisoformat(text.strip())
    except ValueError:
        raise ExamError(
            "invalid", f"the {what} {text!r:.60} is not ISO 8601; write it like 2026-06-30 09:00:00 or with +08:00"
        ) from None


def _localise(moment: datetime, local: zoneinfo.ZoneInfo, what: str) -> datetime:
    try:
        early, late = (moment.replace(tzinfo=local, fold=fold) for fold in (0, 1))
        exists = early.astimezone(UTC).astimezone(local).replace(tzinfo=None, fold=0) == moment.replace(fold=0)
        twice = early.utcoffset() != late.utcoffset()
    except (OverflowError, ValueError):
        raise ExamError("invalid", f"the {what} {moment} is out of range") from None
    if not exists:
        raise ExamError("invalid", f"the {what} {moment} does not exist in {local.key}: the clock skips it")
    if twice:
        raise ExamError("invalid", f"the {what} {moment} exists twice in {local.key}; add the offset you mean")
    return early


def _bounded(ms: int, what: str) -> int:
    if not 0 <= ms <= EPOCH_MS_MAX:
        raise ExamError("invalid", f"the {what} {ms} ms is not between 1970 and 9999")
    return ms


def show(ms: int, local: zoneinfo.ZoneInfo) -> str:
    """ISO 8601 with the zone's offset, to the millisecond if it is not a whole second."""
    moment = (_EPOCH + timedelta(milliseconds=ms)).astimezone(local)
    return moment.isoformat(sep="T", timespec="milliseconds" if ms % 1000 else "seconds")


def stamp(ms: int, local: zoneinfo.ZoneInfo) -> str:
    """`YYYYmmdd_HHMMSS` of the zone, as in file names."""
    return (_EPOCH + timedelta(milliseconds=ms)).astimezone(local).strftime("%Y%m%d_%H%M%S")
