"""What people do at the page, done in Chromium against a real system."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.web.hands import hands, kill_jobs
from tests.web.page.conftest import PHONE, WAIT_MS, Visit, picture
from tests.web.page.scene import EXAM, Scene
from zq.client.requests import JobRequest
from zq.protocol.job import Outcome, State, new_job_id

pytestmark = pytest.mark.xdist_group("chromium")

HOSTILE = "<img/src=x/onerror=window.pwned=1>"


def fresh(prefix: str = "q") -> str:
    return f"{prefix}{uuid.uuid4().hex[:8]}"


def dead_letters(scene: Scene, queue: str, errors: list[str]) -> list[str]:
    """Their ids, in the order of the errors."""
    jobs = [scene.client.submit("zq.t", queue=queue, kwargs={"n": n}) for n in range(len(errors))]
    kill_jobs(scene.broker_port, queue, errors)
    return [str(job.id) for job in jobs]


def until(page: Page, expression: str) -> None:
    """Not Playwright's own wait, which evaluates text inside the page: its policy refuses that."""
    deadline_s = time.monotonic() + WAIT_MS / 1000
    while not page.evaluate(expression):
        assert time.monotonic() < deadline_s, expression
        page.wait_for_timeout(50)


def queue_of(scene: Scene, name: str) -> Any:
    return next(queue for queue in scene.client.queues() if queue.name == name)


def test_the_way_in_is_the_link_or_the_token_in_the_form(scene: Scene, visit: Visit, complaints: list[str]) -> None:
    page = visit("/jobs", token=False)
    expect(page.get_by_role("heading", name="This page is locked")).to_be_visible()
    page.get_by_label("Token").fill("not the token")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("That is not the token.")
    page.get_by_label("Token").fill(scene.token)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Jobs")
    page.wait_for_selector(".pulse.live")
    # It came back to where it wanted to go, and neither the token nor the key is in the address.
    assert page.url == f"{scene.url}/jobs"
    complaints[:] = [said for said in complaints if "401" not in said]


def test_a_tab_without_the_key_looks_and_asks_another_one_for_it(scene: Scene, visit: Visit) -> None:
    queue = fresh()
    scene.client.submit("zq.t", queue=queue)
    page = visit("/queues")
    pause = page.get_by_role("button", name=f"Pause: {queue}")
    expect(pause).to_be_visible()
    other = page.context.new_page()
    other.goto(f"{scene.url}/queues")
    expect(other.get_by_role("button", name=f"Pause: {queue}")).to_be_visible()
    other.close()
    page.evaluate("sessionStorage.clear()")
    page.reload()
    page.wait_for_selector(".pulse.live")
    expect(page.get_by_role("link", name=queue)).to_be_visible()
    expect(pause).to_have_count(0)
    expect(page.locator(".side .mode")).to_contain_text("can look, not change")
    page.locator(".side .mode a").click()
    page.get_by_label("Token").fill(scene.token)
    page.keyboard.press("Enter")
    expect(pause).to_be_visible()


def test_a_queue_is_paused_and_limited_by_keyboard_alone(scene: Scene, visit: Visit) -> None:
    queue = fresh("队列")
    scene.client.submit("zq.t", queue=queue)
    page = visit("/")
    page.keyboard.press("g")
    page.keyboard.press("q")
    expect(page.get_by_role("heading", level=1)).to_have_text("Queues")
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    tab_to(page, f"Pause: {queue}")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("1 job is waiting now")
    expect(dialog.get_by_role("button", name="Not now")).to_be_focused()
    page.keyboard.press("Escape")
    assert not queue_of(scene, queue).paused
    tab_to(page, f"Pause: {queue}")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name=f"Resume: {queue}")).to_be_visible()
    assert queue_of(scene, queue).paused
    tab_to(page, f"Limits: {queue}")
    page.keyboard.press("Enter")
    page.get_by_label("Running at once").fill("3")
    page.keyboard.press("Enter")
    expect(page.locator("tr", has_text=queue)).to_contain_text("3 at once")
    assert queue_of(scene, queue).running_max == 3


def tab_to(page: Page, name: str) -> None:
    """As somebody without a mouse goes there."""
    expect(page.get_by_role("button", name=name)).to_be_visible()
    page.locator("main h1").focus()
    for _ in range(200):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('aria-label')") == name:
            return
    raise AssertionError(f"{name} is not reached by Tab")


def test_dead_letters_are_grouped_and_retried_after_a_dry_run(scene: Scene, visit: Visit) -> None:
    queue = fresh("死")
    errors = [f"OSError: 磁盘 {number} is full\n  at line {number}" for number in range(7)] + ["ValueError: no name"]
    ids = dead_letters(scene, queue, errors)
    page = visit(f"/dead?queue={queue}")
    groups = page.locator(".group")
    expect(groups).to_have_count(2)
    expect(groups.first).to_contain_text("OSError: 磁盘 … is full")
    expect(groups.first.locator(".count")).to_have_text("7")
    picture(page, "dead")
    groups.first.get_by_role("button", name="Show jobs").click()
    expect(groups.first.locator(f"a[title='{ids[6]}']")).to_be_visible()
    groups.first.get_by_role("button", name="Retry").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".count")).to_have_text("7")
    assert queue_of(scene, queue).dead == 8  # a dry run changes nothing
    picture(page, "dead-retry")
    dialog.get_by_role("button", name="Retry 7 jobs").click()
    expect(page.locator(".toast")).to_contain_text("7 jobs run again")
    expect(groups).to_have_count(1)
    found = queue_of(scene, queue)
    assert (found.ready, found.dead) == (7, 1)
    page.get_by_role("button", name="Drop: ValueError: no name").click()
    page.get_by_role("dialog").get_by_role("button", name="Drop 1 job").click()
    expect(page.get_by_text("No job fits")).to_be_visible()
    expect(page.locator(".side nav")).not_to_contain_text("Dead letters1")
    assert not scene.client.jobs(queue, "dead").jobs


def test_jobs_are_found_picked_and_cancelled(scene: Scene, visit: Visit) -> None:
    queue = fresh()
    jobs = [scene.client.submit("zq.merge", queue=queue, kwargs={"exam_id": 49 + n % 2}) for n in range(6)]
    page = visit("/jobs")
    page.keyboard.press("/")
    page.keyboard.type(f"queue:{queue} exam_id=49")
    page.keyboard.press("Enter")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(3)
    assert page.url.endswith(f"/jobs?queue={queue}&where=exam_id%3D49")
    expect(rows.first.locator(".given")).to_have_text("exam_id=49")
    rows.first.get_by_role("checkbox").check()
    expect(page.locator(".picked-bar")).to_contain_text("1 job selected")
    page.get_by_label("Select all shown").check()
    page.locator(".picked-bar").get_by_role("button", name="Cancel…").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel 3 jobs").click()
    expect(page.locator(".toast")).to_contain_text("3 jobs cancelled")
    assert [job.state() for job in jobs[::2]] == [State.CANCELLED] * 3
    assert queue_of(scene, queue).ready == 3
    page.get_by_label("Search jobs").fill(str(jobs[1].id))
    page.keyboard.press("Enter")
    expect(page.get_by_text(str(jobs[1].id))).to_be_visible()


@pytest.mark.long
def test_all_jobs_that_fit_are_dropped_though_few_are_shown(scene: Scene, visit: Visit) -> None:
    queue = fresh()
    many = [JobRequest(task="zq.t", queue=queue, id=new_job_id()) for _ in range(1003)]
    scene.client.submit_many(many)
    scene.client.cancel([one.id for one in many])
    page = visit(f"/jobs?state=cancelled&queue={queue}")
    page.locator("tbody tr").first.get_by_role("checkbox").check()
    page.get_by_role("button", name="Select all that fit").click()
    page.locator(".picked-bar").get_by_role("button", name="Drop…").click()
    page.get_by_role("dialog").get_by_role("button", name="Drop 1,003 jobs").click()
    expect(page.locator(".toast")).to_contain_text("1,003 jobs dropped")
    expect(page.get_by_text("No job fits")).to_be_visible()
    assert not scene.client.jobs(queue, "cancelled").jobs


def test_a_job_is_watched_until_it_ends(scene: Scene, visit: Visit) -> None:
    queue = fresh()
    kwargs = {"名字": "张伟", "pages": [1, 2]}
    job = scene.client.submit("zq.report", queue=queue, kwargs=kwargs, max_retries=1, backoff_s=1)
    page = visit(f"/jobs/{job.id}")
    expect(page.locator(".why")).to_contain_text("no worker serves its queue")
    expect(page.locator(".why code")).to_have_text(f"zq worker --queue {queue}")
    expect(page.locator("pre.code")).to_contain_text('"名字": "张伟"')
    with hands(scene.broker_port, queue) as worker:
        lease = worker.take()
        expect(page.locator("h1 .chip")).to_have_text("Running")
        worker.progress(lease, 3, 4, "page 3 of 4")
        expect(page.locator(".big-progress strong")).to_have_text("75 %")
        expect(page.locator(".big-progress")).to_contain_text("page 3 of 4")
        picture(page, "job-running")
        worker.end(lease, Outcome.FAILED, "OSError: first try\nTraceback: deep\nstderr: [h264] broken")
        expect(page.locator("h1 .chip")).to_have_text("Scheduled")
        worker.end(worker.take())
        expect(page.locator("h1 .chip")).to_have_text("Done")
    page.locator("summary", has_text="OSError: first try").click()
    expect(page.locator("details pre")).to_contain_text("stderr: [h264] broken")
    expect(page.locator(".gantt .row")).to_have_count(2)
    picture(page, "job-done")


def test_a_recording_plays_and_seeks_by_ranges(scene: Scene, visit: Visit) -> None:
    scene.make_exam()
    scene.log_in("20230103")
    scene.upload("20230103", "mp4-uniform")
    page = visit(f"/exams/{EXAM}/students/20230103")
    expect(page.locator(".theatre")).to_contain_text("No recording yet")
    ranges: list[int] = []
    page.on("response", lambda answer: ranges.append(answer.status) if "/recording" in answer.url else None)
    scene.finish("20230103")
    # The page hears of the merge's end by itself.
    until(page, "document.querySelector('video')?.readyState >= 1")
    length_s = page.evaluate("document.querySelector('video').duration")
    assert length_s > 5
    page.evaluate("document.querySelector('video').muted = true")
    page.evaluate("document.querySelector('video').play()")
    until(page, "document.querySelector('video').currentTime > 0.2")
    page.get_by_role("button", name="+10 s").click()
    until(page, "(v => !v.seeking && v.currentTime > 4)(document.querySelector('video'))")
    page.get_by_role("button", name="4×").click()
    assert page.evaluate("document.querySelector('video').playbackRate") == 4
    assert set(ranges) == {206}
    picture(page, "student")


def test_what_is_typed_is_read_as_it_is_meant(visit: Visit) -> None:
    page = visit("/jobs")

    def of(module: str, call: str) -> Any:
        return page.evaluate(f"import('/static/lib/{module}.js').then((m) => m.{call})")

    nothing = {"queue": "", "task": "", "error": "", "where": []}
    assert of("search", "parse('')") == nothing
    assert of("search", "parse('merge')") == {**nothing, "task": "*merge*"}
    assert of("search", "parse('zq.merge queue:视频')") == {**nothing, "task": "zq.merge", "queue": "视频"}
    typed = 'error:"disk full" exam_id=49 "name=张 伟" state:dead'
    read = {**nothing, "error": "disk full", "where": ["exam_id=49", "name=张 伟"]}
    assert of("search", f"parse('{typed}')") == {**read, "state": "dead"}
    assert of("search", f"parse(m.write(m.parse('{typed}')))") == read
    assert of("search", "isId(' 0190A3C4-0000-7000-8000-000000000000 ')")
    assert of("format", "duration(3725)") == "1 h 2 min"
    told = [of("format", f"duration({s})") for s in (0, 0.02, 1.25, 59.7, 86400)]
    assert told == ["0 ms", "20 ms", "1.3 s", "1 min", "1 d"]
    assert of("format", "bytes(1536)") == "1.5 KiB"
    assert of("format", "clockLength(3725)") == "1:02:05"


def test_the_language_follows_the_browser_and_the_switch(scene: Scene, visit: Visit) -> None:
    page = visit("/dead", locale="zh-CN")
    expect(page.get_by_role("heading", level=1)).to_have_text("死信")
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    picture(page, "dead-zh")
    page.get_by_role("button", name="EN").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Dead letters")
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text("Dead letters")
    page.get_by_role("button", name="Dark").click()
    page.reload()
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"


def test_hostile_names_are_text(scene: Scene, visit: Visit, complaints: list[str]) -> None:
    queue = f"{HOSTILE}{fresh()}"
    arguments = {"a": HOSTILE, "</script><script>window.pwned=1</script>": ["javascript:window.pwned=1"]}
    job = scene.client.submit(f"zq.{HOSTILE}", queue=queue, kwargs=arguments, key=HOSTILE + fresh(), tags=["<b>bold"])
    other = scene.client.submit("zq.t", queue=queue)
    with hands(scene.broker_port, queue, tags=["<b>bold"]) as worker:
        lease = worker.take()
        worker.progress(lease, 1, 2, HOSTILE)
        worker.end(lease, Outcome.REJECTED, f"{HOSTILE}\n<script>window.pwned=1</script>")
    page = visit("/")
    for path in ("/", "/queues", f"/queues/{queue.replace('/', '%2F')}", "/jobs", "/dead", f"/jobs/{job.id}"):
        page.goto(scene.url + path)
        page.wait_for_selector(".pulse.live")
        expect(page.get_by_text(HOSTILE).first).to_be_attached()
    page.goto(f"{scene.url}/jobs?queue={queue}&error=%3Cscript%3E&where=a%3D%3Cscript%3E")
    page.wait_for_selector(".pulse.live")
    assert page.evaluate("window.pwned") is None
    assert page.locator("img[src='x']").count() == 0
    # Nor could a mistake of ours let it be more: the browser makes no element of a text that is no template's.
    refused = page.evaluate("try { document.body.innerHTML = '<b>x</b>'; 'taken' } catch (error) { error.name }")
    assert refused == "TypeError"
    complaints[:] = [said for said in complaints if "TrustedHTML" not in said]
    other.cancel()


@pytest.mark.long
def test_it_is_readable_on_a_phone(scene: Scene, visit: Visit) -> None:
    dead_letters(scene, fresh("a-rather-long-name-of-a-queue-that-does-not-fit-"), ["OSError: " + "x" * 300])
    page = visit("/", viewport=PHONE, has_touch=True, is_mobile=True)
    for path in ("/jobs", "/dead", "/workers"):
        page.goto(scene.url + path)
        page.wait_for_selector("main .card")
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"], path
    page.get_by_role("button", name="More").click()
    page.get_by_role("link", name="Workers").last.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Workers")
    page.goto(scene.url)
    page.wait_for_selector(".tile strong")
    picture(page, "overview-phone")
