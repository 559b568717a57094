"""The page as it is served: the way in, its files, its policy, its language; and that its words are whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.web.conftest import Api, problem
from zq.web.page import PATHS, preferred, safe_path
from zq.web.page_files import FOLDER, page_files

NOBODY = {"Authorization": ""}
WORDS = re.compile(r'"([\w.-]+)": ("(?:[^"\\]|\\.)*")')


def test_the_page_is_whole_and_calls_nobody_else(api: Api) -> None:
    page = api("GET", "/").text
    named = set(re.findall(r'(?:href|src)="(/static/[^"]+)"', page))
    assert "/static/app.js" in named
    for path in named:
        answer = api("GET", path, headers=NOBODY)
        assert answer.status_code == 200, path
        assert "script-src 'self'" in answer.headers["content-security-policy"]
    own = [name for name in page_files() if not name.startswith("vendor/") and name.endswith((".js", ".css"))]
    own.remove("css/docs.css")  # of /docs
    for name in own:
        text = (FOLDER / name).read_text("utf-8")
        assert "http:" not in text.replace("http://www.w3.org", "")
        assert "https:" not in text
        for imported in re.findall(r'from "([^"]+)"', text):
            assert (FOLDER / name).parent.joinpath(imported).resolve().is_file(), f"{name} imports {imported}"
        assert f"/static/{name}" in page


def test_what_is_not_of_the_page_is_not_served(api: Api) -> None:
    for path in ("vendor/lit-html/LICENSE", "page.html", "locked.html", "../app.py", "%2e%2e/app.py"):
        assert api("GET", f"/static/{path}").status_code == 404, path


def test_a_file_that_is_known_is_not_sent_again(api: Api) -> None:
    first = api("GET", "/static/app.js", headers={"Accept-Encoding": "gzip"})
    assert (first.headers["content-encoding"], first.headers["cache-control"]) == ("gzip", "no-cache")
    assert first.text == api("GET", "/static/app.js", headers={"Accept-Encoding": "identity"}).text
    again = api("GET", "/static/app.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_every_part_of_the_page_has_an_address(api: Api) -> None:
    for path in PATHS:
        filled = re.sub(r"\{[^}]+\}", "%E9%98%9F1", path.replace("{queue:anything}", "%E9%98%9F%2F1"))
        assert api("GET", filled).text.startswith("<!doctype html>"), path
        assert api("GET", filled, headers=NOBODY).status_code == 401


def test_a_mistyped_address_shows_the_page_to_a_browser_and_a_problem_to_a_program(api: Api) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    found = api("GET", "/job", headers=browser)
    assert (found.status_code, found.text[:15]) == (404, "<!doctype html>")
    stranger = api("GET", "/job", headers={**browser, **NOBODY})
    assert stranger.status_code == 401
    assert "/static/app.js" not in stranger.text
    problem(api("GET", "/job"), 404)
    problem(api("GET", "/v1/job", headers=browser), 404)


def test_the_form_lets_in_who_has_the_token(api: Api) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded", **NOBODY}
    wrong = api("POST", "/login", headers=form, content="token=x&next=/jobs")
    assert (wrong.status_code, "That is not the token" in wrong.text) == (401, True)
    assert 'name="next" value="/jobs"' in wrong.text
    right = api("POST", "/login", headers=form, content=f"next=/jobs/1&token={api.token}")
    assert right.status_code == 303
    assert right.headers["location"] == f"/jobs/1#operate={api.services.gate.page_key()}"
    assert "HttpOnly" in right.headers["set-cookie"]
    away = api("POST", "/login", headers=form, content=f"next=//evil.example/&token={api.token}")
    assert away.headers["location"].startswith("/#")
    problem(api("POST", "/login", headers=NOBODY, json={"token": api.token}), 415)
    problem(api("POST", "/login", headers=form, content="a" * 9000), 413)


def test_the_language_is_the_browsers_until_one_is_chosen(api: Api) -> None:
    def lang(**headers: str) -> str:
        found = re.search(r'<html lang="([^"]+)"', api("GET", "/", headers=headers).text)
        assert found is not None
        return found[1]

    assert lang() == "en"
    assert lang(**{"Accept-Language": "zh-CN,zh;q=0.9,en;q=0.8"}) == "zh-CN"
    assert lang(**{"Accept-Language": "zh-CN", "Cookie": "zq_language=en"}) == "en"
    assert lang(**{"Cookie": "zq_language=<script>"}) == "en"
    assert 'data-theme="dark"' in api("GET", "/", headers={"Cookie": "zq_theme=dark"}).text
    locked = api("GET", "/", headers={**NOBODY, "Accept-Language": "zh"})
    assert "此页面已锁定" in locked.text


@pytest.mark.parametrize(
    ("header", "language"),
    [("", "en"), ("fr", "en"), ("fr, zh;q=0.3, en;q=0.2", "zh"), ("en;q=0.1, zh;q=0", "en"), ("ZH-hant;q=1", "zh")],
)
def test_accept_language(header: str, language: str) -> None:
    assert preferred(header) == language


@given(st.text(max_size=200))
def test_any_header_has_a_language(header: str) -> None:
    assert preferred(header) in ("en", "zh")


PATH_TEXTS = st.text(max_size=60) | st.text("/.\\:@#?jobs", max_size=20) | st.just("/jobs//x") | st.just("/jobs\\")


@given(PATH_TEXTS)
def test_one_comes_back_to_the_page_and_nowhere_else(text: str) -> None:
    path = safe_path(text)
    assert re.fullmatch(r"/((queues|jobs|dead|schedules|workers|exams)(/[^#?\\\s]*)?)?(\?[^#\s]*)?", path), path


def test_a_link_to_a_filter_keeps_it(api: Api) -> None:
    opened = api("GET", f"/jobs?queue=a%26b&token={api.token}&where=x%3D1", headers=NOBODY)
    assert opened.headers["location"] == f"/jobs?queue=a%26b&where=x%3D1#operate={api.services.gate.page_key()}"


def words_of(language: str) -> dict[str, str]:
    text = Path(FOLDER, "i18n", f"{language}.js").read_text("utf-8")
    found = [(key, json.loads(value)) for key, value in WORDS.findall(text)]
    assert len(found) == len(dict(found)), "a key is there twice"
    return dict(found)


def test_both_languages_say_everything() -> None:
    en, zh = words_of("en"), words_of("zh")
    assert en.keys() == zh.keys()
    for key, text in en.items():
        assert text.strip()
        assert zh[key].strip()
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", zh[key])), key


def test_every_word_that_is_used_is_there() -> None:
    en = words_of("en")
    sources = [path.read_text("utf-8") for path in FOLDER.rglob("*.js") if "vendor" not in path.parts]
    named = {key for text in sources for key in re.findall(r'\bt(?:\.maybe)?\(\s*"([\w.-]+)"', text)}
    assert len(named) > 200
    assert named <= en.keys()


def test_the_steps_reasons_and_states_of_the_protocol_have_words() -> None:
    from zq.protocol.job import Cause, State
    from zq.protocol.messages import WhyReason

    en = words_of("en")
    wanted = [f"cause.{cause.name.lower()}" for cause in Cause] + [f"state.{state.label}" for state in State]
    wanted += [f"why.{reason.value}" for reason in WhyReason if reason is not WhyReason.NOT_WAITING]
    assert [key for key in wanted if key not in en] == []
