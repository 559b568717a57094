"""A real status worker at an exam's start and end, on PostgreSQL, without a scheduler: the moments alone."""

from __future__ import annotations

import time

import pytest

from tests.waiting import wait_until
from tests.workers.worker_system import System
from zq.exams.moments import Moments
from zq.exams.status import ExamStatus, StudentStatus
from zq.exams.store import ExamStore


@pytest.mark.xdist_group("postgres")
def test_an_exam_starts_and_ends_at_its_time(system: System, postgres_url: str) -> None:
    system.broker()
    store = ExamStore(postgres_url, "Asia/Shanghai")
    now_ms = time.time_ns() // 1_000_000
    exam, _ = store.create_exam("e1", "期末", now_ms + 3_000, now_ms + 3_600_000, now_ms=now_ms)
    store.login("e1", "s1", now_ms=now_ms, ip="", name="王小明")
    moments = Moments(system.config)
    assert moments.tell(system.client, [exam], now_ms) == 3
    names = ["--queue", "status_check", "--name", system.host]
    system.start("zq.workers", *names, ZQ_EXAMS_DATABASE=postgres_url)
    wait_until(lambda: store.get_exam("e1").status is ExamStatus.ACTIVE)
    assert time.time_ns() // 1_000_000 >= exam.start_ms
    # The check tells the moments of all coming exams itself: not after what comes now.
    wait_until(lambda: all(queue.running == 0 for queue in system.client.queues()))
    # It ends sooner than it was said: the moment moves.
    now_ms = time.time_ns() // 1_000_000
    moments.tell(system.client, [store.edit_times("e1", now_ms=now_ms, end=now_ms + 500)], now_ms)
    wait_until(lambda: store.get_exam("e1").status is ExamStatus.COMPLETED)
    assert store.get_student("e1", "s1").status is StudentStatus.LOGOUT
    store.close()
