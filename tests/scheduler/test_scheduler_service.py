"""The scheduler against a broker's answers, on a clock of the test's own."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from zq.client.requests import JobRequest, encode, raw_id
from zq.config import Config, ScheduleSection, WorkerSection, load
from zq.exceptions import Unavailable
from zq.protocol.errors import Code
from zq.protocol.job import State, decode_spec
from zq.protocol.messages import Receipt, ReceiptStatus
from zq.scheduler.service import Clock, Service, schedules_of


class Broker:
    """Answers as the broker does: one job for an id."""

    def __init__(self) -> None:
        self.away = False
        self.refuse: Code | None = None
        self.specs: dict[bytes, bytes] = {}
        self.asked: list[bytes] = []

    def submit_many(self, requests: Sequence[JobRequest]) -> list[Receipt]:
        self.asked += [raw_id(request.id) for request in requests]
        if self.away:
            raise Unavailable("nobody there")
        return [self._take(request) for request in requests]

    def _take(self, request: JobRequest) -> Receipt:
        one = encode(request, WorkerSection())
        if self.refuse is not None:
            return Receipt(one.id, ReceiptStatus.REFUSED, code=self.refuse, detail="no", retry_after_ms=5_000)
        before = self.specs.setdefault(one.id, one.spec)
        if before != one.spec:
            return Receipt(one.id, ReceiptStatus.REFUSED, code=Code.CONFLICT)
        return Receipt(one.id, ReceiptStatus.ACCEPTED, State.READY)


class Time:
    def __init__(self, now_ms: int) -> None:
        self.wall_ms = now_ms
        self.monotonic_ms = 5

    def clock(self) -> Clock:
        return Clock(lambda: self.wall_ms, lambda: self.monotonic_ms)

    def go(self, ms: int) -> None:
        self.wall_ms += ms
        self.monotonic_ms += ms


def service(broker: Broker, time: Time, config: Config | None = None) -> Service:
    return Service(broker, schedules_of(config or Config()), time.clock())


def test_two_schedulers_make_one_job_a_tick() -> None:
    broker, time = Broker(), Time(1_763_800_000_000)
    one, two = service(broker, time), service(broker, time)
    for _ in range(10):
        one.step()
        time.go(two.step())
    assert len(broker.asked) == 20
    assert len(broker.specs) == 10


def test_a_restarted_scheduler_makes_no_second_job() -> None:
    broker, time = Broker(), Time(1_763_800_000_000)
    service(broker, time).step()
    time.go(9_999)
    service(broker, time).step()
    assert len(broker.asked) == 2
    assert len(broker.specs) == 1


def test_a_tick_expires_after_its_interval_and_is_not_retried() -> None:
    broker = Broker()
    service(broker, Time(1_763_800_000_000)).step()
    (spec,) = (decode_spec(data) for data in broker.specs.values())
    assert (spec.task, spec.queue) == ("zq.workers.status.check_exams", "status_check")
    assert (spec.expires_ms, spec.max_retries) == (30_000, 0)


def test_it_sleeps_until_the_next_tick() -> None:
    time = Time(30_000)
    assert service(Broker(), time).step() == 30_000
    time = Time(59_000)
    assert service(Broker(), time).step() == 1_000


def test_while_the_broker_is_away_the_same_tick_is_offered_until_it_would_have_expired() -> None:
    broker, time = Broker(), Time(30_000)
    broker.away = True
    scheduler = service(broker, time)
    for _ in range(29):
        time.go(scheduler.step())
    assert len(set(broker.asked)) == 1
    assert len(broker.asked) == 29
    broker.away = False
    scheduler.step()
    assert len(broker.specs) == 1
    assert scheduler.step() == 1_000


def test_after_a_long_outage_there_is_one_tick_and_not_a_pile() -> None:
    broker, time = Broker(), Time(30_000)
    broker.away = True
    scheduler = service(broker, time)
    for _ in range(600):
        time.go(scheduler.step())
    broker.away = False
    scheduler.step()
    assert len(broker.specs) == 1


def test_a_full_queue_is_waited_for_as_long_as_the_broker_says() -> None:
    broker, time = Broker(), Time(30_000)
    broker.refuse = Code.QUEUE_FULL
    scheduler = service(broker, time)
    assert scheduler.step() == 5_000


@pytest.mark.parametrize("code", [Code.CONFLICT, Code.FORBIDDEN])
def test_a_final_no_is_not_asked_again(code: Code) -> None:
    broker, time = Broker(), Time(30_000)
    broker.refuse = code
    scheduler = service(broker, time)
    assert scheduler.step() == 30_000
    assert scheduler.step() == 30_000
    assert len(broker.asked) == 1


def test_trouble_is_logged_when_it_begins_and_ends_only(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "zq.scheduler")
    broker, time = Broker(), Time(30_000)
    broker.away = True
    scheduler = service(broker, time)
    for _ in range(50):
        time.go(scheduler.step())
    broker.away = False
    for _ in range(5):
        time.go(scheduler.step())
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_schedules_of_the_configuration_stand_beside_the_built_in_one_or_replace_it() -> None:
    config = Config(
        schedules={
            "nightly": ScheduleSection(task="t", queue="q", every_s=60, expires_s=5, misfire="skip", args=(1,)),
            "exam-status": ScheduleSection(task="own", queue="q", every_s=7),
        }
    )
    found = {schedule.name: schedule for schedule in schedules_of(config)}
    nightly = found["nightly"]
    assert (nightly.interval_ms, nightly.expires_ms, nightly.misfire, nightly.args) == (60_000, 5_000, "skip", (1,))
    assert (found["exam-status"].task, found["exam-status"].interval_ms) == ("own", 7_000)


def scheduler_process(tmp_path: Path, **more: str) -> subprocess.Popen[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("ZQ_")}
    # Port 1: nobody is there, and nobody will be.
    env |= {"ZQ_CLIENT_BROKER": "tcp://127.0.0.1:1", "ZQ_DATA_DIR": str(tmp_path), **more}
    return subprocess.Popen(
        [sys.executable, "-m", "zq.scheduler"], env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_with_code_0_while_the_broker_is_away(tmp_path: Path, number: int) -> None:
    with scheduler_process(tmp_path) as process:
        assert process.stderr is not None
        assert "scheduling: exam-status every 30 s" in process.stderr.readline()
        process.send_signal(number)
        assert process.wait(timeout=10) == 0
        assert "stopped" in process.stderr.read()


def test_a_configuration_that_cannot_work_ends_it_with_code_78(tmp_path: Path) -> None:
    with scheduler_process(tmp_path, ZQ_EXAMS_STATUS_EVERY_S="never") as process:
        assert process.wait(timeout=10) == 78
        assert process.stderr is not None
        assert "ZQ_EXAMS_STATUS_EVERY_S" in process.stderr.read()


def test_a_schedule_whose_jobs_cannot_be_sent_is_named(tmp_path: Path) -> None:
    (tmp_path / "zq.toml").write_text('[schedules.huge]\ntask = "a b"\nqueue = "q"\nevery_s = 1\n', "utf-8")
    load(tmp_path / "zq.toml", {})
    with scheduler_process(tmp_path) as process:
        assert process.wait(timeout=10) == 78
        assert process.stderr is not None
        assert "schedules.huge" in process.stderr.read()
