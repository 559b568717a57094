from __future__ import annotations

import uuid
from typing import Any

import zq.protocol.messages as m
from tests.web.conftest import Api, problem
from tests.web.hands import hands
from tests.web.test_web_jobs import job, submit
from zq.web.submissions import BATCH_JOBS_MAX


def batch(api: Api, jobs: list[dict[str, Any]], key: str = "") -> Any:
    headers = {"Idempotency-Key": key} if key else {}
    answer = api("POST", "/v1/jobs:batch", json={"jobs": jobs}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_each_job_of_a_batch_has_its_own_answer(api: Api) -> None:
    key = uuid.uuid4().hex
    jobs = [job("批"), job("a b"), job("批", countdown_s=60), job("q", key=key), job("r", key=key), job(args=[2**80])]
    answer = batch(api, jobs)
    assert [item["status"] for item in answer["results"]] == [202, 422, 202, 202, 202, 422]
    assert answer["accepted"] == 4
    first, bad, later, holder, taken, huge = answer["results"]
    assert (first["job"]["queue"], first["job"]["state"], later["job"]["state"]) == ("批", "ready", "scheduled")
    assert bad["job"] is None
    assert bad["problem"]["errors"][0]["pointer"] == "#/jobs/1"
    assert huge["problem"]["errors"][0]["pointer"] == "#/jobs/5"
    assert (taken["job"]["id"], taken["job"]["queue"]) == (holder["job"]["id"], "q")
    assert (holder["job"]["deduplicated"], taken["job"]["deduplicated"]) == (False, True)
    assert api("GET", f"/v1/jobs/{first['job']['id']}").json()["job"]["queue"] == "批"


def test_a_batch_sent_again_is_the_same_jobs(api: Api) -> None:
    key, jobs = uuid.uuid4().hex, [job(), job()]
    first, again = batch(api, jobs, key), batch(api, jobs, key)
    assert again == first
    other = api("POST", "/v1/jobs:batch", json={"jobs": [jobs[0], jobs[1] | {"priority": 1}]}, headers={
        "Idempotency-Key": key
    })  # fmt: skip
    assert problem(other, 422)["type"] == "urn:zq:problem:idempotency-key-reused"


def test_a_batch_is_bounded_and_its_form_is_checked_before_anything_is_taken(api: Api) -> None:
    queue = f"q{uuid.uuid4().hex}"
    small = {"task": "t", "queue": queue}
    for jobs in ([], [small] * (BATCH_JOBS_MAX + 1)):
        problem(api("POST", "/v1/jobs:batch", json={"jobs": jobs}), 422)
    wrong = problem(api("POST", "/v1/jobs:batch", json={"jobs": [small, small | {"priorty": 1}]}), 422)
    assert wrong["errors"] == [
        {"pointer": "#/jobs/1/priorty", "detail": "unknown field 'priorty'; did you mean 'priority'?"}
    ]
    assert api("GET", f"/v1/jobs?queue={queue}").json()["jobs"] == []
    assert batch(api, [small] * BATCH_JOBS_MAX)["accepted"] == BATCH_JOBS_MAX


def test_a_batch_for_a_broker_that_is_away(lonely_api: Api) -> None:
    answer = lonely_api("POST", "/v1/jobs:batch", json={"jobs": [job()]})
    assert "Idempotency-Key" in problem(answer, 504)["detail"]


def test_a_job_with_tags_and_a_concurrency_key_shows_them_and_what_holds_it(api: Api, broker_port: int) -> None:
    queue = f"q{uuid.uuid4().hex}"
    options: dict[str, Any] = {"tags": ["gpu", "盘=a"], "concurrency_key": uuid.uuid4().hex, "concurrency_limit": 1}
    with hands(broker_port, queue, slots=2, tags=["gpu"]) as worker:
        tagged = submit(api, job(queue, **options)).json()["id"]
        assert (api("GET", f"/v1/jobs/{tagged}/why").json()["reason"]) == "tags"
        found = api("GET", f"/v1/jobs/{tagged}").json()
        assert (found["job"]["tags"], found["concurrency_limit"]) == (options["tags"], 1)
        assert found["why"]["reason"] == "tags"
        assert api("DELETE", f"/v1/jobs/{tagged}").status_code == 202
        ids = [submit(api, job(queue, **options | {"tags": []})).json()["id"] for _ in range(2)]
        lease = worker.take()
        why = api("GET", f"/v1/jobs/{ids[1]}/why").json()
        assert (why["reason"], why["holders"]) == ("concurrency", [ids[0]])
        assert api("GET", f"/v1/jobs/{ids[0]}").json()["why"] is None
        worker.end(lease)
        worker.end(worker.take())
    for wrong in ({"tags": ["a b"]}, {"tags": ["t"] * 9}, {"concurrency_limit": 0}, {"key_policy": "steal"}):
        problem(submit(api, job() | wrong), 422)


def test_a_job_waits_for_what_it_needs_and_a_stalled_one_is_shown(api: Api, broker_port: int) -> None:
    queue = f"q{uuid.uuid4().hex}"
    with hands(broker_port, queue) as worker:
        worker.peer.send(m.Credit(worker.session, [m.QueueSlots(queue, 1)], m.Room(2 << 30, 1 << 30)))
        options = {"disk_bytes": 3 << 30, "memory_limit_bytes": 1 << 30, "stall_after_s": 60}
        accepted = submit(api, job(queue, **options)).json()
        assert "it waits for room" in accepted["warnings"][0]
        why = api("GET", f"/v1/jobs/{accepted['id']}/why").json()
        assert (why["reason"], "most is left on" in why["text"]) == ("headroom", True)
        (shown,) = [w for w in api("GET", "/v1/workers").json()["workers"] if w["queues"][0]["queue"] == queue]
        assert (shown["room"], shown["stalled"]) == ({"disk_bytes": 2 << 30, "memory_bytes": 1 << 30}, 0)
        worker.peer.send(m.Credit(worker.session, [m.QueueSlots(queue, 1)], m.Room(4 << 30, 1 << 30)))
        lease = worker.take()
        usage = [m.LeaseUsage(lease.token, m.Usage(1500, 7, 8, 9, 4), 61_000, 60_500, stalled=True)]
        assert isinstance(worker.peer.ask(m.Beat(worker.session, 1, [lease.token], usage)), m.BeatOk)
        found = api("GET", f"/v1/jobs/{accepted['id']}").json()
        row = found["job"]
        metrics = api("GET", "/metrics").text
        left = f'zq_worker_left_bytes{{of="disk",worker="{shown["name"]}"}} 1.073741824e+09'
        assert left in metrics
        assert "zq_worker_stalled_jobs 1.0" in metrics
        assert (row["stalled"], row["quiet_s"], row["disk_bytes"]) == (True, 60.5, 3 << 30)
        assert row["usage"] == {
            "cpu_s": 1.5, "peak_rss_bytes": 7, "read_bytes": 8, "write_bytes": 9, "processes": 4,
        }  # fmt: skip
        assert [event["cause"] for event in found["history"]][-1] == "stall"
        worker.end(lease)
    for wrong in ({"disk_bytes": -1}, {"memory_bytes": 1 << 60}, {"stall_after_s": -1}):
        problem(submit(api, job() | wrong), 422)


def test_key_policies(api: Api) -> None:
    key, queue = uuid.uuid4().hex, f"q{uuid.uuid4().hex}"
    first = submit(api, job(queue, key=key, countdown_s=60)).json()
    moved = submit(api, job(queue, key=key, key_policy="reschedule")).json()
    assert (moved["id"], moved["deduplicated"], moved["state"]) == (first["id"], True, "ready")
    second = submit(api, job(queue, key=key, key_policy="replace")).json()
    assert second["id"] != first["id"]
    assert second["deduplicated"] is False
    history = api("GET", f"/v1/jobs/{first['id']}").json()["history"]
    assert [step["cause"] for step in history] == ["accept", "reschedule", "replace"]
    assert [step["state"] for step in history] == ["scheduled", "ready", "cancelled"]


def test_a_scheduled_job_says_when(api: Api) -> None:
    accepted = submit(api, job(countdown_s=60)).json()
    why = api("GET", f"/v1/jobs/{accepted['id']}/why").json()
    assert why["reason"] == "not_due"
    assert 50 < why["wait_s"] <= 60
    problem(api("GET", f"/v1/jobs/{uuid.uuid4()}/why"), 404)
