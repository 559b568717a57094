"""Chromium, a system to look at, and a person at the page: what is wrong in the browser's console fails the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, ViewportSize, expect, sync_playwright

from tests.servers.processes import need
from tests.servers.programs import CHROMIUM
from tests.web.page.scene import Scene

FLAGS: Final = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
)  # fmt: skip
ARTIFACTS: Final = Path(__file__).resolve().parents[3] / "test-artifacts" / "page"
WAIT_MS: Final = 30_000
PHONE: Final[ViewportSize] = {"width": 390, "height": 844}
DESK: Final[ViewportSize] = {"width": 1280, "height": 860}


# For each module anew: Playwright's loop runs in the thread of the tests, where no other loop may run meanwhile.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = need(CHROMIUM)
    with sync_playwright() as playwright:
        expect.set_options(timeout=WAIT_MS)
        browser = playwright.chromium.launch(executable_path=str(program), args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A broker, the web server, and a worker that merges; each test brings jobs of its own."""
    made = Scene(tmp_path_factory.mktemp("scene"))
    try:
        made.worker("video_merge", 1)
        yield made
    finally:
        made.stop()


class Visit(Protocol):
    def __call__(self, path: str = "/", **options: Any) -> Page: ...


@pytest.fixture
def complaints() -> list[str]:
    """What the browser's console said; a test may take out what it meant to happen."""
    return []


@pytest.fixture(scope="module")
def desk(chromium: Browser) -> BrowserContext:
    """Somebody's browser, in which the page has been open before."""
    context = chromium.new_context(viewport=DESK, locale="en-GB")
    context.set_default_timeout(WAIT_MS)
    return context


@pytest.fixture
def visit(chromium: Browser, desk: BrowserContext, scene: Scene, complaints: list[str]) -> Iterator[Visit]:
    """Opens the page at a path, by the link with the token: in a tab, or with options in a browser of its own."""
    opened: list[BrowserContext | Page] = []

    def open_page(path: str = "/", *, token: bool = True, live: bool = True, **options: Any) -> Page:
        context = desk
        if options or not token:
            context = chromium.new_context(**{"viewport": DESK, "locale": "en-GB", **options})
            context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        opened.append(page if context is desk else context)
        page.on("console", listener(complaints))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        mark = "&" if "?" in path else "?"
        page.goto(f"{scene.url}{path}{mark}token={scene.token}" if token else scene.url + path)
        if token and live:
            page.wait_for_selector(".pulse.live", state="attached")
        return page

    yield open_page
    for one in opened:
        one.close()
    assert complaints == []


def listener(complaints: list[str]) -> Callable[[ConsoleMessage], None]:
    def hear(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(f"{message.text} ({message.location.get('url')})")

    return hear


def picture(page: Page, name: str) -> None:
    """Kept for people: test-artifacts/page/NAME.png."""
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}.png", full_page=True)
