"""Processes: their names, their trees, the order in which a tree is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.waiting import wait_until
from tests.workers.slot_driver import PYTHON
from zq.workers import process
from zq.workers.process import ProcessKey, TreeEnd, key_of, living_below, parse_stat, send_signal

LINE = b"7 (%s) S 3 7 7 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0"


@pytest.mark.parametrize("name", [b"sleep", b"a) R 1 (b", b"", "名字".encode(), b"\xff\n x"])
def test_stat_of_any_name(name: bytes) -> None:
    stat = parse_stat(LINE % name)
    assert stat is not None
    assert (stat.key, stat.parent_pid, stat.state) == (ProcessKey(7, 4242), 3, "S")
    assert stat.is_living


@given(st.binary(max_size=300))
def test_stat_of_anything_is_a_stat_or_none(data: bytes) -> None:
    parse_stat(data)


def test_stat_of_a_zombie_is_not_living() -> None:
    child = subprocess.Popen(["true"])
    wait_until(lambda: (stat := process.read_stat(child.pid)) is not None and stat.state == "Z")
    assert living_below(os.getpid()) == [] or key_of(child.pid) not in living_below(os.getpid())
    child.wait()
    assert process.read_stat(child.pid) is None


@pytest.mark.parametrize("has_file", [True, False])
def test_tree_is_found_with_and_without_the_kernels_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_file: bool
) -> None:
    if not has_file:
        monkeypatch.setattr(process, "_has_children_file", lambda: False)
    code = "import os, subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
    with subprocess.Popen([PYTHON, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        sleeper = int(parent.stdout.readline())
        assert {key.pid for key in living_below(os.getpid())} >= {parent.pid, sleeper}
        assert [key.pid for key in living_below(parent.pid)] == [sleeper]
        assert parent.pid in process.child_pids(os.getpid())
        assert sleeper not in {key.pid for key in living_below(os.getpid(), without=[parent.pid])}
        for key in (*living_below(parent.pid), key_of(parent.pid)):
            assert key is not None
            assert send_signal(key, signal.SIGKILL)


def test_signal_reaches_the_process_that_was_meant_only() -> None:
    child = subprocess.Popen(["sleep", "600"])
    try:
        key = key_of(child.pid)
        assert key is not None
        assert not send_signal(key._replace(started_ticks=key.started_ticks - 1), signal.SIGKILL)
        time.sleep(0.01)
        assert child.poll() is None
        assert send_signal(key, signal.SIGKILL)
        assert child.wait(5) == -signal.SIGKILL
        assert not send_signal(key, signal.SIGKILL)
        assert not process.is_alive(key)
    finally:
        child.kill()
        child.wait()


A, B, C = ProcessKey(1, 1), ProcessKey(2, 1), ProcessKey(2, 9)
ASK = (signal.SIGTERM, signal.SIGCONT)


def test_tree_end_asks_each_once_then_kills_until_none_is_left() -> None:
    end = TreeEnd(started_s=10.0, grace_s=2.0)
    assert end.step([A, B], 10.0) == [(key, signum) for key in (A, B) for signum in ASK]
    assert end.step([A, B], 10.1) == []
    # Forked meanwhile, and with a pid that was used before: a new process, asked as well.
    assert end.step([A, C], 10.2) == [(C, signum) for signum in ASK]
    assert end.step([A, C], 11.99) == []
    for now_s in (12.0, 12.01, 99.0):
        assert end.step([A, C], now_s) == [(A, signal.SIGKILL), (C, signal.SIGKILL)]
    assert end.step([], 99.0) == []


def test_tree_end_without_grace_kills_at_once() -> None:
    assert TreeEnd(10.0, 0.0).step([A], 10.0) == [(A, signal.SIGKILL)]
