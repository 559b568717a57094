"""What went wrong in the exam system before zq, by its number in the list of nineteen: merges and processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import wait_gone, wait_until
from tests.workers.merge_recordings import CASES, FFMPEGS, MEDIA, Job, lay_out, made, packets, put
from tests.workers.test_merge_again import killed_at
from tests.workers.worker_system import DEADLINE_S, System, kill
from zq.protocol.job import Outcome, State


def test_fault_02_a_late_segment_is_kept_and_makes_a_new_whole_video(tmp_path: Path) -> None:
    """The folder was removed with files that had arrived after the listing; the next upload made a second video."""
    recording = lay_out(tmp_path, "restart-vp8-opus", recorded=False)
    late = recording.request.folder / "00004-1795449381851.webm"
    content = late.read_bytes()
    late.unlink()
    first = recording.merge()
    late.write_bytes(content)
    second = recording.merge(Job(id="job2"))
    assert (first.segments, second.segments, second.video) == (4, 5, first.video)
    (recording.request.folder / "00009-1795449399999.webm").write_bytes(b"later still")
    recording.clean_up()
    left = [path.name for path in recording.request.folder.iterdir() if not path.name.startswith(".")]
    assert left == ["00009-1795449399999.webm"], "exactly those that are in the film are gone"


@pytest.mark.parametrize("suffix", [".mov", ".mkv", ".avi", ".webm", ".mp4"])
def test_fault_03_what_is_accepted_at_upload_is_merged(tmp_path: Path, suffix: str) -> None:
    """`.mov` and `.mkv` were accepted, ignored by the merge, then deleted with the folder."""
    sources = [MEDIA / "mp4-uniform" / f"0000{n}.mp4" for n in range(2)]
    options = {
        ".webm": ("-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-an"),
        ".avi": ("-c:v", "mpeg4", "-an"),
    }
    chunks = [
        made(source, tmp_path / f"{n}{suffix}", *options.get(suffix, ("-c", "copy")))
        for n, source in enumerate(sources)
    ]
    recording = put(tmp_path, suffix, chunks)
    result = recording.merge()
    frames = [packets(tmp_path / f"{n}{suffix}")["video"] for n in range(2)]
    assert (result.segments, result.frames) == (2, sum(frames))
    assert recording.clean_up()["deleted"] == 2


@pytest.mark.parametrize("step", ["merging", "verifying", "publishing"])
def test_fault_06_a_crash_leaves_nothing_that_looks_like_a_video(tmp_path: Path, step: str) -> None:
    recording = lay_out(tmp_path, "reload-vp9-opus")
    assert killed_at(recording, step)
    assert [name for name in recording.beside() if not name.startswith(".")] == []
    recording.assert_kept()


def test_fault_09_no_folder_and_no_segments_are_no_success(system: System) -> None:
    """A task that returned {"status": "error"} counted as a success, and so did a folder that was not there."""
    system.broker()
    (system.config.storage_path / "e1" / "recordings").mkdir(parents=True)
    system.start("zq.workers", "--queue", "video_merge", "--name", system.host)
    who = {"exam_id": "e1", "student_id": "s1", "student_name": "王小明"}
    job = system.client.submit("zq.workers.merge.merge_recording", kwargs=who, queue="video_merge")
    ended = system.client.wait(job.id, DEADLINE_S)
    assert ended is not None
    assert (ended.state, "no_segments" in ended.error) == (State.DEAD, True)
    assert len(system.detail(job).attempts) == 1, "no retry makes it better"


def test_fault_10_ffmpeg_ends_with_its_job_which_counts_and_runs_again(running: System) -> None:
    """The hard kill orphaned FFmpeg and nothing was retried; what the OOM killer ended was acknowledged."""
    hung = running.submit("leave_a_child", str(running.folder), max_retries=1, soft_time_limit_s=1, time_limit_s=1)
    ended = running.client.wait(hung.id, DEADLINE_S)
    assert ended is not None
    first, second = running.detail(hung).attempts
    assert (first.outcome, "hard limit" in first.error, second.outcome) == (Outcome.FAILED, True, Outcome.DONE)
    wait_gone(running.left_pids(), within_s=1.0)
    killed = running.submit("die", max_retries=1)
    ended = running.client.wait(killed.id, DEADLINE_S)
    assert ended is not None
    assert (ended.state, "SIGKILL" in ended.error) == (State.DEAD, True)
    assert len(running.detail(killed).attempts) == 2


def test_fault_10_a_worker_that_was_killed_does_not_hold_its_job_for_an_hour(system: System) -> None:
    system.broker()
    worker = system.worker()
    job = system.submit("leave_a_child", str(system.folder))
    pids = system.left_pids()
    kill(worker)
    wait_gone(pids, within_s=2.0)
    system.worker()
    assert job.result(timeout_s=DEADLINE_S) == 2
    assert [attempt.outcome for attempt in system.detail(job).attempts] == [Outcome.LOST, Outcome.DONE]


def test_fault_11_a_stop_ends_its_own_processes_and_nobody_elses(system: System) -> None:
    """Stop scripts killed by name: merges died, FFmpeg lived on, other projects' workers died too."""
    system.broker()
    worker = system.worker()
    job = system.submit("leave_a_child", str(system.folder))
    pids = system.left_pids()
    # Of the same names as ours: a worker of another project, and an FFmpeg of somebody else.
    film = [FFMPEGS[0], "-v", "error", "-re", "-f", "lavfi", "-i", "testsrc=d=600", "-f", "null", "-"]
    others = [
        subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()", "-m", "zq.workers", "--queue", "q"]),
        subprocess.Popen(film, stdin=subprocess.DEVNULL),
    ]
    try:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(DEADLINE_S) == 0
        wait_gone(pids, within_s=0.5)
        assert [other.poll() for other in others] == [None, None]
        assert job.state() is State.READY, "handed back"
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_fault_12_other_sizes_and_codecs_are_not_copied_into_a_broken_file(tmp_path: Path) -> None:
    """Stream copy of segments that differ gave broken files with exit code 0."""
    recording = lay_out(tmp_path, "resize-mid")
    result = recording.merge()
    assert result.strategy.startswith("encode")
    assert result.frames == CASES["resize-mid"]["expect"]["packets"]["video"]
    assert packets(recording.request.target / result.video)["video"] == result.frames


def test_fault_14_a_retry_is_not_in_anybodys_memory(system: System) -> None:
    """The countdown of a retry lived in a worker. Here worker and broker are both killed while it runs."""
    broker = system.broker()
    worker = system.worker()
    job = system.submit("fail", max_retries=3, backoff_s=3600)
    wait_until(lambda: job.state() is State.SCHEDULED)
    due_ms = system.detail(job).job.due_ms
    kill(worker)
    kill(broker)
    system.broker()
    found = system.detail(job).job
    assert (found.state, found.attempt, found.due_ms) == (State.SCHEDULED, 1, due_ms)


def test_fault_18_a_worker_without_queues_does_not_start_and_an_unread_queue_is_told(system: System) -> None:
    """A worker started without queue names left both queues unread for months, and nobody noticed."""
    system.broker()
    assert system.start("zq.workers").wait(DEADLINE_S) in (2, 78)
    assert "--queue" in system.log()
    job = system.submit("add", 1, 2)
    assert job.receipt is not None
    assert job.receipt.warnings == ["no worker serves queue 'q' now"]
    (queue,) = [queue for queue in system.client.queues() if queue.name == "q"]
    assert (queue.consumers, queue.ready) == (0, 1)


def test_fault_19_a_job_goes_only_to_the_machine_that_has_its_files(system: System) -> None:
    """Merge workers on a second machine could not see the first one's files."""
    system.broker()
    job = system.submit("add", 1, 2, tags=["files=a"])
    second = ["--queue", "q", "--name", f"{system.host}-b", "--tag", "files=b"]
    system.start("zq.workers", *second)
    wait_until(lambda: len(system.client.workers()) == 1)
    assert system.submit("add", 2, 2, tags=["files=b"]).result(timeout_s=DEADLINE_S) == 4
    assert job.state() is State.READY
    system.start("zq.workers", "--queue", "q", "--name", f"{system.host}-a", "--tag", "files=a")
    assert job.result(timeout_s=DEADLINE_S) == 3
    (attempt,) = system.detail(job).attempts
    assert attempt.worker.endswith("-a")
