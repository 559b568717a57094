from __future__ import annotations

import concurrent.futures
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.web.conftest import Api, problem
from zq.config import ConfigError
from zq.web.auth import ALL, COOKIE, NOBODY, PAGE, Gate, Scope, ensure_token, token_path

TOKEN = "zq_" + "t" * 43


def test_the_token_opens_all_and_nothing_else_does() -> None:
    gate = Gate(TOKEN)
    assert gate.scopes(f"Bearer {TOKEN}", None) == ALL
    assert gate.scopes(f"bearer  {TOKEN}", None) == ALL
    for wrong in ("", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer"):
        assert gate.scopes(wrong, None) == NOBODY


def test_the_key_of_the_page_operates_and_submits_nothing() -> None:
    gate = Gate(TOKEN)
    key = gate.page_key()
    assert gate.scopes(f"Bearer {key}", None) == PAGE | {Scope.OPERATE}
    assert gate.scopes(None, key) == NOBODY  # as a cookie it would be sent by others
    assert key != gate.page_cookie_value()
    assert not gate.is_token(key)
    assert Gate(TOKEN + "2").scopes(f"Bearer {key}", None) == NOBODY


def test_the_cookie_only_reads_does_not_reveal_the_token_and_ends_with_it() -> None:
    gate = Gate(TOKEN)
    cookie = gate.page_cookie_value()
    assert gate.scopes(None, cookie) == PAGE
    assert Scope.SUBMIT not in PAGE
    assert Scope.OPERATE not in PAGE
    assert TOKEN not in cookie
    assert not gate.is_token(cookie)
    assert Gate(TOKEN + "2").scopes(None, cookie) == NOBODY
    assert gate.scopes(None, TOKEN) == NOBODY
    assert gate.scopes("Bearer wrong", cookie) == NOBODY


@given(st.text(), st.text())
def test_no_text_opens_by_chance(authorization: str, cookie: str) -> None:
    assert Gate(TOKEN).scopes(authorization, cookie) == NOBODY
    assert Gate(TOKEN).scopes(None, cookie) == NOBODY


def test_the_token_file_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        tokens = set(threads.map(lambda _: ensure_token(tmp_path / "var"), range(16)))
    assert len(tokens) == 1
    path = token_path(tmp_path / "var")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().strip() in tokens
    assert len(tokens.pop()) >= 43
    assert [entry.name for entry in path.parent.iterdir()] == ["token"]


@pytest.mark.parametrize("content", ["", "short", "x" * 600, "a" * 40 + "\nb", "ü" * 40])
def test_a_file_that_is_no_token_is_an_error_that_says_what_to_do(tmp_path: Path, content: str) -> None:
    token_path(tmp_path).write_text(content)
    token_path(tmp_path).chmod(0o600)
    with pytest.raises(ConfigError, match="remove it"):
        ensure_token(tmp_path)


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    ensure_token(tmp_path)
    token_path(tmp_path).chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        ensure_token(tmp_path)


def test_a_link_or_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("x" * 40)
    token_path(tmp_path).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError):
        ensure_token(tmp_path)
    token_path(tmp_path).unlink()
    token_path(tmp_path).mkdir()
    with pytest.raises(ConfigError):
        ensure_token(tmp_path)


PROTECTED = [
    ("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("PATCH", "/v1/jobs"), ("GET", "/v1/queues"), ("GET", "/readyz"),
    ("GET", "/metrics"), ("GET", "/openapi.json"), ("POST", "/v1/exams"), ("GET", "/v1/exams/a/students/b/recording"),
    ("PUT", "/v1/exams/a/students/b/segments/c.webm"), ("GET", "/nothing"), ("BREW", "/v1/jobs"),
]  # fmt: skip


def test_without_a_token_every_answer_is_the_same(api: Api) -> None:
    seen = set()
    for method, path in PROTECTED:
        for headers in ({"Authorization": "Bearer wrong"}, {"Authorization": ""}, {"Cookie": f"{COOKIE}=x"}):
            answer = api("" + method, path, headers={"Authorization": "Basic x"} | headers)
            problem(answer, 401)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            seen.add(answer.content)
    assert len(seen) == 1
    assert api("GET", "/healthz", headers={"Authorization": ""}).status_code == 200


def test_a_body_is_not_read_before_the_token(api: Api) -> None:
    async def never() -> object:
        raise AssertionError("the body was read")
        yield b""

    problem(api("POST", "/v1/jobs", content=never(), headers={"Authorization": "Bearer wrong"}), 401)


def test_the_link_becomes_a_cookie_that_reads(api: Api) -> None:
    nobody = {"Authorization": ""}
    locked = api("GET", "/", headers=nobody)
    assert (locked.status_code, "locked" in locked.text) == (401, True)
    assert api("GET", "/?token=wrong", headers=nobody).status_code == 401
    opened = api("GET", f"/?token={api.token}", headers=nobody)
    assert (opened.status_code, opened.headers["location"]) == (303, f"/#operate={api.services.gate.page_key()}")
    cookie = opened.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert api.token not in cookie
    # httpx keeps the cookie from here on.
    del api._client.headers["Authorization"]
    page = api("GET", "/")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert api("GET", "/v1/queues").status_code == 200
    for method, path in [("POST", "/v1/jobs"), ("DELETE", "/v1/jobs/x"), ("POST", "/v1/exams/a/students/b/finish")]:
        problem(api(method, path), 403)
