"""The rules of an exam's life, without clock or database: exams by the clock, students by what is heard of them,
recordings by the fate of their merge.

    student    PENDING ──login, seen──► ONLINE ◄──login, seen── OFFLINE
                                        ONLINE ──silent──────►  OFFLINE
               ONLINE, OFFLINE ──finish, exam over──► LOGOUT ──login──► ONLINE

    recording  (none) ──request──► REQUESTED ──submit──► SUBMITTED ──► DONE | FAILED ──request──► REQUESTED …
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class ExamStatus(StrEnum):
    PENDING = "pending"
    ACTIVE = "active"
    COMPLETED = "completed"


class StudentStatus(StrEnum):
    PENDING = "pending"
    """On the list, never heard of."""
    ONLINE = "online"
    OFFLINE = "offline"
    """Not heard of for too long. Left by the next sign of life."""
    LOGOUT = "logout"
    """Has finished, or the exam is over. Heartbeats change nothing any more; a new login does."""


class Event(StrEnum):
    """What happens to a student."""

    LOGIN = "login"
    SEEN = "seen"
    """A heartbeat or an upload."""
    SILENT = "silent"
    FINISH = "finish"
    EXAM_OVER = "exam_over"


class Action(StrEnum):
    """What is written to the history."""

    LOGIN = "login"
    ONLINE = "online"
    OFFLINE = "offline"
    LOGOUT = "logout"


TRANSITIONS: dict[tuple[StudentStatus, Event], tuple[StudentStatus, Action | None]] = {
    (StudentStatus.PENDING, Event.LOGIN): (StudentStatus.ONLINE, Action.LOGIN),
    (StudentStatus.ONLINE, Event.LOGIN): (StudentStatus.ONLINE, Action.LOGIN),
    (StudentStatus.OFFLINE, Event.LOGIN): (StudentStatus.ONLINE, Action.LOGIN),
    (StudentStatus.LOGOUT, Event.LOGIN): (StudentStatus.ONLINE, Action.LOGIN),
    (StudentStatus.PENDING, Event.SEEN): (StudentStatus.ONLINE, Action.ONLINE),
    (StudentStatus.ONLINE, Event.SEEN): (StudentStatus.ONLINE, None),
    (StudentStatus.OFFLINE, Event.SEEN): (StudentStatus.ONLINE, Action.ONLINE),
    (StudentStatus.LOGOUT, Event.SEEN): (StudentStatus.LOGOUT, None),
    (StudentStatus.ONLINE, Event.SILENT): (StudentStatus.OFFLINE, Action.OFFLINE),
    (StudentStatus.PENDING, Event.FINISH): (StudentStatus.LOGOUT, Action.LOGOUT),
    (StudentStatus.ONLINE, Event.FINISH): (StudentStatus.LOGOUT, Action.LOGOUT),
    (StudentStatus.OFFLINE, Event.FINISH): (StudentStatus.LOGOUT, Action.LOGOUT),
    (StudentStatus.LOGOUT, Event.FINISH): (StudentStatus.LOGOUT, None),
    (StudentStatus.PENDING, Event.EXAM_OVER): (StudentStatus.PENDING, None),
    (StudentStatus.ONLINE, Event.EXAM_OVER): (StudentStatus.LOGOUT, Action.LOGOUT),
    (StudentStatus.OFFLINE, Event.EXAM_OVER): (StudentStatus.LOGOUT, Action.LOGOUT),
    (StudentStatus.LOGOUT, Event.EXAM_OVER): (StudentStatus.LOGOUT, None),
}
"""(status, event) → (status after it, history row or none). A pair that is not here is illegal."""


class MergeState(StrEnum):
    """Where the one video of a student is."""

    REQUESTED = "requested"
    """Its job has an id; that the broker has it is not known. Submitted again until it is."""
    SUBMITTED = "submitted"
    DONE = "done"
    FAILED = "failed"
    """The last attempt said why; the segments are kept."""


class MergeEvent(StrEnum):
    REQUEST = "request"
    SUBMIT = "submit"
    SUCCEED = "succeed"
    FAIL = "fail"


MERGE_TRANSITIONS: dict[tuple[MergeState | None, MergeEvent], MergeState] = {
    (None, MergeEvent.REQUEST): MergeState.REQUESTED,
    (MergeState.REQUESTED, MergeEvent.REQUEST): MergeState.REQUESTED,
    (MergeState.SUBMITTED, MergeEvent.REQUEST): MergeState.REQUESTED,
    (MergeState.DONE, MergeEvent.REQUEST): MergeState.REQUESTED,
    (MergeState.FAILED, MergeEvent.REQUEST): MergeState.REQUESTED,
    (MergeState.REQUESTED, MergeEvent.SUBMIT): MergeState.SUBMITTED,
    (None, MergeEvent.SUCCEED): MergeState.DONE,
    (MergeState.REQUESTED, MergeEvent.SUCCEED): MergeState.DONE,
    (MergeState.SUBMITTED, MergeEvent.SUCCEED): MergeState.DONE,
    (MergeState.DONE, MergeEvent.SUCCEED): MergeState.DONE,
    (MergeState.FAILED, MergeEvent.SUCCEED): MergeState.DONE,
    (None, MergeEvent.FAIL): MergeState.FAILED,
    (MergeState.REQUESTED, MergeEvent.FAIL): MergeState.FAILED,
    (MergeState.SUBMITTED, MergeEvent.FAIL): MergeState.FAILED,
    (MergeState.FAILED, MergeEvent.FAIL): MergeState.FAILED,
}
"""A pair that is not here changes nothing: a word that comes late, or from a job that another one has replaced."""


class IllegalStep(Exception):
    """A step that the table does not have: a defect of ours, never a student's doing."""


def step(status: StudentStatus, event: Event) -> tuple[StudentStatus, Action | None]:
    """Raises IllegalStep for a pair that the table does not have."""
    try:
        return TRANSITIONS[status, event]
    except KeyError:
        raise IllegalStep(f"{status} --{event}-->") from None


def exam_status(start_ms: int, end_ms: int, now_ms: int) -> ExamStatus:
    """By the clock alone: active from its first to the last millisecond before its end."""
    if now_ms >= end_ms:
        return ExamStatus.COMPLETED
    return ExamStatus.ACTIVE if now_ms >= start_ms else ExamStatus.PENDING


@dataclass(frozen=True, slots=True)
class Listening:
    """The time in which the service was able to hear heartbeats, without a gap. Unix milliseconds."""

    since_ms: int
    until_ms: int


def listened(before: Listening | None, now_ms: int, *, after_gap: bool) -> Listening:
    """The window after a moment of listening. After a gap, or a clock put back, the clock of silence starts anew."""
    if before is None or after_gap or now_ms < before.since_ms:
        return Listening(now_ms, now_ms)
    return Listening(before.since_ms, now_ms)


EVIDENCE_GAP_MS = 40_000
"""Somebody who hears heartbeats every 30 s of each student has not listened if he has heard none of anybody for so
long."""


def heard_elsewhere(before: Listening | None, signs_ms: Iterable[int], now_ms: int) -> Listening | None:
    """The window of listening of a service that does not tell, from the signs of life that it has left behind.

    It has listened as long as somebody was heard every EVIDENCE_GAP_MS; up to the last sign, for what comes after it
    may be its own silence. None if it has never been heard of.
    """
    window = before if before is not None and before.until_ms <= now_ms else None
    for sign_ms in sorted(sign for sign in signs_ms if sign <= now_ms):
        if window is None or sign_ms - window.until_ms > EVIDENCE_GAP_MS:
            window = Listening(sign_ms, sign_ms)
        elif sign_ms > window.until_ms:
            window = Listening(window.since_ms, sign_ms)
    return window


def is_silent(last_active_ms: int | None, heard: Listening, now_ms: int, offline_after_ms: int) -> bool:
    """Whether the service has listened for more than `offline_after_ms` without hearing this student.

    What counts is the time of listening, not the time that has passed: an outage of the service is nobody's silence.
    A last activity that lies in the future (the clock was put back) counts as none.
    """
    if last_active_ms is None or last_active_ms > now_ms + offline_after_ms:
        last_active_ms = heard.since_ms
    return heard.until_ms - max(last_active_ms, heard.since_ms) > offline_after_ms


@dataclass(frozen=True, slots=True)
class Seen:
    """A student of a live exam, with the last sign of life that anybody knows of."""

    row_id: int
    status: StudentStatus
    last_active_ms: int | None
    stored_ms: int | None
    """The last activity that the store already knows; older than `last_active_ms` if presence is kept elsewhere."""


@dataclass(frozen=True, slots=True)
class Change:
    row_id: int
    before: StudentStatus
    after: StudentStatus
    action: Action


def judge(students: Iterable[Seen], heard: Listening, now_ms: int, offline_after_ms: int) -> list[Change]:
    """Who went offline, and who is back though the store has not heard it itself."""
    changes = []
    for student in students:
        silent = is_silent(student.last_active_ms, heard, now_ms, offline_after_ms)
        news = student.last_active_ms is not None and student.last_active_ms > (student.stored_ms or 0)
        if student.status is StudentStatus.ONLINE and silent:
            event = Event.SILENT
        elif student.status is not StudentStatus.ONLINE and news and not silent:
            event = Event.SEEN
        else:
            continue
        after, action = step(student.status, event)
        if action is not None:
            changes.append(Change(student.row_id, student.status, after, action))
    return changes
