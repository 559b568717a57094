from __future__ import annotations

import errno
import hashlib
import os
import stat
from contextlib import closing
from pathlib import Path

import pytest

from zq.exams import times
from zq.exams.errors import ExamError
from zq.exams.recording_place import StoredSegment
from zq.exams.segment_index import list_segments
from zq.exams.segments import Segment
from zq.exams.storage import RecordingStorage, SegmentWriter, video_name

NAME = "s1_20260630_090000_seq_0001.mp4"
DATA = b"segment" * 1000


@pytest.fixture
def storage(tmp_path: Path) -> RecordingStorage:
    return RecordingStorage(tmp_path / "recordings-root")


def begin(
    storage: RecordingStorage,
    name: str = NAME,
    bound: int = 1 << 20,
    size: int | None = None,
    sha256: str | None = None,
) -> SegmentWriter:
    return storage.open_segment("e1", "s1", name, size_bytes_max=bound, size_bytes=size, sha256=sha256)


def store(storage: RecordingStorage, data: bytes = DATA, name: str = NAME) -> StoredSegment:
    with begin(storage, name) as writer:
        writer.write(data)
        return writer.commit()


def leftovers(storage: RecordingStorage) -> list[str]:
    return [name for name in os.listdir(storage.student_folder("e1", "s1")) if name.startswith(".upload")]


def test_a_segment_is_stored_whole_and_private(storage: RecordingStorage) -> None:
    digest = hashlib.sha256(DATA).hexdigest()
    with begin(storage, size=len(DATA), sha256=digest.upper()) as writer:
        for start in range(0, len(DATA), 999):
            writer.write(memoryview(DATA)[start : start + 999])
        assert not (storage.student_folder("e1", "s1") / NAME).exists()
        stored = writer.commit()
    path = storage.root / "e1" / "recordings" / "s1" / NAME
    assert stored == StoredSegment(NAME, len(DATA), digest, True)
    assert path.read_bytes() == DATA
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_nlink == 1
    assert leftovers(storage) == []


def test_the_merge_reads_what_was_stored(storage: RecordingStorage) -> None:
    for name in (NAME, "录像-2.WEBM", "x.avi", "y.mov", "z.mkv"):
        stored = store(storage, name=name)
        segment = Segment(name, size_bytes=stored.size_bytes, sha256=stored.sha256)
        storage.record("e1", "s1", segment, created=stored.created)
    assert len(list_segments(storage.student_folder("e1", "s1"))) == 5


def test_again_with_the_same_bytes_is_fine_with_others_a_conflict(storage: RecordingStorage) -> None:
    store(storage)
    assert store(storage).created is False
    with pytest.raises(ExamError) as refused:
        store(storage, b"other")
    assert refused.value.code == "conflict"
    assert (storage.student_folder("e1", "s1") / NAME).read_bytes() == DATA
    assert leftovers(storage) == []


def test_two_uploads_of_one_name_at_once(storage: RecordingStorage) -> None:
    first, second = begin(storage), begin(storage)
    first.write(b"one")
    second.write(b"two")
    assert second.commit().created
    with pytest.raises(ExamError) as refused:
        first.commit()
    assert refused.value.code == "conflict"
    assert leftovers(storage) == []


def test_without_hard_links(storage: RecordingStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert store(storage).created
    assert not store(storage).created
    with pytest.raises(ExamError):
        store(storage, b"other")
    assert leftovers(storage) == []


def test_what_was_declared_must_be_true(storage: RecordingStorage) -> None:
    def send(data: bytes, size: int | None, sha256: str | None) -> None:
        with begin(storage, size=size, sha256=sha256) as writer:
            writer.write(data)
            writer.commit()

    for data, size, sha256 in [(DATA, len(DATA) + 1, None), (DATA, 3, None), (DATA, None, "0" * 64), (b"", None, None)]:
        with pytest.raises(ExamError) as refused:
            send(data, size, sha256)
        assert refused.value.code == "invalid"
    assert os.listdir(storage.student_folder("e1", "s1")) == []
    for size, sha256 in ((None, "xyz"), (-1, None)):
        with pytest.raises(ExamError, match="declared"):
            begin(storage, size=size, sha256=sha256)


def test_the_bound_is_exact(storage: RecordingStorage) -> None:
    with begin(storage, bound=10) as writer:
        writer.write(b"x" * 10)
        with pytest.raises(ExamError) as refused:
            writer.write(b"x")
        assert refused.value.code == "too_large"
    with pytest.raises(ExamError) as refused:
        begin(storage, bound=10, size=11)
    assert refused.value.code == "too_large"
    assert os.listdir(storage.student_folder("e1", "s1")) == []


def test_a_broken_upload_leaves_nothing(storage: RecordingStorage) -> None:
    def break_off(writer: SegmentWriter) -> None:
        with writer:
            writer.write(DATA)
            raise ConnectionError

    with pytest.raises(ConnectionError):
        break_off(begin(storage))
    assert os.listdir(storage.student_folder("e1", "s1")) == []


def test_no_descriptor_is_left_open(storage: RecordingStorage) -> None:
    store(storage)
    before = len(os.listdir("/proc/self/fd"))
    for data in (DATA, b"other"):
        with pytest.raises(ExamError) if data != DATA else begin(storage, "n.mp4"):
            store(storage, data)
    storage.has_segments("e1", "s1")
    storage.sweep_uploads("e1", "s1")
    with pytest.raises(ExamError):
        storage.open_video("e1", "none.mp4")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_full_disk_is_unavailable(storage: RecordingStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int, _data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with begin(storage) as writer:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(ExamError, match="disk is full") as refused:
            writer.write(DATA)
    assert refused.value.code == "unavailable"
    assert leftovers(storage) == []


@pytest.mark.parametrize("at", ["e1", "e1/recordings", "e1/recordings/s1"])
def test_links_in_the_tree_lead_nowhere(storage: RecordingStorage, tmp_path: Path, at: str) -> None:
    outside = tmp_path / "outside"
    (outside / "recordings" / "s1").mkdir(parents=True)
    link = storage.root / at
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    with pytest.raises(ExamError) as refused:
        store(storage)
    assert refused.value.code == "unavailable"
    assert not [path for path in outside.rglob("*") if path.is_file()]


def test_a_link_in_the_place_of_a_segment(storage: RecordingStorage, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(DATA)
    store(storage, name="other.mp4")
    (storage.student_folder("e1", "s1") / NAME).symlink_to(secret)
    with pytest.raises(ExamError) as refused:
        store(storage)
    assert refused.value.code == "conflict"
    assert secret.read_bytes() == DATA


@pytest.mark.parametrize(
    ("exam", "student", "name"),
    [("..", "s1", NAME), ("e1", "../e2", NAME), ("e1", "s1", "../x.mp4"), ("e1", "s1", "x.sh")],
)
def test_bad_names_touch_nothing(storage: RecordingStorage, exam: str, student: str, name: str) -> None:
    with pytest.raises(ExamError):
        storage.open_segment(exam, student, name, size_bytes_max=10)
    assert not storage.root.exists()


def test_has_segments(storage: RecordingStorage) -> None:
    assert not storage.has_segments("e1", "s1")
    with begin(storage) as writer:
        writer.write(DATA)
        assert not storage.has_segments("e1", "s1")
        writer.commit()
    assert storage.has_segments("e1", "s1")


def test_a_folder_that_cannot_be_read_is_not_passed_over(storage: RecordingStorage, tmp_path: Path) -> None:
    folder = storage.student_folder("e1", "s1")
    folder.parent.mkdir(parents=True)
    folder.symlink_to(tmp_path)
    assert storage.has_segments("e1", "s1")


def test_sweep_removes_only_abandoned_uploads(storage: RecordingStorage) -> None:
    store(storage)
    folder = storage.student_folder("e1", "s1")
    old, young = folder / f".upload-{'0' * 16}.part", folder / f".upload-{'1' * 16}.part"
    foreign = folder / ".upload-x.part"
    for path in (old, young, foreign):
        path.write_bytes(b"x")
    for path in (old, foreign):
        os.utime(path, (0, 0))
    assert storage.sweep_uploads("e1", "s1") == 1
    assert sorted(os.listdir(folder)) == sorted([NAME, young.name, foreign.name])
    assert storage.sweep_uploads("e1", "nobody") == 0


def test_videos(storage: RecordingStorage, tmp_path: Path) -> None:
    store(storage)
    folder = storage.exam_folder("e1")
    (folder / "s1_王小明_x.mp4").write_bytes(b"film")
    with closing(storage.open_video("e1", "s1_王小明_x.mp4")) as video:
        assert (video.size_bytes, video.read_at(10, 0), video.read_at(2, 1)) == (4, b"film", b"il")
    (folder / "link.mp4").symlink_to(tmp_path)
    os.mkfifo(folder / "fifo.mp4")
    for name, code in [
        ("none.mp4", "not_found"),
        ("link.mp4", "not_found"),
        ("fifo.mp4", "not_found"),
        ("s1", "not_found"),
        ("../x.mp4", "invalid"),
        ("s1/" + NAME, "invalid"),
    ]:
        with pytest.raises(ExamError) as refused:
            storage.open_video("e1", name)
        assert refused.value.code == code, name
    with pytest.raises(ExamError) as refused:
        storage.open_video("e2", "x.mp4")
    assert refused.value.code == "not_found"


def test_fault_13_the_name_of_a_student_cannot_leave_the_folder() -> None:
    zone = times.zone("Asia/Shanghai")
    at_ms = times.to_ms("2026-06-30 11:00:00", zone)
    assert video_name("s1", "王小明", at_ms, zone, ".mp4") == "s1_王小明_20260630_110000.mp4"
    assert video_name("s1", "../../etc/x y", at_ms, zone, ".webm") == "s1_.._.._etc_x_y_20260630_110000.webm"
    assert len(video_name("s" * 20, "王" * 100, at_ms, zone, ".mp4").encode()) <= 200
