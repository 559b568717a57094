"""Presence in Redis, in the form that a web application beside zq may write and read too.

    exam:{exam_id}:online_students            ZSET: member = student id, score = Unix time of the last activity
    exam:{exam_id}:student:{student_id}       HASH: username, status, ip, last_seen; gone after 180 s

The database stays what decides: the status check reads the scores and writes who is online and offline. Heartbeats
cost one read of the database and one round trip to Redis a batch. Needs Redis 6.2 (or Valkey) and `zq[redis]`.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import select

from zq.exams import names
from zq.exams.database import Database, chunks
from zq.exams.errors import ExamError
from zq.exams.heartbeats import Recorded, StatusNews, StudentKey
from zq.exams.model import Heartbeat
from zq.exams.presence import mark_listening
from zq.exams.status import ExamStatus, StudentStatus
from zq.exams.tables import exam_students, exams

if TYPE_CHECKING:
    from redis import Redis
    from redis.client import Pipeline

STUDENT_TTL_S = 180
TIMEOUT_S = 2.0
"""For one answer of Redis."""

_Result = TypeVar("_Result")


def online_key(exam_id: str) -> str:
    return f"exam:{exam_id}:online_students"


def student_key(exam_id: str, student_id: str) -> str:
    return f"exam:{exam_id}:student:{student_id}"


def _translated(call: Callable[..., _Result]) -> Callable[..., _Result]:
    """Redis away, full, or loading: `unavailable`."""

    @functools.wraps(call)
    def translating(*args: Any, **kwargs: Any) -> _Result:
        from redis import RedisError

        try:
            return call(*args, **kwargs)
        except RedisError as error:
            raise ExamError("unavailable", f"Redis (exams.presence) cannot be used now: {error}"[:300]) from error

    return translating


class RedisPresence:
    """Safe to share between threads. Opens no connection before it is needed.

    Raises ExamError("invalid") for a URL that is none, and without the client library.
    """

    others_write = True

    def __init__(self, url: str, database: Database) -> None:
        self._database = database
        self._redis = _connect(url)

    def record(self, beats: Sequence[Heartbeat], now_ms: int, *, after_gap: bool) -> Recorded:
        """Written in one transaction of Redis; then the store is told that the service listens. Again after an error:
        the same beats change nothing. A student's turn to online is written by the status check."""
        known = self._known(beats)
        unknown = tuple((b.exam_id, b.student_id) for b in beats if (b.exam_id, b.student_id) not in known)
        written = [(beat, name) for beat in beats if (name := known.get((beat.exam_id, beat.student_id))) is not None]
        if written:
            self._write(written)
        with self._database.write() as connection:
            mark_listening(connection, now_ms, after_gap=after_gap)
        return Recorded(len(written), (), unknown)

    def _known(self, beats: Sequence[Heartbeat]) -> dict[StudentKey, str | None]:
        """The students' names; None for those who have finished, or whose exam is over."""
        by_exam: dict[str, list[str]] = defaultdict(list)
        for beat in beats:
            by_exam[beat.exam_id].append(beat.student_id)
        known: dict[StudentKey, str | None] = {}
        columns = (exam_students.c.student_id, exam_students.c.student_name, exam_students.c.status, exams.c.status)
        with self._database.read() as connection:
            for exam_id, student_ids in by_exam.items():
                for part in chunks(student_ids):
                    rows = connection.execute(
                        select(*columns)
                        .join_from(exam_students, exams)
                        .where(exam_students.c.exam_id == exam_id, exam_students.c.student_id.in_(part))
                    )
                    for student_id, name, status, exam_status in rows:
                        over = status == StudentStatus.LOGOUT or exam_status == ExamStatus.COMPLETED
                        known[exam_id, student_id] = None if over else name or ""
        return known

    @_translated
    def _write(self, beats: Sequence[tuple[Heartbeat, str]]) -> None:
        scores: dict[str, dict[str, float]] = defaultdict(dict)
        with self._redis.pipeline(transaction=True) as pipeline:
            for beat, name in beats:
                at_s = beat.at_ms / 1000
                scores[beat.exam_id][beat.student_id] = at_s
                values = {"username": name, "status": StudentStatus.ONLINE, "ip": beat.ip, "last_seen": at_s}
                self._set_student(pipeline, (beat.exam_id, beat.student_id), values)
            for exam_id, of_exam in scores.items():
                # What the application beside zq has heard later stays.
                pipeline.zadd(online_key(exam_id), dict(of_exam), gt=True)
            pipeline.execute()

    @staticmethod
    def _set_student(pipeline: Pipeline, student: StudentKey, values: Mapping[str, Any]) -> None:
        key = student_key(*student)
        fields: dict[Any, Any] = dict(values)
        pipeline.hset(key, mapping=fields)
        pipeline.expire(key, STUDENT_TTL_S)

    @_translated
    def activity(self, exam_ids: Sequence[str]) -> Mapping[StudentKey, int]:
        """All scores of these exams, in one round trip, whoever wrote them."""
        if not exam_ids:
            return {}
        with self._redis.pipeline(transaction=False) as pipeline:
            for exam_id in exam_ids:
                pipeline.zrange(online_key(exam_id), 0, -1, withscores=True)
            found: list[list[tuple[str, float]]] = pipeline.execute()
        return {
            (exam_id, student_id): round(score * 1000)
            for exam_id, pairs in zip(exam_ids, found, strict=True)
            for student_id, score in pairs
            if len(student_id) <= names.STUDENT_ID_CHARS_MAX and 0 <= score < 1e12
        }

    @_translated
    def tell(self, news: Sequence[StatusNews]) -> None:
        """What the status check has decided, for whoever reads these keys. Who is out of the exam leaves the set."""
        if not news:
            return
        with self._redis.pipeline(transaction=True) as pipeline:
            for (exam_id, student_id), name, status in news:
                self._set_student(pipeline, (exam_id, student_id), {"username": name, "status": status})
                if status is StudentStatus.LOGOUT:
                    pipeline.zrem(online_key(exam_id), student_id)
            pipeline.execute()

    def close(self) -> None:
        self._redis.close()


def _connect(url: str) -> Redis:
    try:
        import redis
    except ModuleNotFoundError:
        raise ExamError("invalid", "exams.presence needs the Redis client; pip install 'zq[redis]'") from None
    try:
        client: Redis = redis.Redis.from_url(
            url,
            decode_responses=True,
            encoding_errors="replace",  # an application beside zq may have written anything
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
        )
    except (ValueError, TypeError) as error:
        raise ExamError("invalid", f"exams.presence is not a Redis URL: {error}") from None
    return client
