"""Merges of recordings in a bucket, on a server that speaks S3: with FFmpeg for real, killed at every step."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.exams.test_bucket import s3_config
from tests.servers.fixtures import Bucket as S3
from tests.workers.merge_recordings import CASES, FFMPEGS, MEDIA, Job, packets
from zq.exams import bucket_keys as keys
from zq.exams.bucket_recordings import BucketRecordings
from zq.exams.recording_place import open_recordings
from zq.exams.segments import MergeRefused, Segment
from zq.exceptions import Reject, Retry
from zq.workers.bucket_cleanup import clean_up_bucket, empty_bucket_trash, read_manifest
from zq.workers.bucket_merge import BucketMerge
from zq.workers.merge_files import SegmentChanged
from zq.workers.merge_run import MergeResult, MergeSettings
from zq.workers.merge_verify import OutputWrong

EXAM, STUDENT = "exam1", "s1"


@dataclasses.dataclass
class Remote:
    """A recording in a bucket, and a machine that has nothing else."""

    place: BucketRecordings
    scratch: Path

    def upload(self, case_id: str, first: int = 0, end: int | None = None) -> None:
        for entry in CASES[case_id]["files"][first:end]:
            self.put(entry["name"], (MEDIA / entry["stored"]).read_bytes(), entry["seq"], entry["ts_ms"])

    def put(self, name: str, content: bytes, seq: int | None = None, ts_ms: int | None = None) -> None:
        writer = self.place.open_segment(EXAM, STUDENT, name, size_bytes_max=1 << 30)
        writer.write(content)
        stored = writer.commit()
        said = Segment(name, seq, ts_ms, stored.size_bytes, stored.sha256, 5)
        self.place.record(EXAM, STUDENT, said, created=stored.created)

    def merge(self, job: Job | None = None) -> MergeResult:
        settings = MergeSettings(ffmpeg=FFMPEGS[0])
        return BucketMerge(job or Job(), self.place, self.scratch, EXAM, STUDENT, "王小明", settings).run()

    def clean_up(self, *, use_trash: bool = True) -> dict[str, Any]:
        return clean_up_bucket(self.place, EXAM, STUDENT, use_trash=use_trash).to_dict()

    def objects(self, prefix: str) -> dict[str, bytes]:
        bucket = self.place.bucket
        return {item.key.rpartition("/")[2]: b"".join(bucket.parts(item)) for item in bucket.items(prefix)}

    def segments(self) -> dict[str, bytes]:
        return self.objects(keys.segments(EXAM, STUDENT))

    def trash(self) -> dict[str, bytes]:
        return self.objects(keys.trash(EXAM, STUDENT))

    def videos(self) -> dict[str, bytes]:
        found = self.place.bucket.items(keys.recordings(EXAM))
        return {
            item.key.rpartition("/")[2]: b"".join(self.place.bucket.parts(item))
            for item in found
            if item.key.count("/") == 2
        }


@pytest.fixture
def remote(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    place = open_recordings(s3_config(s3, tmp_path / "data", monkeypatch))
    assert isinstance(place, BucketRecordings)
    return Remote(place, tmp_path / "scratch")


def check_video(remote: Remote, case_id: str, tmp_path: Path) -> None:
    ((name, content),) = remote.videos().items()
    path = tmp_path / name.rpartition("_")[2]
    path.write_bytes(content)
    assert packets(path)["video"] == CASES[case_id]["expect"]["frames"]


def test_a_recording_is_merged_and_cleared_away(remote: Remote, tmp_path: Path) -> None:
    remote.upload("restart-vp8-opus")
    before = remote.segments()
    job = Job()
    result = remote.merge(job)
    assert (result.strategy, result.segments, result.already) == ("concat", 5, False)
    check_video(remote, "restart-vp8-opus", tmp_path)
    assert remote.segments() == before
    assert job.percents == sorted(job.percents)
    assert job.percents[-1] == 100
    assert list(remote.scratch.iterdir()) == []
    manifest = read_manifest(remote.place.bucket, EXAM, STUDENT)
    assert manifest is not None
    assert hashlib.sha256(remote.videos()[keys.encoded(result.video)]).hexdigest() == manifest.output_sha256
    assert remote.merge().already
    assert remote.clean_up()["deleted"] == 5
    assert (remote.segments(), remote.trash()) == ({}, before)
    assert remote.clean_up()["gone"] == 5
    again = remote.merge()
    assert (again.already, again.video, again.segments) == (True, result.video, 5)


def test_a_late_segment_makes_the_whole_video_anew(remote: Remote, tmp_path: Path) -> None:
    remote.upload("restart-vp8-opus", end=4)
    first = remote.merge()
    remote.clean_up()
    remote.upload("restart-vp8-opus", first=4)
    second = remote.merge()
    assert (first.segments, second.segments, second.video) == (4, 5, first.video)
    check_video(remote, "restart-vp8-opus", tmp_path)
    assert remote.clean_up()["deleted"] == 5
    assert len(remote.trash()) == 5


def test_a_late_segment_after_the_trash_was_emptied_is_refused(remote: Remote) -> None:
    remote.upload("restart-vp8-opus", end=4)
    remote.merge()
    video = remote.videos()
    remote.clean_up()
    emptied = empty_bucket_trash(remote.place.bucket, EXAM, 3600, time.time())
    assert (emptied.deleted, emptied.kept) == (0, 4)
    assert 3500 < emptied.due_s <= 3600
    assert empty_bucket_trash(remote.place.bucket, EXAM, 3600, time.time() + 3700).deleted == 4
    remote.upload("restart-vp8-opus", first=4)
    with pytest.raises(MergeRefused, match="late_segment"):
        remote.merge()
    assert remote.videos() == video
    assert len(remote.segments()) == 1


def test_a_video_that_was_lost_is_made_again_from_the_trash(remote: Remote, tmp_path: Path) -> None:
    remote.upload("ts-vp8-opus")
    result = remote.merge()
    video = remote.videos()
    remote.clean_up()
    remote.place.bucket.delete(keys.video(EXAM, result.video))
    with pytest.raises(Reject, match="output_wrong"):
        remote.clean_up()
    assert not remote.merge().already
    assert remote.videos() == video


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda r, k: r.place.bucket.delete(k), "missing_segment"),
        (lambda r, k: r.place.bucket.put(k, b"other"), "changed_segment"),
        (lambda r, k: r.place.bucket.put(f"{keys.recordings(EXAM)}/x", b""), "output_exists"),
        (lambda r, k: r.put("9.webm", b"garbage", 9), "sequence_gap"),
    ],
    ids=["missing", "changed", "output", "gap"],
)
def test_what_is_refused_leaves_everything(
    remote: Remote, spoil: Callable[[Remote, str], None], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.upload("restart-vp8-opus")
    if reason == "output_exists":
        monkeypatch.setattr("zq.workers.merge_run.video_name", lambda *_: "x")
    spoil(remote, keys.segment(EXAM, STUDENT, CASES["restart-vp8-opus"]["files"][2]["name"]))
    before = remote.segments()
    with pytest.raises(MergeRefused) as refused:
        remote.merge()
    assert refused.value.reason == reason
    assert remote.segments() == before
    assert set(remote.videos()) <= {"x"}
    with pytest.raises(Reject, match="no_manifest"):
        remote.clean_up()


def test_nothing_was_uploaded(remote: Remote) -> None:
    with pytest.raises(MergeRefused, match="no_segments"):
        remote.merge()


class Died(BaseException):
    """As good as kill -9: nothing of the attempt runs on."""


STEPS = ("fetching segments", "reading segments", "merging", "verifying", "still_mine", "sending the video",
         "reading the video back", "done")  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_an_attempt_that_dies_at_any_step_costs_nothing(remote: Remote, tmp_path: Path, step: str) -> None:
    remote.upload("restart-vp8-opus")
    before = remote.segments()
    seen = []

    def at(name: str) -> None:
        seen.append(name)
        # The merge in the folder asks, too, and is done before the video is sent.
        if name == step and (step not in ("still_mine", "done") or seen.count(step) == 2):
            raise Died

    with pytest.raises(Died):
        remote.merge(Job(at=at))
    assert remote.segments() == before
    result = remote.merge(Job(attempt=2))
    assert result.already == (step in ("done", "reading the video back"))
    check_video(remote, "restart-vp8-opus", tmp_path)
    assert remote.clean_up()["deleted"] == 5


def test_what_comes_or_changes_during_the_merge_begins_it_anew(remote: Remote, tmp_path: Path) -> None:
    remote.upload("restart-vp8-opus", end=4)
    once: list[int] = []

    def come(name: str) -> None:
        if name == "verifying" and not once:
            once.append(1)
            remote.upload("restart-vp8-opus", first=4)

    with pytest.raises(Retry, match="late_segment"):
        remote.merge(Job(at=come))

    def change(name: str) -> None:
        if name == "verifying" and len(once) == 1:
            once.append(2)
            name = CASES["restart-vp8-opus"]["files"][0]["name"]
            remote.place.bucket.put(keys.segment(EXAM, STUDENT, name), b"other")

    with pytest.raises(SegmentChanged):
        remote.merge(Job(at=change))
    assert remote.videos() == {}


def test_a_video_that_does_not_come_back_as_it_was_sent_is_no_video(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.upload("restart-vp8-opus")
    bucket = remote.place.bucket
    real = type(bucket).put_parts

    def cut(self: Any, key: str, parts: Any, size_bytes: int) -> Any:
        return real(self, key, [bytes(size_bytes)], size_bytes)

    monkeypatch.setattr(type(bucket), "put_parts", cut)
    with pytest.raises(OutputWrong, match="come back"):
        remote.merge()
    with pytest.raises(Reject, match="output_wrong"):
        remote.clean_up()
    assert len(remote.segments()) == 5
    monkeypatch.undo()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "zq")
    assert not remote.merge().already


def test_only_the_very_objects_that_were_merged_are_cleared_away(remote: Remote) -> None:
    remote.upload("restart-vp8-opus")
    remote.merge()
    first = CASES["restart-vp8-opus"]["files"][0]["name"]
    remote.place.bucket.put(keys.segment(EXAM, STUDENT, first), b"other")
    found = remote.clean_up(use_trash=False)
    assert (found["deleted"], found["kept"]) == (4, 1)
    assert list(remote.segments().values()) == [b"other"]


def test_a_manifest_of_another_recording_proves_nothing(remote: Remote) -> None:
    remote.upload("restart-vp8-opus")
    remote.merge()
    bucket = remote.place.bucket
    marker = read_manifest(bucket, EXAM, STUDENT)
    assert marker is not None
    for content in (b"{}", b"\xff", msgspec.json.encode(msgspec.structs.replace(marker, student_id="s2"))):
        bucket.put(keys.manifest(EXAM, STUDENT), content)
        with pytest.raises(Reject, match="no_manifest"):
            remote.clean_up()
    with pytest.raises(MergeRefused, match="output_exists"):
        remote.merge()
