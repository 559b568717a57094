"""Everything of the page, looked at: no view breaks a rule of accessibility, is left in English in Chinese, or runs
over the edge of a phone; and what it shows while the server or the broker is away."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.web.conftest import Process
from tests.web.hands import kill_jobs
from tests.web.page.conftest import PHONE, WAIT_MS, Visit, listener, picture
from tests.web.page.scene import EXAM, Scene
from tests.web.test_web_page import words_of

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("chromium")]

RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
VIEWS = ("/", "/queues", "/queues/looks", "/jobs", "/dead", "/exams", f"/exams/{EXAM}", "/schedules", "/workers")


@pytest.fixture(scope="module")
def busy(scene: Scene) -> Scene:
    """With something in every view."""
    scene.make_exam()
    for number, case in (("20230101", "ts-vp8-opus"), ("20230105", "")):
        scene.log_in(number)
        if case:
            scene.upload(number, case)
    scene.finish("20230101")
    for n in range(3):
        scene.client.submit("zq.t", queue="looks", kwargs={"n": n})
    kill_jobs(scene.broker_port, "looks", ["OSError: disk 1 is full\nTraceback", "OSError: disk 2 is full"])
    scene.client.pause("looks")
    scene.merged("20230101")
    return scene


def views(scene: Scene) -> Iterator[tuple[str, str]]:
    """(name, path) of every view, with the page of a job in it and a student's."""
    dead = scene.client.jobs("looks", "dead").jobs[0]
    merge = scene.call("GET", f"/v1/exams/{EXAM}/students/20230101")["recording"]["job_id"]
    for path in VIEWS:
        yield re.sub(r"[^a-z]+", "-", path.replace(EXAM, "exam")).strip("-") or "overview", path
    yield from (("job-dead", f"/jobs/{dead.id.hex()}"), ("job-merge", f"/jobs/{merge}"))
    yield "student", f"/exams/{EXAM}/students/20230101"


def settled(page: Page) -> None:
    """What was asked for is there."""
    page.wait_for_selector(".pulse.live", state="attached")
    page.wait_for_selector("main .bones", state="detached")


def problems_of(page: Page) -> list[str]:
    found: Any = Axe().run(page, options=RULES)
    return [
        f"{page.url}: {one['id']} ({one['help']}), {len(one['nodes'])} times: {one['nodes'][0]['html'][:160]}"
        for one in found.response["violations"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_view_breaks_a_rule_of_accessibility(busy: Scene, visit: Visit, scheme: str) -> None:
    # axe comes into the page as text, which its policy would refuse.
    page = visit("/", color_scheme=scheme, bypass_csp=True)
    found = []
    for name, path in views(busy):
        page.goto(busy.url + path)
        settled(page)
        found += problems_of(page)
        picture(page, f"{name}-{scheme}")
    page.goto(f"{busy.url}/queues")
    page.get_by_role("button", name="Limits: looks").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    found += problems_of(page)
    page.keyboard.press("Escape")
    page.goto(f"{busy.url}/login?next=/jobs")
    found += problems_of(page)
    assert not found, "\n".join(found)


def test_no_view_runs_over_the_edge_of_a_phone(busy: Scene, visit: Visit) -> None:
    page = visit("/", viewport=PHONE, has_touch=True, is_mobile=True, locale="zh-CN")
    for name, path in views(busy):
        page.goto(busy.url + path)
        settled(page)
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"], path
        picture(page, f"{name}-phone")


def test_in_chinese_nothing_is_left_in_english(busy: Scene, visit: Visit) -> None:
    page = visit("/", locale="zh-CN")
    english = {text.lower() for text in words_of("en").values() if "{" not in text and " " in text}
    for _, path in views(busy):
        page.goto(busy.url + path)
        settled(page)
        texts = page.evaluate(
            "[...document.querySelectorAll('main *, .side *')].filter((e) => !e.closest('pre, .error, code, .mono'))"
            ".flatMap((e) => [...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.textContent.trim()))"
            ".concat([...document.querySelectorAll('[aria-label]')].map((e) => e.getAttribute('aria-label')))"
        )
        assert [text for text in texts if text.lower() in english] == [], path


def test_what_is_shown_is_old_while_the_broker_or_the_server_is_away(
    chromium: Browser, tmp_path: Path, complaints: list[str]
) -> None:
    scene = Scene(tmp_path)
    try:
        scene.client.submit("zq.t", queue="stays")
        context = chromium.new_context(viewport={"width": 1280, "height": 860}, locale="en-GB")
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{scene.url}/?token={scene.token}")
        expect(page.get_by_role("link", name="stays")).to_be_visible()
        scene.broker.stop()
        expect(page.locator(".alarm")).to_contain_text("The broker does not answer")
        expect(page.locator(".pulse.lost")).to_contain_text("Broker away")
        expect(page.get_by_role("link", name="stays")).to_be_visible()
        picture(page, "broker-away")
        scene.broker = Process("zq.broker", scene.config, scene.broker_port, tmp_path / "broker-2.log")
        expect(page.locator(".pulse.live")).to_be_visible()
        scene.web.stop()
        expect(page.locator(".notice")).to_contain_text("The connection to the server is lost")
        picture(page, "server-away")
        scene.web = Process("zq.web", scene.config, scene.port, tmp_path / "web-2.log")
        page.on("console", listener(complaints))
        expect(page.locator(".pulse.live")).to_be_visible()
        expect(page.locator(".notice")).to_have_count(0)
        # The new server knows what was before its start.
        known = scene.call("GET", "/page/chart?span_s=900&queue=stays")
        assert known["ready"][-1] == 1
        context.close()
    finally:
        scene.stop()
    assert complaints == []
