"""An Idempotency-Key: the first answer again, over restarts, for its window; other bodies are refused."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.web.conftest import Api, load, problem, write_config
from tests.web.hands import hands
from tests.web.test_web_jobs import job
from zq.web.idempotency import AnswerBook, AnswerKeeper, KeptAnswer

WINDOW_MS = 1000
ANSWER = KeptAnswer(b"f", 202, "/v1/jobs/1", b"{}")


def ask(api: Api, body: dict[str, Any], key: str, path: str = "/v1/jobs") -> httpx.Response:
    return api("POST", path, json=body, headers={"Idempotency-Key": key})


def test_the_first_answer_comes_again_whatever_has_become_of_the_job(api: Api, broker_port: int) -> None:
    key, body = uuid.uuid4().hex, job(f"q{uuid.uuid4().hex}")
    first = ask(api, body, key)
    assert first.status_code == 202
    assert first.json()["warnings"]
    with hands(broker_port, body["queue"]) as worker:
        worker.end(worker.take())
        again = ask(api, dict(reversed(body.items())), f'"{key}"')
    assert (again.status_code, again.content) == (202, first.content)
    assert again.headers["location"] == first.headers["location"]
    assert (first.headers.get("idempotency-replayed"), again.headers["idempotency-replayed"]) == (None, "true")
    assert api("GET", first.headers["location"]).json()["job"]["state"] == "done"


def test_a_job_that_was_there_by_its_key_is_the_answer_also_when_it_has_ended(api: Api) -> None:
    queue, holder_key, key = f"q{uuid.uuid4().hex}", uuid.uuid4().hex, uuid.uuid4().hex
    holder = api("POST", "/v1/jobs", json=job(queue, key=holder_key)).json()
    first = ask(api, job(queue, key=holder_key), key)
    assert (first.json()["id"], first.json()["deduplicated"]) == (holder["id"], True)
    api("DELETE", f"/v1/jobs/{holder['id']}")
    assert ask(api, job(queue, key=holder_key), key).content == first.content
    assert len(api("GET", f"/v1/jobs?queue={queue}").json()["jobs"]) == 1


def test_another_body_or_call_is_refused_and_nothing_is_taken(api: Api) -> None:
    queue, key = f"q{uuid.uuid4().hex}", uuid.uuid4().hex
    ask(api, job(queue), key)
    for body, path in [(job(queue, priority=1), "/v1/jobs"), ({"jobs": [job(queue)]}, "/v1/jobs:batch")]:
        assert problem(ask(api, body, key, path), 422)["type"] == "urn:zq:problem:idempotency-key-reused"
    assert len(api("GET", f"/v1/jobs?queue={queue}").json()["jobs"]) == 1


def test_calls_at_the_same_moment_have_one_answer(api: Api) -> None:
    key, body = uuid.uuid4().hex, job(f"q{uuid.uuid4().hex}")

    async def storm() -> list[httpx.Response]:
        headers = {"Idempotency-Key": key}
        return await asyncio.gather(*(api.send("POST", "/v1/jobs", json=body, headers=headers) for _ in range(20)))

    answers = api.run(storm())
    assert {(one.status_code, one.content) for one in answers} == {(202, answers[0].content)}
    assert len(api("GET", f"/v1/jobs?queue={body['queue']}").json()["jobs"]) == 1


def test_answers_outlive_the_server_and_are_for_its_owner_alone(tmp_path: Path, broker_port: int) -> None:
    config, key, body = load(write_config(tmp_path, broker_port)), uuid.uuid4().hex, job(f"q{uuid.uuid4().hex}")
    contents = []
    for _ in range(2):
        api = Api(config)
        contents.append(ask(api, body, key).content)
        api.close()
    assert contents[0] == contents[1]
    assert stat.S_IMODE((tmp_path / "var" / "http.db").stat().st_mode) == 0o600


def test_what_may_yet_be_taken_is_not_kept(lonely_api: Api) -> None:
    for path, body in [("/v1/jobs", job()), ("/v1/jobs:batch", {"jobs": [job()]})]:
        problem(ask(lonely_api, body, "k", path), 504)
        problem(ask(lonely_api, body | {"priority": 1} if path == "/v1/jobs" else body, "k", path), 504)


def test_without_its_database_a_key_still_makes_one_job(api: Api) -> None:
    (api.services.config.data_path / "http.db").mkdir()
    key, body = uuid.uuid4().hex, job(f"q{uuid.uuid4().hex}")
    first, again = ask(api, body, key), ask(api, body, key)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    assert again.json()["deduplicated"]
    problem(ask(api, body | {"priority": 1}, key), 422)


def test_the_first_of_several_is_kept_and_callers_have_keys_of_their_own(tmp_path: Path) -> None:
    book = AnswerBook(tmp_path / "http.db", WINDOW_MS)
    other = KeptAnswer(b"g", 200, "", b"[]")
    assert book.keep([("a", "k", ANSWER), ("a", "k", other), ("b", "k", other)], 0) == [ANSWER, ANSWER, other]
    assert book.keep([("a", "k", other)], WINDOW_MS - 1) == [ANSWER]
    assert (book.find("a", "k", 1), book.find("b", "k", 1), book.find("c", "k", 1)) == (ANSWER, other, None)
    book.close()
    again = AnswerBook(tmp_path / "http.db", WINDOW_MS)
    assert again.find("a", "k", 1) == ANSWER
    assert again.find("a", "k", WINDOW_MS) is None
    assert again.keep([("a", "k", other)], WINDOW_MS) == [other]
    again.close()


def test_old_answers_and_those_beyond_the_bound_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zq.web.idempotency.FORGET_EVERY", 1)
    large = KeptAnswer(b"f", 200, "", bytes(50_000))
    book = AnswerBook(tmp_path / "http.db", WINDOW_MS, bytes_max=2_000_000)
    book.keep([("old", "k", ANSWER)], 0)
    for number in range(1100):
        book.keep([("a", str(number), large)], WINDOW_MS + number // 100)
    with sqlite3.connect(tmp_path / "http.db") as connection:
        rows = connection.execute("SELECT COUNT(*), SUM(caller = 'old') FROM answers").fetchone()
    assert rows[0] < 1000
    assert rows[1] == 0
    assert book.find("a", "1099", WINDOW_MS + 11) == large
    book.close()


def test_answers_that_come_together_are_kept_together(tmp_path: Path) -> None:
    book = AnswerBook(tmp_path / "http.db", WINDOW_MS)
    calls: list[int] = []

    class Counted:
        find = staticmethod(book.find)

        @staticmethod
        def keep(answers: list[tuple[str, str, KeptAnswer]], now_ms: int) -> list[KeptAnswer]:
            calls.append(len(answers))
            return book.keep(answers, now_ms)

    async def storm() -> list[KeptAnswer]:
        keeper = AnswerKeeper(Counted())  # type: ignore[arg-type]
        return await asyncio.gather(*(keeper.keep("a", str(number), ANSWER, 0) for number in range(100)))

    assert asyncio.run(storm()) == [ANSWER] * 100
    assert sum(calls) == 100
    assert len(calls) <= 3
    book.close()
