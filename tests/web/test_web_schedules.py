from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.web.conftest import Api, load, write_config
from zq.client.sync import Client
from zq.scheduler.service import Clock, Service, schedules_of

SCHEDULES = """
[schedules.clean]
task = "t.clean"
queue = "housekeeping"
every_s = 3600
misfire = "skip"
overlap = "skip"
[schedules.nightly]
task = "t.nightly"
queue = "housekeeping"
cron = "30 3 * * *"
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


def view_of(api: Api, name: str) -> dict[str, Any]:
    (view,) = [view for view in api("GET", "/v1/schedules").json()["schedules"] if view["name"] == name]
    assert isinstance(view, dict)
    return view


def one_step(api: Api, ahead_ms: int = 0) -> None:
    """What the scheduler of this configuration does now, or would do in a while."""
    config = api.services.config
    clock = Clock(lambda: time.time_ns() // 1_000_000 + ahead_ms)
    with Client(config, role="scheduler") as client:
        Service(client, schedules_of(config), clock).step()


def test_a_schedule_shows_its_next_and_its_last_tick(scheduled: Api) -> None:
    assert {view["name"] for view in scheduled("GET", "/v1/schedules").json()["schedules"]} == {
        "exam-status", "clean", "fast", "nightly",
    }  # fmt: skip
    before = view_of(scheduled, "clean")
    assert (before["last"], before["ticks"]) == (None, 0)
    next_at = datetime.fromisoformat(before["next_at"]).timestamp()
    assert next_at % 3600 == 0
    one_step(scheduled)
    view = view_of(scheduled, "fast")
    assert (view["every_s"], view["misfire"], view["last"]["state"], view["ticks"]) == (0.25, "once", "ready", 1)
    assert datetime.fromisoformat(view["last"]["nominal_at"]) < datetime.fromisoformat(view["next_at"])
    job = scheduled("GET", f"/v1/jobs/{view['last']['job_id']}").json()
    assert job["job"]["task"] == "t.fast"
    late_s = view["last"]["late_s"]
    assert f'zq_schedule_lateness_seconds{{schedule="fast"}} {late_s}' in scheduled("GET", "/metrics").text
    nightly = view_of(scheduled, "nightly")
    assert (nightly["cron"], nightly["zone"], nightly["last"]) == ("30 3 * * *", "Asia/Shanghai", None)
    assert nightly["next_at"].endswith("T19:30:00.000Z")


def test_pause_resume_and_run_now(scheduled: Api) -> None:
    one_step(scheduled)
    paused = scheduled("POST", "/v1/schedules/fast:pause").json()
    assert (paused["paused"], paused["paused_by"], paused["next_at"]) == (True, "web", None)
    ticks = view_of(scheduled, "fast")["ticks"]
    one_step(scheduled, 1_000)
    assert view_of(scheduled, "fast")["ticks"] == ticks
    ran = scheduled("POST", "/v1/schedules/fast:run")
    assert ran.status_code == 202
    assert scheduled("GET", ran.headers["Location"]).json()["job"]["task"] == "t.fast"
    assert scheduled("POST", "/v1/schedules/fast:resume").json()["paused"] is False
    one_step(scheduled, 2_000)
    assert view_of(scheduled, "fast")["ticks"] == ticks + 1


def test_what_may_not_overlap_is_not_run_twice(scheduled: Api) -> None:
    assert scheduled("POST", "/v1/schedules/clean:run").status_code == 202
    answer = scheduled("POST", "/v1/schedules/clean:run")
    assert (answer.status_code, "still there" in answer.json()["detail"]) == (409, True)


@pytest.mark.parametrize("verb", ["pause", "resume", "run"])
def test_a_schedule_that_does_not_exist(scheduled: Api, verb: str) -> None:
    answer = scheduled("POST", f"/v1/schedules/claen:{verb}")
    assert (answer.status_code, "clean" in answer.json()["detail"]) == (404, True)


def test_schedules_are_shown_while_the_broker_is_away(lonely_api: Api) -> None:
    (view,) = lonely_api("GET", "/v1/schedules").json()["schedules"]
    assert (view["name"], view["last"]) == ("exam-status", None)


def test_numbers_for_prometheus(api: Api) -> None:
    text = api("GET", "/metrics").text
    for name in ("zq_workers 0.0", "zq_http_streams 0.0", "zq_journal_commits_total", "zq_worker_jobs 0.0"):
        assert name in text
