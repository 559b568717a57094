"""Recordings in a bucket, on a server that speaks S3."""

from __future__ import annotations

import hashlib
import os
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ports import free_port
from tests.servers.fixtures import Bucket as S3
from zq.config import Config, ConfigError, ExamsSection, load
from zq.exams import bucket as bucket_module
from zq.exams import bucket_keys as keys
from zq.exams.bucket import ObjectChanged
from zq.exams.bucket_recordings import BucketRecordings
from zq.exams.errors import ExamError
from zq.exams.recording_place import open_recordings
from zq.exams.segments import MergeRefused, Segment, check_name

NAME = "00001-1795449373838.webm"
HOSTILE = ["-rf 'x\" %41=41 ;$(y)&.webm", "王小明 1?#.webm", "=.mp4"]


@pytest.fixture
def place(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BucketRecordings:
    found = open_recordings(s3_config(s3, tmp_path, monkeypatch))
    assert isinstance(found, BucketRecordings)
    return found


def s3_config(s3: S3, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_access_key)
    exams = ExamsSection(storage=f"s3://{s3.bucket}/some/where", storage_endpoint=s3.endpoint, storage_region=s3.region)
    return Config(data_dir=str(data_dir), exams=exams)


def put(place: BucketRecordings, content: bytes, name: str = NAME, seq: int | None = None, mtime_ms: int = 5) -> bool:
    """Store a segment and put it on record; whether it is new."""
    upload = place.open_segment("e1", "s1", name, size_bytes_max=100 << 20)
    upload.write(content)
    stored = upload.commit()
    segment = Segment(name, seq, None, stored.size_bytes, stored.sha256, mtime_ms)
    place.record("e1", "s1", segment, created=stored.created)
    return stored.created


def test_what_was_stored_is_listed_with_what_was_said(place: BucketRecordings, tmp_path: Path) -> None:
    assert not place.has_segments("e1", "s1")
    for number, name in enumerate([NAME, *HOSTILE]):
        assert put(place, name.encode(), name, number, 100 + number)
    listing = place.listing("e1", "s1")
    assert {(s.name, s.seq, s.size_bytes, s.sha256, s.mtime_ms) for s in listing.segments} == {
        (name, number, len(name.encode()), hashlib.sha256(name.encode()).hexdigest(), 100 + number)
        for number, name in enumerate([NAME, *HOSTILE])
    }
    assert sorted(listing.items) == sorted([NAME, *HOSTILE])
    assert listing.missing == ()
    assert place.has_segments("e1", "s1")
    assert not place.has_segments("e1", "s")  # not the beginning of a name
    assert sorted(place.segment_sizes("e1", "s1") or []) == sorted(len(n.encode()) for n in [NAME, *HOSTILE])
    assert not any(path.is_file() for path in tmp_path.rglob("*")), "nothing stays on the way"


def test_who_of_an_exam_has_segments_is_asked_once(place: BucketRecordings, monkeypatch: pytest.MonkeyPatch) -> None:
    put(place, b"one")
    place.bucket.put(keys.video("e1", "s2_x.webm"), b"a video is no segment")
    asked: list[str] = []
    real = place.bucket.folders

    def folders(prefix: str) -> set[str]:
        asked.append(prefix)
        return real(prefix)

    monkeypatch.setattr(place.bucket, "folders", folders)
    assert [place.had_segments("e1", f"s{n}") for n in range(50)] == [n == 1 for n in range(50)]
    assert asked == ["e1/recordings"]
    assert not place.had_segments("e2", "s1")
    monkeypatch.setattr("zq.exams.bucket_recordings.LATELY_S", -1.0)
    put(place, b"two", "2.webm")
    assert place.had_segments("e1", "s1")


def test_again_with_the_same_bytes_is_fine_with_others_a_conflict(place: BucketRecordings) -> None:
    assert put(place, b"one", mtime_ms=5)
    assert not put(place, b"one", mtime_ms=9)
    with pytest.raises(ExamError) as refused:
        put(place, b"two")
    assert refused.value.code == "conflict"
    assert place.record("e1", "s1", Segment(NAME, None, None, 3, _sha(b"one"), 9), created=False) == 5
    assert len(list(place.bucket.items(keys.records("e1", "s1")))) == 1


def test_a_large_segment_goes_in_parts(place: BucketRecordings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zq.exams.bucket_recordings.ALONE_BYTES_MAX", 100)
    content = os.urandom(bucket_module.PART_BYTES + 100)
    assert put(place, content)
    assert not put(place, content)
    item = place.listing("e1", "s1").items[NAME]
    assert b"".join(place.bucket.parts(item)) == content


def test_what_was_declared_must_be_true(place: BucketRecordings) -> None:
    for declared in ({"size_bytes": 4}, {"sha256": "0" * 64}):
        upload = place.open_segment("e1", "s1", NAME, size_bytes_max=10, **declared)
        upload.write(b"abc")
        with pytest.raises(ExamError, match="send it again"):
            upload.commit()
    assert place.listing("e1", "s1").segments == ()


def test_an_accepted_segment_that_is_gone_is_missed(place: BucketRecordings) -> None:
    put(place, b"one", seq=1)
    place.bucket.delete(keys.segment("e1", "s1", NAME))
    listing = place.listing("e1", "s1")
    assert [(s.name, s.seq) for s in listing.missing] == [(NAME, 1)]
    assert place.on_record("e1", "s1", NAME) == listing.missing[0]
    assert not place.has_segment("e1", "s1", NAME)


def test_what_others_put_there_is_taken_by_its_name(place: BucketRecordings) -> None:
    folder = keys.segments("e1", "s1")
    for name in ("3 x.webm", ".hidden.webm", "notes.txt", "deep/1.webm"):
        place.bucket.put(f"{folder}/{name}", b"x")
    (segment,) = place.listing("e1", "s1").segments
    assert (segment.name, segment.sha256) == ("3 x.webm", None)
    place.bucket.put(f"{folder}/3=20x.webm", b"x")
    with pytest.raises(MergeRefused, match="two objects"):
        place.listing("e1", "s1")
    place.bucket.delete(f"{folder}/3=20x.webm")
    place.bucket.put(f"{folder}/=00.webm", b"x")
    with pytest.raises(MergeRefused, match="NUL"):
        place.listing("e1", "s1")
    assert place.has_segments("e1", "s1"), "the merge says what is wrong"
    assert place.segment_sizes("e1", "s1") is None


def test_a_video_is_read_in_ranges(place: BucketRecordings) -> None:
    key = keys.video("e1", "s1_王小明_20260630_110000.webm")
    place.bucket.put(key, b"0123456789")
    with closing(place.open_video("e1", "s1_王小明_20260630_110000.webm")) as video:
        assert (video.size_bytes, video.read_at(3, 4), video.read_at(99, 8)) == (10, b"456", b"89")
        assert video.read_at(5, 10) == b""
        place.bucket.put(key, b"other")
        with pytest.raises(OSError, match="replaced"):
            video.read_at(3, 0)
    for name, code in (("none.webm", "not_found"), ("../x", "invalid")):
        with pytest.raises(ExamError) as refused:
            place.open_video("e1", name)
        assert refused.value.code == code


def test_an_object_that_was_replaced_is_not_read_on(place: BucketRecordings) -> None:
    place.bucket.put("x", b"one")
    item = place.bucket.head("x")
    assert item is not None
    place.bucket.put("x", b"two")
    with pytest.raises(ObjectChanged):
        list(place.bucket.parts(item))


def test_a_bucket_that_is_away_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_module, "_RETRIES", 0)
    away = s3_config(S3(f"http://127.0.0.1:{free_port()}", "nowhere"), tmp_path, monkeypatch)
    place = open_recordings(away)
    with pytest.raises(ExamError) as refused:
        place.on_record("e1", "s1", NAME)
    assert (refused.value.code, "s3://nowhere" in refused.value.detail, "\n" in refused.value.detail) == (
        "unavailable", True, False,
    )  # fmt: skip
    assert place.segment_sizes("e1", "s1") is None
    assert place.had_segments("e1", "s1")
    assert place.has_segments("e1", "s1"), "the merge is to say why"
    assert place.had_segments("e1", "s1")


def test_without_the_bucket_or_the_right_to_it(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = s3_config(s3._replace(bucket="not-made"), tmp_path, monkeypatch)
    with pytest.raises(ExamError) as refused:
        put(open_recordings(config), b"x")  # type: ignore[arg-type]
    assert refused.value.code == "unavailable"


@pytest.mark.parametrize("url", ["s3://", "s3://x", "s3://Capital/x", "gs://bucket", "s3://bucket?x=y", "file:///x"])
def test_what_is_no_bucket(url: str, tmp_path: Path) -> None:
    with pytest.raises(ExamError, match="s3://BUCKET"):
        open_recordings(Config(data_dir=str(tmp_path), exams=ExamsSection(storage=url)))


def test_a_storage_that_cannot_be_is_told_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "zq.toml").write_text('[exams]\nstorage = "gs://bucket"\n')
    with pytest.raises(ConfigError, match="s3://BUCKET"):
        load(tmp_path / "zq.toml", {})


def test_the_configuration_names_a_bucket_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "zq.toml").write_text('data_dir = "d"\n[exams]\nstorage = "s3://bucket/a/b"\n')
    config = load(tmp_path / "zq.toml", {})
    assert (config.bucket_url, config.storage_path) == ("s3://bucket/a/b", tmp_path / "d" / "exams")
    assert keys.parse_url(config.bucket_url) == keys.Place("bucket", "a/b")
    assert Config().bucket_url == ""


@given(st.text(min_size=1, max_size=80))
def test_every_name_comes_back_from_its_key(name: str) -> None:
    try:
        check_name(name)
    except ValueError:
        return
    part = keys.encoded(name)
    assert "/" not in part
    assert part.isprintable()
    assert keys.decoded(part) == name
    said = Segment(name, 7, None, 3, "a" * 64, 9)
    assert keys.read_record(keys.record("e1", "s1", said)) == said


@given(st.text())
def test_any_key_is_read(key: str) -> None:
    keys.read_record(key)
    keys.decoded(key)


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
