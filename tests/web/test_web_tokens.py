"""Tokens with scopes, students' upload tokens, quotas and CORS: who may come in, and how often."""

from __future__ import annotations

import json
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tests.ports import free_port
from tests.web.conftest import Api, load, problem, write_config
from tests.web.test_web_exams import make_exam
from zq.cli import main
from zq.config import ConfigError
from zq.web.auth import NOBODY, Gate, Scope
from zq.web.quota import CALLERS_MAX, Quotas
from zq.web.tokens import BadToken, TokenBook, list_tokens, new_token, revoke_token, tokens_folder

STUDENT = "/v1/exams/math/students/s1"
ADMIN = "zq_" + "t" * 43


def made(api: Api, *scopes: str, name: str = "", expires_s: int | None = None, per_minute: int | None = None) -> str:
    folder = tokens_folder(api.services.config)
    _, text = new_token(
        folder, name or uuid.uuid4().hex, scopes, expires_s=expires_s, requests_per_minute=per_minute
    )
    return text


def as_token(api: Api, token: str, method: str, path: str, **options: object) -> httpx.Response:
    given = options.pop("headers", {})
    assert isinstance(given, dict)
    return api(method, path, headers={**given, "Authorization": f"Bearer {token}"}, **options)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token records are looked at with each request."""
    monkeypatch.setattr("zq.web.tokens.LOOK_S", 0.0)


@pytest.mark.usefixtures("eager")
def test_a_token_opens_its_scopes_and_nothing_else(api: Api) -> None:
    reader = made(api, "read")
    assert as_token(api, reader, "GET", "/v1/queues").status_code == 200
    operator = made(api, "operate")
    assert as_token(api, operator, "POST", "/v1/queues/q/pause".replace("/pause", ":pause")).status_code == 200
    job = {"task": "t", "queue": "thumbs-1"}
    for method, path, body in [
        ("POST", "/v1/jobs", job), ("DELETE", f"/v1/jobs/{uuid.uuid4()}", None), ("POST", f"{STUDENT}/token", None),
    ]:  # fmt: skip
        assert "scope" in problem(as_token(api, reader, method, path, json=body), 403)["detail"]
    problem(as_token(api, operator, "GET", "/v1/queues"), 403)
    assert as_token(api, made(api, "admin"), "POST", "/v1/jobs", json=job).status_code == 202


@pytest.mark.usefixtures("eager")
def test_a_submitter_is_bound_to_its_queues(api: Api) -> None:
    make_exam(api)
    token = made(api, "submit:缩略图-*")
    assert as_token(api, token, "POST", "/v1/jobs", json={"task": "t", "queue": "缩略图-1"}).status_code == 202
    problem(as_token(api, token, "POST", "/v1/jobs", json={"task": "t", "queue": "video_merge"}), 403)
    problem(as_token(api, token, "POST", f"{STUDENT}/heartbeat"), 403)
    batch = {"jobs": [{"task": "t", "queue": "缩略图-2"}, {"task": "t", "queue": "other"}]}
    results = as_token(api, token, "POST", "/v1/jobs:batch", json=batch).json()["results"]
    assert [item["status"] for item in results] == [202, 403]
    application = made(api, "submit:video_merge")
    assert as_token(api, application, "POST", f"{STUDENT}/heartbeat").status_code == 204


@pytest.mark.usefixtures("eager")
def test_idempotency_keys_of_two_tokens_are_two(api: Api) -> None:
    key, job = {"Idempotency-Key": uuid.uuid4().hex}, {"task": "t", "queue": "q"}
    tokens = [made(api, "submit"), made(api, "submit")]
    ids = {as_token(api, token, "POST", "/v1/jobs", json=job, headers=key).json()["id"] for token in tokens * 2}
    assert len(ids) == 2


@pytest.mark.usefixtures("eager")
def test_a_revoked_or_expired_token_is_as_good_as_none(api: Api) -> None:
    revoked, expired = made(api, "admin", name="a"), made(api, "admin", expires_s=int(time.time()))
    assert as_token(api, revoked, "GET", "/v1/queues").status_code == 200
    revoke_token(tokens_folder(api.services.config), "a")
    answers = {as_token(api, token, "GET", "/v1/queues").content for token in (revoked, expired, "zq_wrong")}
    assert len(answers) == 1
    problem(as_token(api, expired, "GET", "/v1/queues"), 401)


def test_a_token_is_kept_as_its_hash_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    token, text = new_token(folder, "张三", ["read", "read", "submit:q"])
    path = folder / "张三.toml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert text not in path.read_text("utf-8")
    assert text.split("_", 2)[2] not in path.read_text("utf-8")
    assert list_tokens(folder) == [token]
    assert token.scopes == ("read", "submit:q")
    assert TokenBook(folder).find(text, time.time()) == token
    assert TokenBook(folder).find(text[:-1] + ("A" if text[-1] != "A" else "B"), time.time()) is None


def test_names_and_scopes_are_checked(tmp_path: Path) -> None:
    for name in ("", "../x", "a/b", ".x", "a b", "王" * 50):
        with pytest.raises(BadToken, match="cannot name"):
            new_token(tmp_path, name, ["read"])
    for scopes in ([], ["write"], ["read:q"], ["submit:"], ['submit:a"b'], ["submit:a b"], [""]):
        with pytest.raises(BadToken, match="give 1 to"):
            new_token(tmp_path, "a", scopes)
    new_token(tmp_path, "a", ["read"])
    with pytest.raises(BadToken, match="already"):
        new_token(tmp_path, "a", ["read"])
    with pytest.raises(BadToken, match="no token"):
        revoke_token(tmp_path, "b")


@given(content=st.binary(max_size=300))
def test_a_broken_record_opens_nothing_and_hurts_no_other(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("tokens")
    _, text = new_token(folder, "good", ["read"])
    (folder / "bad.toml").write_bytes(content)
    assert TokenBook(folder).find(text, 0.0) is not None


@given(st.text())
def test_no_text_is_a_students_token_by_chance(text: str) -> None:
    assert Gate(ADMIN).caller(f"Bearer zqs_{text}", None).scopes == NOBODY


def test_an_upload_token_is_signed_ends_and_goes_with_the_token_of_the_administrator() -> None:
    now = [1000.0]
    gate = Gate(ADMIN, clock_s=lambda: now[0])
    token = gate.student_token("math", "s1", 2000)
    caller = gate.caller(f"Bearer {token}", None)
    assert (caller.student, caller.scopes) == (("math", "s1"), NOBODY | {Scope.SUBMIT})
    assert not caller.may_submit("video_merge")
    other = gate.student_token("math", "s2", 2000)
    mixed = other.partition(".")[0] + "." + token.partition(".")[2]
    for wrong in (mixed, token[:-4], token + "x", token.replace(".", ""), "zqs_"):
        assert gate.caller(f"Bearer {wrong}", None).scopes == NOBODY
    assert Gate(ADMIN + "2").caller(f"Bearer {token}", None).scopes == NOBODY
    now[0] = 2000.0
    assert gate.caller(f"Bearer {token}", None).scopes == NOBODY


def test_a_students_browser_touches_its_own_recording_only(api: Api) -> None:
    make_exam(api)
    token = api("POST", f"{STUDENT}/token").json()["token"]
    problem(api("POST", "/v1/exams/math/students/nobody/token"), 404)
    own = [
        ("POST", f"{STUDENT}/heartbeat", 204), ("PUT", f"{STUDENT}/segments/1.webm", 201), ("GET", STUDENT, 200),
        ("POST", f"{STUDENT}/finish", 202),
    ]  # fmt: skip
    for method, path, status in own:
        assert as_token(api, token, method, path, content=b"x" if method == "PUT" else None).status_code == status
    for path in (STUDENT.replace("s1", "s2"), STUDENT.replace("math", "physics")):
        for method, tail in [("POST", "/heartbeat"), ("PUT", "/segments/1.webm"), ("GET", ""), ("POST", "/finish")]:
            assert "another student" in problem(as_token(api, token, method, path + tail), 403)["detail"]
    for method, path in [
        ("GET", f"{STUDENT}/recording"), ("POST", f"{STUDENT}/login"), ("POST", f"{STUDENT}/token"),
        ("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("GET", "/v1/exams/math"), ("GET", "/metrics"), ("GET", "/nothing"),
        ("DELETE", f"{STUDENT}/segments/1.webm"),
    ]:  # fmt: skip
        problem(as_token(api, token, method, path), 403)
    api("DELETE", f"/v1/jobs/{api('GET', STUDENT).json()['recording']['job_id']}")


@pytest.mark.usefixtures("eager")
def test_a_caller_has_a_bound_and_is_told_of_it(api: Api) -> None:
    token = made(api, "read", per_minute=2)
    first, second, third = (as_token(api, token, "GET", "/v1/queues") for _ in range(3))
    assert first.headers["ratelimit-policy"] == '"caller";q=2;w=60'
    assert first.headers["ratelimit"] == '"caller";r=1;t=30'
    assert (second.status_code, second.headers["ratelimit"].split(";")[1]) == (200, "r=0")
    problem(third, 429)
    assert 1 <= int(third.headers["retry-after"]) <= 30
    assert third.headers["ratelimit"].startswith('"caller";r=0;t=')
    assert as_token(api, made(api, "read"), "GET", "/v1/queues").status_code == 200
    assert "ratelimit" not in api("GET", "/healthz", headers={"Authorization": ""}).headers


def test_a_quota_fills_evenly_and_never_over() -> None:
    quotas = Quotas()
    assert [quotas.take("a", 60, 0.0).requests for _ in range(60)] == list(range(59, -1, -1))
    assert quotas.take("a", 60, 0.5).wait_s == pytest.approx(0.5)
    assert quotas.take("a", 60, 1.0).wait_s == 0
    assert quotas.take("a", 60, 1.0).wait_s > 0
    assert quotas.take("b", 60, 1.0).requests == 59
    assert quotas.take("a", 60, 10_000.0).requests == 59
    for number in range(CALLERS_MAX + 10):
        quotas.take(str(number), 60, 10_000.0)
    assert len(quotas._buckets) == CALLERS_MAX


@pytest.fixture
def shared_api(tmp_path: Path) -> Iterator[Api]:
    web = 'cors_origins = ["https://exam.example.edu"]'
    api = Api(load(write_config(tmp_path, free_port(), web, client="timeout_s = 0.2")))
    yield api
    api.close()


def test_other_origins_are_shut_out_unless_they_are_named(api: Api, shared_api: Api) -> None:
    ask = {"Origin": "https://exam.example.edu", "Access-Control-Request-Method": "PUT", "Authorization": ""}
    problem(api("OPTIONS", f"{STUDENT}/segments/1.webm", headers=ask), 401)
    assert "access-control-allow-origin" not in api("GET", "/v1/queues", headers=ask).headers
    allowed = shared_api("OPTIONS", f"{STUDENT}/segments/1.webm", headers=ask)
    assert (allowed.status_code, allowed.content) == (204, b"")
    assert allowed.headers["access-control-allow-origin"] == "https://exam.example.edu"
    assert "X-Zq-Sha256" in allowed.headers["access-control-allow-headers"]
    assert "PUT" in allowed.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in allowed.headers
    answer = shared_api("GET", "/v1/exams", headers={"Origin": "https://exam.example.edu"})
    assert answer.headers["access-control-allow-origin"] == "https://exam.example.edu"
    assert "Retry-After" in answer.headers["access-control-expose-headers"]
    assert answer.headers["vary"] == "Origin"
    refused = problem_answer = shared_api("GET", "/nothing", headers={"Origin": "https://exam.example.edu"})
    problem(problem_answer, 404)
    assert refused.headers["access-control-allow-origin"] == "https://exam.example.edu"
    for origin in ("https://evil.example", "https://exam.example.edu.evil.example", "null"):
        problem(shared_api("OPTIONS", "/v1/exams", headers=ask | {"Origin": origin}), 401)
        assert "access-control-allow-origin" not in shared_api("GET", "/v1/exams", headers={"Origin": origin}).headers


def test_a_request_is_named_by_its_sender(api: Api) -> None:
    assert api("GET", "/v1/queues", headers={"X-Request-ID": "r-1"}).headers["x-request-id"] == "r-1"
    assert "x-request-id" not in api("GET", "/v1/queues", headers={"X-Request-ID": "x" * 129}).headers


@pytest.mark.parametrize(
    "line",
    ['cors_origins = ["exam.example.edu"]', 'trusted_proxies = ["999.1.1.1"]', 'exam_client_networks = ["::1/200"]'],
)
def test_wrong_origins_and_networks_are_errors_of_the_configuration(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match=r"web\." + line.split(" ", maxsplit=1)[0]):
        load(write_config(tmp_path, 1, line))


def test_the_commands_make_list_and_revoke(tmp_path: Path) -> None:
    config = str(write_config(tmp_path, 1))

    def zq(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, ["tokens", *arguments, "--config", config])
        assert result.exit_code == code, result.output
        return result.output

    text = zq("new", "缩略图", "--scope", "submit:thumbs", "--scope", "read", "--days", "90").strip()
    facts = json.loads(zq("new", "b", "--scope", "admin", "--requests-per-minute", "5", "--json"))
    assert facts["requests_per_minute"] == 5
    listed = json.loads(zq("ls", "--json"))
    assert [(one["name"], one["scopes"]) for one in listed] == [("b", ["admin"]), ("缩略图", ["submit:thumbs", "read"])]
    assert text not in zq("ls")
    assert "缩略图" in zq("ls")
    token = TokenBook(tmp_path / "var" / "tokens").find(text, time.time())
    assert token is not None
    assert token.expires_s is not None
    assert json.loads(zq("revoke", "b", "--json")) == {"revoked": "b"}
    assert "no token" in zq("revoke", "b", code=78)
    assert "give 1 to" in zq("new", "c", "--scope", "write", code=78)
    student = json.loads(zq("student", "math", "s1", "--json"))
    gate = Gate((tmp_path / "var" / "token").read_text().strip())
    assert gate.caller(f"Bearer {student['token']}", None).student == ("math", "s1")
    zq("student", "math", "a:b", code=1)
