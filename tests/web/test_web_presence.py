"""Login, heartbeat and finish through HTTP, with presence in a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from tests.web.conftest import Api, load, write_config
from tests.web.test_web_exams import STUDENT, make_exam
from zq.web.services import now_ms

ONLINE = "exam:math:online_students"


@pytest.fixture
def in_redis(tmp_path: Path, broker_port: int, redis_url: str) -> Iterator[Api]:
    made = Api(load(write_config(tmp_path, broker_port, f'[exams]\npresence = "{redis_url}"\n')))
    yield made
    made.close()


def test_presence_is_in_redis_from_login_to_finish(in_redis: Api, redis_url: str) -> None:
    redis: Redis = Redis.from_url(redis_url, decode_responses=True)
    make_exam(in_redis)
    assert in_redis("POST", f"{STUDENT}/login", json={}).status_code == 200
    in_redis.services.heartbeats.flush(now_ms())
    assert redis.zrange(ONLINE, 0, -1) == ["s1"]
    assert redis.hget("exam:math:student:s1", "username") == "王小明"
    before = redis.zscore(ONLINE, "s1")
    assert in_redis("POST", f"{STUDENT}/heartbeat").status_code == 204
    in_redis.services.heartbeats.flush(now_ms())
    after = redis.zscore(ONLINE, "s1")
    assert isinstance(before, float)
    assert isinstance(after, float)
    assert after >= before
    assert in_redis("POST", f"{STUDENT}/finish").status_code == 200
    assert redis.zrange(ONLINE, 0, -1) == []
    assert redis.hget("exam:math:student:s1", "status") == "logout"
    redis.close()
