"""The merge and the clean-up on real recordings: every case of tests/media/manifest.json, hostile ones included."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from zq.context import ProcessLimits, ProcessResult
from zq.exams.segment_index import record_segment
from zq.exams.segments import MergeRefused, Segment
from zq.exceptions import LeaseLost, Reject, Retry
from zq.workers.cleanup import clean_up
from zq.workers.ffmpeg import find_ffmpeg
from zq.workers.merge_files import SegmentChanged
from zq.workers.merge_run import MergeRequest, MergeResult, MergeSettings, run_merge

MEDIA = Path(__file__).parents[1] / "media"
CASES: dict[str, dict[str, Any]] = {c["id"]: c for c in json.loads((MEDIA / "manifest.json").read_text())["cases"]}
# Merged by re-encoding, which is not there yet: refused, with every segment kept.
REENCODED = {name for name, case in CASES.items() if case["expect"].get("reference") == "reencode"}
MERGED = sorted(n for n, c in CASES.items() if c["expect"]["outcome"] == "merged" and n not in REENCODED)
REFUSED = sorted(n for n, c in CASES.items() if c["expect"]["outcome"] == "refused")
FFMPEGS = sorted({find_ffmpeg(environ={"PATH": os.environ["PATH"]}), find_ffmpeg(environ={"PATH": ""})})


@dataclass
class Job:
    """A JobContext that runs programs for real; `at` is called at every step, with its name."""

    id: str = "job1"
    attempt: int = 1
    task: str = "merge"
    queue: str = "video_merge"
    at: Callable[[str], None] = lambda step: None
    programs: list[list[str]] = field(default_factory=list)
    percents: list[float] = field(default_factory=list)

    def progress(self, done: float, total: float, message: str = "") -> None:
        self.percents.append(100 * done / total)
        self.at(message)

    def check_soft_limit(self) -> None:
        self.at("check_soft_limit")

    def still_mine(self) -> None:
        self.at("still_mine")

    def run_process(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        limits: ProcessLimits | None = None,
        on_stdout_line: Callable[[str], None] | None = None,
        feed_stdin: Sequence[Path] = (),
    ) -> ProcessResult:
        assert limits is not None
        assert not feed_stdin
        bounds = {
            resource.RLIMIT_AS: limits.memory_bytes,
            resource.RLIMIT_CPU: limits.cpu_s,
            resource.RLIMIT_FSIZE: limits.file_size_bytes,
            resource.RLIMIT_NOFILE: limits.open_files,
        }

        def enter() -> None:
            for kind, value in bounds.items():
                if value:
                    resource.setrlimit(kind, (value, value))

        self.programs.append(list(argv))
        ended = subprocess.run(
            list(argv), cwd=cwd, env=env, preexec_fn=enter, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        for line in ended.stdout.decode("utf-8", "replace").splitlines():
            if on_stdout_line is not None:
                on_stdout_line(line)
        return ProcessResult(ended.returncode, ended.stderr.decode("utf-8", "replace")[-8192:])

    @contextlib.contextmanager
    def publish(self, path: Path) -> Iterator[Path]:
        part = path.with_name(f".zq-{self.id}-{self.attempt}.part")
        try:
            yield part
            self.still_mine()
            os.replace(part, path)
            self.at("renamed")
        finally:
            part.unlink(missing_ok=True)


@dataclass(frozen=True)
class Recording:
    """A case laid out on disk as an upload leaves it."""

    request: MergeRequest
    before: dict[str, bytes]

    def merge(self, job: Job | None = None, ffmpeg: str = FFMPEGS[0]) -> MergeResult:
        return run_merge(job or Job(), self.request, MergeSettings(ffmpeg=ffmpeg))

    def assert_kept(self) -> None:
        folder = self.request.folder
        assert {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")} == self.before

    def beside(self) -> list[str]:
        """What lies beside the segments' folder."""
        return sorted(p.name for p in self.request.target.iterdir() if p != self.request.folder)

    def clean_up(self) -> dict[str, Any]:
        return clean_up(self.request.target, self.request.exam_id, self.request.student_id).to_dict()


def lay_out(root: Path, case_id: str, *, recorded: bool = True) -> Recording:
    """Put a case's segments where uploads put them; `recorded`: with what the uploader declared."""
    case = CASES[case_id]
    target = root / "exam1" / "recordings"
    folder = target / "s1"
    folder.mkdir(parents=True)
    for index in case["present"]:
        entry = case["files"][index]
        path = folder / entry["name"]
        if entry.get("generate") == "hls-local":
            path.write_text(_playlist(root))
        else:
            shutil.copyfile(MEDIA / entry["stored"], path)
        content = path.read_bytes()
        mtime_ms = entry.get("mtime_ms", 0)
        if mtime_ms:
            os.utime(path, ns=(mtime_ms * 1_000_000, mtime_ms * 1_000_000))
        if recorded:
            sha256 = entry.get("declared_sha256", hashlib.sha256(content).hexdigest())
            size_bytes = entry.get("declared_bytes", len(content))
            record_segment(
                folder, Segment(entry["name"], entry["seq"], entry["ts_ms"], size_bytes, sha256, mtime_ms=mtime_ms)
            )
    before = {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}
    return Recording(MergeRequest("exam1", "s1", "王小明", folder, target), before)


def _playlist(root: Path) -> str:
    canary = root / "canary.ts"
    source = MEDIA / "mp4-uniform" / "00000.mp4"
    argv = [FFMPEGS[0], "-v", "error", "-i", str(source), "-c", "copy", "-f", "mpegts", str(canary)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{canary}\n#EXT-X-ENDLIST\n"


def ticks(path: Path) -> list[tuple[float, int]]:
    """(time stamp, counter) of every picture; a counter that fails its parity is an error."""
    argv = [FFMPEGS[0], "-v", "error", "-i", str(path), "-vf", "scale=480:270:flags=area,format=gray"]
    argv += ["-fps_mode", "passthrough", "-f", "rawvideo", "-"]
    raw = subprocess.run(argv, check=True, capture_output=True, stdin=subprocess.DEVNULL).stdout
    times_s = _times(path)
    frame_bytes = 480 * 270
    assert len(raw) == frame_bytes * len(times_s)
    return [(t, _counter(raw[i * frame_bytes :][:frame_bytes])) for i, t in enumerate(times_s)]


def _times(path: Path) -> list[float]:
    argv = [FFMPEGS[0], "-v", "info", "-nostats", "-i", str(path), "-map", "0:v", "-vf", "showinfo"]
    argv += ["-fps_mode", "passthrough", "-f", "null", "-"]
    said = subprocess.run(argv, check=True, capture_output=True, stdin=subprocess.DEVNULL).stderr.decode()
    return [float(line.split("pts_time:")[1].split()[0]) for line in said.splitlines() if "pts_time:" in line]


def _counter(frame: bytes) -> int:
    cells = []
    for cell in range(24):
        pixels = [frame[row * 480 + cell * 20 + column] for row in range(12, 34, 3) for column in range(6, 15, 2)]
        cells.append(sum(pixels) / len(pixels) > 150)
    bits = cells[2:22]
    assert (cells[0], cells[1], cells[23]) == (True, False, True)
    assert cells[22] == (sum(bits) % 2 == 1)
    return int("".join("1" if b else "0" for b in bits), 2)


def packets(path: Path) -> dict[str, int]:
    import av

    with av.open(str(path)) as media:
        found: dict[str, int] = dict.fromkeys((s.type for s in media.streams), 0)
        for packet in media.demux():
            found[packet.stream.type] += bool(packet.size)
    return found


@pytest.mark.parametrize("ffmpeg", FFMPEGS, ids=lambda p: Path(p).name)
@pytest.mark.parametrize("case_id", MERGED)
def test_case_merges_whole_and_in_order(tmp_path: Path, case_id: str, ffmpeg: str) -> None:
    expect = CASES[case_id]["expect"]
    recording = lay_out(tmp_path, case_id)
    job = Job()
    result = recording.merge(job, ffmpeg)
    recording.assert_kept()
    assert recording.beside() == [result.video, result.video + ".zq.json"]
    video = recording.request.target / result.video
    assert abs(result.duration_s - expect["duration_s"]) <= expect["tolerance_s"]
    assert (result.frames, result.runs, result.segments) == (expect["frames"], expect["runs"], len(recording.before))
    assert packets(video) == expect["packets"]
    shown = ticks(video)
    counters = [tick for _, tick in shown]
    assert counters == sorted(counters)
    assert (counters[0], counters[-1]) == (expect["first_tick"], expect["last_tick"])
    assert len(set(counters)) == expect["distinct_ticks"]
    assert max(b - a for a, b in pairwise(counters)) <= expect["max_tick_step"]
    # The film keeps the recording's own time: the two do not drift apart.
    drift = [t - 0.02 * tick for t, tick in shown]
    assert max(drift) - min(drift) < 0.25
    assert job.percents == sorted(job.percents)
    assert job.percents[-1] == 100
    assert result.video.startswith("s1_王小明_")


@pytest.mark.parametrize("case_id", ["ts-vp8-opus", "restart-vp8-opus", "natural-sort", "timestamp-only"])
def test_segments_without_a_record_are_taken_by_name(tmp_path: Path, case_id: str) -> None:
    recording = lay_out(tmp_path, case_id, recorded=False)
    assert recording.merge().frames == CASES[case_id]["expect"]["frames"]


@pytest.mark.parametrize("case_id", REFUSED)
def test_case_is_refused_and_every_segment_kept(tmp_path: Path, case_id: str) -> None:
    expect = CASES[case_id]["expect"]
    recording = lay_out(tmp_path, case_id)
    job = Job()
    with pytest.raises(MergeRefused) as refused:
        recording.merge(job)
    assert refused.value.reason in {expect["reason"], expect.get("also_ok_reason")}
    assert str(refused.value).startswith(refused.value.reason)
    for missing in expect.get("missing", []):
        assert str(missing) in refused.value.detail
    recording.assert_kept()
    assert recording.beside() == []
    if case_id == "playlist-hls-local":
        assert refused.value.segment == "00003-1795449379847.webm"
        assert (tmp_path / "canary.ts").stat().st_size > 0
        assert not job.programs  # no program of ours ever saw the playlist


@pytest.mark.parametrize(("case_id", "what"), [("resize-mid", "picture size"), ("audio-missing", "streams")])
def test_a_mix_is_refused_with_the_difference_named(tmp_path: Path, case_id: str, what: str) -> None:
    recording = lay_out(tmp_path, case_id)
    with pytest.raises(MergeRefused, match="unsupported_mix") as refused:
        recording.merge()
    assert what in refused.value.detail
    assert refused.value.segment == "00002-1763800004000.mp4"
    recording.assert_kept()
    assert recording.beside() == []


def test_every_case_is_tested() -> None:
    assert sorted(REENCODED) == ["audio-missing", "resize-mid"]
    assert set(MERGED) | set(REFUSED) | REENCODED == set(CASES)


def test_a_byte_changed_after_the_upload_is_found(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "restart-vp8-opus")
    victim = recording.request.folder / "00002-1795449377844.webm"
    content = bytearray(victim.read_bytes())
    content[7000] ^= 1
    victim.write_bytes(content)
    with pytest.raises(MergeRefused, match="changed_segment"):
        recording.merge()


def test_links_are_not_followed(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "restart-vp8-opus", recorded=False)
    victim = recording.request.folder / "00002-1795449377844.webm"
    victim.rename(tmp_path / "elsewhere.webm")
    victim.symlink_to(tmp_path / "elsewhere.webm")
    with pytest.raises(MergeRefused, match="bad_segment"):
        recording.merge()
    assert (tmp_path / "elsewhere.webm").exists()


def test_an_accepted_segment_that_is_gone_is_missed(tmp_path: Path) -> None:
    recording = lay_out(tmp_path, "restart-vp8-opus")
    (recording.request.folder / "00004-1795449381851.webm").unlink()
    with pytest.raises(MergeRefused, match="missing_segment"):
        recording.merge()


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


def _killed_at(recording: Recording, step: str) -> bool:
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


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_and_run_again_it_ends_the_same(tmp_path: Path, step: str) -> None:
    recording = lay_out(tmp_path, "reload-vp9-opus")
    assert _killed_at(recording, step)
    recording.assert_kept()
    published = step in ("renamed", "done")
    assert any(n.endswith(".webm") and not n.startswith(".") for n in recording.beside()) == published
    job = Job(attempt=2)
    result = recording.merge(job)
    assert result.already == published
    assert bool(job.programs) != published
    assert packets(recording.request.target / result.video) == CASES["reload-vp9-opus"]["expect"]["packets"]
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
