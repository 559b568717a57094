"""The watchdog: the verdict as a table, the sums, and real trees measured."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import wait_until
from tests.workers.slot_driver import PYTHON, Driver, pids_in
from zq.protocol.messages import Usage
from zq.workers import slots
from zq.workers.channel import SlotUsage
from zq.workers.process import ProcessKey
from zq.workers.watchdog import Counters, Ledger, Limits, Sample, TreeSampler, Verdict, attempt_usage, verdict

MIB = 1 << 20
LIMITS = Limits(soft_s=10.0, hard_s=20.0, memory_bytes=100)
START_S = 1000.0


@pytest.mark.parametrize(
    ("running_s", "rss_bytes", "soft_told", "expected"),
    [
        (0.0, 0, False, Verdict.OK),
        (9.999, 100, False, Verdict.OK),
        (10.0, 0, False, Verdict.SOFT),
        (19.999, 0, False, Verdict.SOFT),
        (19.999, 0, True, Verdict.OK),
        (20.0, 0, False, Verdict.HARD),
        (20.0, 0, True, Verdict.HARD),
        (0.0, 101, False, Verdict.MEMORY),
        (20.0, 101, True, Verdict.MEMORY),
        (-5.0, 0, False, Verdict.OK),
    ],
)
def test_verdict(running_s: float, rss_bytes: int, soft_told: bool, expected: Verdict) -> None:
    sample = Sample(START_S, soft_told=soft_told, rss_bytes=rss_bytes)
    assert verdict(sample, LIMITS, START_S + running_s) is expected


@pytest.mark.parametrize(
    ("quiet_s", "told_s_ago", "expected"),
    [
        (2.999, None, Verdict.OK),
        (3.0, None, Verdict.STALLED),
        (5.999, 2.999, Verdict.OK),
        (6.0, 3.0, Verdict.STUCK),
    ],
)
def test_verdict_on_an_attempt_without_signs_of_life(
    quiet_s: float, told_s_ago: float | None, expected: Verdict
) -> None:
    now_s = START_S + 9.0
    told_s = None if told_s_ago is None else now_s - told_s_ago
    sample = Sample(START_S, alive_s=now_s - quiet_s, stall_told_s=told_s)
    assert verdict(sample, Limits(10.0, 20.0, stall_s=3.0), now_s) is expected
    assert verdict(sample, Limits(10.0, 20.0), now_s) is Verdict.OK
    assert verdict(sample, Limits(5.0, 8.0, stall_s=3.0), now_s) is Verdict.HARD


def test_what_is_a_sign_of_life() -> None:
    ledger = Ledger(START_S)
    slot, child = (SLOT, counters(1)), (CHILD, counters(1))

    def alive_s(now_s: float, *measured: tuple[ProcessKey, Counters]) -> float:
        return ledger.enter(measured, START_S + now_s).alive_s - START_S

    assert alive_s(0, slot) == 0
    assert alive_s(1, slot) == 0
    assert alive_s(2, slot, child) == 2, "a process began"
    assert alive_s(3, child, slot) == 2
    assert alive_s(4, slot, (CHILD, counters(1, rss_bytes=99))) == 2, "to lie in memory is not to live"
    assert alive_s(5, slot, (CHILD, counters(1.01))) == 5, "CPU time"
    assert alive_s(6, slot) == 6, "a process ended"
    assert alive_s(7, (SLOT, Counters(1, 10, 1, 1, 2))) == 7, "bytes moved"
    ledger.told_stall(START_S + 10)
    ledger.alive(START_S + 8)
    assert (alive_s(11, (SLOT, Counters(1, 10, 1, 1, 2))), ledger.enter([], START_S + 12).stall_told_s) == (8, None)


def test_no_memory_limit_means_none() -> None:
    assert verdict(Sample(0.0, rss_bytes=1 << 50), Limits(10.0, 20.0), 0.0) is Verdict.OK


SLOT, CHILD, OTHER = ProcessKey(1, 1), ProcessKey(2, 1), ProcessKey(2, 7)


def counters(cpu_s: float, rss_bytes: int = 10) -> Counters:
    return Counters(cpu_s, rss_bytes, int(cpu_s), int(cpu_s), int(cpu_s))


def test_ledger_counts_from_its_first_measurement_and_never_back() -> None:
    ledger = Ledger(START_S)
    assert ledger.enter([(SLOT, counters(100))]).cpu_s == 0
    sample = ledger.enter([(SLOT, counters(101)), (CHILD, counters(5, 50))])
    assert (sample.cpu_s, sample.rss_bytes, sample.processes) == (6, 60, 2)
    # The child has ended and is not reaped yet: in no sum.
    sample = ledger.enter([(SLOT, counters(101))])
    assert (sample.cpu_s, sample.rss_bytes, sample.peak_rss_bytes, sample.processes) == (6, 10, 60, 1)
    # Reaped: the kernel has added it to its parent. Its pid is used again.
    sample = ledger.enter([(SLOT, counters(107)), (OTHER, counters(1))])
    assert (sample.cpu_s, sample.read_bytes, sample.processes_seen) == (8, 8, 3)
    assert ledger.enter([]).peak_rss_bytes == 60
    ledger.told_soft()
    assert ledger.enter([]).soft_told


def test_attempt_usage_takes_the_better_account() -> None:
    sample = Sample(0.0, cpu_s=1.0, peak_rss_bytes=500, read_bytes=5, written_bytes=6, processes_seen=4)
    reported = SlotUsage(cpu_s=1.25, peak_rss_bytes=400, read_bytes=7, written_bytes=1)
    assert attempt_usage(reported, sample) == Usage(1250, 500, 7, 6, 4)
    assert attempt_usage(None, sample) == Usage(1000, 500, 5, 6, 4)
    assert attempt_usage(None, None) == Usage(0, 0, 0, 0, 1)


@pytest.fixture
def driver() -> Iterator[Driver]:
    with Driver() as fresh:
        yield fresh


def test_memory_of_a_task_is_seen_and_its_tree_ended(driver: Driver, tmp_path: Path) -> None:
    sampler = TreeSampler(driver.slot.pid, 0.0)
    limits = Limits(60.0, 60.0, memory_bytes=200 * MIB)
    assert verdict(sampler.sample(), limits, 0.0) is Verdict.OK
    driver.start("eat_memory", str(tmp_path / "stands"), 256 * MIB)
    wait_until((tmp_path / "stands").exists)
    sample = sampler.sample()
    assert 256 * MIB <= sample.rss_bytes < 320 * MIB
    assert verdict(sample, limits, 0.0) is Verdict.MEMORY
    driver.slot.end(0.0, "memory")
    driver.until(slots.Ended, within_s=2.0)
    assert sampler.sample().peak_rss_bytes == sample.peak_rss_bytes
    assert sampler.sample().processes == 0


def test_whole_tree_is_measured(driver: Driver, tmp_path: Path) -> None:
    sampler = TreeSampler(driver.slot.pid, 0.0)
    driver.start("daemonize", str(tmp_path / "a"), True)
    pids_in(tmp_path / "a")
    assert sampler.sample().processes == 2


def test_cpu_and_bytes_of_what_ended_between_two_samples_are_kept(driver: Driver, tmp_path: Path) -> None:
    sampler = TreeSampler(driver.slot.pid, 0.0)
    usage = driver.run("burn", 0.5, 8 * MIB, str(tmp_path / "file")).usage
    sample = sampler.sample()  # both children came and went unseen
    assert sample.processes_seen == 1
    assert sample.cpu_s == pytest.approx(usage.cpu_s, abs=0.03)
    assert sample.written_bytes >= 8 * MIB
    assert sample.moved_bytes >= 8 * MIB


LOAD = """
import os, subprocess, sys, time
# A large one, many that live for moments, and one that nobody waits for; bytes to the disk and back from it.
if sys.argv[1] == "child":
    block = os.urandom(1 << 20)
    hoard = [bytes(block) for _ in range(int(sys.argv[2]))]
    until_s = float(sys.argv[3])
    while time.process_time() < until_s: sum(range(1000))
    sys.exit()
for size_mib, cpu_s in [(200, 0.6), *[(1, 0.1)] * 6]:
    subprocess.run([sys.executable, __file__, "child", str(size_mib), str(cpu_s)], check=True)
with open(sys.argv[1], "wb") as file:
    for _ in range(16): file.write(os.urandom(1 << 20))
    file.flush(); os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
with open(sys.argv[1], "rb") as file:
    while file.read(1 << 20): pass
"""
MEASURE = """
import json, os, sys
pid = os.fork()
if pid == 0: os.execv(sys.argv[2], sys.argv[2:])
_, status, used = os.wait4(pid, 0)
with open(sys.argv[1], "w") as file:
    json.dump([status, used.ru_utime + used.ru_stime, used.ru_maxrss, used.ru_inblock, used.ru_oublock], file)
"""


def test_account_agrees_with_the_kernels_for_a_known_load(driver: Driver, tmp_path: Path) -> None:
    """Within 5 % of what wait4(2) says, which is what `/usr/bin/time -v` shows, of the same tree of processes."""
    idle = driver.run("echo").usage
    (tmp_path / "load.py").write_text(LOAD)
    (tmp_path / "measure.py").write_text(MEASURE)
    log = tmp_path / "used"
    argv = [PYTHON, str(tmp_path / "measure.py"), str(log), PYTHON, str(tmp_path / "load.py"), str(tmp_path / "data")]
    sampler = TreeSampler(driver.slot.pid, 0.0)
    seq = driver.start("run", argv, {})
    while not log.exists():
        sampler.sample()
        driver.events.extend(driver.keeper.receive())
        time.sleep(0.02)
    usage = attempt_usage(driver.result(seq).usage, sampler.sample())
    status, cpu_s, peak_kib, read_blocks, written_blocks = json.loads(log.read_text())
    assert status == 0
    assert cpu_s > 1.0
    assert usage.cpu_ms / 1000 == pytest.approx(cpu_s, rel=0.05)
    # That is the largest process; with it stand the load's own, the one that measures, and the slot.
    others = 3 * idle.peak_rss_bytes
    assert 0.95 * peak_kib * 1024 <= usage.peak_rss_bytes <= 1.05 * peak_kib * 1024 + others
    assert usage.read_bytes == pytest.approx(512 * read_blocks, rel=0.05, abs=1 << 20)
    assert usage.write_bytes == pytest.approx(512 * written_blocks, rel=0.05, abs=1 << 20)
    assert usage.processes >= 4


SWELLS = "b'x' * (150 << 20); print('swollen', flush=True); input()"


def test_what_a_process_was_between_two_samples_is_seen_also_the_second_time() -> None:
    """The kernel's account of children, which the slot gives, grows only with the largest of all time."""
    with subprocess.Popen([PYTHON, "-c", "input()"], stdin=subprocess.PIPE) as parent:
        sampler = TreeSampler(parent.pid, 0.0)
        assert sampler.sample().peak_rss_bytes < 100 * MIB
        parent.kill()
    for _ in range(2):
        program = f"import subprocess; subprocess.run([{PYTHON!r}, '-c', {SWELLS!r}])"
        with subprocess.Popen([PYTHON, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
            sampler = TreeSampler(parent.pid, 0.0)
            assert parent.stdout is not None
            assert parent.stdout.readline() == b"swollen\n"
            sample = sampler.sample()
            assert sample.rss_bytes < 100 * MIB
            assert sample.peak_rss_bytes == pytest.approx(150 * MIB, rel=0.15)
            parent.communicate(b"\n")


def test_sampler_never_takes_another_process_for_its_own(driver: Driver) -> None:
    sleeper = subprocess.Popen(["sleep", "600"])
    sampler = TreeSampler(sleeper.pid, 0.0)
    assert sampler.sample().processes == 1
    sleeper.send_signal(signal.SIGKILL)
    sleeper.wait()
    assert sampler.sample().processes == 0
