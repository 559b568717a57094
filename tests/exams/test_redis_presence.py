"""Presence in a real Redis, in the form of the application that may stand beside zq."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from zq.config import Config, ExamsSection
from zq.exams.check import StatusReport, check
from zq.exams.errors import ExamError
from zq.exams.heartbeats import HeartbeatBuffer, StatusNews
from zq.exams.late_store import LatePresence, LateStore, presence_of
from zq.exams.model import Heartbeat
from zq.exams.redis_presence import RedisPresence
from zq.exams.status import EVIDENCE_GAP_MS, Action, Listening, StudentStatus, heard_elsewhere
from zq.exams.store import ExamStore

START_MS = 1_782_781_200_000
END_MS = START_MS + 7_200_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ExamStore]:
    store = ExamStore(f"sqlite:///{tmp_path / 'exams.db'}", "Asia/Shanghai")
    store.create_exam("17", "期末", START_MS, END_MS, now_ms=START_MS)
    for student_id, name in (("s1", "王小明"), ("s2", "李雷"), ("s3", "韩梅梅")):
        store.login("17", student_id, now_ms=START_MS, ip="10.0.0.1", name=name)
    yield store
    store.close()


@pytest.fixture
def presence(store: ExamStore, redis_url: str) -> Iterator[RedisPresence]:
    presence = RedisPresence(redis_url, store.database)
    yield presence
    presence.close()


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    client: Redis = Redis.from_url(redis_url, decode_responses=True)
    yield client
    client.close()


def beat(student_id: str, at_ms: int) -> Heartbeat:
    return Heartbeat("17", student_id, at_ms, "10.0.0.9")


def look(store: ExamStore, presence: RedisPresence, now_ms: int) -> StatusReport:
    return check(store, now_ms, 60, has_segments=lambda *_: True, presence=presence)


def test_heartbeats_are_written_in_the_form_of_the_exam_system(presence: RedisPresence, redis: Redis) -> None:
    recorded = presence.record([beat("s1", START_MS + 500), beat("nobody", START_MS)], START_MS, after_gap=True)
    assert (recorded.written, recorded.unknown) == (1, (("17", "nobody"),))
    assert sorted(redis.keys()) == ["exam:17:online_students", "exam:17:student:s1"]
    assert redis.zrange("exam:17:online_students", 0, -1, withscores=True) == [("s1", START_MS / 1000 + 0.5)]
    assert redis.hgetall("exam:17:student:s1") == {
        "username": "王小明",
        "status": "online",
        "ip": "10.0.0.9",
        "last_seen": str(START_MS / 1000 + 0.5),
    }
    assert 170 < redis.ttl("exam:17:student:s1") <= 180
    assert redis.ttl("exam:17:online_students") == -1


def test_a_later_score_of_another_application_stays(presence: RedisPresence, redis: Redis) -> None:
    redis.zadd("exam:17:online_students", {"s1": START_MS / 1000 + 9})
    presence.record([beat("s1", START_MS)], START_MS, after_gap=False)
    assert presence.activity(["17", "18"]) == {("17", "s1"): START_MS + 9_000}


def test_whatever_stands_in_redis_is_read(presence: RedisPresence, redis: Redis) -> None:
    redis.zadd("exam:17:online_students", {"x" * 300: 2, "": 3, "inf": float("inf"), "old": -5, "s1": 7})
    redis.zadd("exam:17:online_students", {b"\xff\xfe": 1})
    assert presence.activity(["17"])[("17", "s1")] == 7_000
    redis.set("exam:18:online_students", "no set")
    with pytest.raises(ExamError) as error:
        presence.activity(["18"])
    assert error.value.code == "unavailable"


def test_who_has_finished_or_whose_exam_is_over_is_not_written(
    store: ExamStore, presence: RedisPresence, redis: Redis
) -> None:
    store.finish_student("17", "s1", now_ms=START_MS, ip="", has_segments=False)
    assert presence.record([beat("s1", START_MS)], START_MS, after_gap=False).unknown == ()
    look(store, presence, END_MS)
    presence.record([beat("s2", END_MS)], END_MS, after_gap=False)
    assert redis.keys() == []


def test_the_check_reads_scores_that_another_application_writes(
    store: ExamStore, presence: RedisPresence, redis: Redis
) -> None:
    """zq's own web service hears nothing here: that somebody listens is seen by the signs of life themselves."""
    for at_ms in range(START_MS, START_MS + 120_001, 30_000):
        redis.zadd("exam:17:online_students", {"s1": at_ms / 1000, "s2": (at_ms + 10_000) / 1000})
        if at_ms == START_MS:
            redis.zadd("exam:17:online_students", {"s3": at_ms / 1000})
        report = look(store, presence, at_ms + 15_000)
        silent_ms = at_ms + 10_000 - START_MS
        assert report.went_offline == ((("17", "s3"),) if silent_ms == 70_000 else ())
    assert store.get_student("17", "s3").status is StudentStatus.OFFLINE
    redis.zadd("exam:17:online_students", {"s3": START_MS / 1000 + 140})
    assert look(store, presence, START_MS + 141_000).came_online == (("17", "s3"),)
    assert [row.action for row in store.list_history("17", "s3")][:2] == [Action.ONLINE, Action.OFFLINE]


def test_an_outage_of_the_other_application_is_not_a_students_silence(
    store: ExamStore, presence: RedisPresence, redis: Redis
) -> None:
    for student in ("s1", "s2", "s3"):
        redis.zadd("exam:17:online_students", {student: START_MS / 1000})
    assert look(store, presence, START_MS + 600_000).went_offline == ()
    redis.zadd("exam:17:online_students", {"s1": START_MS / 1000 + 610})
    assert look(store, presence, START_MS + 611_000).went_offline == ()
    for later_s in (640, 670):
        redis.zadd("exam:17:online_students", {"s1": START_MS / 1000 + later_s})
        assert look(store, presence, START_MS + later_s * 1000).went_offline == ()
    redis.zadd("exam:17:online_students", {"s1": START_MS / 1000 + 671})
    assert look(store, presence, START_MS + 671_000).went_offline == (("17", "s2"), ("17", "s3"))


def test_a_redis_that_is_away_holds_up_nothing_but_presence(store: ExamStore) -> None:
    away = RedisPresence("redis://127.0.0.1:1/0", store.database)
    with pytest.raises(ExamError) as error:
        away.record([beat("s1", START_MS)], START_MS, after_gap=False)
    assert error.value.code == "unavailable"
    report = look(store, away, START_MS + 600_000)
    assert (report.presence_known, report.went_offline, report.online) == (False, (), 3)
    report = look(store, away, END_MS)
    assert (report.completed, len(report.closed), len(report.merges)) == (("17",), 3, 3)
    with pytest.raises(ExamError):
        away.tell(report.news)


def test_what_the_check_decides_is_told_to_who_reads_redis(
    store: ExamStore, presence: RedisPresence, redis: Redis
) -> None:
    presence.record([beat("s1", START_MS)], START_MS, after_gap=True)
    presence.tell([StatusNews(("17", "s1"), "王小明", StudentStatus.OFFLINE)])
    assert redis.hget("exam:17:student:s1", "status") == "offline"
    report = look(store, presence, END_MS)
    presence.tell(report.news)
    assert redis.hget("exam:17:student:s1", "status") == "logout"
    assert redis.zcard("exam:17:online_students") == 0


def test_the_buffer_keeps_what_redis_did_not_take(store: ExamStore, presence: RedisPresence) -> None:
    away = RedisPresence("redis://127.0.0.1:1/0", store.database)
    buffer = HeartbeatBuffer(away)
    buffer.add("17", "s1", at_ms=START_MS, ip="")
    with pytest.raises(ExamError):
        buffer.flush(START_MS)
    assert len(buffer) == 1


def test_the_configuration_chooses_redis(store: ExamStore, redis_url: str, tmp_path: Path, redis: Redis) -> None:
    config = Config(data_dir=str(tmp_path), exams=ExamsSection(presence=redis_url))
    assert presence_of(config, store).others_write
    late = LateStore(config)
    LatePresence(late).record([beat("s2", START_MS)], START_MS, after_gap=True)
    assert redis.zscore("exam:17:online_students", "s2") == START_MS / 1000
    late.close()


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1/", "redis://127.0.0.1:port/0"])
def test_urls_that_are_none(store: ExamStore, url: str) -> None:
    with pytest.raises(ExamError, match=r"exams\.presence") as error:
        RedisPresence(url, store.database)
    assert error.value.code == "invalid"


@settings(deadline=None)
@given(st.lists(st.integers(0, 400_000), max_size=30), st.lists(st.integers(0, 400_000), max_size=30))
def test_somebody_has_listened_only_where_signs_of_life_are_dense(first: list[int], second: list[int]) -> None:
    window: Listening | None = None
    for signs, now_ms in ((first, 200_000), (second, 400_000)):
        window = heard_elsewhere(window, signs, now_ms)
        if window is None:
            continue
        assert window.since_ms <= window.until_ms <= now_ms
        inside = sorted({s for s in [*first, *second, window.since_ms] if window.since_ms <= s <= window.until_ms})
        assert all(b - a <= EVIDENCE_GAP_MS for a, b in itertools.pairwise(inside))
