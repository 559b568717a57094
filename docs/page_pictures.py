"""Makes the pictures of the page in docs/images anew: `python docs/page_pictures.py [MINUTES]`.

A system of its own is brought up, with an exam, merges and other work going on; after MINUTES (10), so that the charts
have something to show, Chromium takes the pictures, and all is stopped.
"""

from __future__ import annotations

import math
import random
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.servers.programs import CHROMIUM  # noqa: E402
from tests.web.page.conftest import FLAGS  # noqa: E402
from tests.web.page.scene import EXAM, STUDENTS, Scene  # noqa: E402

IMAGES = ROOT / "docs" / "images"
TASKS = "tests.web.page.scene_tasks"
SIZE = {"width": 1280, "height": 840}
FINISHED, ONLINE = STUDENTS[:4], STUDENTS[4:8]


def begin(scene: Scene) -> None:
    """Workers, two exams, recordings, and work that fails."""
    scene.worker("video_merge", 2, "--name", "exam-hall-1:video_merge")
    scene.worker("status_check", 1, "--name", "exam-hall-1:status_check")
    scene.worker("mail", 1, "--name", "office-1:mail", "--tasks", TASKS)
    scene.other_work("--name", "office-1:reports")
    scene.start("zq.scheduler")
    scene.make_exam()
    start = datetime.now(UTC) + timedelta(days=2)
    students = [{"id": f"2024{number:04}", "name": f"学生 {number}"} for number in range(1, 121)]
    times = {"start": start.isoformat(), "end": (start + timedelta(hours=2)).isoformat()}
    scene.call("POST", "/v1/exams", {"id": "physics-mid", "name": "大学物理 期中考试", **times, "students": students})
    for number, _, case in STUDENTS[:9]:
        scene.log_in(number)
        if case:
            scene.upload(number, case)
    for number, _, _ in FINISHED:
        scene.finish(number)
    submit = scene.client.submit
    for n in range(42):
        smtp = "unreachable" if n % 8 else "mail-2"
        submit(f"{TASKS}.notify", kwargs={"student_id": f"2023{n:04}", "smtp": smtp}, queue="mail", max_retries=0)
    for n in range(2):
        kwargs = {"exam_id": EXAM, "pictures": 240, "seconds": 1000.0 + 600 * n}
        submit(f"{TASKS}.contact_sheet", kwargs=kwargs, queue="reports", key=f"contact:{EXAM}:{n}")
    for n in range(6):
        submit(f"{TASKS}.transcript", kwargs={"student_id": f"2023{n:04}", "exam_id": EXAM}, queue="grading")
        submit(f"{TASKS}.transcript", args=(str(n), EXAM), queue="reports", countdown=900.0 * (n + 1))


def go_on(scene: Scene, stop: threading.Event) -> None:
    """Heartbeats of those who are online, and other work in waves."""
    began_s = time.monotonic()
    n = 0
    while not stop.wait(0.25):
        n += 1
        if n % 6 == 0:
            for number, _, _ in ONLINE:
                scene.call("POST", f"/v1/exams/{EXAM}/students/{number}/heartbeat")
        wave = 1.6 + math.sin((time.monotonic() - began_s) / 45) + random.random()
        for _ in range(int(wave)):
            kwargs = {"student_id": f"2023{n:04}", "exam_id": EXAM}
            scene.client.submit(f"{TASKS}.transcript", kwargs=kwargs, queue="reports")


def take(scene: Scene) -> None:
    student = FINISHED[1][0]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM.find(), args=list(FLAGS))
        for name, path, scheme, locale in (
            ("page", "/", "light", "en-GB"),
            ("page-exam", f"/exams/{EXAM}", "dark", "zh-CN"),
            ("page-recording", f"/exams/{EXAM}/students/{student}", "light", "en-GB"),
        ):
            context = browser.new_context(viewport=SIZE, color_scheme=scheme, locale=locale)
            page = context.new_page()
            page.goto(f"{scene.url}{path}?token={scene.token}")
            page.wait_for_selector(".pulse.live")
            page.wait_for_selector("main .bones", state="detached")
            page.wait_for_timeout(3000)
            page.screenshot(path=IMAGES / f"{name}.png")
            context.close()
        browser.close()


def main(minutes: float) -> None:
    stop = threading.Event()
    with tempfile.TemporaryDirectory(prefix="zq-pictures-") as folder:
        scene = Scene(Path(folder))
        life = threading.Thread(target=go_on, args=(scene, stop), daemon=True)
        try:
            begin(scene)
            life.start()
            time.sleep(60 * minutes)
            take(scene)
        finally:
            stop.set()
            if life.is_alive():
                life.join()
            for job in scene.client.jobs("", "running").jobs:
                scene.client.cancel([job.id])
            scene.stop()


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0)
