"""Slots: what becomes of an attempt, and what a task may ask of its worker. Real processes."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import is_running, wait_gone, wait_until
from tests.workers.slot_driver import PYTHON, Driver, pids_in
from zq.protocol import limits
from zq.workers import slots
from zq.workers.channel import SlotOutcome


@pytest.fixture(scope="module")
def shared() -> Iterator[Driver]:
    """For tests whose tasks leave their slot as it was."""
    with Driver() as driver:
        yield driver


@pytest.fixture
def driver() -> Iterator[Driver]:
    with Driver() as fresh:
        yield fresh


def test_arguments_and_result_travel(shared: Driver) -> None:
    assert shared.value("echo", 1, "学生", b"\x00\xff", None, [1.5, {"a": True}]) == [
        [1, "学生", b"\x00\xff", None, [1.5, {"a": True}]],
        {},
    ]


def test_current_job(shared: Driver) -> None:
    job = shared.value("who", attempt=3)
    assert (job["attempt"], job["task"], job["queue"]) == (3, "slot_tasks.who", "队列")
    assert job["pid"] == shared.slot.pid


def test_batch_is_answered_in_order(shared: Driver) -> None:
    jobs = [shared.assignment("echo", number) for number in range(500)]
    shared.slot.send(jobs)
    answers: list[int] = []
    while len(answers) < len(jobs):
        event = shared.until(slots.Finished)
        answers.extend(result.seq for result in event.results)
    assert answers == [job.seq for job in jobs]
    assert shared.slot.assigned == ()


def test_raising_task_fails_with_its_text_and_trace(shared: Driver) -> None:
    result = shared.run("raise_error", "没有文件")
    assert result.outcome is SlotOutcome.FAILED
    assert result.error.startswith("ValueError: 没有文件")
    assert "slot_tasks.py" in result.error
    assert result.retry_after_s is None


@pytest.mark.parametrize("task", ["raise_unprintable", "recurse"])
def test_odd_errors_are_reported_within_bounds(shared: Driver, task: str) -> None:
    result = shared.run(task)
    assert result.outcome is SlotOutcome.FAILED
    assert 0 < len(result.error) <= limits.ERROR_CHARS_MAX


def test_error_with_surrogates_and_megabytes_is_bounded(shared: Driver) -> None:
    result = shared.run("raise_error", "\x00" + "长" * 80_000)
    assert len(result.error) <= limits.ERROR_CHARS_MAX
    assert "slot_tasks.py" in result.error  # the end is kept, too


def test_retry_and_reject(shared: Driver) -> None:
    result = shared.run("retry", 5)
    assert (result.outcome, result.retry_after_s, result.error) == (SlotOutcome.FAILED, 5.0, "later, please")
    assert shared.run("retry", float("nan")).retry_after_s is None
    result = shared.run("reject", "不支持")
    assert (result.outcome, result.error) == (SlotOutcome.REJECTED, "不支持")


def test_sys_exit_is_a_failure_and_the_slot_lives(shared: Driver) -> None:
    pid = shared.slot.pid
    assert "sys.exit(3)" in shared.run("leave", 3).error
    assert shared.value("who")["pid"] == pid


def test_result_that_is_not_plain_is_rejected_with_its_place(shared: Driver) -> None:
    result = shared.run("return_date")
    assert result.outcome is SlotOutcome.REJECTED
    assert "result['when'][1] is a datetime.date" in result.error


def test_result_at_its_bound_and_past_it(shared: Driver) -> None:
    header = 5
    assert len(shared.value("return_bytes", limits.RESULT_BYTES_MAX - header)) == limits.RESULT_BYTES_MAX - header
    result = shared.run("return_bytes", limits.RESULT_BYTES_MAX - header + 1)
    assert result.outcome is SlotOutcome.REJECTED
    assert "at most 262144" in result.error


def test_unknown_task_is_rejected_and_names_the_remedy(shared: Driver) -> None:
    result = shared.run("no_such_task")
    assert result.outcome is SlotOutcome.REJECTED
    assert "no task 'slot_tasks.no_such_task'" in result.error
    assert "tasks" in result.error


def test_wrong_call_is_a_failure_of_the_task(shared: Driver) -> None:
    assert "TypeError" in shared.run("raise_error").error


def test_exit_of_the_process_is_told_with_its_status(driver: Driver) -> None:
    seq = driver.start("exit_hard", 9)
    ended = driver.until(slots.Ended)
    assert (ended.status, ended.unfinished, ended.reason) == (9, (seq,), "slot ended with exit code 9")
    driver.slots = [driver.open()]
    assert driver.value("echo") == [[], {}]


def test_progress_is_throttled_and_the_last_one_arrives(shared: Driver) -> None:
    seq = shared.start("report", 1000)
    result = shared.result(seq)
    assert result.outcome is SlotOutcome.DONE
    seen = [e for e in shared.events if isinstance(e, slots.Progressed) and e.progress.seq == seq]
    shared.events.clear()
    assert len(seen) <= 2 + result.usage.running_s * 5
    assert (seen[-1].progress.done, seen[-1].progress.total, seen[-1].progress.message) == (1000, 1000, "步骤")


def test_soft_limit_interrupts_python(shared: Driver, tmp_path: Path) -> None:
    seq = shared.start("sleep_python", str(tmp_path / "stands"))
    wait_until((tmp_path / "stands").exists)
    shared.slot.soft_limit("soft limit of 60 s passed")
    assert shared.result(seq).result.endswith(b"told: soft limit of 60 s passed")


def test_soft_limit_can_be_asked_for_again(shared: Driver, tmp_path: Path) -> None:
    seq = shared.start("swallow_soft", str(tmp_path / "stands"))
    wait_until((tmp_path / "stands").exists)
    shared.slot.soft_limit("now")
    assert shared.result(seq).result.endswith(b"told again")


def test_soft_limit_of_an_ended_attempt_hits_no_other(shared: Driver, tmp_path: Path) -> None:
    # The parent tells the running attempt, which has ended meanwhile: the next in the batch must not hear it.
    first, second = shared.assignment("echo"), shared.assignment("sleep_python", str(tmp_path / "stands"))
    shared.slot.send([first, second])
    wait_until((tmp_path / "stands").exists)
    assert shared.slot.assigned == (first.seq, second.seq)  # as the parent has not read yet
    shared.slot.soft_limit("stale")
    shared.result(first.seq)  # at once, not with the second's
    shared.slot.soft_limit("real")
    assert shared.result(second.seq).result.endswith(b"told: real")


def test_soft_limit_is_heard_though_the_task_before_has_blocked_every_signal(shared: Driver, tmp_path: Path) -> None:
    shared.run("block_signals")
    seq = shared.start("sleep_python", str(tmp_path / "stands"))
    wait_until((tmp_path / "stands").exists)
    shared.slot.soft_limit("now")
    assert shared.result(seq).result.endswith(b"told: now")


def test_soft_limit_gives_the_program_term_first_and_time_to_clean_up(shared: Driver, tmp_path: Path) -> None:
    seq = shared.start("run_told", str(tmp_path / "stands"), ["true"])
    wait_until((tmp_path / "stands").exists)
    shared.slot.soft_limit("soft")
    result = shared.result(seq)
    assert result.outcome is SlotOutcome.DONE, result.error
    assert result.result.find(b"soft") > 0
    assert (tmp_path / "stands.term").exists()
    assert result.result.endswith(b"\xa7cleaned\x00")


def test_soft_limit_kills_a_program_that_ignores_term(shared: Driver, tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    seq = shared.start("run_endless", str(tmp_path / "stands"), [PYTHON, "-c", code], kill_grace_s=0.2)
    pids = pids_in(tmp_path / "stands")
    shared.slot.soft_limit("soft limit of 60 s passed")
    result = shared.result(seq)
    assert result.outcome is SlotOutcome.FAILED
    assert result.error.startswith("soft limit of 60 s passed")
    wait_gone(pids[1:], 1.0)


@pytest.mark.parametrize("held", [True, False])
def test_still_mine(shared: Driver, held: bool) -> None:
    seq = shared.start("ask_still_mine")
    asked = shared.until(slots.StillMineAsked)
    assert asked.seq == seq
    shared.slot.answer_still_mine(seq, held)
    result = shared.result(seq)
    assert result.outcome is (SlotOutcome.DONE if held else SlotOutcome.NOT_OURS)


def test_soft_limit_ends_the_wait_for_the_broker(shared: Driver) -> None:
    seq = shared.start("ask_still_mine")
    shared.until(slots.StillMineAsked)
    shared.slot.soft_limit("soft limit passed")
    result = shared.result(seq)
    assert (result.outcome, result.error.splitlines()[0]) == (SlotOutcome.FAILED, "soft limit passed")


def test_publish_appears_complete_after_the_answer(shared: Driver, tmp_path: Path) -> None:
    target = tmp_path / "视频.webm"
    seq = shared.start("publish", str(target), "content")
    shared.until(slots.StillMineAsked)
    assert not target.exists()
    (part,) = tmp_path.iterdir()
    assert part.suffix == ".webm"
    shared.slot.answer_still_mine(seq, True)
    assert shared.result(seq).outcome is SlotOutcome.DONE
    assert [p.name for p in tmp_path.iterdir()] == ["视频.webm"]
    assert target.read_text() == "content"


def test_publish_of_a_lost_lease_leaves_nothing(shared: Driver, tmp_path: Path) -> None:
    seq = shared.start("publish", str(tmp_path / "x"), "content")
    shared.until(slots.StillMineAsked)
    shared.slot.answer_still_mine(seq, False)
    assert shared.result(seq).outcome is SlotOutcome.NOT_OURS
    assert list(tmp_path.iterdir()) == []


def test_publish_of_nothing_says_so(shared: Driver, tmp_path: Path) -> None:
    assert shared.run("publish_nothing", str(tmp_path / "x")).error.startswith("FileNotFoundError")


def test_next_attempt_removes_what_a_killed_one_began(driver: Driver, tmp_path: Path) -> None:
    driver.start("publish_and_die", str(tmp_path / "x"))
    driver.until(slots.Ended)
    assert len(list(tmp_path.iterdir())) == 1
    driver.slots = [driver.open()]
    seq = driver.start("publish", str(tmp_path / "x"), "whole", attempt=2)
    driver.until(slots.StillMineAsked)
    driver.slot.answer_still_mine(seq, True)
    driver.result(seq)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_run_process_gives_lines_code_and_stderr(shared: Driver) -> None:
    code = (
        "import sys; print('一'); print('x' * 100_000); print('end', end='')\n"
        "sys.stderr.write('é' * 9000); sys.exit(3)"
    )
    value = shared.value("run", [PYTHON, "-c", code], {})
    assert value["returncode"] == 3
    assert [value["lines"][0], len(value["lines"][1]), value["lines"][2]] == ["一", 65536, "end"]
    assert len(value["stderr"].encode()) == 8192


def test_run_process_drains_pipes_that_would_fill(shared: Driver) -> None:
    code = "import sys\nfor _ in range(64): sys.stdout.write('x' * 2047 + '\\n'); sys.stderr.write('y' * 65536)"
    value = shared.value("run", [PYTHON, "-c", code], {})
    assert (value["returncode"], len(value["lines"])) == (0, 64)


def test_run_process_does_not_wait_for_who_holds_its_pipes(shared: Driver) -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid)"
    started_s = time.monotonic()
    value = shared.value("run", [PYTHON, "-c", code], {})
    assert time.monotonic() - started_s < 10
    wait_gone([int(value["lines"][0])], 1.0)  # and it has not outlived its job


def test_run_process_feeds_files(shared: Driver, tmp_path: Path) -> None:
    files = []
    for number, size in enumerate((0, 1, 300_000, 2_000_000)):
        files.append(tmp_path / f"段{number}")
        files[-1].write_bytes(bytes([65 + number]) * size)
    code = "import hashlib, sys; data = sys.stdin.buffer.read(); print(len(data), hashlib.sha256(data).hexdigest())"
    whole = b"".join(file.read_bytes() for file in files)
    value = shared.value("run", [PYTHON, "-c", code], {"feed_stdin": [str(file) for file in files]})
    assert value["lines"] == [f"{len(whole)} {hashlib.sha256(whole).hexdigest()}"]
    # A program that stops reading is no error of ours.
    value = shared.value("run", ["true"], {"feed_stdin": [str(file) for file in files]})
    assert value["returncode"] == 0


def test_run_process_refuses_to_feed_links_and_fifos(shared: Driver, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo"):
        result = shared.run("run", ["cat"], {"feed_stdin": [str(tmp_path / name)]})
        assert result.outcome is SlotOutcome.FAILED
        assert result.error.startswith("OSError")


def test_run_process_limits_and_surroundings(shared: Driver) -> None:
    code = (
        "import os, resource as r\n"
        "print(r.getrlimit(r.RLIMIT_AS)[0], r.getrlimit(r.RLIMIT_NOFILE)[0], r.getrlimit(r.RLIMIT_CORE)[1])\n"
        "print(r.getrlimit(r.RLIMIT_CPU), r.getrlimit(r.RLIMIT_FSIZE)[0], os.nice(0), oct(os.umask(0)))\n"
        "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('NoNewPrivs')])\n"
        "print(sorted(os.environ), os.read(0, 1), os.getcwd())\n"
    )
    value = shared.value(
        "run",
        [PYTHON, "-c", code],
        {
            "limits": {"memory_bytes": 1 << 30, "cpu_s": 7, "file_size_bytes": 4096, "open_files": 64, "nice": 5},
            "env": {"LC_ALL": "C.UTF-8"},
            "cwd": "/",
        },
    )
    assert value["lines"] == [
        f"{1 << 30} 64 0",
        "(7, 8) 4096 5 0o77",
        "['1']",
        "['LC_ALL', 'ZQ_WORKER'] b'' /",
    ], value["stderr"]


def test_run_process_memory_limit_holds(shared: Driver) -> None:
    value = shared.value("run", [PYTHON, "-c", "bytearray(1 << 30)"], {"limits": {"memory_bytes": 256 << 20}})
    assert value["returncode"] != 0
    assert "MemoryError" in value["stderr"]


def test_run_process_yields_the_disk_to_others(shared: Driver) -> None:
    code = "import psutil; print(int(psutil.Process().ionice().ioclass))"
    assert shared.value("run", [PYTHON, "-c", code], {"limits": {"idle_io": True}})["lines"] == ["3"]


def test_a_fork_of_the_slot_is_as_bounded_as_a_program(shared: Driver) -> None:
    value = shared.value("fork", "look")
    # Its own three, and the one that lists them.
    assert value["lines"] == ["/ [0, 1, 2] (7, 8)", "True 4"]
    assert (value["returncode"], value["stderr"]) == (3, "一\n")
    raised = shared.value("fork", "raise")
    assert (raised["returncode"], raised["lines"]) == (1, [])
    assert "LookupError: no luck" in raised["stderr"]
    assert shared.value("fork", "crash")["returncode"] == -11
    assert "MemoryError" in shared.value("fork", "take")["stderr"]
    assert shared.value("echo", 1) == [[1], {}]


def test_run_process_takes_no_shell_text(shared: Driver) -> None:
    assert "not one text" in shared.run("run", "echo hello", {}).error
    assert shared.value("run", ["echo", "$HOME; true"], {})["lines"] == ["$HOME; true"]


def test_program_that_does_not_exist_is_named(shared: Driver) -> None:
    assert "no-such-program" in shared.run("run", ["no-such-program"], {}).error


def test_error_of_a_task_shows_what_its_program_said(shared: Driver) -> None:
    code = "import sys; sys.exit('moov atom not found')"
    result = shared.run("run_then_raise", [PYTHON, "-c", code])
    assert "RuntimeError: it ended with 1" in result.error
    assert "moov atom not found" in result.error


def test_callback_that_raises_ends_the_program(shared: Driver, tmp_path: Path) -> None:
    result = shared.run("run_raising_callback", str(tmp_path / "stands"))
    assert result.error.startswith("LookupError")
    wait_gone(pids_in(tmp_path / "stands"), 1.0)


def test_what_a_task_leaves_running_ends_with_its_job(shared: Driver, tmp_path: Path) -> None:
    assert shared.value("daemonize", str(tmp_path / "stands"), False) == "left"
    assert not any(is_running(pid) for pid in pids_in(tmp_path / "stands"))


def test_an_alarm_ends_with_the_job_that_set_it(shared: Driver) -> None:
    assert shared.value("leave_an_alarm") == 0
    assert shared.value("leave_an_alarm") == 0


def test_a_fork_of_a_fork_keeps_its_files(shared: Driver) -> None:
    assert shared.value("fork_twice") == "0"


def test_fork_that_returns_from_the_task_is_no_slot(capfd: pytest.CaptureFixture[str]) -> None:
    with Driver() as driver:
        pid = driver.value("fork_and_return")
        wait_gone([pid], 5.0)
        assert driver.value("echo") == [[], {}]
    assert "Traceback" not in capfd.readouterr().err


def test_forks_and_threads_of_a_task_may_not_speak_for_it(shared: Driver) -> None:
    assert shared.value("speak_in_fork") == "7"
    assert "another thread" in shared.value("still_mine_in_thread")


def test_next_job_starts_in_the_slots_own_folder(shared: Driver, tmp_path: Path) -> None:
    home = shared.value("wander", str(tmp_path))
    assert shared.value("wander", str(tmp_path)) == home


def test_usage_counts_the_whole_tree(shared: Driver, tmp_path: Path) -> None:
    size_bytes = 48 << 20
    usage = shared.run("burn", 0.5, size_bytes, str(tmp_path / "file")).usage
    assert 0.5 <= usage.cpu_s < 1.5
    assert usage.written_bytes >= size_bytes
    assert size_bytes <= usage.peak_rss_bytes < 3 * size_bytes
    idle = shared.run("echo").usage
    assert idle.cpu_s < 0.2
    assert idle.peak_rss_bytes < size_bytes


def test_retired_slot_exits_cleanly(driver: Driver) -> None:
    driver.value("echo")
    driver.slot.retire()
    ended = driver.until(slots.Ended)
    assert (ended.status, ended.unfinished, ended.slot.jobs_done) == (0, (), 1)


def test_slot_killed_from_outside_is_told(driver: Driver, tmp_path: Path) -> None:
    driver.start("sleep_python", str(tmp_path / "stands"))
    wait_until((tmp_path / "stands").exists)
    os.kill(driver.slot.pid, signal.SIGSEGV)
    assert driver.until(slots.Ended).reason == "slot died: signal 11 (SIGSEGV)"
