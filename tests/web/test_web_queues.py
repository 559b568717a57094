from __future__ import annotations

import uuid

from tests.waiting import wait_until
from tests.web.conftest import Api, problem
from tests.web.hands import hands
from tests.web.test_web_jobs import job, submit


def test_a_paused_queue_starts_nothing_until_it_is_resumed(api: Api, broker_port: int) -> None:
    queue = f"队列/{uuid.uuid4().hex}"
    paused = api("POST", f"/v1/queues/{queue}:pause")
    assert (paused.status_code, paused.json()["name"], paused.json()["paused"]) == (200, queue, True)
    with hands(broker_port, queue) as worker:
        waiting = submit(api, job(queue)).json()["id"]
        assert api("GET", f"/v1/jobs/{waiting}").json()["why"]["reason"] == "paused"
        assert not any(queue in reason for reason in api("GET", "/readyz").json()["reasons"])
        assert f'zq_queue_paused{{queue="{queue}"}} 1.0' in api("GET", "/metrics").text
        assert api("POST", f"/v1/queues/{queue}:pause").status_code == 200  # once more changes nothing
        assert api("POST", f"/v1/queues/{queue}:resume").json()["paused"] is False
        worker.end(worker.take())
    assert api("GET", f"/v1/jobs/{waiting}").json()["job"]["state"] == "done"


def test_limits_of_a_queue_are_set_one_by_one_and_hold(api: Api) -> None:
    queue = f"q{uuid.uuid4().hex}"
    assert api("PATCH", f"/v1/queues/{queue}", json={"rate_per_s": 2.5, "running_max": 3}).status_code == 200
    view = api("PATCH", f"/v1/queues/{queue}", json={"length_max": 1}).json()
    assert (view["rate_per_s"], view["running_max"], view["length_max"], view["paused"]) == (2.5, 3, 1, False)
    assert submit(api, job(queue)).status_code == 202
    full = submit(api, job(queue))
    problem(full, 429)
    assert int(full.headers["retry-after"]) >= 1
    items = api("POST", "/v1/jobs:batch", json={"jobs": [job(queue), job()]}).json()["results"]
    assert [item["status"] for item in items] == [429, 202]
    assert api("PATCH", f"/v1/queues/{queue}", json={"length_max": 0}).json()["length_max"] == 0
    assert submit(api, job(queue)).status_code == 202


def test_a_change_that_cannot_be_says_where(api: Api) -> None:
    for body, pointer in [({}, "#"), ({"rate_per_s": -1}, "#/rate_per_s"), ({"runing_max": 1}, "#/runing_max")]:
        assert problem(api("PATCH", "/v1/queues/q", json=body), 422)["errors"][0]["pointer"] == pointer
    for path in ("/v1/queues/a%20b:pause", f"/v1/queues/{'q' * 201}:pause"):
        problem(api("POST", path), 422)


def test_the_cookie_of_the_page_cannot_pause(api: Api) -> None:
    del api._client.headers["Authorization"]
    headers = {"Cookie": f"zq_page={api.services.gate.page_cookie_value()}"}
    problem(api("POST", "/v1/queues/q:pause", headers=headers), 403)


def test_a_broker_that_is_away_may_have_done_it(lonely_api: Api) -> None:
    assert "safe" in problem(lonely_api("POST", "/v1/queues/q:pause"), 504)["detail"]


def test_a_queue_that_loses_its_worker_degrades_readiness_within_five_seconds(api: Api, broker_port: int) -> None:
    queue = f"q{uuid.uuid4().hex}"

    def told() -> bool:
        return any(queue in reason for reason in api("GET", "/readyz").json()["reasons"])

    with hands(broker_port, queue) as worker:
        submit(api, job(queue))
        worker.end(worker.take())
        submit(api, job(queue))
        assert not told()
    wait_until(told, within_s=5, what="an alarm")
