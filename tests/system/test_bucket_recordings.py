"""Recordings in a bucket through the whole system, merged by a worker that has bucket and broker, nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.servers.fixtures import Bucket as S3
from tests.system.test_recordings import EXAM, Whole, check_video, ended, fetch, finish, log_in, student_of, upload
from tests.waiting import wait_until
from tests.workers.merge_recordings import CASES, MEDIA
from zq.exams import bucket_keys as keys
from zq.exams.bucket import Bucket

SETTLES_S = 90.0
"""The status check asks about merges that are older than half a minute."""


@dataclass
class Parted(Whole):
    """The merge worker is on another machine: its own empty folder, and what its environment names."""

    s3: S3 | None = None
    there: Path = field(init=False)
    elsewhere: dict[str, str] = field(default_factory=dict)

    def start_all(self) -> None:
        assert self.s3 is not None
        self.there = self.folder.parent / "there"
        self.there.mkdir()
        bucket = {
            "ZQ_EXAMS_STORAGE": f"s3://{self.s3.bucket}/exams",
            "ZQ_EXAMS_STORAGE_ENDPOINT": self.s3.endpoint,
            "ZQ_EXAMS_STORAGE_REGION": self.s3.region,
            "AWS_ACCESS_KEY_ID": self.s3.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.s3.secret_access_key,
        }
        self.run("broker", ["zq.broker"])
        self.run("web", ["zq.web"], bucket)
        self.run("status", ["zq.workers", "--queue", "status_check"], bucket)
        self.elsewhere = {"ZQ_CLIENT_BROKER": self.address, "ZQ_DATA_DIR": str(self.there), "ZQ_CONFIG": "", **bucket}
        self.start_worker()

    def start_worker(self) -> None:
        self.run("merge", ["zq.workers", "--queue", "video_merge"], self.elsewhere, self.there)


@pytest.fixture
def parted(s3: S3, tmp_path: Path) -> Iterator[tuple[Parted, httpx.Client]]:
    folder = tmp_path / "here"
    folder.mkdir()
    system = Parted(folder, s3=s3)
    try:
        system.configure()
        system.start_all()
        client = system.client()
        now_ms = time.time_ns() // 1_000_000
        made = {"id": EXAM, "name": "期末考试", "start": now_ms - 3_600_000, "end": now_ms + 3_600_000}
        assert client.post("/v1/exams", json=made).status_code == 201
        yield system, client
    finally:
        system.stop()


@pytest.fixture
def bucket(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The same bucket, as this process sees it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_access_key)
    return Bucket(f"s3://{s3.bucket}/exams", s3.endpoint, s3.region)


@pytest.mark.long
def test_a_worker_elsewhere_needs_nothing_but_the_bucket(
    parted: tuple[Parted, httpx.Client], bucket: Bucket, tmp_path: Path
) -> None:
    system, client = parted
    for case_id in ("ts-vp8-opus", "hostile-names", "missing-sequence"):
        student = student_of(case_id)
        log_in(client, student)
        for index in CASES[case_id]["present"]:
            entry = CASES[case_id]["files"][index]
            content = (MEDIA / entry["stored"]).read_bytes()
            assert upload(client, student, entry["name"], content, entry["seq"], entry["ts_ms"]) == 201
            assert upload(client, student, entry["name"], content, entry["seq"], entry["ts_ms"]) in (200, 201)
        job = finish(client, student)
        if CASES[case_id]["expect"]["outcome"] == "refused":
            assert (job["state"], job["attempt"], job["error"].split(":")[0]) == ("dead", 1, "sequence_gap")
            assert len(list(bucket.items(keys.segments(EXAM, student)))) == len(CASES[case_id]["files"])
            continue
        assert job["state"] == "done", job

        def told(student: str = student) -> bool:
            check = client.post("/v1/jobs", json={"task": "zq.workers.status.check_exams", "queue": "status_check"})
            ended(client, check.json()["id"])
            recording = client.get(f"/v1/exams/{EXAM}/students/{student}").json()["recording"]
            return bool(recording["state"] == "done")

        wait_until(told, SETTLES_S, "the recording")
        answer = fetch(client, student, tmp_path / "fetched")
        assert answer.status_code == 200
        check_video(tmp_path / "fetched", CASES[case_id]["expect"])
        part = client.get(f"/v1/exams/{EXAM}/students/{student}/recording", headers={"Range": "bytes=100-199"})
        assert (part.status_code, part.content) == (206, answer.content[100:200])
        wait_until(lambda s=student: not list(bucket.items(keys.segments(EXAM, s))), what="the clean-up")  # type: ignore[misc]
        assert len(list(bucket.items(keys.trash(EXAM, student)))) == len(CASES[case_id]["files"])
    assert not (system.there / "exams.db").exists()
    left = [path for path in (system.there / "exams").rglob("*") if path.is_file()]
    assert left == []
    assert os.listdir(system.folder / "var" / "exams") == []


@pytest.mark.long
def test_a_worker_elsewhere_that_is_killed_leaves_the_bucket_as_it_was(
    parted: tuple[Parted, httpx.Client], bucket: Bucket
) -> None:
    system, client = parted
    files = CASES["resize-mid"]["files"]
    log_in(client, "killed")
    for entry in files:
        content = (MEDIA / entry["stored"]).read_bytes()
        assert upload(client, "killed", entry["name"], content, entry["seq"], entry["ts_ms"]) == 201
    job_id = client.post(f"/v1/exams/{EXAM}/students/killed/finish").json()["job"]
    wait_until(lambda: bool(list((system.there / "exams").glob(".zq-merge-*/recordings"))), what="a merge under way")
    worker = system.processes[-1]
    worker.kill()
    worker.wait(30)
    assert len(list(bucket.items(keys.segments(EXAM, "killed")))) == len(files)
    assert bucket.head(keys.manifest(EXAM, "killed")) is None
    system.start_worker()
    job = ended(client, job_id)
    assert (job["state"], job["attempt"]) == ("done", 2)
    assert job["result"]["segments"] == len(files)
    wait_until(lambda: len(list(bucket.items(keys.trash(EXAM, "killed")))) == len(files), what="the clean-up")
    assert list((system.there / "exams").glob(".zq-merge-*")) == [], "the dead attempt's folder was swept"
