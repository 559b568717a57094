"""Killed with -9 at every step, worker or slot or FFmpeg: the job is done in the end, with the same video, and no
segment was gone before that was durable. A real broker, a real worker, real FFmpeg.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.waiting import wait_gone, wait_until
from tests.workers.merge_recordings import FFMPEGS, Recording, lay_out
from tests.workers.worker_system import DEADLINE_S, System, kill
from zq.client.job import Job
from zq.exams.merging import QUEUE, TASK
from zq.protocol.job import State
from zq.workers.merge_trash import state_of
from zq.workers.recording_fate import clean_up_request

CASE = "reload-vp9-opus"
MERGE_STEPS = [
    *("reading segments", "joining chunks", "probing", "merging", "verifying", "decoding"),
    *("publishing", "before the rename", "after the rename", "done", "before the store is told"),
]
CLEAN_UP_STEPS = ["clearing away merged segments", "before the trash is due"]

FFMPEG = """#!/bin/sh
# The real one; or, where the file says so, half of its work and a violent death.
case "$*" in
*"-c copy"*) step="merging|ffmpeg" ;;
*) step="decoding|ffmpeg" ;;
esac
if test -e {order} && test "$(/bin/cat {order})" = "$step"; then
    /bin/rm {order}
    {real} -t 1 "$@"
    kill -9 $$
fi
exec {real} "$@"
"""


@dataclass
class Scene:
    """A running system and the segments of one student after the other."""

    system: System
    order: Path
    students: int = 0
    worker_pids: list[int] = field(default_factory=list)

    def worker(self) -> None:
        environ = {"MERGE_KILLER": str(self.order), "ZQ_MERGE_FFMPEG": str(self.system.folder / "ffmpeg")}
        process = self.system.start("zq.workers", "--queue", QUEUE, "--name", self.system.host, **environ)
        self.worker_pids.append(process.pid)

    def lay_out(self) -> Recording:
        self.students += 1
        recording = lay_out(self.system.folder / f"made{self.students}", CASE)
        exam = self.system.config.storage_path / f"exam{self.students}"
        exam.parent.mkdir(parents=True, exist_ok=True)
        os.rename(recording.request.target.parent, exam)
        return recording.moved(exam / "recordings", exam.name)

    def merge(self, recording: Recording) -> Job[dict[str, object]]:
        request = recording.request
        names = {"exam_id": request.exam_id, "student_id": request.student_id, "student_name": request.student_name}
        return self.system.client.submit(TASK, kwargs=names, queue=QUEUE, backoff_s=0.0)

    def after_the_kill(self, step: str, victim: str, recording: Recording) -> None:
        """The order was carried out; nothing is lost now. A worker that was killed is started again."""
        wait_until(lambda: not self.order.exists())
        folder = recording.request.folder
        if victim == "worker":
            process = self.system.processes[-1]
            process.wait(DEADLINE_S)
            wait_gone([process.pid], 2.0)
        present = {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}
        if step not in CLEAN_UP_STEPS:
            assert present == recording.before
        if victim == "worker":
            self.worker()


@pytest.fixture
def scene(system: System) -> Scene:
    order = system.folder / "order"
    script = system.folder / "ffmpeg"
    script.write_text(FFMPEG.format(order=order, real=FFMPEGS[0]), "utf-8")
    script.chmod(0o755)
    with (system.folder / "zq.toml").open("a", encoding="utf-8") as config:
        config.write(f'\n[queues.{QUEUE}]\nslots = 1\ntasks = ["merge_killer"]\n')
    system.broker()
    made = Scene(system, order)
    made.worker()
    return made


def play(scene: Scene, step: str, victim: str, expected_sha256: str) -> str:
    """One kill; returns the hash of the video."""
    recording = scene.lay_out()
    if step:
        scene.order.write_text(f"{step}|{victim}", "utf-8")
    job = scene.merge(recording)
    if step:
        scene.after_the_kill(step, victim, recording)
    result = job.result(timeout_s=DEADLINE_S)
    request = recording.request
    clean_up = clean_up_request(job.id, request.exam_id, request.student_id, "")
    ended = scene.system.client.wait(str(clean_up.id) if isinstance(clean_up.id, str) else clean_up.id, DEADLINE_S)
    assert ended is not None
    assert ended.state is State.DONE
    video = str(result["video"])
    sha256 = hashlib.sha256((request.target / video).read_bytes()).hexdigest()
    assert not expected_sha256 or sha256 == expected_sha256
    assert recording.beside() == [".zq-trash", video, video + ".zq.json"]
    assert [p.name for p in request.folder.iterdir()] == [".zq-segments.jsonl"]
    for segment in recording.inputs(video):
        assert state_of(segment, request.target / ".zq-trash" / request.student_id) == "same"
    return sha256


@pytest.mark.parametrize(
    "kills",
    [
        [("merging", "worker"), ("after the rename", "slot"), ("clearing away merged segments", "worker")],
        pytest.param(
            [("merging", "ffmpeg"), ("decoding", "ffmpeg")]
            + [(step, victim) for step in MERGE_STEPS + CLEAN_UP_STEPS for victim in ("slot", "worker")],
            marks=pytest.mark.long,
            id="every step",
        ),
    ],
)
def test_killed_anywhere_the_end_is_the_same_and_no_segment_is_lost(
    scene: Scene, kills: list[tuple[str, str]]
) -> None:
    sha256 = play(scene, "", "", "")
    for step, victim in kills:
        play(scene, step, victim, sha256)


def test_a_worker_that_is_killed_takes_its_ffmpeg_along(scene: Scene) -> None:
    recording = scene.lay_out()
    script = scene.system.folder / "ffmpeg"
    script.write_text(f"#!/bin/sh\necho $$ > {scene.system.folder}/pid\nexec /bin/sleep 60\n", "utf-8")
    job = scene.merge(recording)
    pid = scene.system.folder / "pid"
    wait_until(lambda: pid.exists() and pid.read_text().strip() != "")
    kill(scene.system.processes[-1])
    wait_gone([int(pid.read_text())], within_s=2.0)
    recording.assert_kept()
    assert job.state() is State.RUNNING
