"""The page as a person has it: in Chromium, with the link that `zq up` shows."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from tests.web.browser import PROGRAM, browser
from tests.web.hands import kill_jobs
from tests.web.test_web_streams import System

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium on this machine")


def test_the_page_shows_what_is_there_and_its_buttons_do_what_they_say(tmp_path: Path) -> None:
    system = System(tmp_path, max_connections=100)
    queue, waiting = f"死{uuid.uuid4().hex[:8]}", f"q{uuid.uuid4().hex[:8]}"
    ids = [system.submit(queue) for _ in range(3)]
    kill_jobs(system.broker_port, queue, [f"OSError: 磁盘 {number}" for number in range(3)])
    try:
        with browser(tmp_path) as page:
            page.open(f"http://127.0.0.1:{system.port}/?token={system.token}")
            page.until(f"document.querySelector('#queue-rows')?.textContent.includes('{queue}')")
            assert page.run("location.href") == f"http://127.0.0.1:{system.port}/"
            assert "OSError: 磁盘" in page.until("document.querySelector('#dead-rows').textContent")
            # A queue that comes is seen at once, by its event, not at the next look in ten seconds.
            page.until("document.querySelector('#state').className === 'live'")
            system.submit(waiting)
            page.until(f"document.querySelector('#alarms').textContent.includes('{waiting}')")
            page.run(f"document.querySelector('button[data-queue=\"{waiting}\"]').click()")
            page.until(f"document.querySelector('button[data-queue=\"{waiting}\"]')?.dataset.action === 'resume'")
            queues = {one["name"]: one for one in system.json("GET", "/v1/queues")["queues"]}
            assert (queues[waiting]["paused"], queues[queue]["paused"]) == (True, False)
            page.run("document.querySelector('#dead-rows button.link').click()")
            page.until("document.querySelector('#detail').open")
            assert "OSError" in page.run("document.querySelector('#detail').textContent")
            page.run("document.querySelector('#detail-close').click()")
            page.run("void document.querySelector('button[data-action=retry]').click()")
            page.until("document.querySelector('#dead-rows').textContent.includes('No dead letters')")
            assert {job["id"] for job in system.json("GET", "/v1/jobs?state=ready&task=t")["jobs"]} >= set(ids)
            # Without the key of its tab the page only shows.
            page.run("sessionStorage.clear()")
            page.open(f"http://127.0.0.1:{system.port}/", width=390, height=844, dark=True)
            page.until(f"document.querySelector('#queue-rows')?.textContent.includes('{queue}')")
            assert page.run("document.querySelectorAll('td.acts').length") == 0
            assert page.run("document.documentElement.scrollWidth") == 390
            assert page.complaints == []
    finally:
        system.stop()
