"""The broker dies at a system call, or one fails: whatever it had said is true after the next start.

A death at every call that changes something on disk or on the network is a death at every moment that can be told
apart from outside.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.broker.process import Broker, Connect
from tests.durability.story import Story, Told, all_holds

CHANGING = (
    "mkdir", "rename", "unlink", "ftruncate", "fallocate", "pwrite64", "pwritev", "write", "writev", "fdatasync",
    "fsync", "sendto", "recvfrom",
)  # fmt: skip
KILLED = -9
JOURNAL_FAILED = 74

Play = Callable[[Path, str], tuple[Told, int, str, Broker]]


@pytest.fixture
def play(strace: str, connect: Connect) -> Play:
    """play(folder, injection) → what was told, the exit code, what was logged, the broker."""

    def run(folder: Path, injection: str) -> tuple[Told, int, str, Broker]:
        broker = Broker(folder)
        # With -D the broker is our own child, not strace's.
        # (No --seccomp-bpf: with it, strace 6.1 injects errors and no signals.)
        broker.start(strace, "-D", "-f", "-qqq", "-o", "/dev/null", "-e", f"inject={injection}")
        try:
            told = Story(broker, connect).play()
            code, log = broker.wait()
        finally:
            if broker.process is not None and broker.process.poll() is None:
                broker.process.kill()
                broker.wait()
        return told, code, log, broker

    return run


@pytest.mark.parametrize(
    ("call", "number"),
    [("rename", 1), ("pwrite64", 2), ("fdatasync", 4), ("writev", 3), ("recvfrom", 9)],
)
def test_all_it_said_holds_when_it_dies_at_a_call(
    play: Play, connect: Connect, tmp_path: Path, call: str, number: int
) -> None:
    told, code, log, broker = play(tmp_path / "var", f"{call}:signal=KILL:when={number}")
    assert code == KILLED, f"{call} was not called {number} times: {log}"
    all_holds(broker, connect, told)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("call", CHANGING)
def test_all_it_said_holds_when_it_dies_at_any_call(play: Play, connect: Connect, tmp_path: Path, call: str) -> None:
    number = 0
    code = KILLED
    while code == KILLED:
        number += 1
        told, code, log, broker = play(tmp_path / str(number), f"{call}:signal=KILL:when={number}")
        all_holds(broker, connect, told)
    assert code == 0, log
    assert told.ended
    print(f"{call}: {number - 1} deaths")


@pytest.mark.parametrize(
    ("call", "error", "number"),
    [("pwrite64", "ENOSPC", 1), ("fdatasync", "EIO", 5)],
)
def test_when_the_disk_fails_not_one_more_word_is_said(
    play: Play, connect: Connect, tmp_path: Path, call: str, error: str, number: int
) -> None:
    """I13, of the log and of a checkpoint: LMDB itself would go on after a failed fdatasync."""
    _fails(play, connect, tmp_path / "var", call, error, number)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("call", ["fdatasync", "pwrite64", "pwritev", "writev", "fsync", "mkdir", "rename"])
def test_when_the_disk_fails_at_any_call_not_one_more_word_is_said(
    play: Play, connect: Connect, tmp_path: Path, call: str, error: str
) -> None:
    number = 1
    while _fails(play, connect, tmp_path / str(number), call, error, number):
        number += 1
    print(f"{call}: {number - 1} times {error}")


def _fails(play: Play, connect: Connect, folder: Path, call: str, error: str, number: int) -> bool:
    """False if the story ended before the disk failed."""
    told, code, log, broker = play(folder, f"{call}:error={error}:when={number}+")
    if code == 0:
        assert told.ended
        return False
    assert code == JOURNAL_FAILED, log
    assert "the journal failed" in log or "is full or fails" in log
    assert "Traceback" not in log.partition("the journal failed")[0]
    all_holds(broker, connect, told)
    return True
