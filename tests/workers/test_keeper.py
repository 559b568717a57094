"""Containment: whatever a task does, nothing of it outlives its end, its slot, its keeper or its worker."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import psutil
import pytest

from tests.waiting import is_running, wait_gone, wait_until
from tests.workers.slot_driver import HERE, INSTANCE, PYTHON, Driver, pids_in
from zq.workers import slots
from zq.workers.keeper_handle import KeeperHandle
from zq.workers.sweep import MARKER, parse_marker, sweep_dead

FFMPEG = [
    *(imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-progress", "pipe:1", "-stats_period", "0.1"),
    *("-re", "-f", "lavfi", "-i", "testsrc", "-f", "null", "-"),
]

HOSTILE: list[tuple[str, list[Any]]] = [
    ("sleep_python", []),
    ("sleep_in_c", []),
    ("spin_in_c", []),
    ("stop_self", []),
    ("fill_own_pipe", []),
    ("fork_many", [100]),
    ("daemonize", [True]),
    ("breed", []),
    ("start_long_children", []),
    ("run_endless", [FFMPEG]),
]
hostile = pytest.mark.parametrize(("task", "args"), HOSTILE, ids=[task for task, _ in HOSTILE])


@pytest.fixture
def driver() -> Iterator[Driver]:
    with Driver() as fresh:
        yield fresh


@hostile
def test_end_leaves_no_descendant_and_the_next_slot_works(
    driver: Driver, tmp_path: Path, task: str, args: list[Any]
) -> None:
    stands = tmp_path / "stands"
    seq = driver.start(task, str(stands), *args)
    pids = {*pids_in(stands), driver.slot.pid}
    below = psutil.Process(driver.slot.pid).children(recursive=True)
    driver.slot.end(0.3, "hard limit of 60 s")
    ended = driver.until(slots.Ended, within_s=2.0)
    assert (ended.unfinished, ended.stuck, ended.status) == ((seq,), 0, -signal.SIGKILL)
    assert ended.reason == "slot died: signal 9 (SIGKILL); hard limit of 60 s"
    # Said is done: not a moment later is there anything, and no zombie either.
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []
    assert [process for process in below if process.is_running()] == []
    assert psutil.Process(driver.keeper.pid).children(recursive=True) == []
    driver.slots = [driver.open()]
    assert driver.value("echo") == [[], {}]


def test_end_gives_programs_term_and_time(driver: Driver, tmp_path: Path) -> None:
    code = (
        "import pathlib, signal, sys, time\n"
        "def term(*_): time.sleep(0.2); pathlib.Path(sys.argv[1]).touch(); sys.exit()\n"
        "signal.signal(signal.SIGTERM, term); print(1, flush=True); time.sleep(600)\n"
    )
    driver.start("run_endless", str(tmp_path / "stands"), [PYTHON, "-c", code, str(tmp_path / "tidy")])
    pids_in(tmp_path / "stands")
    driver.slot.end(60.0)
    driver.until(slots.Ended, within_s=3.0)  # the grace ends when all have gone
    assert (tmp_path / "tidy").exists()


def test_ended_task_runs_no_further_instruction(driver: Driver, tmp_path: Path) -> None:
    """A task whose program was ended must not take that for the program's own end, and go on."""
    # run_told would write the .term mark and start its clean-up; frozen, it cannot.
    driver.start("run_told", str(tmp_path / "stands"), ["touch", str(tmp_path / "went-on")])
    wait_until((tmp_path / "stands").exists)
    driver.slot.end(2.0)
    driver.until(slots.Ended)
    assert (tmp_path / "stands.term").exists()
    assert not (tmp_path / "went-on").exists()


def test_end_of_one_slot_leaves_the_other_alone(tmp_path: Path) -> None:
    with Driver(slots=2) as driver:
        first, second = driver.slots
        seq = driver.start("sleep_python", str(tmp_path / "a"), slot=first)
        driver.start("fork_many", str(tmp_path / "b"), 20, slot=second)
        for name in "ab":
            pids_in(tmp_path / name)
        second.end(0.5)
        # While the second has its grace, the keeper serves the others.
        third = driver.open()
        assert driver.result(driver.start("echo", slot=third)).error == ""
        driver.until(slots.Ended, lambda event: event.slot is second)
        first.soft_limit("enough")
        assert driver.result(seq).result.endswith(b"told: enough")


def test_idle_slot_ends(driver: Driver) -> None:
    driver.slot.end(5.0)
    assert driver.until(slots.Ended, within_s=1.0).unfinished == ()


@hostile
def test_slot_killed_leaves_nothing(driver: Driver, tmp_path: Path, task: str, args: list[Any]) -> None:
    driver.start(task, str(tmp_path / "stands"), *args)
    pids = pids_in(tmp_path / "stands")
    os.kill(driver.slot.pid, signal.SIGKILL)
    ended = driver.until(slots.Ended, within_s=2.0)
    assert ended.stuck == 0
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []
    assert psutil.Process(driver.keeper.pid).children(recursive=True) == []


@pytest.mark.parametrize("task", ["run_endless", "fork_many", "start_long_children"])
def test_keeper_killed_takes_all_with_it_and_is_told(tmp_path: Path, task: str) -> None:
    args = dict(HOSTILE)[task]
    with Driver() as driver:
        seq = driver.start(task, str(tmp_path / "stands"), *args)
        pids = [*pids_in(tmp_path / "stands"), driver.slot.pid]
        os.kill(driver.keeper.pid, signal.SIGKILL)
        ended = driver.until(slots.Ended, within_s=2.0)
        assert ended.unfinished == (seq,)
        assert driver.until(slots.KeeperEnded).strays == ()
        wait_gone(pids, 0.5)
        assert driver.keeper.slots == ()


def test_keeper_that_a_task_has_stopped_goes_on_when_it_is_needed(driver: Driver, tmp_path: Path) -> None:
    driver.start("start_long_children", str(tmp_path / "stands"))
    pids = pids_in(tmp_path / "stands")
    os.kill(driver.keeper.pid, signal.SIGSTOP)
    driver.slot.end(0.1)
    driver.until(slots.Ended, within_s=2.0)
    wait_gone(pids, 0.1)
    assert driver.value("echo", slot=driver.open()) == [[], {}]


def test_keeper_that_hangs_is_replaced_not_waited_for(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeeperHandle, "_wake", lambda _keeper: None)
    monkeypatch.setattr("zq.workers.slots.STUCK_AFTER_S", 0.1)
    monkeypatch.setattr("zq.workers.slots._KEEPER_SLACK_S", 0.1)
    driver.start("start_long_children", str(tmp_path / "stands"))
    pids = pids_in(tmp_path / "stands")
    os.kill(driver.keeper.pid, signal.SIGSTOP)
    driver.slot.end(0.1)
    driver.until(slots.KeeperEnded, within_s=5.0)
    wait_gone(pids, 0.5)


class Worker:
    """A parent in a process of its own, with two slots that run a hostile task."""

    def __init__(self, folder: Path, task: str, args: list[Any]) -> None:
        self.process = subprocess.Popen(
            [PYTHON, str(HERE / "slot_parent.py"), INSTANCE, str(folder), task, json.dumps(args)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])},
        )
        self.said = self.read_line()
        self.pids = [self.said["keeper"], *self.said["slots"]]
        for number in (1, 2):
            self.pids.extend(pids_in(folder / str(number)))

    def read_line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], 20)
        assert ready
        line = json.loads(self.process.stdout.readline())
        assert isinstance(line, dict)
        return line

    def carriers(self) -> list[int]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARKER) == self.said["marker"] and is_running(process.pid):
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


DEATHS = [*((task, args, signal.SIGKILL) for task, args in HOSTILE), ("run_endless", [FFMPEG], signal.SIGSEGV)]


@pytest.mark.parametrize(("task", "args", "signum"), DEATHS, ids=[f"{task}-{by.name}" for task, _, by in DEATHS])
def test_worker_death_leaves_nothing_within_two_seconds(
    tmp_path: Path, task: str, args: list[Any], signum: signal.Signals
) -> None:
    worker = Worker(tmp_path, task, args)
    try:
        worker.process.send_signal(signum)
        wait_gone(worker.pids, 2.0)
        assert worker.carriers() == []
    finally:
        worker.close()


def test_worker_as_a_subreaper_ends_even_what_escaped_a_killed_keeper(tmp_path: Path) -> None:
    """The daemon has no marker, no parent-death signal, ignores TERM; keeper killed: the parent has adopted it."""
    worker = Worker(tmp_path, "daemonize", [True])
    try:
        os.kill(worker.said["keeper"], signal.SIGKILL)
        assert worker.read_line()["strays"] == []
        wait_gone(worker.pids, 0.5)
    finally:
        worker.close()


def _kill_together(worker: Worker) -> None:
    pids = (worker.said["keeper"], worker.process.pid)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # so that neither can act on the other's death
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    worker.process.wait()


def test_worker_and_keeper_killed_together_take_programs_with_them(tmp_path: Path) -> None:
    worker = Worker(tmp_path, "run_endless", [FFMPEG])
    try:
        _kill_together(worker)
        wait_gone(worker.pids, 2.0)  # each by the signal that its parent's death sends
    finally:
        worker.close()


def test_worker_and_keeper_killed_together_is_swept_by_the_next(tmp_path: Path) -> None:
    worker = Worker(tmp_path, "fork_many", [5])
    try:
        _kill_together(worker)
        wait_gone(worker.said["slots"], 1.0)  # by their parent-death signal; the forks live on
        left = worker.carriers()
        assert len(left) == 10
        assert sweep_dead(f"{INSTANCE}2") == []
        assert sorted(sweep_dead(INSTANCE)) == sorted(left)
        wait_gone(worker.pids, 1.0)
        assert sweep_dead(INSTANCE) == []
    finally:
        worker.close()


def _is_sleep(pid: int) -> bool:
    return psutil.Process(pid).name() == "sleep"


def test_sweep_leaves_the_living_and_strangers_alone(driver: Driver) -> None:
    marker = parse_marker(driver.marker.format())
    assert marker == driver.marker
    strangers = [
        "",
        INSTANCE,
        f"{INSTANCE}/1/1/{driver.marker.pid_namespace}",
        f"{INSTANCE}/1/x/1/1",
        f"{INSTANCE}/4194304/1/1/1",  # another pid namespace
        driver.marker._replace(instance=INSTANCE).format(),  # its owner, this process, lives
    ]
    processes = [subprocess.Popen(["sleep", "600"], env={**os.environ, MARKER: text}) for text in strangers]
    reused = driver.marker.owner._replace(started_ticks=driver.marker.owner.started_ticks - 1)
    dead = subprocess.Popen(
        ["sleep", "600"], env={**os.environ, MARKER: driver.marker._replace(instance=INSTANCE, owner=reused).format()}
    )
    try:
        for process in (*processes, dead):
            wait_until(partial(_is_sleep, process.pid))
        assert sweep_dead(INSTANCE) == [dead.pid]  # our pid, but another start: that owner is dead
        assert dead.wait(5) == -signal.SIGKILL
        assert [process.poll() for process in processes] == [None] * len(strangers)
        assert sweep_dead(driver.marker.instance) == []
        assert driver.value("echo") == [[], {}]
    finally:
        for process in (*processes, dead):
            process.kill()
            process.wait()


@pytest.mark.parametrize("task", ["scribble", "close_all"])
def test_slot_that_speaks_nonsense_or_hangs_up_is_ended(task: str) -> None:
    with Driver(slots=2) as driver:
        first, second = driver.slots
        seq = driver.start(task, slot=second)
        ended = driver.until(slots.Ended, within_s=5.0)
        assert (ended.slot, ended.unfinished) == (second, (seq,))
        assert driver.result(driver.start("echo", slot=first)).error == ""


def test_module_that_cannot_be_imported_is_named() -> None:
    driver = Driver(["no_such_module"], slots=0)
    with driver:
        failed = driver.until(slots.LoadFailed)
        assert "task module 'no_such_module' cannot be imported: ModuleNotFoundError" in failed.error
        assert driver.until(slots.KeeperEnded).status == 78


def test_ready_names_the_tasks_and_slots_may_be_asked_for_before() -> None:
    with Driver(slots=0) as driver:
        wanted = [driver.keeper.open_slot() for _ in range(40)]
        ready = driver.until(slots.Ready)
        assert "slot_tasks.echo" in ready.tasks
        assert [driver.until(slots.Opened).slot for _ in wanted] == wanted
        for slot in wanted:
            slot.end(0.0)
        assert {driver.until(slots.Ended).slot for _ in wanted} == set(wanted)


def test_stray_signals_to_the_keeper_change_nothing(driver: Driver) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(driver.keeper.pid, signum)
    assert driver.value("echo") == [[], {}]
    assert is_running(driver.keeper.pid)


def test_slot_refuses_work_it_cannot_take(driver: Driver) -> None:
    driver.start("echo")
    with pytest.raises(RuntimeError, match="end it, or wait"):
        driver.slot.retire()
    driver.slot.end(0.0)
    with pytest.raises(RuntimeError, match="jobs go to open slots"):
        driver.start("echo")


def test_slot_that_does_not_read_is_bounded(driver: Driver, tmp_path: Path) -> None:
    driver.start("sleep_python", str(tmp_path / "stands"))
    driver.slot.send([driver.assignment("echo", b"x" * 200_000) for _ in range(41)])
    more = [driver.assignment("echo", b"x" * 200_000) for _ in range(10)]
    with pytest.raises(RuntimeError, match="does not read"):
        driver.slot.send(more)
