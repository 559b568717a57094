"""An exam's start, end and merges are jobs that move with its times: with a real broker."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.conftest import LiveBroker
from zq.client.sync import Client
from zq.config import Config, ExamsSection
from zq.exams.model import Exam
from zq.exams.moments import AHEAD_MS_MAX, EXPIRES_S, Moments, requests_of
from zq.exams.status import ExamStatus
from zq.protocol.job import State

NOW_MS = time.time_ns() // 1_000_000
HOUR_MS = 3_600_000


def exam(exam_id: str, start_ms: int, end_ms: int) -> Exam:
    return Exam(exam_id, "期末", start_ms, end_ms, ExamStatus.PENDING, 0)


@pytest.fixture
def client(live_broker: LiveBroker) -> Iterator[Client]:
    with Client(live_broker.config) as client:
        yield client


def waiting(client: Client) -> dict[str, int]:
    """Key → how many minutes from now the job is due."""
    page = client.jobs("status_check", State.SCHEDULED)
    return {job.key: round((job.due_ms - NOW_MS) / 60_000) for job in page.jobs}


def test_moments_of_an_exam_move_with_its_times(client: Client) -> None:
    config = Config(exams=ExamsSection(merge_quiet_s=300))
    told = Moments(config)
    first = exam("e1", NOW_MS + HOUR_MS, NOW_MS + 3 * HOUR_MS)
    assert told.tell(client, [first], NOW_MS) == 3
    assert waiting(client) == {"exam:e1:start": 60, "exam:e1:end": 180, "exam:e1:merge": 185}
    assert told.tell(client, [first], NOW_MS + 5) == 0, "told once"
    moved = exam("e1", NOW_MS + 2 * HOUR_MS, NOW_MS + 4 * HOUR_MS)
    assert told.tell(client, [moved], NOW_MS) == 3
    assert waiting(client) == {"exam:e1:start": 120, "exam:e1:end": 240, "exam:e1:merge": 245}
    # Back again, and by somebody else.
    assert Moments(config).tell(client, [first], NOW_MS) == 3
    assert waiting(client) == {"exam:e1:start": 60, "exam:e1:end": 180, "exam:e1:merge": 185}


def test_a_moment_runs_at_its_time_and_expires_soon_after(client: Client) -> None:
    now_ms = time.time_ns() // 1_000_000
    at_ms = now_ms + 300
    Moments(Config()).tell(client, [exam("e1", at_ms, at_ms + HOUR_MS)], now_ms)
    until_s = time.monotonic() + 20
    while not (page := client.jobs("status_check", State.READY)).jobs:
        assert time.monotonic() < until_s
        time.sleep(0.01)
    (job,) = page.jobs
    assert (job.key, job.task) == ("exam:e1:start", "zq.workers.status.check_exams")
    assert time.time_ns() // 1_000_000 >= at_ms


def test_only_what_is_to_come_is_submitted() -> None:
    config = Config()
    live = requests_of(exam("e1", NOW_MS - 1, NOW_MS + 1), config, NOW_MS)
    assert [request.key for request in live] == ["exam:e1:end", "exam:e1:merge"]
    assert live[0].expires_s == pytest.approx(EXPIRES_S + 0.001)
    assert requests_of(exam("e1", NOW_MS - 3 * HOUR_MS, NOW_MS - HOUR_MS), config, NOW_MS) == []
    far_ms = NOW_MS + AHEAD_MS_MAX
    assert [r.key for r in requests_of(exam("e1", far_ms, far_ms + 1), config, NOW_MS)] == ["exam:e1:start"]
