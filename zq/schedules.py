"""Schedules as everybody sees them: what zq.toml says of each, and what the broker keeps of its progress.

The scheduler writes a schedule's progress into a register of the broker, operators write their orders into another.
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import msgspec

from zq.client.requests import JobRequest
from zq.config import Config, ConfigError, ScheduleSection
from zq.exceptions import Invalid
from zq.protocol.job import new_job_id
from zq.protocol.messages import JobInfo, Receipt, Register

EXAM_STATUS: Final = "exam-status"
"""The built-in schedule; one of this name in zq.toml takes its place."""
PREFIX: Final = "schedule"
_PROGRESS, _ORDER = "schedule:", "schedule-order:"
TASK_CHARS_MAX: Final = 100
"""Of a task's name in a register, which is bounded."""
ONE_SHOT_QUEUE: Final = "status_check"
ONE_SHOT_KEYS: Final = "exam:"
TRIES: Final = 5
"""Of writing an order while somebody else writes the same one."""


@dataclass(frozen=True)
class Plan:
    """A schedule of the configuration. Exactly one of `every_ms`, `cron` and `at_ms` is set."""

    name: str
    task: str
    queue: str
    every_ms: int = 0
    cron: str = ""
    at_ms: int = 0
    zone: str = "UTC"
    misfire: str = "once"
    misfire_max: int = 100
    overlap: str = "queue"
    jitter_ms: int = 0
    expires_ms: int | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rule(self) -> str:
        """For people."""
        if self.cron:
            return f"cron {self.cron} ({self.zone})"
        if self.at_ms:
            return f"at {datetime.fromtimestamp(self.at_ms / 1000, zoneinfo.ZoneInfo(self.zone)).isoformat(' ')}"
        return f"every {self.every_ms / 1000:g} s"

    @property
    def key(self) -> str:
        """One live job at a time, where jobs must not overlap."""
        return f"schedule:{self.name}" if self.overlap == "skip" else ""

    def run_now(self) -> JobRequest:
        """A job beside the ticks, for an operator."""
        return JobRequest(
            task=self.task,
            queue=self.queue,
            args=self.args,
            kwargs=self.kwargs,
            id=new_job_id(),
            max_retries=0,
            key=self.key,
        )


def plans_of(config: Config) -> list[Plan]:
    """The built-in status check of the exams and the schedules of zq.toml. Raises ConfigError."""
    every_ms = _ms(config.exams.status_every_s)
    found = {
        EXAM_STATUS: Plan(
            EXAM_STATUS, "zq.workers.status.check_exams", "status_check", every_ms, zone=config.exams.time_zone,
            overlap="skip",
        )
    }  # fmt: skip
    for name, section in config.schedules.items():
        found[name] = _plan(name, section, config.exams.time_zone)
    return list(found.values())


def _plan(name: str, section: ScheduleSection, zone: str) -> Plan:
    given = [key for key in ("every_s", "cron", "at") if getattr(section, key)]
    if len(given) != 1:
        said = f"; there are {', '.join(given)}" if given else ""
        raise ConfigError(f"schedules.{name}: give exactly one of every_s, cron and at{said}")
    zone = section.zone or zone
    try:
        local = zoneinfo.ZoneInfo(zone) if section.at or section.cron else None
        at_ms = _moment_ms(section.at, local) if section.at else 0
    except zoneinfo.ZoneInfoNotFoundError:
        raise ConfigError(f"schedules.{name}: no time zone {zone!r} on this machine") from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"schedules.{name}: {error}") from None
    return Plan(
        name=name,
        task=section.task,
        queue=section.queue,
        every_ms=_ms(section.every_s) if section.every_s else 0,
        cron=section.cron,
        at_ms=at_ms,
        zone=zone,
        misfire=section.misfire,
        misfire_max=section.misfire_max,
        overlap=section.overlap,
        jitter_ms=round(section.jitter_s * 1000),
        expires_ms=_ms(section.expires_s) if section.expires_s is not None else None,
        args=section.args,
        kwargs=section.kwargs,
    )


def _moment_ms(text: str, zone: zoneinfo.ZoneInfo | None) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"at {text!r} is not ISO 8601; write it like 2026-06-30 09:00:00 or with +08:00") from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp() * 1000)


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """What has become of a schedule so far. Times are Unix milliseconds, 0 for not yet."""

    task: str = ""
    queue: str = ""
    rule: str = ""
    next_ms: int = 0
    """When its next tick is due; 0 for never again."""
    done_ms: int = 0
    """Up to this nominal time every tick has been dealt with."""
    last_ms: int = 0
    """The nominal time of the newest tick that became a job."""
    late_ms: int = 0
    """How long after its time (nominal and jitter) the broker had that tick."""
    job_id: bytes = b""
    ticks: int = 0
    """Ticks that became jobs."""
    missed: int = 0
    """Ticks that nobody was there to submit and that were not made up for."""
    overlapped: int = 0
    """Ticks left out because the job of an earlier one was still there."""


class Order(msgspec.Struct, frozen=True, array_like=True):
    """What operators want of a schedule."""

    paused: bool = False
    at_ms: int = 0
    by: str = ""


@dataclass(frozen=True)
class Known:
    """The registers of a schedule, with the revisions that the next writes must follow."""

    progress: Progress | None = None
    progress_revision: int = 0
    order: Order = Order()  # noqa: RUF009 (immutable)
    order_revision: int = 0


_encode = msgspec.msgpack.Encoder().encode


def read(registers: Iterable[Register]) -> dict[str, Known]:
    """By schedule. A register that another version has written otherwise counts as one that was never written."""
    found: dict[str, Known] = {}
    for register in registers:
        for prefix, kind in ((_PROGRESS, Progress), (_ORDER, Order)):
            if not register.name.startswith(prefix):
                continue
            name = register.name.removeprefix(prefix)
            known = found.get(name, Known())
            value = _decoded(register.value, kind)
            if kind is Progress:
                known = Known(value, register.revision, known.order, known.order_revision)
            else:
                known = Known(known.progress, known.progress_revision, value or Order(), register.revision)
            found[name] = known
    return found


def _decoded(value: bytes, kind: Any) -> Any:
    try:
        return msgspec.msgpack.decode(value, type=kind)
    except msgspec.DecodeError:
        return None


def progress_register(name: str, known: Known, progress: Progress) -> Register:
    return Register(f"{_PROGRESS}{name}", known.progress_revision + 1, _encode(progress))


def order_register(name: str, known: Known, order: Order) -> Register:
    return Register(f"{_ORDER}{name}", known.order_revision + 1, _encode(order))


@dataclass(frozen=True)
class Shown:
    """A schedule as it is listed: from the configuration, from the broker, or from both."""

    name: str
    plan: Plan | None
    """None for one that only a scheduler elsewhere knows."""
    known: Known

    @property
    def task(self) -> str:
        return self.plan.task if self.plan is not None else self._progress.task

    @property
    def queue(self) -> str:
        return self.plan.queue if self.plan is not None else self._progress.queue

    @property
    def rule(self) -> str:
        return self.plan.rule if self.plan is not None else self._progress.rule

    @property
    def _progress(self) -> Progress:
        return self.known.progress or Progress()


def shown(plans: Sequence[Plan], known: Mapping[str, Known], now_ms: int) -> list[Shown]:
    """All schedules, those of the configuration first. One that no configuration has any more is left out once its
    next tick is a day overdue."""
    of_config = {plan.name: plan for plan in plans}
    found = [Shown(plan.name, plan, known.get(plan.name, Known())) for plan in plans]
    for name, one in sorted(known.items()):
        if name not in of_config and one.progress is not None and one.progress.next_ms > now_ms - 86_400_000:
            found.append(Shown(name, None, one))
    return found


def require(found: Sequence[Shown], name: str) -> Shown:
    """Raises Invalid that names the nearest one."""
    for one in found:
        if one.name == name:
            return one
    names = [one.name for one in found]
    import difflib  # only a wrong name needs it

    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    raise Invalid(f"there is no schedule '{name}'; {f'did you mean {near[0]}?' if near else ', '.join(names)}")


def require_plan(one: Shown) -> Plan:
    if one.plan is None:
        raise Invalid(f"schedule '{one.name}' is in another machine's zq.toml; run it there")
    return one.plan


def one_shots(jobs: Sequence[JobInfo]) -> list[JobInfo]:
    """Of the waiting jobs of ONE_SHOT_QUEUE, those of an exam's start, end and merges."""
    return [job for job in jobs if job.key.startswith(ONE_SHOT_KEYS)]


def refused_text(receipt: Receipt) -> str:
    """Why a job was not taken."""
    return f"{receipt.code}: {receipt.detail}" if receipt.code is not None else "its last job is still there"
