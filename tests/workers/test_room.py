"""What a worker says of the disk and the memory it has: by its session, and as measured."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.workers.session_bench import HEARTBEAT_MS, Bench, of, one, spec
from zq.config import Config, ExamsSection, WorkerSection
from zq.protocol import limits
from zq.protocol import messages as m
from zq.protocol.job import Outcome, encode_spec
from zq.workers import headroom
from zq.workers import session_io as io
from zq.workers.headroom import Gauge

GIB = 1 << 30


def needy(token: int, *, disk: int = 0, memory: int = 0) -> m.Lease:
    asked = replace(spec(token), disk_bytes=disk, memory_bytes=memory)
    return m.Lease(asked.id, 1, token, encode_spec(asked))


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    assert made.session.wants_room(made.now_ms)
    made.tell(io.RoomMeasured(10 * GIB, 8 * GIB, "disk", "machine"))
    return made


def test_the_first_credit_and_every_beat_say_it(bench: Bench) -> None:
    effects = bench.welcome()
    assert one(m.Credit, effects).room == m.Room(10 * GIB, 8 * GIB, "disk", "machine")
    bench.now_ms += HEARTBEAT_MS
    assert bench.session.wants_room(bench.now_ms)
    assert one(m.Beat, bench.tell(io.RoomMeasured(9 * GIB, 7 * GIB))).room == m.Room(9 * GIB, 7 * GIB)
    assert not bench.session.wants_room(bench.now_ms)


def test_what_jobs_have_used_of_their_needs_is_told_as_if_it_were_free(bench: Bench) -> None:
    bench.welcome()
    bench.dispatch(needy(1, disk=4 * GIB, memory=GIB), needy(2))
    bench.tell(io.Sampled(1, m.Usage(write_bytes=3 * GIB), rss_bytes=5 * GIB))
    bench.tell(io.Sampled(2, m.Usage(write_bytes=3 * GIB), rss_bytes=GIB))  # it had said nothing of its needs
    bench.now_ms += HEARTBEAT_MS
    room = one(m.Beat, bench.tell(io.RoomMeasured(5 * GIB, 2 * GIB))).room
    assert room == m.Room(8 * GIB, 3 * GIB)  # never more than it had asked for


def test_when_a_job_with_needs_has_ended_what_is_free_is_told_before_its_result(bench: Bench) -> None:
    bench.welcome()
    bench.dispatch(needy(1, disk=4 * GIB))
    bench.session.handle(io.Reported(1, Outcome.DONE), bench.now_ms)
    assert bench.session.wants_room(bench.now_ms)
    effects = bench.tell(io.RoomMeasured(6 * GIB, 8 * GIB))
    credit, ack = of(m.FromPeer, effects)
    assert isinstance(credit, m.Credit)
    assert (credit.room, isinstance(ack, m.Ack)) == (m.Room(6 * GIB, 8 * GIB), True)
    assert not bench.session.wants_room(bench.now_ms)


def test_a_job_without_needs_costs_no_measuring(bench: Bench) -> None:
    bench.welcome()
    bench.dispatch(needy(1))
    bench.session.handle(io.Reported(1, Outcome.DONE), bench.now_ms)
    assert not bench.session.wants_room(bench.now_ms)


def test_a_stall_is_told_at_once_and_once(bench: Bench) -> None:
    bench.welcome()
    bench.dispatch(needy(1))
    assert not of(m.Beat, bench.tell(io.Sampled(1, m.Usage(), quiet_ms=59_000)))
    beat = one(m.Beat, bench.tell(io.Sampled(1, m.Usage(), quiet_ms=60_000, stalled=True)))
    assert [(usage.quiet_ms, usage.stalled) for usage in beat.usage] == [(60_000, True)]
    assert not of(m.Beat, bench.tell(io.Sampled(1, m.Usage(), quiet_ms=61_000, stalled=True)))


def test_what_is_measured_is_bounded_as_the_wire_is(bench: Bench) -> None:
    bench.tell(io.RoomMeasured(1 << 60, 1 << 60))
    assert one(m.Credit, bench.welcome()).room == m.Room(limits.NEED_BYTES_MAX, limits.NEED_BYTES_MAX)


# ---------------------------------------------------------------------------------------------- measured


def test_a_folder_is_measured_by_its_disk_also_before_it_is_made(tmp_path: Path) -> None:
    there, not_yet = Gauge(tmp_path, 0).measure(), Gauge(tmp_path / "a" / "b", 0).measure()
    found = os.statvfs(tmp_path)
    assert there.disk_bytes == pytest.approx(found.f_bavail * found.f_frsize, abs=512 << 20)
    assert (there.disk, there.machine) == (not_yet.disk, not_yet.machine)
    assert there.disk.endswith(f":{os.stat(tmp_path).st_dev}")
    assert there.memory_bytes > 1 << 20
    assert not list(tmp_path.iterdir())


def test_the_reserve_is_not_given_away(tmp_path: Path) -> None:
    assert Gauge(tmp_path, 1 << 60).measure().disk_bytes == 0


def test_a_disk_that_cannot_be_looked_at_has_no_room_and_is_told_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(path: object) -> None:
        raise OSError(116, "Stale file handle")

    gauge = Gauge(tmp_path, 0)
    monkeypatch.setattr(os, "statvfs", gone)
    assert [gauge.measure().disk_bytes for _ in range(3)] == [0, 0, 0]
    assert [r.message for r in caplog.records if "Stale file handle" in r.message] == caplog.messages[:1]


@pytest.mark.parametrize(
    ("own", "folder", "bound", "used", "prefix"),
    [
        ("0::/job\n", "job", "memory.max", "memory.current", ""),
        (
            "9:cpu:/x\n4:memory,hugetlb:/job\n0::/\n",
            *("memory/job", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ),
    ],
)
def test_a_cgroup_bounds_the_memory_and_pages_of_files_do_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: str, folder: str, bound: str, used: str, prefix: str
) -> None:
    (tmp_path / "own").write_text(own)
    (tmp_path / folder).mkdir(parents=True)
    files = tmp_path / folder

    cgroup = functools.partial(headroom.memory_cgroup, tmp_path, tmp_path / "own")

    for no_bound in ("max", str((1 << 63) - 4096), "", "nonsense"):
        (files / bound).write_text(no_bound)
        assert cgroup() is None
    (files / bound).write_text(f"{4 << 20}\n")
    (files / used).write_text(f"{3 << 20}\n")
    (files / "memory.stat").write_text(f"anon 5\n{prefix}inactive_file {1 << 20}\n{prefix}active_file 7\nnonsense\n")
    monkeypatch.setattr(headroom, "memory_cgroup", cgroup)
    gauge = Gauge(tmp_path, 0)
    assert gauge.measure().memory_bytes == (2 << 20) + 7
    assert str(files)[-40:] in gauge.measure().machine
    (files / bound).write_text("max\n")
    assert gauge.measure().memory_bytes > 4 << 20


def test_which_folder_counts(tmp_path: Path) -> None:
    config = Config(data_dir=str(tmp_path))
    assert config.jobs_path == tmp_path / "exams"
    assert Config(data_dir=str(tmp_path), exams=ExamsSection(storage="s3://bucket/exams")).jobs_path == tmp_path
    assert Config(worker=WorkerSection(disk_folder="/mnt/a")).jobs_path == Path("/mnt/a")
