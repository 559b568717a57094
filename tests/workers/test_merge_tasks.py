"""The tasks' entry: arguments are not trusted, refusals become Reject, a full disk becomes Retry."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zq.context import set_current_job
from zq.exceptions import Reject, Retry
from zq.workers import merge
from zq.workers.merge_marker import MarkerBroken, read_marker


class Idle:
    """A job that needs nothing of the worker."""

    id = "job1"
    attempt = 1

    def progress(self, done: float, total: float, message: str = "") -> None:
        pass


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZQ_DATA_DIR", str(tmp_path / "data"))
    folder = tmp_path / "data" / "exams" / "exam1" / "recordings" / "s1"
    folder.mkdir(parents=True)
    set_current_job(Idle())  # type: ignore[arg-type]
    yield tmp_path / "data" / "exams"
    set_current_job(None)


@pytest.mark.parametrize(
    ("exam_id", "student_id"),
    [("../x", "s1"), ("e1", ".."), ("e1", "a/b"), ("e1", ""), ("", "s1"), ("e1", "s1\n"), ("e1", "s" * 99)],
)
def test_ids_that_could_be_paths_are_rejected(storage: Path, exam_id: str, student_id: str) -> None:
    for task in (merge.merge_recording, merge.clean_up_recording):
        with pytest.raises(Reject, match=r"^bad_request: "):
            task(exam_id, student_id)


@pytest.mark.parametrize("folder", ["/etc", "../..", ".", "exam1", "link", "\0"])
def test_a_folder_outside_the_storage_is_rejected(storage: Path, folder: str) -> None:
    (storage / "link").symlink_to("/etc")
    with pytest.raises(Reject, match=r"^bad_request: "):
        merge.merge_recording("exam1", "s1", folder=folder)


@pytest.mark.parametrize("folder", ["", "exam1/recordings/s1"])
def test_refusals_are_not_retried(storage: Path, folder: str) -> None:
    with pytest.raises(Reject, match=r"^no_segments: "):
        merge.merge_recording("exam1", "s1", "王小明", folder)
    with pytest.raises(Reject, match=r"^no_manifest: "):
        merge.clean_up_recording("exam1", "s1", folder)
    with pytest.raises(Retry, match=r"^storage_away: "):
        merge.merge_recording("exam2", "s1")


def test_the_trash_is_emptied_when_all_of_it_is_old(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trash = storage / "exam1" / "recordings" / ".zq-trash" / "s1"
    trash.mkdir(parents=True)
    (trash / "a.webm").write_bytes(b"x")
    with pytest.raises(Retry, match="1 segments stay") as later:
        merge.empty_trash("exam1")
    assert later.value.after_s is not None
    assert later.value.after_s > 86_000
    monkeypatch.setenv("ZQ_MERGE_TRASH_KEEP_S", "0")
    assert merge.empty_trash("exam1")["deleted"] == 1
    assert not trash.parent.exists()
    with pytest.raises(Reject, match="bad_request"):
        merge.empty_trash("../exam1")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_waited_for(storage: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fails(*args: Any) -> None:
        raise OSError(number, "the disk")

    monkeypatch.setattr(merge, "run_merge", fails)
    with pytest.raises(OSError if number == errno.EIO else Retry, match="the disk"):
        merge.merge_recording("exam1", "s1")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"v":1,"output":"../x"}', b"null"])
def test_a_manifest_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.zq.json").write_bytes(content)
    with pytest.raises(MarkerBroken):
        read_marker(tmp_path / "m.zq.json")
