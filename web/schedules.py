"""The routes for schedules: what zq.toml says, how far the schedulers have come, and an operator's orders."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from starlette.requests import Request
from starlette.responses import Response

from zq.config import Config
from zq.exceptions import Refused, Unavailable
from zq.protocol.job import State, format_id
from zq.protocol.messages import JobDetail, JobInfo, ReceiptStatus
from zq.schedules import (
    ONE_SHOT_QUEUE,
    PREFIX,
    TRIES,
    Known,
    Order,
    Plan,
    Progress,
    Shown,
    one_shots,
    order_register,
    plans_of,
    read,
    refused_text,
    require,
    require_plan,
    shown,
)
from zq.web import views
from zq.web.answers import json_response
from zq.web.auth import Scope
from zq.web.operations import Operation
from zq.web.problems import Problem, outcome_unknown
from zq.web.services import Services, now_ms

log = logging.getLogger("zq.web")

LOOKED_UP_MAX = 64
"""Schedules whose newest tick's job is asked for."""
ONE_SHOTS_MAX = 200


class TickView(views.View, frozen=True):
    nominal_at: str | None
    job_id: str
    state: str
    """Of its job; empty if the broker does not have it any more."""
    late_s: float
    """How long after its time the broker had it."""


class ScheduleView(views.View, frozen=True):
    name: str
    task: str
    queue: str
    rule: str
    """When, for people."""
    every_s: float | None
    cron: str
    zone: str
    misfire: str
    overlap: str
    paused: bool
    paused_by: str
    next_at: str | None
    """Null while it is paused, and for one that never comes again."""
    last: TickView | None
    """The newest tick that became a job; null if there was none yet, or the broker does not answer."""
    ticks: int
    """Ticks that became jobs, ever."""
    missed: int
    """Ticks that nobody was there to submit and that were not made up for."""
    overlapped: int
    """Ticks left out because the job of an earlier one was still there."""
    runnable: bool
    """Whether this server can run it now: it is in this machine's zq.toml."""


class OneShotView(views.View, frozen=True):
    key: str
    task: str
    at: str | None
    job_id: str


class ScheduleList(views.View, frozen=True):
    enabled: bool
    """Whether the scheduler of this configuration submits anything."""
    schedules: list[ScheduleView]
    one_shots: list[OneShotView]
    """Starts, ends and merges of exams that are to come; they move with the exam's times."""


class ScheduleRun(views.View, frozen=True):
    job_id: str


def schedule_view(one: Shown, details: Mapping[bytes, JobDetail | None], at_ms: int) -> ScheduleView:
    plan, progress, order = one.plan, one.known.progress or Progress(), one.known.order
    return ScheduleView(
        name=one.name,
        task=one.task,
        queue=one.queue,
        rule=one.rule,
        every_s=plan.every_ms / 1000 if plan is not None and plan.every_ms else None,
        cron=plan.cron if plan is not None else "",
        zone=plan.zone if plan is not None else "",
        misfire=plan.misfire if plan is not None else "",
        overlap=plan.overlap if plan is not None else "",
        paused=order.paused,
        paused_by=order.by if order.paused else "",
        next_at=None if order.paused else views.when(progress.next_ms or _next_ms(plan, at_ms)),
        last=_tick_view(progress, details) if progress.last_ms else None,
        ticks=progress.ticks,
        missed=progress.missed,
        overlapped=progress.overlapped,
        runnable=plan is not None,
    )


def _next_ms(plan: Plan | None, at_ms: int) -> int:
    """Before a scheduler has said it: intervals stand on a grid from the Unix epoch."""
    if plan is None or not plan.every_ms:
        return 0
    return at_ms - at_ms % plan.every_ms + plan.every_ms


def _tick_view(progress: Progress, details: Mapping[bytes, JobDetail | None]) -> TickView:
    detail = details.get(progress.job_id)
    return TickView(
        nominal_at=views.when(progress.last_ms),
        job_id=format_id(progress.job_id),
        state=detail.job.state.label if detail is not None else "",
        late_s=progress.late_ms / 1000,
    )


async def all_of(services: Services) -> list[Shown]:
    """Raises Unavailable, Refused."""
    return shown(plans_of(services.config), read(await services.client.registers(PREFIX)), now_ms())


class ScheduleRoutes:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def list_schedules(self, request: Request) -> Response:
        """The configuration is worth showing without the broker."""
        details: dict[bytes, JobDetail | None] = {}
        waiting: Sequence[JobInfo] = []
        try:
            found = await all_of(self._services)
            ids = [p.job_id for one in found[:LOOKED_UP_MAX] if (p := one.known.progress) is not None and p.last_ms]
            details = dict(zip(ids, await self._services.client.details(ids), strict=True))
            waiting = (await self._services.client.jobs(ONE_SHOT_QUEUE, State.SCHEDULED, limit=ONE_SHOTS_MAX)).jobs
        except (Refused, Unavailable) as error:
            log.debug("how far the schedules have come is not known: %s", error)
            found = shown(self._plans(), {}, now_ms())
        at_ms = now_ms()
        return json_response(
            ScheduleList(
                enabled=self._config.scheduler.enabled,
                schedules=[schedule_view(one, details, at_ms) for one in found],
                one_shots=[
                    OneShotView(key=job.key, task=job.task, at=views.when(job.due_ms), job_id=format_id(job.id))
                    for job in one_shots(waiting)
                ],
            )
        )

    @property
    def _config(self) -> Config:
        return self._services.config

    def _plans(self) -> list[Plan]:
        return plans_of(self._config)

    async def pause_schedule(self, request: Request) -> Response:
        return await self._order(request, paused=True)

    async def resume_schedule(self, request: Request) -> Response:
        return await self._order(request, paused=False)

    async def _order(self, request: Request, *, paused: bool) -> Response:
        try:
            for _ in range(TRIES):
                one = await self._one(request)
                order = Order(paused, now_ms(), "web")
                (answer,) = await self._services.client.set_registers([order_register(one.name, one.known, order)])
                if answer.done:
                    known = Known(one.known.progress, one.known.progress_revision, order, answer.register.revision)
                    return json_response(schedule_view(Shown(one.name, one.plan, known), {}, now_ms()))
        except Unavailable as error:
            raise outcome_unknown(f"{error}; the same call again is safe") from None
        raise Problem(409, "conflict", "others change this schedule at the same time; look, and try again")

    async def run_schedule(self, request: Request) -> Response:
        one = await self._one(request)
        (receipt,) = await self._services.client.submit_many([require_plan(one).run_now()])
        if receipt.status is not ReceiptStatus.ACCEPTED:
            raise Problem(409, "conflict", f"schedule '{one.name}' was not run: {refused_text(receipt)}")
        job_id = format_id(receipt.job_id)
        return json_response(ScheduleRun(job_id=job_id), 202, {"Location": f"/v1/jobs/{job_id}"})

    async def _one(self, request: Request) -> Shown:
        name: str = request.path_params["name"]
        found = await all_of(self._services)
        if all(one.name != name for one in found):
            there = ", ".join(one.name for one in found)
            raise Problem(404, "not-found", f"no schedule {name!r:.80}; there are {there}")
        return require(found, name)

    def operations(self) -> list[Operation]:
        asking = (429, 503)
        one = "/v1/schedules/{name:anything}"
        return [
            Operation(
                "GET", "/v1/schedules", self.list_schedules, "What is submitted by the clock", Scope.READ,
                answers=((200, ScheduleList),),
            ),
            Operation(
                "POST", f"{one}:pause", self.pause_schedule, "Let its ticks pass until it is resumed", Scope.OPERATE,
                answers=((200, ScheduleView),), errors=(404, 409, *asking, 504),
            ),
            Operation(
                "POST", f"{one}:resume", self.resume_schedule, "Go on with the next tick", Scope.OPERATE,
                answers=((200, ScheduleView),), errors=(404, 409, *asking, 504),
            ),
            Operation(
                "POST", f"{one}:run", self.run_schedule, "One job now, beside the ticks", Scope.OPERATE,
                answers=((202, ScheduleRun),), errors=(404, 409, 422, *asking, 504),
            ),
        ]  # fmt: skip
