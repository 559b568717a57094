from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.web.conftest import Api, load, write_config
from zq.scheduler.service import request_of, schedules_of
from zq.scheduler.ticks import Tick, nominal_at
from zq.web.schedules import plans_of

SCHEDULES = """
[schedules.clean]
task = "t.clean"
queue = "housekeeping"
every_s = 3600
misfire = "skip"
[schedules.fast]
task = "t.fast"
queue = "housekeeping"
every_s = 0.25
"""


@pytest.fixture
def scheduled(tmp_path: Path, broker_port: int) -> Iterator[Api]:
    path = write_config(tmp_path, broker_port, SCHEDULES)
    made = Api(load(path))
    yield made
    made.close()


def test_schedules_are_the_schedulers_own(scheduled: Api) -> None:
    """Written twice, because the web server does not import the scheduler: here they are compared."""
    config = scheduled.services.config
    at_ms = time.time_ns() // 1_000_000
    ours = plans_of(config)
    theirs = schedules_of(config)
    assert [(p.name, p.task, p.queue, p.every_ms, p.misfire) for p in ours] == [
        (s.name, s.task, s.queue, s.interval_ms, s.misfire.value) for s in theirs
    ]
    for plan, schedule in zip(ours, theirs, strict=True):
        tick_ms = nominal_at(schedule.interval_ms, at_ms)
        assert plan.tick_ms(at_ms) == tick_ms
        assert plan.job_id(tick_ms) == Tick(schedule, tick_ms).job_id


def test_a_schedule_shows_its_next_and_its_last_tick(scheduled: Api) -> None:
    views = {view["name"]: view for view in scheduled("GET", "/v1/schedules").json()["schedules"]}
    assert set(views) == {"exam-status", "clean", "fast"}
    assert views["clean"]["last"] is None
    next_at = datetime.fromisoformat(views["clean"]["next_at"]).timestamp()
    assert next_at % 3600 == 0
    assert 0 < next_at - time.time() <= 3600
    (schedule,) = [s for s in schedules_of(scheduled.services.config) if s.name == "clean"]
    nominal_ms = int(next_at - 3600) * 1000
    (receipt,) = scheduled.run(scheduled.services.client.submit_many([request_of(Tick(schedule, nominal_ms))]))
    body = scheduled("GET", "/v1/schedules").json()
    (view,) = [view for view in body["schedules"] if view["name"] == "clean"]
    assert body["enabled"] is True
    assert (view["every_s"], view["misfire"], view["last"]["state"]) == (3600.0, "skip", "ready")
    assert view["last"]["job_id"].replace("-", "") == receipt.job_id.hex()
    assert datetime.fromisoformat(view["last"]["nominal_at"]).timestamp() == nominal_ms / 1000
    late_s = view["last"]["late_s"]
    assert 0 <= late_s <= 3600
    assert f'zq_schedule_lateness_seconds{{schedule="clean"}} {late_s}' in scheduled("GET", "/metrics").text


def test_schedules_are_shown_while_the_broker_is_away(lonely_api: Api) -> None:
    (view,) = lonely_api("GET", "/v1/schedules").json()["schedules"]
    assert (view["name"], view["last"]) == ("exam-status", None)


def test_numbers_for_prometheus(api: Api) -> None:
    text = api("GET", "/metrics").text
    for name in ("zq_workers 0.0", "zq_http_streams 0.0", "zq_journal_commits_total", "zq_worker_jobs 0.0"):
        assert name in text
