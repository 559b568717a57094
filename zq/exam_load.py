"""A made-up exam against a running system: students who log in, are heard of, upload, and finish.

Each student is a client of its own, with an upload token and its own connections, at phases spread evenly. Afterwards
the system is asked what it has: every segment that was acknowledged must be there or in a video, and every job must be
accounted for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from zq.exam_load_figures import Figures, Outcome
from zq.exam_load_http import Answer, Connection
from zq.exceptions import ZqError

TAIL_BYTES: Final = 64
"""Appended to each segment, so that no two are the same."""
PAGE: Final = 1000
TIMEOUT_S: Final = 60.0
AGAIN_S: Final = 2.0
PROGRESS_S: Final = 5.0
FAMILY: Final = "王李张刘陈杨赵黄周吴"
GIVEN: Final = "伟芳娜敏静丽强磊军洋"


class LoadError(ZqError):
    """The run cannot begin, or cannot be judged. The text says what to do."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do. Times in seconds, rates a minute."""

    host: str
    port: int
    token: str
    students: int
    minutes: float
    heartbeat_s: float
    segment_s: float
    exits: int
    """Students who finish, evenly over the last minute (or the last half of a shorter run)."""
    login_s: float
    """Logins are spread over so long, before the run."""
    wait_s: float
    """How long to wait for the merges of those who finished."""
    time_zone: str
    exam_id: str


@dataclass
class Student:
    id: str
    name: str
    token: str = ""
    acknowledged: int = 0
    finished: bool = False


class Load:
    """One run. `say` gets progress lines."""

    def __init__(self, plan: Plan, segment: bytes, say: Callable[[str], None]) -> None:
        self.plan = plan
        self.figures = Figures()
        self.outcome = Outcome()
        self._segment = segment
        self._say = say
        self._zone = ZoneInfo(plan.time_zone)
        self._began_s = 0.0
        self.students = [
            Student(f"L{number:06}", random.choice(FAMILY) + random.choice(GIVEN)) for number in range(plan.students)
        ]

    async def run(self) -> None:
        """Raises LoadError if the exam cannot be made, or the system does not say what it has."""
        await self._make_exam()
        self._began_s = time.monotonic()
        telling = asyncio.create_task(self._tell())
        try:
            await self._log_all_in()
            begin_s, end_s = time.monotonic(), time.monotonic() + self.plan.minutes * 60
            async with asyncio.TaskGroup() as lives:
                for number, student in enumerate(self.students):
                    for life in self._lives(student, number, begin_s, end_s):
                        lives.create_task(life)
        finally:
            telling.cancel()
        await self._judge()

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            self._say(self.figures.line(time.monotonic() - self._began_s))

    # Before

    async def _make_exam(self) -> None:
        now_ms = time.time_ns() // 1_000_000
        # It does not end by itself while the run lasts: that would merge all the others' recordings as well.
        end_ms = now_ms + round((self.plan.minutes * 60 + self.plan.login_s + self.plan.wait_s + 86_400) * 1000)
        exam = {"id": self.plan.exam_id, "name": "负载 load", "start": now_ms, "end": end_ms}
        for at in range(0, len(self.students), PAGE):
            part = [{"id": student.id, "name": student.name} for student in self.students[at : at + PAGE]]
            await self._must("POST", "/v1/exams", {**exam, "students": part})

    async def _log_all_in(self) -> None:
        begin_s = time.monotonic()
        async with asyncio.TaskGroup() as logins:
            for number, student in enumerate(self.students):
                at_s = begin_s + self.plan.login_s * number / len(self.students)
                logins.create_task(self._log_in(student, at_s))

    async def _log_in(self, student: Student, at_s: float) -> None:
        await self._until(at_s)
        connection = Connection(self.plan.host, self.plan.port)
        try:
            for step in ("login", "token"):
                body = b'{"name": "%b"}' % student.name.encode() if step == "login" else b""
                head = self._head("POST", f"{self._path(student)}/{step}", self.plan.token, len(body))
                answer = await self._ask("login", connection, head, [body] if body else [])
                if step == "token" and answer is not None:
                    student.token = json.loads(answer.body)["token"]
        finally:
            connection.close()

    # The exam

    def _lives(
        self, student: Student, number: int, begin_s: float, end_s: float
    ) -> list[Coroutine[Any, Any, None]]:
        """A student's heartbeats and uploads, side by side, and the finish of those who finish."""
        # Spread by the golden ratio: neighbours in the list are far from each other in time.
        phase = (number * 0.618_033_988_75) % 1
        last_s = end_s
        lives = []
        if number < self.plan.exits:
            window_s = min(60.0, (end_s - begin_s) / 2)
            last_s = end_s - window_s * (1 - number / self.plan.exits)
        uploading = self._upload(student, begin_s + phase * self.plan.segment_s, last_s)
        if number < self.plan.exits:
            lives.append(self._upload_then_finish(student, uploading, last_s))
        else:
            lives.append(uploading)
        lives.append(self._beat(student, begin_s + phase * self.plan.heartbeat_s, last_s))
        return lives

    async def _beat(self, student: Student, at_s: float, last_s: float) -> None:
        connection = Connection(self.plan.host, self.plan.port)
        head = self._head("POST", f"{self._path(student)}/heartbeat", student.token, 0)
        try:
            while at_s < last_s:
                await self._until(at_s)
                await self._ask("heartbeat", connection, head)
                at_s += self.plan.heartbeat_s
        finally:
            connection.close()

    async def _upload(self, student: Student, at_s: float, last_s: float) -> None:
        connection = Connection(self.plan.host, self.plan.port)
        number = 0
        try:
            while at_s < last_s:
                await self._until(at_s)
                number += 1
                await self._upload_one(connection, student, number)
                at_s += self.plan.segment_s
        finally:
            connection.close()

    async def _upload_one(self, connection: Connection, student: Student, number: int) -> None:
        ended = datetime.now(self._zone).strftime("%Y%m%d_%H%M%S")
        name = f"{student.id}_{ended}_seq_{number:04}.mp4"
        tail = _free_box(f"{student.id} {number}".encode())
        path = f"{self._path(student)}/segments/{name}"
        size_bytes = len(self._segment) + len(tail)
        answer = await self._ask(
            "segment", connection, self._head("PUT", path, student.token, size_bytes), [self._segment, tail]
        )
        self.figures.sent_bytes += size_bytes
        if answer is not None:
            student.acknowledged += 1

    async def _upload_then_finish(
        self, student: Student, uploading: Coroutine[Any, Any, None], at_s: float
    ) -> None:
        await uploading
        await self._until(at_s)
        connection = Connection(self.plan.host, self.plan.port)
        try:
            head = self._head("POST", f"{self._path(student)}/finish", student.token, 0)
            student.finished = await self._ask("finish", connection, head) is not None
        finally:
            connection.close()

    async def _until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, at_s - time.monotonic()))
        self.figures.late_s.append(max(0.0, time.monotonic() - at_s))

    async def _ask(
        self, kind: str, connection: Connection, head: bytes, body: Sequence[bytes] = ()
    ) -> Answer | None:
        """The answer, or None for a refusal or a failure, which is counted."""
        began_s = time.monotonic()
        try:
            answer = await connection.ask(head, body, TIMEOUT_S)
        except (OSError, TimeoutError) as error:
            self.figures.failed(kind, str(error) or type(error).__name__)
            return None
        if answer.status >= 300:
            self.figures.failed(kind, f"{answer.status} {answer.body[:200].decode('utf-8', 'replace')}")
            return None
        self.figures.done(kind, time.monotonic() - began_s)
        return answer

    # After

    async def _judge(self) -> None:
        by_id = {student.id: student for student in self.students}
        until_s = time.monotonic() + self.plan.wait_s
        while True:
            seen = await self._seen()
            done = [one for one in seen if by_id[one["id"]].finished and _state(one) in ("done", "failed")]
            waiting = sum(student.finished and student.acknowledged > 0 for student in self.students) - len(done)
            if waiting <= 0 or time.monotonic() > until_s:
                break
            self._say(f"{waiting} merges are under way")
            await asyncio.sleep(AGAIN_S)
        outcome = self.outcome
        outcome.finished = sum(student.finished for student in self.students)
        outcome.merges_open = max(0, waiting)
        for one in seen:
            student = by_id[one["id"]]
            merged = one["recording"]["segments"] if _state(one) == "done" else 0
            outcome.merged += _state(one) == "done"
            outcome.merges_failed += _state(one) == "failed"
            # Segments are deleted some time after they are in a video.
            found = max(merged, one["segments"] or 0)
            outcome.segments_acknowledged += student.acknowledged
            outcome.segments_found += min(found, student.acknowledged)
            if found < student.acknowledged:
                outcome.lost.append(f"student {student.id}: {found} of {student.acknowledged} segments")
        for queue in (await self._must("GET", "/v1/queues"))["queues"]:
            states = ("done", "dead", "cancelled", "expired", "ready", "scheduled", "running")
            outcome.unaccounted_jobs += abs(queue["accepted"] - sum(queue[state] for state in states))

    async def _seen(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        after = ""
        while True:
            page = await self._must("GET", f"/v1/exams/{self.plan.exam_id}?limit={PAGE}&after={after}")
            found += page["students"]
            if page["next"] is None:
                return found
            after = page["next"]

    async def _must(self, method: str, path: str, body: Any = None) -> Any:
        data = json.dumps(body).encode() if body is not None else b""
        connection = Connection(self.plan.host, self.plan.port)
        try:
            answer = await connection.ask(self._head(method, path, self.plan.token, len(data)), [data] if data else [])
        except (OSError, TimeoutError) as error:
            raise LoadError(
                f"{method} {path} at {self.plan.host}:{self.plan.port}: {error or 'no answer'}; is it running (zq up)?"
            ) from None
        finally:
            connection.close()
        if answer.status >= 300:
            raise LoadError(f"{method} {path} was refused: {answer.body[:500].decode('utf-8', 'replace')}")
        return json.loads(answer.body)

    def _path(self, student: Student) -> str:
        return f"/v1/exams/{self.plan.exam_id}/students/{student.id}"

    def _head(self, method: str, path: str, token: str, size_bytes: int) -> bytes:
        kind = "video/mp4" if method == "PUT" else "application/json"
        return (
            f"{method} {path} HTTP/1.1\r\nHost: {self.plan.host}\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: {kind}\r\nContent-Length: {size_bytes}\r\n\r\n"
        ).encode()


def _state(student: dict[str, Any]) -> str:
    recording = student["recording"]
    return str(recording["state"]) if recording is not None else ""


def _free_box(text: bytes) -> bytes:
    """An MP4 box that players skip, of TAIL_BYTES."""
    return TAIL_BYTES.to_bytes(4, "big") + b"free" + text[: TAIL_BYTES - 8].ljust(TAIL_BYTES - 8)


def padded(video: bytes, size_bytes: int) -> bytes:
    """The video, made as large as a student's by a box that players skip; 0: as it is. Raises LoadError."""
    missing_bytes = size_bytes - TAIL_BYTES - len(video)
    if size_bytes == 0:
        return video
    if missing_bytes < 8:
        least_kib = (TAIL_BYTES + len(video) + 8 + 1023) >> 10
        raise LoadError(f"the recording is larger than a segment is to be; give a --segment-kib of {least_kib}, or 0")
    return video + missing_bytes.to_bytes(4, "big") + b"free" + bytes(missing_bytes - 8)


def make_video(ffmpeg: str, length_s: float) -> bytes:
    """A screen recording of two pictures a second, as H.264 in MP4. Raises LoadError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "segment.mp4"
        argv = [
            ffmpeg, "-v", "error", "-nostdin",
            "-f", "lavfi", "-i", f"testsrc2=size=640x360:rate=2:duration={length_s:g}",
            "-c:v", "libx264", "-preset", "veryfast", "-crf", "35", "-pix_fmt", "yuv420p", "-y", f"file:{path}",
        ]  # fmt: skip
        with contextlib.suppress(subprocess.TimeoutExpired, OSError):
            done = subprocess.run(argv, capture_output=True, timeout=120, check=False)
            if done.returncode == 0:
                return path.read_bytes()
            raise LoadError(f"no segment could be made: {done.stderr[-500:].decode('utf-8', 'replace')}")
    raise LoadError("no segment could be made: FFmpeg did not end; give one with --segment FILE")


def needed_bytes(plan: Plan, segment_bytes: int) -> int:
    """What the segments of the whole run take on disk; those who finish need their video's room as well."""
    of_one = math.ceil(plan.minutes * 60 / plan.segment_s) * segment_bytes
    return of_one * (plan.students + plan.exits)
