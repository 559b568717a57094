"""A system as the page is used with: an exam with real recordings, merges, other work, and things that went wrong."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from tests.ports import free_port
from tests.web.conftest import Process
from zq.client.sync import Client
from zq.config import load
from zq.web import auth

ROOT: Final = Path(__file__).resolve().parents[3]
MEDIA: Final = ROOT / "tests" / "media"
EXAM: Final = "math-2025-final"
WAIT_S: Final = 60.0
STUDENTS: Final = (
    ("20230101", "张伟", "ts-vp8-opus"), ("20230102", "王芳", "reload-vp9-opus"),
    ("20230103", "Ana Müller", "mp4-uniform"), ("20230104", "李娜", "audio-missing"),
    ("20230105", "欧阳明", "resize-mid"), ("20230106", "Jean-Luc Picard", ""), ("20230107", "陈静", ""),
    ("20230108", "赵磊", ""), ("20230109", "周杰", ""), ("20230110", "吴敏", ""),
)  # fmt: skip
"""Number, name, and the recording that is uploaded, if any."""

_CONFIG = """\
data_dir = "./var"
[broker]
bind = "{broker}"
ballast_mib = 1
[client]
broker = "{broker}"
[web]
port = {port}
[exams]
status_every_s = 2
offline_after_s = 4
[queues.reports]
slots = 3
[schedules.nightly-export]
task = "tests.web.page.scene_tasks.transcript"
queue = "reports"
every_s = 3600
kwargs = {{ student_id = "all", exam_id = "{exam}" }}
"""


class Scene:
    """Processes of its own, in `folder`. `stop` ends them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.broker_port = free_port(), free_port()
        self.address = f"tcp://127.0.0.1:{self.broker_port}"
        self.config = folder / "zq.toml"
        self.config.write_text(_CONFIG.format(broker=self.address, port=self.port, exam=EXAM), "utf-8")
        self._started: list[subprocess.Popen[bytes]] = []
        self.broker = Process("zq.broker", self.config, self.broker_port, folder / "broker.log")
        self.web = Process("zq.web", self.config, self.port, folder / "web.log")
        self.token = auth.ensure_token(folder / "var")
        self.client = Client(load(self.config, environ={}), role="admin")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("ZQ_")}
        with (self.folder / f"{module}.log").open("ab") as log:
            made = subprocess.Popen(
                [sys.executable, "-m", module, "--config", str(self.config), *arguments],
                stdout=log, stderr=log, env=environ, cwd=ROOT,
            )  # fmt: skip
        self._started.append(made)
        return made

    def worker(self, queue: str, slots: int, *arguments: str) -> subprocess.Popen[bytes]:
        return self.start("zq.workers", "--queue", queue, "--slots", str(slots), *arguments)

    def other_work(self, *arguments: str) -> subprocess.Popen[bytes]:
        return self.worker("reports", 3, "--tasks", "tests.web.page.scene_tasks", "--tag", "disk=a", *arguments)

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        import httpx

        sent = {"Authorization": f"Bearer {self.token}", **(headers or {})}
        options = {"content": body} if isinstance(body, bytes) else {"json": body} if body is not None else {}
        answer = httpx.request(method, self.url + path, headers=sent, timeout=30, **options)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if "json" in answer.headers.get("content-type", "") else answer.content

    def make_exam(self, exam: str = EXAM, name: str = "高等数学 期末考试") -> None:
        now = datetime.now(UTC)
        students = [{"id": number, "name": student} for number, student, _ in STUDENTS]
        times = {"start": (now - timedelta(minutes=50)).isoformat(), "end": (now + timedelta(hours=1)).isoformat()}
        self.call("POST", "/v1/exams", {"id": exam, "name": name, **times, "students": students})

    def log_in(self, number: str, exam: str = EXAM) -> None:
        self.call("POST", f"/v1/exams/{exam}/students/{number}/login", {})

    def upload(self, number: str, case: str, exam: str = EXAM) -> None:
        for segment in recording(case):
            data = (MEDIA / segment["stored"]).read_bytes()
            headers = {
                "X-Zq-Sequence": str(segment["seq"]), "X-Zq-Timestamp-Ms": str(segment["ts_ms"]),
                "X-Zq-Sha256": hashlib.sha256(data).hexdigest(), "Content-Type": "application/octet-stream",
            }  # fmt: skip
            self.call("PUT", f"/v1/exams/{exam}/students/{number}/segments/{quote(segment['name'])}", data, headers)

    def finish(self, number: str, exam: str = EXAM) -> str:
        job: str = self.call("POST", f"/v1/exams/{exam}/students/{number}/finish")["job"]
        return job

    def until(self, what: str, look: Callable[[], Any]) -> Any:
        """What `look` finds at last."""
        until_s = time.monotonic() + WAIT_S
        while not (found := look()):
            assert time.monotonic() < until_s, f"not in {WAIT_S:g} s: {what}; {self.logs()}"
            time.sleep(0.05)
        return found

    def merged(self, number: str, exam: str = EXAM) -> Any:
        """The student, once there is a video."""

        def look() -> Any:
            student = self.call("GET", f"/v1/exams/{exam}/students/{number}")
            return student if student["recording"] and student["recording"]["video"] else None

        return self.until(f"a video of {number}", look)

    def logs(self) -> str:
        return "\n".join(f"{path.name}: {path.read_text('utf-8')[-800:]}" for path in self.folder.glob("*.log"))

    def stop(self) -> None:
        self.client.close()
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in self._started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.web.stop()
        self.broker.stop()


def recording(case: str) -> list[dict[str, Any]]:
    """A case's segments, in the order in which a client hands them over."""
    cases = json.loads((MEDIA / "manifest.json").read_text("utf-8"))["cases"]
    found = next(entry for entry in cases if entry["id"] == case)
    return [found["files"][index] for index in found["present"]]
