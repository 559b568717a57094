"""The routes that machines ask: alive, ready, numbers, and the description of the API itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from zq.exams.errors import ExamError
from zq.exceptions import Refused, Unavailable
from zq.protocol.messages import BrokerInfo, QueueInfo
from zq.web import views
from zq.web.answers import json_response
from zq.web.auth import Scope
from zq.web.operations import Operation
from zq.web.problems import BROKER_RETRY_AFTER_S
from zq.web.services import Services

if TYPE_CHECKING:
    from prometheus_client.core import Metric

READY_S = 2.0
"""A broker that has not answered by then is away, as far as a load balancer is concerned."""


class ProbeRoutes:
    def __init__(self, services: Services, responses: Counter[int], document: Callable[[], dict[str, Any]]) -> None:
        self._services = services
        self._responses = responses
        self._document = document

    async def healthz(self, request: Request) -> Response:
        return json_response(views.Health(status="ok"))

    async def readyz(self, request: Request) -> Response:
        try:
            broker, queues = await self._ask_broker()
        except (Unavailable, Refused, TimeoutError) as error:
            reason = str(error) or f"the broker has not answered within {READY_S:g} s"
            body = views.Health(status="unavailable", reasons=[reason])
            return json_response(body, 503, {"Retry-After": f"{BROKER_RETRY_AFTER_S:.0f}"})
        reasons = views.unserved(queues)
        if not broker.accepting:
            reasons.append("the broker accepts no jobs: look at its disk and its log")
        try:
            async with asyncio.timeout(READY_S):
                await asyncio.to_thread(self._services.store.list_exams, limit=1)
        except (ExamError, TimeoutError) as error:
            reasons.append(f"exams cannot be served: {error or 'the database does not answer'}")
        return json_response(views.Health(status="degraded" if reasons else "ok", reasons=reasons))

    async def _ask_broker(self) -> tuple[BrokerInfo, list[QueueInfo]]:
        async with asyncio.timeout(READY_S):
            return await self._services.client.broker(), await self._services.client.queues()

    async def metrics(self, request: Request) -> Response:
        broker: BrokerInfo | None = None
        queues: list[QueueInfo] = []
        with contextlib.suppress(Unavailable, Refused, TimeoutError):
            broker, queues = await self._ask_broker()
        # Only a server that is scraped pays for the library.
        from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
        from prometheus_client.registry import CollectorRegistry

        families = [*_of_queues(queues), *_of_broker(broker), *self._own()]
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Families(families))
        return Response(generate_latest(registry), media_type=None, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _own(self) -> list[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        responses = CounterMetricFamily("zq_http_responses", "Answers of this server, by status", labels=["status"])
        for status, count in sorted(self._responses.items()):
            responses.add_metric([str(status)], count)
        waiting = len(self._services.heartbeats)
        return [responses, GaugeMetricFamily("zq_heartbeats_waiting", "Not written yet", value=waiting)]

    async def openapi(self, request: Request) -> Response:
        return Response(msgspec.json.encode(self._document()), media_type="application/json")

    def operations(self) -> list[Operation]:
        return [
            Operation(
                "GET", "/healthz", self.healthz, "This process lives", Scope.PUBLIC, answers=((200, views.Health),)
            ),
            Operation(
                "GET", "/readyz", self.readyz, "The broker answers; degraded says what is wrong all the same",
                Scope.READ, answers=((200, views.Health), (503, views.Health)),
            ),
            Operation(
                "GET", "/metrics", self.metrics, "Numbers for Prometheus", Scope.READ, media_type="text/plain"
            ),
            Operation("GET", "/openapi.json", self.openapi, "This description", Scope.READ),
        ]  # fmt: skip


class _Families:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _of_queues(queues: list[QueueInfo]) -> list[Metric]:
    """Labels are queues and states, of which there are few; never jobs or students."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    jobs = GaugeMetricFamily("zq_queue_jobs", "Jobs by state", labels=["queue", "state"])
    oldest = GaugeMetricFamily("zq_queue_oldest_ready_seconds", "Age of the job at the head", labels=["queue"])
    consumers = GaugeMetricFamily("zq_queue_consumers", "Workers that serve the queue", labels=["queue"])
    slots = GaugeMetricFamily("zq_queue_slots", "Slots by use", labels=["queue", "use"])
    accepted = CounterMetricFamily("zq_jobs_accepted", "Jobs ever accepted", labels=["queue"])
    for queue in queues:
        for state in ("scheduled", "ready", "running", "done", "dead", "cancelled", "expired"):
            jobs.add_metric([queue.name, state], getattr(queue, state))
        oldest.add_metric([queue.name], queue.oldest_ready_ms / 1000)
        consumers.add_metric([queue.name], queue.consumers)
        slots.add_metric([queue.name, "free"], queue.free)
        slots.add_metric([queue.name, "busy"], max(0, queue.slots - queue.free))
        accepted.add_metric([queue.name], queue.accepted)
    return [jobs, oldest, consumers, slots, accepted]


def _of_broker(broker: BrokerInfo | None) -> list[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    found: list[Metric] = [GaugeMetricFamily("zq_broker_up", "Whether the broker answers", value=broker is not None)]
    if broker is None:
        return found
    numbers = {
        "zq_broker_uptime_seconds": ("Since the broker's start", broker.uptime_ms / 1000),
        "zq_broker_epoch": ("Starts of the broker", broker.epoch),
        "zq_broker_sessions": ("Peers connected", broker.sessions),
        "zq_broker_accepting": ("Whether it takes jobs", broker.accepting),
        "zq_journal_bytes": ("Size of the journal", broker.journal_bytes),
        "zq_journal_commit_p99_seconds": ("Slowest commits", broker.commit_p99_us / 1e6),
        "zq_disk_free_bytes": ("Where the journal is", broker.disk_free_bytes),
    }
    found += [GaugeMetricFamily(name, text, value=value) for name, (text, value) in numbers.items()]
    return found
