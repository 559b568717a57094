"""Recordings through the whole system: uploaded by HTTP, finished, merged by a worker, fetched as a video.

Every case of tests/media comes out as its manifest says; in the long run also what this machine's own Chromium records.
"""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import sync_playwright

from tests.ports import free_port
from tests.servers.processes import need
from tests.servers.programs import CHROMIUM
from tests.workers.merge_recordings import CASES, MEDIA, lay_out, packets, ticks
from zq.workers.merge_trash import trash_folder

DEADLINE_S = 90.0
EVERYDAY = ["ts-vp8-opus", "resize-mid", "hostile-names", "garbage-webm", "missing-sequence"]
EXAM = "e1"


@dataclass
class Whole:
    """Broker, worker and web as processes over one folder."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    address: str = ""
    web: int = 0
    opened: ExitStack = field(default_factory=ExitStack)

    def configure(self) -> None:
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.web = free_port()
        (self.folder / "zq.toml").write_text(
            f'data_dir = "var"\n[broker]\nbind = "{self.address}"\n[client]\nbroker = "{self.address}"\n'
            f"[web]\nport = {self.web}\n"
        )

    def run(
        self, name: str, words: Sequence[str], more: Mapping[str, str] | None = None, folder: Path | None = None
    ) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith("ZQ_")}
        env |= {"ZQ_CONFIG": str(self.folder / "zq.toml"), **(more or {})}
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", *words], env=env, cwd=folder or self.folder, stdout=log, stderr=log
                )
            )

    def start(self) -> httpx.Client:
        self.configure()
        self.run("broker", ["zq.broker"])
        self.run("merge", ["zq.workers", "--queue", "video_merge"])
        self.run("web", ["zq.web"])
        return self.client()

    def client(self) -> httpx.Client:
        """Waits for the web service."""
        token = self.folder / "var" / "token"
        client = httpx.Client(base_url=f"http://127.0.0.1:{self.web}", timeout=60)
        self.opened.callback(client.close)
        until_s = time.monotonic() + DEADLINE_S
        while True:
            if token.exists():
                client.headers["Authorization"] = f"Bearer {token.read_text().strip()}"
                with suppress(httpx.TransportError):
                    if client.get("/readyz").status_code == 200:
                        return client
            assert time.monotonic() < until_s, "the web service does not answer"
            time.sleep(0.05)

    def stop(self) -> None:
        self.opened.close()
        # The broker last: the others hand it what they have.
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            finally:
                process.kill()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Path]]:
    system = Whole(tmp_path_factory.mktemp("whole"))
    try:
        client = system.start()
        now_ms = time.time_ns() // 1_000_000
        made = {"id": EXAM, "name": "期末考试", "start": now_ms - 3_600_000, "end": now_ms + 3_600_000}
        answer = client.post("/v1/exams", json=made)
        assert answer.status_code == 201, answer.text
        yield client, system.folder / "var" / "exams" / EXAM / "recordings"
    finally:
        system.stop()


def upload(client: httpx.Client, student: str, name: str, content: bytes, seq: int | None, ts_ms: int | None) -> int:
    headers = {}
    if seq is not None:
        headers["X-Zq-Sequence"] = str(seq)
    if ts_ms is not None:
        headers["X-Zq-Timestamp-Ms"] = str(ts_ms)
    url = httpx.URL(f"/v1/exams/{EXAM}/students/{student}/segments/{_quoted(name)}")
    return client.put(url, content=content, headers=headers).status_code


def _quoted(name: str) -> str:
    return "".join(f"%{byte:02X}" for byte in name.encode())


def log_in(client: httpx.Client, student: str) -> None:
    answer = client.post(f"/v1/exams/{EXAM}/students/{student}/login", json={"name": "王小明"})
    assert answer.status_code == 200, answer.text


def finish(client: httpx.Client, student: str) -> dict[str, Any]:
    """Finish, and wait for the end of the merge; the job."""
    answer = client.post(f"/v1/exams/{EXAM}/students/{student}/finish")
    assert answer.status_code in (200, 202), answer.text  # 200: it has failed already
    return ended(client, answer.json()["job"])


def ended(client: httpx.Client, job_id: str) -> dict[str, Any]:
    until_s = time.monotonic() + DEADLINE_S
    while True:
        answer = client.get(f"/v1/jobs/{job_id}", params={"wait_s": 20}).json()
        job: dict[str, Any] = answer["job"] | {"result": answer["result"]}
        if answer["attempts"]:
            job["error"] = answer["attempts"][-1]["error"]
        if job["state"] in ("done", "dead", "cancelled", "expired"):
            return job
        assert time.monotonic() < until_s, job


def fetch(client: httpx.Client, student: str, into: Path) -> httpx.Response:
    answer = client.get(f"/v1/exams/{EXAM}/students/{student}/recording")
    into.write_bytes(answer.content)
    return answer


def student_of(case_id: str) -> str:
    return f"s{sorted(CASES).index(case_id):02d}"


def play(client: httpx.Client, case_id: str, tmp_path: Path) -> tuple[dict[str, Any], list[str]]:
    """Upload a case and finish it: the merge's job, and the names the server would not take."""
    case, student = CASES[case_id], student_of(case_id)
    recording = lay_out(tmp_path, case_id)
    log_in(client, student)
    refused = []
    for index in case["present"]:
        entry = case["files"][index]
        status = upload(client, student, entry["name"], recording.before[entry["name"]], entry["seq"], entry["ts_ms"])
        if status != 201:
            assert status == 422
            refused.append(entry["name"])
    return finish(client, student), refused


@pytest.mark.parametrize(
    "case_id", [c if c in EVERYDAY else pytest.param(c, marks=pytest.mark.long) for c in sorted(CASES)]
)
def test_a_case_comes_out_as_its_manifest_says(whole: tuple[httpx.Client, Path], tmp_path: Path, case_id: str) -> None:
    client, recordings = whole
    expect = CASES[case_id]["expect"]
    student = student_of(case_id)
    job, refused = play(client, case_id, tmp_path)
    answer = fetch(client, student, tmp_path / "fetched")
    if expect["outcome"] == "refused":
        assert job["state"] == "dead"
        assert job["attempt"] == 1  # no useless retries
        # What is empty is refused at the door, and then missing.
        reasons = {expect["reason"], expect.get("also_ok_reason"), "sequence_gap" if refused else None}
        assert job["error"].split(":")[0] in reasons
        assert answer.status_code == 409
        assert job["error"][:60] in answer.json()["detail"]
        kept = [p for p in (recordings / student).iterdir() if not p.name.startswith(".")]
        assert len(kept) == len(CASES[case_id]["files"]) - len(refused)
        assert not list(recordings.glob(f"{student}_*"))
        return
    assert job["state"] == "done", job
    assert answer.status_code == 200
    assert not refused
    check_video(tmp_path / "fetched", expect)
    part = client.get(f"/v1/exams/{EXAM}/students/{student}/recording", headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, answer.content[100:200])


def check_video(video: Path, expect: dict[str, Any]) -> None:
    shown = ticks(video)
    counters = [tick for _, tick in shown]
    assert counters == sorted(counters)
    assert (counters[0], counters[-1], len(counters)) == (expect["first_tick"], expect["last_tick"], expect["frames"])
    assert len(set(counters)) >= 0.95 * expect["distinct_ticks"]
    assert max(b - a for a, b in pairwise(counters)) <= expect["max_tick_step"]
    drift = [t - 0.02 * tick for t, tick in shown]
    assert max(drift) - min(drift) < 0.25
    assert ("audio" in packets(video)) == expect["audio"]


def test_a_late_segment_makes_the_whole_video_anew(whole: tuple[httpx.Client, Path], tmp_path: Path) -> None:
    client, recordings = whole
    student, files = "late", CASES["restart-vp8-opus"]["files"]
    log_in(client, student)
    contents = [(entry, (MEDIA / entry["stored"]).read_bytes()) for entry in files]
    for entry, content in contents[:-1]:
        assert upload(client, student, entry["name"], content, entry["seq"], entry["ts_ms"]) == 201
    first = finish(client, student)
    assert first["state"] == "done"
    until_s = time.monotonic() + DEADLINE_S
    while not trash_folder(recordings, student).exists() or len(list(trash_folder(recordings, student).iterdir())) < 4:
        assert time.monotonic() < until_s, "not cleaned up"
        time.sleep(0.05)
    entry, content = contents[-1]
    assert upload(client, student, entry["name"], content, entry["seq"], entry["ts_ms"]) == 201
    job_id = client.get(f"/v1/exams/{EXAM}/students/{student}").json()["recording"]["job_id"]
    assert job_id != first["id"]
    second = ended(client, job_id)
    assert second["state"] == "done"
    assert (first["result"]["segments"], second["result"]["segments"]) == (4, 5)
    fetch(client, student, tmp_path / "fetched")
    check_video(tmp_path / "fetched", CASES["restart-vp8-opus"]["expect"])
    assert len(list(recordings.glob(f"{student}_*.webm"))) == 1


RECORD = """(async (mime, starts, seconds) => {
  const canvas = document.createElement('canvas'); canvas.width = 480; canvas.height = 270;
  const draw = canvas.getContext('2d'), begun = performance.now();
  const paint = () => {
    const tick = Math.floor((performance.now() - begun) / 20) & 0xfffff;
    const bits = [...tick.toString(2).padStart(20, '0')].map(Number);
    const cells = [1, 0, ...bits, bits.reduce((a, b) => a + b) % 2, 1];
    draw.fillStyle = '#777'; draw.fillRect(0, 0, 480, 270);
    cells.forEach((on, i) => { const grey = on ? 240 : 64;
      draw.fillStyle = `rgb(${grey},${grey},${grey})`; draw.fillRect(i * 20, 0, 20, 45); });
  };
  paint(); const timer = setInterval(paint, 100);
  const audio = new AudioContext(), tone = audio.createOscillator(), out = audio.createMediaStreamDestination();
  tone.connect(out); tone.start();
  const stream = new MediaStream([...canvas.captureStream(10).getTracks(), ...out.stream.getTracks()]);
  const made = [];
  for (let start = 0; start < starts; start++) {
    const recorder = new MediaRecorder(stream, {mimeType: mime, videoBitsPerSecond: 400000});
    const stopped = new Promise(done => recorder.onstop = done);
    recorder.ondataavailable = event => made.push(event.data);
    recorder.start(1000); setTimeout(() => recorder.stop(), 1000 * seconds); await stopped;
  }
  clearInterval(timer);
  const text = blob => new Promise(done => { const reader = new FileReader();
    reader.onload = () => done(reader.result.split(';base64,')[1]); reader.readAsDataURL(blob); });
  return await Promise.all(made.filter(blob => blob.size).map(text));
})"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("mime", "starts"),
    [
        ("video/webm;codecs=vp8,opus", 1),
        ("video/webm;codecs=vp8,opus", 3),
        ("video/webm;codecs=vp9,opus", 2),
        ("video/webm;codecs=h264,opus", 2),
        ("video/mp4;codecs=avc1.42E01E,opus", 1),
        ("video/mp4;codecs=vp9,opus", 2),
    ],
)
def test_what_a_browser_records_now(whole: tuple[httpx.Client, Path], tmp_path: Path, mime: str, starts: int) -> None:
    client, _ = whole
    student = f"b{starts}{''.join(c for c in mime if c.isalnum())}"[:20]
    log_in(client, student)
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"]
        browser = playwright.chromium.launch(executable_path=str(need(CHROMIUM)), args=flags)
        page = browser.new_page()
        page.goto(str(client.base_url.join("/healthz")))
        if not page.evaluate(f"MediaRecorder.isTypeSupported('{mime}')"):
            pytest.skip(f"this browser does not record {mime}")
        made = page.evaluate(f"() => {RECORD}('{mime}', {starts}, 4)")
        browser.close()
    chunks = [base64.b64decode(text) for text in made]
    assert len(chunks) >= 2 * starts
    for number, chunk in enumerate(chunks):
        suffix = ".mp4" if "mp4" in mime else ".webm"
        name = f"{number:05d}-{1795449373936 + 1000 * number}{suffix}"
        assert upload(client, student, name, chunk, None, None) == 201
    job = finish(client, student)
    assert job["state"] == "done", job
    assert job["result"]["runs"] == starts
    assert fetch(client, student, tmp_path / "fetched").status_code == 200
    counters = [tick for _, tick in ticks(tmp_path / "fetched")]
    assert counters == sorted(counters)
    assert len(counters) >= 4 * starts * 5
    assert "audio" in packets(tmp_path / "fetched")
