"""What is done to all jobs of a filter at once, and dead letters by kind of error."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.web.conftest import Api, problem
from tests.web.hands import kill_jobs
from tests.web.test_web_jobs import job, submit
from zq.web.bulk import template


def fill(api: Api, count: int, **options: Any) -> tuple[str, list[str]]:
    """A queue of its own with so many jobs, and their ids."""
    queue = f"q{uuid.uuid4().hex}"
    return queue, [submit(api, job(queue, args=[n], **options)).json()["id"] for n in range(count)]


def change(api: Api, action: str, **body: Any) -> Any:
    answer = api("POST", f"/v1/jobs:{action}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def states(api: Api, ids: list[str]) -> list[str]:
    return [api("GET", f"/v1/jobs/{one}").json()["job"]["state"] for one in ids]


def test_waiting_jobs_are_counted_then_cancelled(api: Api) -> None:
    queue, ids = fill(api, 4)
    later = submit(api, job(queue, countdown_s=600)).json()["id"]
    dry = change(api, "cancel", queue=queue, dry_run=True)
    assert (dry["matched"], dry["changed"], dry["complete"]) == (5, 0, True)
    assert dry["states"] == {"ready": 4, "scheduled": 1}
    assert len(dry["sample"]) == 5
    assert states(api, ids) == ["ready"] * 4
    done = change(api, "cancel", queue=queue, state="ready", where={"0": 1})
    assert (done["matched"], done["changed"]) == (1, 1)
    assert states(api, [*ids, later]) == ["ready", "cancelled", "ready", "ready", "scheduled"]
    assert change(api, "cancel", ids=ids[2:])["changed"] == 2
    again = change(api, "retry", queue=queue)
    assert (again["changed"], again["states"]) == (3, {"cancelled": 3})
    assert states(api, ids) == ["ready"] * 4


def test_a_limit_is_kept_and_told(api: Api) -> None:
    queue, ids = fill(api, 5)
    first = change(api, "cancel", queue=queue, limit=3)
    assert (first["changed"], first["complete"]) == (3, False)
    assert change(api, "cancel", queue=queue, limit=3)["complete"]
    assert states(api, ids) == ["cancelled"] * 5
    assert change(api, "drop", queue=queue)["changed"] == 5
    assert api("GET", f"/v1/jobs/{ids[0]}").status_code == 404


def test_dead_letters_are_grouped_by_what_they_died_of(api: Api, broker_port: int) -> None:
    queue, ids = fill(api, 6)
    errors = [f"OSError: [Errno 28] 磁盘 {n} full at 0x7f3a{n}b2c4d\nTraceback" for n in range(4)]
    kill_jobs(broker_port, queue, [*errors, "ValueError: no name", ""])
    found = api("GET", f"/v1/dead/groups?queue={queue}").json()
    assert (found["jobs"], found["complete"]) == (6, True)
    first = found["groups"][0]
    assert (first["jobs"], first["error"]) == (4, "OSError: [Errno …] 磁盘 … full at …")
    assert {row["id"] for row in first["sample"]} == set(ids[:4])
    assert first["oldest_at"] <= first["newest_at"]
    assert api("GET", f"/v1/dead/groups?queue={queue}&error=no name").json()["jobs"] == 1
    dry = change(api, "retry", group=first["key"], queue=queue, dry_run=True)
    assert dry["matched"] == 4
    assert change(api, "retry", group=first["key"], queue=queue)["changed"] == 4
    assert states(api, ids) == ["ready"] * 4 + ["dead"] * 2
    assert change(api, "retry", group="none", queue=queue)["matched"] == 0


@pytest.mark.parametrize(
    ("action", "body", "where"),
    [
        ("cancel", {}, "#/all"),
        ("cancel", {"all": True, "queue": "q"}, "#/all"),
        ("cancel", {"state": "done", "queue": "q"}, "#/state"),
        ("retry", {"state": "ready", "all": True}, "#/state"),
        ("drop", {"state": "running", "all": True}, "#/state"),
        ("retry", {"ids": ["nonsense"]}, "#/ids/0"),
    ],
)
def test_what_is_not_meant_is_refused(api: Api, action: str, body: dict[str, Any], where: str) -> None:
    refused = problem(api("POST", f"/v1/jobs:{action}", json=body), 422)
    assert refused["errors"][0]["pointer"] == where


def test_errors_that_differ_in_numbers_and_ids_are_one() -> None:
    same = [
        "ConnectionError: 10.0.0.7:5570 after 3.25 s, job 0190a3c4-1111-7000-8000-00000000000a",
        "ConnectionError: 10.0.0.18:5571 after 12 s, job 0190a3c4-2222-7abc-8000-0000000000ff",
    ]
    assert len({template(text) for text in same}) == 1
    assert template("KeyError: 'decade'\n  at line 3") == "KeyError: 'decade'"
    assert template("") == ""
    assert template("x" * 9000) == f"{'x' * 199}…"
