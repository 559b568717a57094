from __future__ import annotations

import asyncio
import uuid
from typing import Any

import httpx

from tests.web.conftest import Api, problem


def submit(api: Api, body: dict[str, Any], **headers: str) -> httpx.Response:
    return api("POST", "/v1/jobs", json=body, headers=headers)


def job(queue: str = "", **more: Any) -> dict[str, Any]:
    return {"task": "pictures.shrink", "queue": queue or f"q{uuid.uuid4().hex}", **more}


def test_a_submitted_job_is_there_with_its_arguments(api: Api) -> None:
    key = uuid.uuid4().hex
    answer = submit(api, job("照片", args=[1, "二"], kwargs={"宽": 3}, priority=9, countdown_s=60, key=key))
    assert answer.status_code == 202
    accepted = answer.json()
    assert accepted["state"] == "scheduled"
    assert accepted["queue"] == "照片"
    assert accepted["deduplicated"] is False
    assert accepted["warnings"]  # nobody serves it
    assert answer.headers["location"] == f"/v1/jobs/{accepted['id']}"
    found = api("GET", answer.headers["location"]).json()
    assert (found["args"], found["kwargs"]) == ([1, "二"], {"宽": 3})
    assert found["job"]["priority"] == 9
    assert found["job"]["state"] == "scheduled"
    assert found["job"]["due_at"] > found["job"]["accepted_at"]


def test_the_same_idempotency_key_is_the_same_job(api: Api) -> None:
    key, body = uuid.uuid4().hex, job()
    first = submit(api, body, **{"Idempotency-Key": f'"{key}"'}).json()
    again = submit(api, body, **{"Idempotency-Key": key})
    assert again.status_code == 202
    assert again.json() == first
    other = submit(api, body | {"priority": 1}, **{"Idempotency-Key": key})
    assert problem(other, 422)["type"] == "urn:zq:problem:idempotency-key-reused"


def test_without_one_the_same_body_is_two_jobs(api: Api) -> None:
    body = job()
    assert submit(api, body).json()["id"] != submit(api, body).json()["id"]


def test_an_idempotency_key_must_be_one(api: Api) -> None:
    for key in ('""', "x" * 256, "ключ".encode()):
        problem(api("POST", "/v1/jobs", json=job(), headers={"Idempotency-Key": key}), 400)
    assert submit(api, job(), **{"Idempotency-Key": uuid.uuid4().hex + "x" * 223}).status_code == 202


def test_a_taken_key_names_the_live_job_where_it_stands(api: Api) -> None:
    key = uuid.uuid4().hex
    first = submit(api, job("first", key=key)).json()
    second = submit(api, job("second", key=key)).json()
    assert (second["id"], second["queue"], second["deduplicated"]) == (first["id"], "first", True)


def test_a_wrong_field_is_told_its_nearest_name(api: Api) -> None:
    body = problem(submit(api, {"task": "t", "queu": "q"}), 422)
    assert "did you mean 'queue'" in body["detail"]
    assert body["errors"] == [{"pointer": "#/queu", "detail": "unknown field 'queu'; did you mean 'queue'?"}]


def test_values_out_of_range_say_where(api: Api) -> None:
    for body, pointer in [
        (job(priority=10), "#/priority"),
        (job(countdown_s=-1), "#/countdown_s"),
        (job(eta="2026-06-01T09:00:00"), "#/eta"),
        (job(args={}), "#/args"),
        (job(key="k" * 256), "#/key"),
        ({"task": "t"}, "#"),
    ]:
        assert problem(submit(api, body), 422)["errors"][0]["pointer"] == pointer
    for body in (job("a b"), job(countdown_s=1, eta="2099-01-01T00:00:00Z"), job(args=[2**80])):
        problem(submit(api, body), 422)


def test_what_is_not_json_is_refused(api: Api) -> None:
    def send(content: bytes, kind: str = "application/json") -> httpx.Response:
        return api("POST", "/v1/jobs", content=content, headers={"Content-Type": kind})

    for content in (b"", b"{", b'{"task": NaN}', b"\xff", b'{"task":"a","task":"b","queue":"q"}', b"[" * 100_000):
        problem(send(content), 400)
    problem(send(b"task=a", "application/x-www-form-urlencoded"), 415)
    problem(send(b" " * ((1 << 20) + 1)), 413)


def test_depth_is_bounded(api: Api) -> None:
    def nested(levels: int) -> dict[str, Any]:
        value: Any = 0
        for _ in range(levels):
            value = [value]
        return job(args=[value])

    # The body, its args and the levels: 32 in all.
    assert submit(api, nested(29)).status_code == 202
    assert "deeper" in problem(submit(api, nested(30)), 400)["detail"]


def test_cancel_and_retry(api: Api) -> None:
    path = f"/v1/jobs/{submit(api, job()).json()['id']}"
    assert "ready" in problem(api("POST", f"{path}:retry"), 409)["detail"]
    cancelled = api("DELETE", path)
    assert (cancelled.status_code, cancelled.json()["state"]) == (202, "cancelled")
    assert api("DELETE", path).json() == cancelled.json()  # once more changes nothing
    again = api("POST", f"{path}:retry")
    assert (again.status_code, again.json()["state"]) == (202, "ready")


def test_a_job_that_is_not_there(api: Api) -> None:
    unknown = f"/v1/jobs/{uuid.uuid4()}"
    for method, path in [("GET", ""), ("GET", "?wait_s=5"), ("DELETE", ""), ("POST", ":retry")]:
        problem(api(method, unknown + path), 404)
    assert problem(api("GET", "/v1/jobs/nonsense"), 422)["errors"][0]["pointer"] == "#/path/id"


def test_a_long_poll_ends_with_the_job(api: Api) -> None:
    path = f"/v1/jobs/{submit(api, job()).json()['id']}"

    async def poll() -> tuple[httpx.Response, float]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        waiting = asyncio.create_task(api.send("GET", f"{path}?wait_s=30"))
        while not waiting.done() and loop.time() - began < 0.3:
            await asyncio.sleep(0.05)
        assert not waiting.done()
        await api.send("DELETE", path)
        return await waiting, loop.time() - began

    answer, took_s = api.run(poll())
    assert answer.json()["job"]["state"] == "cancelled"
    assert took_s < 10


def test_a_long_poll_is_bounded(api: Api) -> None:
    path = f"/v1/jobs/{submit(api, job()).json()['id']}"
    for wait in ("0.2", "0.001", "1e-26"):
        assert api("GET", f"{path}?wait_s={wait}").json()["job"]["state"] == "ready"
    for wait in ("61", "-1", "nan", "x", "1&wait_s=2"):
        problem(api("GET", f"{path}?wait_s={wait}"), 422)


def test_a_long_poll_ends_when_the_server_stops(api: Api) -> None:
    path = f"/v1/jobs/{submit(api, job()).json()['id']}"

    async def poll() -> httpx.Response:
        waiting = asyncio.create_task(api.send("GET", f"{path}?wait_s=60"))
        await asyncio.sleep(0.1)
        api.services.stopping.set()
        return await asyncio.wait_for(waiting, 10)

    assert api.run(poll()).status_code == 200


def test_pages_of_jobs_hold_each_job_once(api: Api) -> None:
    queue = f"q{uuid.uuid4().hex}"
    ids = [submit(api, job(queue)).json()["id"] for _ in range(7)]
    for id_ in ids[:3]:
        api("DELETE", f"/v1/jobs/{id_}")
    for state, expected in [("", set(ids)), ("&state=ready", set(ids[3:])), ("&state=cancelled", set(ids[:3]))]:
        found: list[str] = []
        cursor = ""
        for _ in range(20):
            page = api("GET", f"/v1/jobs?queue={queue}&limit=2{state}{cursor}").json()
            assert len(page["jobs"]) <= 2
            found += [row["id"] for row in page["jobs"]]
            if page["next"] is None:
                break
            cursor = f"&cursor={page['next']}"
        assert sorted(found) == sorted(expected)


def test_a_list_tells_arguments_if_it_is_asked_to(api: Api) -> None:
    queue = f"q{uuid.uuid4().hex}"
    for n in range(5):
        submit(api, job(queue, args=[n], kwargs={"学生": "张伟", "long": "x" * 900}))
    plain = api("GET", f"/v1/jobs?queue={queue}&arguments=false").json()["jobs"]
    assert {row["arguments"] for row in plain} == {None}
    for more in ("", "&where=0=3", "&limit=2"):
        rows = api("GET", f"/v1/jobs?queue={queue}&arguments=true{more}").json()["jobs"]
        for row in rows:
            asked = api("GET", f"/v1/jobs/{row['id']}").json()["args"][0]
            assert row["arguments"].startswith(f"{asked} 学生=张伟 long=xxx")
            assert len(row["arguments"]) < 300
        assert len(rows) == {"": 5, "&where=0=3": 1, "&limit=2": 2}[more]


def test_lists_refuse_what_they_do_not_know(api: Api) -> None:
    wrong = ("state=runing", "limit=0", "limit=1001", "limit=x", "cursor=!", "cursor=AA", "state=dead&cursor=Aw")
    for question in (*wrong, "queue=a&queue=b", "arguments=1"):
        problem(api("GET", f"/v1/jobs?{question}"), 422)


def test_queues_and_readiness_tell_of_work_that_nobody_does(api: Api) -> None:
    queue = f"q{uuid.uuid4().hex}"
    submit(api, job(queue))
    (view,) = [one for one in api("GET", "/v1/queues").json()["queues"] if one["name"] == queue]
    assert (view["ready"], view["consumers"]) == (1, 0)
    ready = api("GET", "/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert any(queue in reason for reason in ready.json()["reasons"])
    assert api("GET", "/v1/workers").json() == {"workers": []}
    metrics = api("GET", "/metrics")
    assert f'zq_queue_jobs{{queue="{queue}",state="ready"}} 1.0' in metrics.text
    assert "zq_broker_up 1.0" in metrics.text


def test_a_broker_that_is_away(lonely_api: Api) -> None:
    assert lonely_api("GET", "/healthz").status_code == 200
    ready = lonely_api("GET", "/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
    for path in ("/v1/queues", "/v1/workers", "/v1/jobs", f"/v1/jobs/{uuid.uuid4()}"):
        assert int(problem_with_retry(lonely_api("GET", path), 503)) >= 1
    answer = lonely_api("POST", "/v1/jobs", json=job(), headers={"Idempotency-Key": "k"})
    problem_with_retry(answer, 504)
    assert "same Idempotency-Key" in answer.json()["detail"]
    assert answer.headers["location"].startswith("/v1/jobs/")
    problem(lonely_api("DELETE", f"/v1/jobs/{uuid.uuid4()}"), 504)
    assert "zq_broker_up 0.0" in lonely_api("GET", "/metrics").text


def problem_with_retry(response: httpx.Response, status: int) -> str:
    problem(response, status)
    retry: str = response.headers["retry-after"]
    return retry
