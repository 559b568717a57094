"""The page's own routes: its live picture, and what a job has used."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from tests.web.conftest import Api, problem
from tests.web.hands import hands
from tests.web.test_web_streams import System
from zq.protocol.messages import BrokerInfo, QueueInfo, Role, WorkerInfo
from zq.web.job_usage import POINTS_MAX, JobUsage
from zq.web.watch import DISK_LOW_BYTES, alarms


def pictures(system: System) -> Any:
    """The stream's pictures, as they come."""
    answer, connection = system.call("GET", "/page/live")
    assert answer.status == 200
    try:
        while line := answer.readline():
            if line.startswith(b"data: "):
                yield json.loads(line[6:])
    finally:
        answer.close()
        connection.close()


def test_the_picture_follows_what_happens_and_says_when_the_broker_is_away(tmp_path: Path) -> None:
    system = System(tmp_path)
    seen = pictures(system)
    try:
        first = next(seen)
        assert first["broker"]["accepting"]
        assert first["alarms"] == []
        system.submit("unserved")
        alarm = next(p["alarms"][0] for p in seen if p["alarms"])
        assert (alarm["kind"], alarm["subject"], alarm["number"]) == ("unserved", "unserved", 1)
        system.broker.stop()
        away = next(p for p in seen if p["broker"] is None)
        assert [alarm["kind"] for alarm in away["alarms"]] == ["broker_away"]
        system.broker = system.start_broker()
        assert next(p for p in seen if p["broker"] is not None)["queues"][0]["ready"] == 1
    finally:
        seen.close()
        system.stop()


def test_the_pages_own_routes_need_the_right_to_read(api: Api) -> None:
    for path in ("/page/live", "/page/chart", f"/page/jobs/{uuid.uuid4()}/usage"):
        problem(api("GET", path, headers={"Authorization": "Bearer wrong"}), 401)
    problem(api("GET", f"/page/jobs/{uuid.uuid4()}/usage"), 404)


def test_what_a_running_job_uses_is_kept_by_attempt(api: Api, broker_port: int) -> None:
    queue = f"q{uuid.uuid4().hex}"
    job_id = api("POST", "/v1/jobs", json={"task": "t", "queue": queue}).json()["id"]
    assert api("GET", f"/page/jobs/{job_id}/usage").json()["points"] == []
    with hands(broker_port, queue) as worker:
        lease = worker.take()
        worker.progress(lease, 1, 4, "")
        found = api("GET", f"/page/jobs/{job_id}/usage").json()
        assert found["attempt"] == 1
        assert len(found["points"]) == 1
        worker.end(lease)
    assert len(api("GET", f"/page/jobs/{job_id}/usage").json()["points"]) == 1


def test_the_usage_of_a_long_job_keeps_its_whole_length_in_few_points() -> None:
    usage = JobUsage()
    for second in range(20_000):
        usage.observe(job_info(cpu_ms=second * 500), 1_000_000 + second * 1000)
    attempt, points = usage.points(bytes(16))
    assert attempt == 1
    assert POINTS_MAX // 2 - 1 <= len(points) <= POINTS_MAX
    assert (points[0].cpu_s, points[-1].at_ms) == (0, max(p.at_ms for p in points))
    assert points[-1].cpu_s > 9_000
    usage.observe(job_info(attempt=2), 99_000_000)
    assert usage.points(bytes(16))[0] == 2
    assert usage.points(b"x" * 16) == (0, [])


def job_info(attempt: int = 1, cpu_ms: int = 0) -> Any:
    from zq.protocol.job import State
    from zq.protocol.messages import JobInfo, Usage

    return JobInfo(
        id=bytes(16), task="t", queue="q", state=State.RUNNING, priority=5, attempt=attempt, attempts_max=4, worker="w",
        key="", error="", size_bytes=10, usage=Usage(cpu_ms=cpu_ms, peak_rss_bytes=5), accepted_ms=1, due_ms=1,
        started_ms=1, ended_ms=0,
    )  # fmt: skip


def queue_info(name: str, **given: Any) -> QueueInfo:
    numbers = dict.fromkeys(QueueInfo.__struct_fields__[1:13], 0)
    return QueueInfo(**{"name": name, **numbers, **given})


def test_alarms_say_the_worst_first() -> None:
    broker = BrokerInfo(1, 1, 1, 1, 1, DISK_LOW_BYTES - 1, 1, 1, 1, {}, False, "zq")
    queues = [
        queue_info("paused", ready=3, paused=True),
        queue_info("alone", ready=2),
        queue_info("fine", ready=2, consumers=1),
    ]
    silences = {"w": 7_000, "v": 5_000}
    workers = [WorkerInfo(name, Role.WORKER, [], 0, 0, ms, 9_000, "zq") for name, ms in silences.items()]
    found = alarms(broker, queues, workers)
    assert [(one.kind, one.subject) for one in found] == [
        ("not_accepting", ""), ("disk_low", ""), ("unserved", "alone"), ("worker_silent", "w"), ("paused", "paused"),
    ]  # fmt: skip
    assert found[2].detail == "zq worker --queue alone"
