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
from hypothesis import given, settings
from hypothesis import strategies as st

from zq.client.requests import JobRequest, encode, raw_id
from zq.config import Config, ConfigError, ScheduleSection, WorkerSection, load
from zq.exceptions import Refused, Unavailable
from zq.protocol.errors import Code
from zq.protocol.job import State, decode_spec
from zq.protocol.messages import Receipt, ReceiptStatus, Register, RegisterSet
from zq.scheduler.rules import Interval
from zq.scheduler.service import Clock, Service, schedules_of
from zq.schedules import Order, Progress, order_register, read


class Broker:
    """Answers as the broker does: one job for an id."""

    def __init__(self) -> None:
        self.away = False
        self.refuse: Code | None = None
        self.specs: dict[bytes, bytes] = {}
        self.asked: list[bytes] = []
        self.values: dict[str, Register] = {}
        self.busy = ""
        """A live job has this key."""

    def registers(self, prefix: str = "") -> list[Register]:
        if self.away:
            raise Unavailable("nobody there")
        return [register for name, register in sorted(self.values.items()) if name.startswith(prefix)]

    def set_registers(self, registers: Sequence[Register]) -> list[RegisterSet]:
        if self.away:
            raise Unavailable("nobody there")
        answers = []
        for one in registers:
            before = self.values.get(one.name, Register(one.name, 0, b""))
            done = one.revision == before.revision + 1
            self.values[one.name] = one if done else before
            answers.append(RegisterSet(0, self.values[one.name], done))
        return answers

    def progress(self, name: str = "exam-status") -> Progress:
        return read(self.values.values())[name].progress or Progress()

    def order(self, name: str, paused: bool, at_ms: int) -> None:
        known = read(self.values.values())[name]
        self.set_registers([order_register(name, known, Order(paused, at_ms, "who"))])

    def submit_many(self, requests: Sequence[JobRequest]) -> list[Receipt]:
        self.asked += [raw_id(request.id) for request in requests]
        if self.away:
            raise Unavailable("nobody there")
        return [self._take(request) for request in requests]

    def _take(self, request: JobRequest) -> Receipt:
        one = encode(request, WorkerSection())
        if self.refuse is not None:
            return Receipt(one.id, ReceiptStatus.REFUSED, code=self.refuse, detail="no", retry_after_ms=5_000)
        if self.busy and one.id not in self.specs and decode_spec(one.spec).key == self.busy:
            return Receipt(bytes(16), ReceiptStatus.KEY_TAKEN, State.RUNNING)
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
    assert len(broker.specs) == 10
    assert broker.progress().ticks == 10


def test_a_restarted_scheduler_makes_no_second_job() -> None:
    broker, time = Broker(), Time(1_763_800_000_000)
    service(broker, time).step()
    time.go(9_999)
    service(broker, time).step()
    assert len(broker.specs) == 1
    # It knows from the broker what was done before, down to the tick.
    time.go(10 * 30_000)
    service(broker, time).step()
    assert (len(broker.specs), broker.progress().ticks, broker.progress().missed) == (2, 2, 9)


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


def test_while_the_broker_is_away_the_tick_waits_until_it_would_have_expired() -> None:
    broker, time = Broker(), Time(30_000)
    broker.away = True
    scheduler = service(broker, time)
    for _ in range(29):
        time.go(scheduler.step())
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
    assert (nightly.rule, nightly.expires_ms, nightly.misfire, nightly.args) == (Interval(60_000), 5_000, "skip", (1,))
    assert (found["exam-status"].task, found["exam-status"].rule) == ("own", Interval(7_000))


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (ScheduleSection(task="t", queue="q"), "give exactly one of every_s, cron and at"),
        (ScheduleSection(task="t", queue="q", every_s=1, cron="0 3 * * *"), "there are every_s, cron"),
        (ScheduleSection(task="t", queue="q", cron="0 25 * * *"), "Bad hour"),
        (ScheduleSection(task="t", queue="q", at="soon"), "ISO 8601"),
        (ScheduleSection(task="t", queue="q", cron="0 3 * * *", zone="Mars/Base"), "Mars/Base"),
    ],
)
def test_schedules_that_cannot_be(section: ScheduleSection, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        schedules_of(Config(schedules={"bad": section}))
    assert "schedules.bad" in str(error.value)


def only(section: ScheduleSection) -> Config:
    """With nothing else that is soon due."""
    return Config(schedules={"mine": section, "exam-status": ScheduleSection(task="t", queue="q", every_s=31_000_000)})


def test_a_cron_schedule_is_submitted_at_its_time_and_not_when_it_is_first_seen() -> None:
    broker, time = Broker(), Time(1_763_800_000_000)  # 2025-11-22 16:26:40 in Shanghai
    scheduler = service(broker, time, only(ScheduleSection(task="t", queue="q", cron="0 3 * * *")))
    scheduler.step()
    before = len(broker.specs)
    assert broker.progress("mine").next_ms == 1_763_838_000_000  # 2025-11-23 03:00
    while time.wall_ms < 1_763_838_000_000:
        assert len(broker.specs) == before
        time.go(max(1, scheduler.step()))
    scheduler.step()
    assert len(broker.specs) == before + 1
    assert (broker.progress("mine").last_ms, broker.progress("mine").ticks) == (1_763_838_000_000, 1)


def test_fault_16_ticks_of_an_outage_do_not_run_in_a_row() -> None:
    """Nobody scheduled, or the broker was away, for an hour: one status check, and 119 that were missed."""
    broker, time = Broker(), Time(30_000)
    service(broker, time).step()
    time.go(3_600_000)
    service(broker, time).step()
    assert len(broker.specs) == 2
    assert (broker.progress().ticks, broker.progress().missed) == (2, 119)


def test_a_tick_is_left_out_while_the_job_of_the_last_one_is_there() -> None:
    broker, time = Broker(), Time(30_000)
    scheduler = service(broker, time)
    scheduler.step()
    broker.busy = "schedule:exam-status"
    for _ in range(3):
        time.go(30_000)
        scheduler.step()
    assert (len(broker.specs), broker.progress().overlapped, broker.progress().missed) == (1, 3, 0)
    broker.busy = ""
    time.go(30_000)
    scheduler.step()
    assert len(broker.specs) == 2


def test_a_paused_schedule_submits_nothing_and_goes_on_with_the_next_tick_without_having_missed_any() -> None:
    broker, time = Broker(), Time(30_000)
    scheduler = service(broker, time)
    scheduler.step()
    broker.order("exam-status", True, time.wall_ms)
    for _ in range(5):
        time.go(30_000)
        scheduler.step()
    assert len(broker.specs) == 1
    broker.order("exam-status", False, time.wall_ms + 1)
    time.go(30_000)
    # Also for a scheduler that was not there during the pause.
    service(broker, time).step()
    assert (len(broker.specs), broker.progress().missed) == (2, 0)


def test_a_new_interval_is_not_late_though_its_grid_began_before_it() -> None:
    broker, time = Broker(), Time(1_763_800_010_000)
    scheduler = service(broker, time)
    time.go(scheduler.step())
    assert (broker.progress().ticks, broker.progress().late_ms) == (1, 0)
    time.go(7_000)
    scheduler.step()
    assert (broker.progress().ticks, broker.progress().late_ms) == (2, 7_000)


def test_lateness_is_what_passed_until_the_broker_had_the_tick() -> None:
    broker, time = Broker(), Time(30_000)
    scheduler = service(broker, time)
    scheduler.step()
    time.go(30_012)
    scheduler.step()
    assert (broker.progress().last_ms, broker.progress().late_ms) == (60_000, 12)


def test_a_register_from_the_future_of_a_wrong_clock_does_not_stop_the_ticks(caplog: pytest.LogCaptureFixture) -> None:
    broker, time = Broker(), Time(1_763_800_000_000)
    service(broker, time).step()
    time.wall_ms -= 86_400_000
    service(broker, time).step()
    assert "which is to come" in caplog.text
    assert len(broker.specs) == 2


def test_a_broker_that_keeps_no_registers_of_ours_gets_its_ticks_all_the_same(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key may submit and no more, or there are too many registers."""
    broker, time = Broker(), Time(30_000)

    def refuse(registers: Sequence[Register]) -> list[RegisterSet]:
        raise Refused("this key may not", Code.FORBIDDEN)

    monkeypatch.setattr(broker, "set_registers", refuse)
    scheduler = service(broker, time)
    for _ in range(3):
        time.go(scheduler.step())
    assert len(broker.specs) == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]


_REGISTERS = st.sampled_from(["schedule:a", "schedule-order:a", "schedule", "x"])


@settings(deadline=None)
@given(st.lists(st.tuples(_REGISTERS, st.binary(max_size=40))))
def test_whatever_is_in_the_registers_is_read(values: list[tuple[str, bytes]]) -> None:
    for known in read(Register(name, 1, value) for name, value in values).values():
        assert known.progress is None or known.progress.done_ms is not None


def test_what_another_version_wrote_into_a_register_counts_as_nothing() -> None:
    broker, time = Broker(), Time(30_000)
    broker.values["schedule:exam-status"] = Register("schedule:exam-status", 7, b"\xc1")
    service(broker, time).step()
    assert len(broker.specs) == 1
    assert (broker.values["schedule:exam-status"].revision, broker.progress().ticks) == (8, 1)


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
