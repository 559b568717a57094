"""The exam, step by step. Any step that does not go as it must raises Deviation."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from demo.http_api import Api, Deviation, wait_until
from demo.students import Student, load_recording
from demo.videos import check_video
from zq.config import Config
from zq.supervision import Supervisor
from zq.system_processes import tree_of, what_is
from zq.workers.process import ProcessKey, is_alive

EXAM = "final-2025"
HEARTBEATS_MIN = 3
ENDED = ("done", "dead", "cancelled", "expired")
Say = Callable[[str], None]


class Story:
    """One run. `videos` is the folder that the merged videos are put into."""

    def __init__(self, config: Config, api: Api, say: Say, videos: Path) -> None:
        self._config = config
        self._api = api
        self._say = say
        self._videos = videos
        self._supervisor = Supervisor(config.data_path)
        self.students = [
            Student(api, EXAM, "s1001", "张伟", load_recording("ts-vp8-opus")),
            Student(api, EXAM, "s1002", "王芳", load_recording("reload-vp9-opus")),
            Student(api, EXAM, "s1003", "Ana Müller", load_recording("mp4-uniform")),
        ]
        self._jobs: dict[str, Student] = {}

    def play(self) -> None:
        self._begin()
        self._record()
        self._go_offline()
        self._finish()
        self._kill_worker()
        self._kill_broker()
        self._wait_merged()
        self._check_videos()
        self._wait_cleaned()
        self._audit()

    def stop(self) -> None:
        for student in self.students:
            student.fall_silent()

    def _begin(self) -> None:
        now = datetime.now(UTC)
        self._api.call(
            "POST",
            "/v1/exams",
            {
                "id": EXAM,
                "name": "期末考试 · Final exam",
                "start": (now - timedelta(minutes=1)).isoformat(),
                "end": (now + timedelta(hours=1)).isoformat(),
                "students": [{"id": student.id, "name": student.name} for student in self.students],
            },
        )
        self._say(f"exam {EXAM} has begun; its students log in and send heartbeats")
        for student in self.students:
            student.log_in()

    def _record(self) -> None:
        how = ("one recorder, cut by time", "page reloaded in the middle", "MP4 files")
        for student, words in zip(self.students, how, strict=True):
            size_bytes = student.upload()
            count = len(student.recording.segments)
            self._say(f"{student.name} uploads {count} segments, {size_bytes / 1024:.0f} KiB ({words})")

    def _go_offline(self) -> None:
        silent, *others = reversed(self.students)

        def heard() -> bool | None:
            return True if all(student.heartbeats >= HEARTBEATS_MIN for student in self.students) else None

        wait_until("heartbeats are taken", heard, 20)
        silent.fall_silent()
        limit_s = self._config.exams.offline_after_s
        self._say(f"{silent.name} falls silent after {silent.heartbeats} heartbeats; {limit_s:g} s are allowed here")
        began_s = time.monotonic()

        def is_offline() -> bool | None:
            return True if silent.view()["status"] == "offline" else None

        timeout_s = limit_s + 5 * self._config.exams.status_every_s + 10
        wait_until(f"{silent.name} is shown offline", is_offline, timeout_s)
        wrong = [student.name for student in others if student.view()["status"] != "online"]
        if wrong:
            raise Deviation(f"{', '.join(wrong)} should be online still")
        after_s = time.monotonic() - began_s
        self._say(f"the status check shows {silent.name} offline after {after_s:.1f} s, and the others online")

    def _finish(self) -> None:
        for student in self.students:
            self._jobs[student.finish()] = student
        self._say(f"all finish; {len(self._jobs)} merge jobs are accepted, which is: on disk")

    def _merge_under_way(self, worker_pid: int) -> tuple[dict[str, Any], list[ProcessKey]] | None:
        """A running merge and the processes of its worker, FFmpeg among them."""
        processes = tree_of(worker_pid)
        if not any(what_is(key).startswith("ffmpeg") for key in processes):
            return None
        running = self._api.call("GET", "/v1/jobs?queue=video_merge&state=running")["jobs"]
        job = next((job for job in running if job["id"] in self._jobs), None)
        return (job, processes) if job is not None else None

    def _pid(self, program: str) -> int | None:
        return next(entry.pid for entry in self._supervisor.programs() if entry.name == program) or None

    def _kill(self, program: str) -> tuple[dict[str, Any], list[ProcessKey]]:
        """Kill a program while FFmpeg works for a merge. Returns that job, and the processes of its worker."""
        worker = wait_until("the merge worker runs", lambda: self._pid("merge-worker"), 30)
        victim = wait_until(f"the {program} runs", lambda: self._pid(program), 30)
        job, processes = wait_until("FFmpeg works for a merge", lambda: self._merge_under_way(worker), 30, 0.002)
        os.kill(victim, signal.SIGKILL)
        name = self._jobs[job["id"]].name
        self._say(f"kill -9 of the {program} (pid {victim}) while FFmpeg works for {name}, attempt {job['attempt']}")
        return job, processes

    def _kill_worker(self) -> None:
        job, processes = self._kill("merge-worker")
        killed_s = time.monotonic()

        def all_gone() -> bool | None:
            return None if any(is_alive(key) for key in processes) else True

        wait_until("what the worker had started is gone, FFmpeg too", all_gone, 2.0, 0.01)
        after_s = time.monotonic() - killed_s
        self._say(f"its {len(processes)} processes, FFmpeg among them, are gone after {after_s:.2f} s")

        def lost() -> bool | None:
            return True if self._attempts(job["id"])[0]["outcome"] == "lost" else None

        wait_until("the broker has taken the job from the dead worker", lost, 30, 0.02)
        self._say("supervisord has started it again; the job is given out once more")

    def _kill_broker(self) -> None:
        job, _processes = self._kill("broker")
        killed_s = time.monotonic()
        ended = wait_until(f"job {job['id']} ends", lambda: self._ended(job["id"]), 90)
        if ended["attempt"] != job["attempt"]:
            raise Deviation(f"a restart of the broker ran a running job again: {ended}")
        self._say(
            f"the broker is back; that merge went on without it and was delivered after "
            f"{time.monotonic() - killed_s:.1f} s, still attempt {ended['attempt']}"
        )

    def _attempts(self, job_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._api.call("GET", f"/v1/jobs/{job_id}")["attempts"]
        return found

    def _ended(self, job_id: str) -> dict[str, Any] | None:
        job: dict[str, Any] = self._api.call("GET", f"/v1/jobs/{job_id}")["job"]
        return job if job["state"] in ENDED else None

    def _wait_merged(self) -> None:
        for job_id, student in self._jobs.items():

            def ended(job_id: str = job_id) -> dict[str, Any] | None:
                return self._ended(job_id)

            job = wait_until(f"the merge of {student.name} ends", ended, 90)
            if job["state"] != "done":
                raise Deviation(f"the merge of {student.name} is {job['state']}: {job['error']}")
            outcomes = ", ".join(attempt["outcome"] for attempt in self._attempts(job_id))
            self._say(f"merge of {student.name}: done (attempts: {outcomes})")

    def _check_videos(self) -> None:
        for student in self.students:
            recording = student.view()["recording"]
            if recording is None or recording["state"] != "done":
                raise Deviation(f"the store does not know the video of {student.name}: {recording}")
            suffix = os.path.splitext(student.recording.segments[0]["name"])[1]
            path = self._videos / f"{student.id}_{student.name.replace(' ', '_')}{suffix}"
            path.write_bytes(student.download())
            self._say(f"{path.name}: {check_video(path, student.recording.expect)}")

    def _wait_cleaned(self) -> None:
        for student in self.students:
            folder = self._config.storage_path / EXAM / "recordings" / student.id
            names = {segment["name"] for segment in student.recording.segments}

            def cleaned(folder: Path = folder, names: set[str] = names) -> bool | None:
                return None if names & set(os.listdir(folder)) else True

            wait_until(f"the segments of {student.name} are deleted", cleaned, 60)
        total = sum(len(student.recording.segments) for student in self.students)
        self._say(f"all {total} segments are deleted, by clean-up jobs that ran after the merges were durably done")

    def _audit(self) -> None:
        """Every job that was accepted has ended, and the merges and clean-ups have ended well."""

        def settled() -> dict[str, Any] | None:
            queues = {queue["name"]: queue for queue in self._api.call("GET", "/v1/queues")["queues"]}
            merges = queues["video_merge"]
            return queues if merges["scheduled"] + merges["ready"] + merges["running"] == 0 else None

        queues = wait_until("every merge and clean-up has ended", settled, 30)
        audit = [sys.executable, "-m", "zq.cli", "--config", self._config.source, "audit"]
        run = subprocess.run(audit, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            raise Deviation(f"zq audit ends with {run.returncode}: {run.stderr}")
        sums = textwrap.indent(run.stdout.rstrip(), " " * 11)
        self._say(f"zq audit: every job that was accepted is accounted for\n{sums}")
        expected = 2 * len(self.students)
        if queues["video_merge"]["done"] != expected or queues["video_merge"]["accepted"] != expected:
            raise Deviation(f"{expected} merges and clean-ups should be accepted and done: {queues['video_merge']}")
        if queues["status_check"]["done"] < 1:
            raise Deviation(f"no status check is done: {queues['status_check']}")
