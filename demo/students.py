"""The students: each one logs in, is heard of every second, uploads the segments of a real recording, and finishes."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from demo.http_api import Api, Deviation

MEDIA = Path(__file__).resolve().parent.parent / "tests" / "media"
HEARTBEAT_S = 1.0


@dataclass(frozen=True)
class Recording:
    """One case of tests/media: its segments, in the order in which a client hands them over, and what must come out."""

    case: str
    segments: tuple[dict[str, Any], ...]
    expect: dict[str, Any]

    @property
    def duration_s(self) -> float:
        return float(self.expect["duration_s"])


def load_recording(case: str) -> Recording:
    cases = json.loads((MEDIA / "manifest.json").read_text("utf-8"))["cases"]
    found = next(entry for entry in cases if entry["id"] == case)
    return Recording(case, tuple(found["files"][index] for index in found["present"]), found["expect"])


class Student:
    """A student's client. Its heartbeats are a thread of their own, as in the real one."""

    def __init__(self, api: Api, exam_id: str, student_id: str, name: str, recording: Recording) -> None:
        self.id = student_id
        self.name = name
        self.recording = recording
        self._api = api
        self._path = f"/v1/exams/{quote(exam_id)}/students/{quote(student_id)}"
        self._silent = threading.Event()
        self._heart = threading.Thread(target=self._beat, name=f"heart of {student_id}", daemon=True)
        self.heartbeats = 0

    def log_in(self) -> None:
        self._api.call("POST", f"{self._path}/login", {"name": self.name})
        self._heart.start()

    def _beat(self) -> None:
        while not self._silent.wait(HEARTBEAT_S):
            with contextlib.suppress(Deviation, OSError, http.client.HTTPException):
                self._api.call("POST", f"{self._path}/heartbeat")
                self.heartbeats += 1

    def fall_silent(self) -> None:
        self._silent.set()
        if self._heart.is_alive():
            self._heart.join()

    def upload(self) -> int:
        """Sends every segment; returns the bytes."""
        sent = 0
        for segment in self.recording.segments:
            data = (MEDIA / segment["stored"]).read_bytes()
            headers = {
                "X-Zq-Sequence": str(segment["seq"]),
                "X-Zq-Timestamp-Ms": str(segment["ts_ms"]),
                "X-Zq-Sha256": hashlib.sha256(data).hexdigest(),
                "Content-Type": "application/octet-stream",
            }
            self._api.call("PUT", f"{self._path}/segments/{quote(segment['name'])}", data, headers)
            sent += len(data)
        return sent

    def finish(self) -> str:
        """The id of the job that merges the recording."""
        answer = self._api.call("POST", f"{self._path}/finish")
        if not answer["job"]:
            raise Deviation(f"the finish of {self.name} made no merge job: {answer}")
        return str(answer["job"])

    def view(self) -> dict[str, Any]:
        found: dict[str, Any] = self._api.call("GET", self._path)
        return found

    def download(self) -> bytes:
        video = self._api.call("GET", f"{self._path}/recording")
        if not isinstance(video, bytes):
            raise Deviation(f"the recording of {self.name} is no file: {video}")
        return video
