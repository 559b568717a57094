"""The route for schedules: what zq.toml says, and what became of the newest tick.

A schedule's ticks stand on a grid from the Unix epoch, and a tick's job has an id made of its schedule and its nominal
time (`zq.scheduler.ticks`): so it can be asked for without asking the scheduler.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from zq.config import Config
from zq.exceptions import Refused, Unavailable
from zq.protocol.job import format_id, job_id_from
from zq.web import views
from zq.web.answers import json_response
from zq.web.auth import Scope
from zq.web.operations import Operation
from zq.web.services import Services, now_ms

log = logging.getLogger("zq.web")

LOOKED_UP_MAX = 64
"""Schedules whose newest tick is asked for."""


@dataclass(frozen=True)
class Plan:
    """A schedule, as the scheduler reads it from the same file."""

    name: str
    task: str
    queue: str
    every_ms: int
    misfire: str

    def tick_ms(self, at_ms: int) -> int:
        """The newest nominal time that is not after `at_ms`."""
        return at_ms - at_ms % self.every_ms

    def job_id(self, nominal_ms: int) -> bytes:
        return job_id_from("tick", self.name, str(nominal_ms))


class TickView(views.View, frozen=True):
    nominal_at: str | None
    job_id: str
    state: str
    late_s: float
    """How long after its nominal time the broker had it."""


class ScheduleView(views.View, frozen=True):
    name: str
    task: str
    queue: str
    every_s: float
    misfire: str
    next_at: str | None
    last: TickView | None
    """The newest tick, or the one before it; null if the broker has neither, or does not answer."""


class ScheduleList(views.View, frozen=True):
    enabled: bool
    """Whether the scheduler of this configuration submits anything."""
    schedules: list[ScheduleView]


def plans_of(config: Config) -> list[Plan]:
    """The built-in status check of the exams and the schedules of zq.toml; one of its name takes its place."""
    status_ms = max(1, round(config.exams.status_every_s * 1000))
    found = {"exam-status": Plan("exam-status", "zq.workers.status.check_exams", "status_check", status_ms, "once")}
    for name, section in config.schedules.items():
        every_ms = max(1, round(section.every_s * 1000))
        found[name] = Plan(name, section.task, section.queue, every_ms, section.misfire)
    return list(found.values())


async def newest_tick(services: Services, plan: Plan, at_ms: int) -> TickView | None:
    """Raises Unavailable, Refused."""
    newest_ms = plan.tick_ms(at_ms)
    for nominal_ms in (newest_ms, newest_ms - plan.every_ms):
        try:
            job = (await services.client.detail(plan.job_id(nominal_ms))).job
        except Refused as error:
            if error.code != "not_found":
                raise
            continue
        late_s = max(0, job.accepted_ms - nominal_ms) / 1000
        return TickView(
            nominal_at=views.when(nominal_ms), job_id=format_id(job.id), state=job.state.label, late_s=late_s
        )
    return None


class ScheduleRoutes:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._plans = plans_of(services.config)

    async def list_schedules(self, request: Request) -> Response:
        at_ms = now_ms()
        asked = self._plans[:LOOKED_UP_MAX]
        ticks = dict(zip(asked, await asyncio.gather(*(self._tick(plan, at_ms) for plan in asked)), strict=True))
        shown = [
            ScheduleView(
                name=plan.name,
                task=plan.task,
                queue=plan.queue,
                every_s=plan.every_ms / 1000,
                misfire=plan.misfire,
                next_at=views.when(plan.tick_ms(at_ms) + plan.every_ms),
                last=ticks.get(plan),
            )
            for plan in self._plans
        ]
        return json_response(ScheduleList(enabled=self._services.config.scheduler.enabled, schedules=shown))

    async def _tick(self, plan: Plan, at_ms: int) -> TickView | None:
        """The configuration is worth showing without the broker."""
        try:
            return await newest_tick(self._services, plan, at_ms)
        except (Refused, Unavailable) as error:
            log.debug("the last tick of %s is not known: %s", plan.name, error)
            return None

    def operations(self) -> list[Operation]:
        return [
            Operation(
                "GET", "/v1/schedules", self.list_schedules, "What is submitted by the clock", Scope.READ,
                answers=((200, ScheduleList),),
            )
        ]  # fmt: skip
