"""The merge run again, killed, raced and followed by its clean-up: it ends the same and loses nothing."""

from __future__ import annotations

import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from tests.workers.merge_recordings import CASES, FFMPEGS, MEDIA, Job, Recording, lay_out, packets
from zq.exams.segments import MergeRefused
from zq.exceptions import LeaseLost, Reject, Retry
from zq.workers.merge_files import SegmentChanged
from zq.workers.merge_marker import find_marker, output_is_right
from zq.workers.merge_run import MergeResult, MergeSettings, run_merge
from zq.workers.merge_trash import Emptied, empty, state_of


def test_a_second_merge_has_nothing_to_do(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "reload-vp9-opus")
    first = recording.merge()
    job = Job(id="job2")
    second = recording.merge(job)
    assert second.already
    assert (second.video, second.frames, second.size_bytes) == (first.video, first.frames, first.size_bytes)
    assert not job.programs


@pytest.mark.parametrize("case_id", ["mp4-uniform", "restart-vp8-opus", "ts-vp9-mute"])
def test_the_same_segments_give_the_same_bytes(tmp_path: Path, case_id: str) -> None:
    made = []
    for name in ("a", "b"):
        recording = lay_out(tmp_path / name, case_id)
        made.append((recording.request.target / recording.merge().video).read_bytes())
    assert made[0] == made[1]


def killed_at(recording: Recording, step: str) -> bool:
    """Run a merge in a process that ends itself with SIGKILL at `step`; whether it came there."""

    def at(reached: str) -> None:
        if reached == step:
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        try:
            recording.merge(Job(at=at))
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1] == signal.SIGKILL


STEPS = ["reading segments", "joining chunks", "probing", "merging", "verifying", "decoding"]
STEPS += ["publishing", "still_mine", "renamed", "done"]


@pytest.mark.parametrize(
    ("case_id", "step"),
    # The one is decoded after it is copied, the other meanwhile.
    [*(("reload-vp9-opus", step) for step in STEPS), *(("restart-vp8-opus", s) for s in ("merging", "verifying"))],
)
def test_killed_at_any_step_and_run_again_it_ends_the_same(tmp_path: Path, case_id: str, step: str) -> None:
    recording = lay_out(tmp_path, case_id)
    assert killed_at(recording, step)
    recording.assert_kept()
    published = step in ("renamed", "done")
    assert any(n.endswith(".webm") and not n.startswith(".") for n in recording.beside()) == published
    job = Job(attempt=2)
    result = recording.merge(job)
    assert result.already == published
    assert bool(job.programs) != published
    assert packets(recording.request.target / result.video) == CASES[case_id]["expect"]["packets"]
    left = [n for n in recording.beside() if not n.endswith("1.part")]  # the slot's own, swept by its next publish()
    assert left == [result.video, result.video + ".zq.json"]
    recording.assert_kept()


def test_an_attempt_that_lost_its_lease_publishes_nothing(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "ts-vp9-mute")

    def at(step: str) -> None:
        if step == "still_mine":
            raise LeaseLost("given to another worker")

    with pytest.raises(LeaseLost):
        recording.merge(Job(at=at))
    assert recording.beside() == []
    recording.assert_kept()


def test_the_work_of_a_living_attempt_is_left_alone(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "ts-vp9-mute")

    def lost(step: str) -> None:
        if step == "still_mine":
            raise LeaseLost("given to another worker")

    def at(step: str) -> None:
        if step == "merging" and not met:
            met.append(step)
            with pytest.raises(LeaseLost):
                recording.merge(Job(attempt=2, at=lost))

    met: list[str] = []
    result = recording.merge(Job(at=at))
    assert met
    assert not result.already
    assert recording.beside() == [result.video, result.video + ".zq.json"]


def test_of_two_attempts_the_faster_one_counts(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "ts-vp9-mute")

    def at(step: str) -> None:
        if step == "merging" and not faster:
            faster.append(recording.merge(Job(attempt=2)))

    faster: list[MergeResult] = []
    slower = recording.merge(Job(at=at))
    assert slower.already
    assert (slower.size_bytes, slower.video) == (faster[0].size_bytes, faster[0].video)
    assert recording.clean_up()["deleted"] == len(recording.before)


def test_a_name_from_the_client_stays_one_name(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "ts-vp9-mute")
    name = "../../王\u202e/..\\x\n" + "长" * 100
    request = replace(recording.request, student_name=name)
    result = run_merge(Job(), request, MergeSettings(ffmpeg=FFMPEGS[0]))
    assert recording.beside() == [result.video, result.video + ".zq.json"]
    assert "王" in result.video
    assert result.video.isprintable()


def test_a_students_folder_that_is_a_link_is_not_read(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "ts-vp9-mute")
    recording.request.folder.rename(tmp_path / "elsewhere")
    recording.request.folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MergeRefused, match="bad_request"):
        recording.merge()


def test_a_segment_that_arrives_during_the_merge_makes_it_begin_again(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "restart-vp8-opus")
    late = recording.request.folder / "00004-1795449381851.webm"
    content = late.read_bytes()
    late.unlink()
    (recording.request.folder / ".zq-segments.jsonl").unlink()

    def at(step: str) -> None:
        if step == "verifying":
            late.write_bytes(content)

    with pytest.raises(Retry, match="late_segment"):
        recording.merge(Job(at=at))
    assert recording.beside() == []
    assert recording.merge(Job(attempt=2)).segments == 5


def test_a_segment_replaced_during_the_merge_makes_it_begin_again(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "restart-vp8-opus", recorded=False)
    victim = recording.request.folder / "00003-1795449379847.webm"

    def at(step: str) -> None:
        if step == "verifying":
            fresh = victim.with_suffix(".fresh")
            fresh.write_bytes(victim.read_bytes())
            os.replace(fresh, victim)

    with pytest.raises(SegmentChanged):
        recording.merge(Job(at=at))
    assert recording.beside() == []


def test_a_later_segment_makes_a_new_whole_video_under_the_same_name(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "restart-vp8-opus", recorded=False)
    late = recording.request.folder / "00004-1795449381851.webm"
    content = late.read_bytes()
    late.unlink()
    first = recording.merge()
    late.write_bytes(content)
    second = recording.merge(Job(id="job2"))
    assert (first.segments, second.segments, second.video) == (4, 5, first.video)
    assert recording.beside() == [second.video, second.video + ".zq.json"]


def test_a_file_of_another_origin_is_not_replaced(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "ts-vp9-mute")
    name = recording.merge().video
    (recording.request.target / (name + ".zq.json")).unlink()
    (recording.request.target / name).write_bytes(b"somebody's")
    with pytest.raises(MergeRefused, match="output_exists"):
        recording.merge(Job(id="job2"))
    assert (recording.request.target / name).read_bytes() == b"somebody's"


def test_an_empty_folder_is_not_a_success(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "ts-vp9-mute", recorded=False)
    shutil.rmtree(recording.request.folder)
    with pytest.raises(MergeRefused, match="no_segments"):
        recording.merge()
    shutil.rmtree(recording.request.target)
    with pytest.raises(Retry, match="storage_away"):
        recording.merge()


def test_clean_up_deletes_the_merged_segments_and_nothing_else(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "duplicate-identical")
    folder = recording.request.folder
    result = recording.merge()
    changed = folder / "00003-1795449380056.webm"
    changed.write_bytes(changed.read_bytes()[:-1] + b"?")
    (folder / "00007-1795449386000.webm").write_bytes(b"late")
    (folder / "notes.txt").write_bytes(b"a teacher's")
    done = recording.clean_up()
    assert (done["deleted"], done["gone"], done["kept"]) == (7, 0, 1)
    left = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    assert left == ["00003-1795449380056.webm", "00007-1795449386000.webm", "notes.txt"]
    again = recording.clean_up()
    assert (again["deleted"], again["gone"], again["kept"]) == (0, 7, 1)
    assert (recording.request.target / result.video).exists()


def test_clean_up_reads_a_segment_again_only_if_it_was_touched(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "restart-vp8-opus")
    target, folder = recording.request.target, recording.request.folder
    *_, just_written = sorted(p for p in folder.iterdir() if p.suffix == ".webm")
    for path in folder.iterdir():
        if path != just_written:
            os.utime(path, (time.time() - 60, time.time() - 60))
    recording.merge()
    marker = find_marker(target, recording.request.exam_id, recording.request.student_id)
    assert marker is not None
    untouched, touched, replaced, *_, last = marker.inputs
    assert (last.name, last.inode) == (just_written.name, 0)  # it might be written to once more in the same tick
    os.utime(folder / touched.name)
    (folder / "copy").write_bytes((folder / replaced.name).read_bytes()[:-1] + b"?")
    shutil.copystat(folder / replaced.name, folder / "copy")
    os.replace(folder / "copy", folder / replaced.name)
    other = "0" * 64
    assert state_of(msgspec.structs.replace(untouched, sha256=other), folder) == "same"  # its bytes were not asked for
    assert [state_of(segment, folder) for segment in (touched, replaced)] == ["same", "changed"]
    assert state_of(msgspec.structs.replace(touched, sha256=other), folder) == "changed"
    assert output_is_right(msgspec.structs.replace(marker, output_sha256=other), target, read_again=False)
    os.utime(target / marker.output)
    assert output_is_right(marker, target, read_again=False)
    assert not output_is_right(msgspec.structs.replace(marker, output_sha256=other), target, read_again=False)
    # Of a manifest that does not say which files they were everything is read.
    older = msgspec.structs.replace(untouched, inode=0, mtime_ns=0, sha256=other)
    assert state_of(older, folder) == "changed"


def test_before_segments_go_for_good_the_video_is_read_once_more(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "restart-vp8-opus")
    video = recording.request.target / recording.merge().video
    before = video.stat()
    with video.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(video, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(Reject, match="output_wrong"):
        recording.clean_up()
    recording.assert_kept()
    assert recording.clean_up(use_trash=True)["deleted"] == 5


def _late(recording: Recording, content: bytes) -> Path:
    late = recording.request.folder / "00005-1795449383851.webm"
    late.write_bytes(content)
    return late


LATE = (MEDIA / "restart-vp8-opus" / "00004.webm").read_bytes()


def test_what_was_cleaned_up_comes_back_for_a_late_segment(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "restart-vp8-opus")
    first = recording.merge()
    done = recording.clean_up(use_trash=True)
    assert (done["deleted"], done["freed_bytes"], done["trashed"]) == (5, 0, True)
    assert [p.name for p in recording.request.folder.iterdir()] == [".zq-segments.jsonl"]
    assert recording.merge(Job(id="job2")).already
    _late(recording, LATE)
    second = recording.merge(Job(id="job3"))
    assert (second.segments, second.frames, second.already) == (6, first.frames + 21, False)
    assert second.video == first.video
    assert [n for n in recording.beside() if n != ".zq-trash"] == [second.video, second.video + ".zq.json"]
    assert recording.clean_up(use_trash=True)["deleted"] == 6
    assert recording.merge(Job(id="job4")).already


def test_a_video_that_was_lost_is_made_again_while_its_segments_are_in_the_trash(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "restart-vp8-opus")
    video = recording.request.target / recording.merge().video
    content = video.read_bytes()
    recording.clean_up(use_trash=True)
    video.unlink()
    assert not recording.merge(Job(id="job2")).already
    assert video.read_bytes() == content


def test_killed_while_it_takes_back_from_the_trash(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "restart-vp8-opus")
    recording.merge()
    recording.clean_up(use_trash=True)
    trash = recording.request.target / ".zq-trash" / "s1"
    _late(recording, LATE)
    # Some were brought back when it ended.
    for name in sorted(p.name for p in trash.iterdir())[:2]:
        (trash / name).rename(recording.request.folder / name)
    assert recording.merge(Job(attempt=2)).segments == 6


def test_a_clean_up_that_was_killed_half_way_is_no_loss(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "restart-vp8-opus")
    first = recording.merge()
    for name in sorted(recording.before)[:2]:
        (recording.request.folder / name).unlink()
    again = recording.merge(Job(id="job2"))
    assert (again.already, again.video) == (True, first.video)
    assert recording.clean_up()["deleted"] == 3


def test_the_trash_is_emptied_after_its_time_and_not_before(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "restart-vp8-opus")
    video = recording.merge().video
    target = recording.request.target
    assert empty(target, 60, time.time()) == Emptied(0, 0, 0)
    recording.clean_up(use_trash=True)
    now_s = time.time()
    young = empty(target, 60, now_s)
    assert (young.deleted, young.kept) == (0, 5)
    assert 0 < young.due_s <= 60
    size_bytes = sum(len(content) for content in recording.before.values())
    assert empty(target, 60, now_s + 61) == Emptied(5, size_bytes, 0)
    assert recording.beside() == [video, video + ".zq.json"]
    _late(recording, LATE)
    with pytest.raises(MergeRefused, match="late_segment"):
        recording.merge(Job(id="job2"))


def test_a_trash_that_is_a_link_is_not_used(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "restart-vp8-opus")
    recording.merge()
    (tmp_path / "elsewhere").mkdir()
    (recording.request.target / ".zq-trash").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotADirectoryError):
        recording.clean_up(use_trash=True)
    recording.assert_kept()
    (tmp_path / "elsewhere" / "s1").mkdir()
    (tmp_path / "elsewhere" / "s1" / "x.webm").write_bytes(b"somebody's")
    assert empty(recording.request.target, 0, time.time() + 9) == Emptied(0, 0, 0)
    assert (tmp_path / "elsewhere" / "s1" / "x.webm").exists()


def test_after_the_clean_up_a_merge_is_done_before_and_takes_no_more(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "restart-vp8-opus")
    first = recording.merge()
    recording.clean_up()
    again = recording.merge(Job(id="job2"))
    assert again.already
    assert again.video == first.video
    late = recording.request.folder / "00005-1795449383851.webm"
    late.write_bytes((MEDIA / "restart-vp8-opus" / "00004.webm").read_bytes())
    with pytest.raises(MergeRefused, match=r"late_segment|sequence_gap"):
        recording.merge(Job(id="job3"))
    assert late.exists()


def test_clean_up_without_proof_deletes_nothing(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "ts-vp9-mute")
    with pytest.raises(Reject, match="no_manifest"):
        recording.clean_up()
    video = recording.request.target / recording.merge().video
    content = video.read_bytes()
    video.write_bytes(content[:-1] + b"?")
    with pytest.raises(Reject, match="output_wrong"):
        recording.clean_up()
    video.unlink()
    with pytest.raises(Reject, match="output_wrong"):
        recording.clean_up()
    recording.assert_kept()
