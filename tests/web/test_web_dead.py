"""Lists with filters, and what is done to many dead letters at once."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.web.conftest import Api, problem
from tests.web.hands import kill_jobs
from tests.web.test_web_jobs import job, submit
from zq.protocol import limits
from zq.web import listing


@pytest.fixture
def dead(api: Api, broker_port: int) -> tuple[str, list[str]]:
    """A queue with six dead letters of two exams and three errors, and their ids in the order of submission."""
    queue = f"q{uuid.uuid4().hex}"
    ids = [
        submit(api, job(queue, task=f"zq.t{i % 2}", args=[i], kwargs={"考试": 49 + i % 2})).json()["id"]
        for i in range(6)
    ]
    kill_jobs(broker_port, queue, [f"OSError: 磁盘 {i // 2}\nTraceback … {'x' * 400} the end" for i in range(6)])
    return queue, ids


def listed(api: Api, query: str) -> list[str]:
    """The ids of all pages."""
    found: list[str] = []
    cursor = ""
    for _ in range(50):
        page = api("GET", f"{query}{cursor}").json()
        found += [row["id"] for row in page["jobs"]]
        if page["next"] is None:
            return found
        cursor = f"&cursor={page['next']}"
    raise AssertionError("it has no end")


def test_filters_find_by_task_error_and_argument(api: Api, dead: tuple[str, list[str]]) -> None:
    queue, ids = dead
    for path in (f"/v1/dead?queue={queue}", f"/v1/jobs?queue={queue}&state=dead"):
        assert sorted(listed(api, path)) == sorted(ids)
        assert sorted(listed(api, f"{path}&where=考试=49")) == sorted(ids[::2])
        assert listed(api, f"{path}&where=0=3") == [ids[3]]
        assert sorted(listed(api, f"{path}&task=zq.t1")) == sorted(ids[1::2])
        assert sorted(listed(api, f"{path}&error=oserror: 磁盘 2")) == sorted(ids[4:])
        assert listed(api, f"{path}&where=考试=49&error=磁盘 0") == [ids[0]]
        assert sorted(listed(api, f"{path}&error=the end")) == sorted(ids)  # beyond what a listing shows
        assert sorted(listed(api, f"{path}&task=zq.*")) == sorted(ids)
        assert listed(api, f"{path}&where=考试=51") == []
        assert listed(api, f"{path}&where=nothing=1") == []


def test_filtered_pages_hold_each_job_once_wherever_they_end(api: Api, dead: tuple[str, list[str]]) -> None:
    queue, ids = dead
    for limit in (1, 2, 3):
        assert sorted(listed(api, f"/v1/dead?queue={queue}&limit={limit}&where=考试=49")) == sorted(ids[::2])
        assert sorted(listed(api, f"/v1/jobs?queue={queue}&limit={limit}&task=zq.t0")) == sorted(ids[::2])


def test_a_scan_is_bounded_says_so_and_goes_on(
    api: Api, dead: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, ids = dead
    monkeypatch.setattr(listing, "SCANNED_MAX", 2)
    monkeypatch.setattr(limits, "PAGE_ROWS_MAX", 2)
    first = api("GET", f"/v1/dead?queue={queue}&limit=2&where=0=0").json()
    assert (first["jobs"], first["scanned"]) == ([], 2)  # newest first, and this is the oldest
    assert first["next"] is not None
    assert listed(api, f"/v1/dead?queue={queue}&limit=2&where=0=0") == [ids[0]]


def test_a_page_that_changed_while_it_was_read_loses_no_job(
    api: Api, dead: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, ids = dead
    jobs = api.services.client.jobs
    calls = 0

    async def changing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:  # the page was read, its cursor not yet
            await api.services.client.drop([ids[5]])
        return await jobs(*args, **kwargs)

    monkeypatch.setattr(api.services.client, "jobs", changing)
    assert set(listed(api, f"/v1/dead?queue={queue}&limit=2&task=")) == set(ids)
    calls = 0
    monkeypatch.setattr(api.services.client, "jobs", jobs)
    assert set(listed(api, f"/v1/dead?queue={queue}&limit=2&error=磁盘")) == set(ids[:5])


def test_filters_that_cannot_be(api: Api) -> None:
    for query in ("where=x", "where==1", "&".join(["where=a=1"] * 9), "limit=0", f"where=a={'x' * 1100}", "cursor=Aw"):
        problem(api("GET", f"/v1/dead?{query}"), 422)


def test_a_dry_run_changes_nothing_and_says_what_would_be(api: Api, dead: tuple[str, list[str]]) -> None:
    queue, ids = dead
    body = {"queue": queue, "where": {"考试": 49}, "dry_run": True}
    answer = api("POST", "/v1/dead:retry", json=body).json()
    assert (answer["dry_run"], answer["matched"], answer["changed"], answer["complete"]) == (True, 3, 0, True)
    assert answer["scanned"] == 6
    assert sorted(row["id"] for row in answer["sample"]) == sorted(ids[::2])
    assert {(group["task"], group["error"]): group["jobs"] for group in answer["groups"]} == {
        ("zq.t0", "OSError: 磁盘 0"): 1, ("zq.t0", "OSError: 磁盘 1"): 1, ("zq.t0", "OSError: 磁盘 2"): 1
    }  # fmt: skip
    assert sorted(listed(api, f"/v1/dead?queue={queue}")) == sorted(ids)


def test_retry_and_drop_change_what_fits_and_no_more(api: Api, dead: tuple[str, list[str]]) -> None:
    queue, ids = dead
    retried = api("POST", "/v1/dead:retry", json={"queue": queue, "where": {"考试": 49}}).json()
    assert (retried["matched"], retried["changed"], retried["not_changed"]) == (3, 3, [])
    assert sorted(listed(api, f"/v1/jobs?queue={queue}&state=ready")) == sorted(ids[::2])
    dropped = api("POST", "/v1/dead:drop", json={"ids": [ids[1], ids[3], ids[0]]}).json()
    assert (dropped["matched"], dropped["changed"]) == (2, 2)
    problem(api("GET", f"/v1/jobs/{ids[1]}"), 404)
    assert listed(api, f"/v1/dead?queue={queue}") == [ids[5]]


def test_no_more_than_the_limit_and_the_rest_is_told(api: Api, dead: tuple[str, list[str]]) -> None:
    queue, _ = dead
    body = {"queue": queue, "limit": 4}
    first = api("POST", "/v1/dead:retry", json=body).json()
    assert (first["changed"], first["complete"]) == (4, False)
    second = api("POST", "/v1/dead:retry", json=body).json()
    assert (second["changed"], second["complete"]) == (2, True)


def test_a_filter_that_asks_for_nothing_does_not_mean_all(api: Api) -> None:
    for body in ({}, {"dry_run": True}, {"all": True, "queue": "q"}):
        assert "all" in problem(api("POST", "/v1/dead:drop", json=body), 422)["detail"]
    assert api("POST", "/v1/dead:drop", json={"all": True, "dry_run": True}).status_code == 200
    assert problem(api("POST", "/v1/dead:retry", json={"ids": ["x"]}), 422)["errors"][0]["pointer"] == "#/ids/0"


def test_a_broker_that_is_away(lonely_api: Api) -> None:
    assert problem(lonely_api("POST", "/v1/dead:retry", json={"queue": "q"}), 503)
    assert problem(lonely_api("GET", "/v1/dead"), 503)
