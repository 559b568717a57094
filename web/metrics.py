"""`/metrics`: numbers for Prometheus. Labels are queues, schedules, states and codes, of which there are few; never a
job or a student."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from zq.exceptions import Refused, Unavailable
from zq.protocol.messages import BrokerInfo, QueueInfo, WorkerInfo
from zq.schedules import Shown
from zq.web.auth import Scope
from zq.web.operations import Operation
from zq.web.schedules import all_of
from zq.web.services import Services

if TYPE_CHECKING:
    from prometheus_client.core import Metric

ANSWER_S = 2.0
"""A broker that has not answered by then is shown as down; a scrape must not take longer than Prometheus waits."""


class MetricRoutes:
    def __init__(self, services: Services, responses: Counter[int]) -> None:
        self._services = services
        self._responses = responses

    async def metrics(self, request: Request) -> Response:
        client = self._services.client
        families = _of_broker(None)
        with contextlib.suppress(Unavailable, Refused, TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                broker, queues, workers, schedules = await asyncio.gather(
                    client.broker(), client.queues(), client.workers(), all_of(self._services)
                )
            families = [*_of_broker(broker), *_of_queues(queues), *_of_workers(workers), *_of_schedules(schedules)]
        # Only a server that is scraped pays for the library.
        from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
        from prometheus_client.registry import CollectorRegistry

        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Families([*families, *self._own()]))
        return Response(generate_latest(registry), media_type=None, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _own(self) -> list[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        responses = CounterMetricFamily("zq_http_responses", "Answers of this server, by status", labels=["status"])
        for status, count in sorted(self._responses.items()):
            responses.add_metric([str(status)], count)
        waiting = len(self._services.heartbeats)
        return [
            responses,
            GaugeMetricFamily("zq_http_streams", "Open streams of events", value=self._services.events.listeners),
            GaugeMetricFamily("zq_heartbeats_waiting", "Not written yet", value=waiting),
        ]

    def operations(self) -> list[Operation]:
        return [
            Operation(
                "GET", "/metrics", self.metrics, "Numbers for Prometheus", Scope.READ, media_type="text/plain"
            )
        ]  # fmt: skip


class _Families:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _of_queues(queues: list[QueueInfo]) -> list[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    jobs = GaugeMetricFamily("zq_queue_jobs", "Jobs by state", labels=["queue", "state"])
    oldest = GaugeMetricFamily("zq_queue_oldest_ready_seconds", "Age of the job at the head", labels=["queue"])
    consumers = GaugeMetricFamily("zq_queue_consumers", "Workers that serve the queue", labels=["queue"])
    slots = GaugeMetricFamily("zq_queue_slots", "Slots by use", labels=["queue", "use"])
    paused = GaugeMetricFamily("zq_queue_paused", "Whether it starts no jobs", labels=["queue"])
    accepted = CounterMetricFamily("zq_jobs_accepted", "Jobs ever accepted", labels=["queue"])
    for queue in queues:
        for state in ("scheduled", "ready", "running", "done", "dead", "cancelled", "expired"):
            jobs.add_metric([queue.name, state], getattr(queue, state))
        oldest.add_metric([queue.name], queue.oldest_ready_ms / 1000)
        consumers.add_metric([queue.name], queue.consumers)
        slots.add_metric([queue.name, "free"], queue.free)
        slots.add_metric([queue.name, "busy"], max(0, queue.slots - queue.free))
        paused.add_metric([queue.name], queue.paused)
        accepted.add_metric([queue.name], queue.accepted)
    return [jobs, oldest, consumers, slots, paused, accepted]


def _of_workers(workers: list[WorkerInfo]) -> list[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    silent_s = max((worker.silent_ms / 1000 for worker in workers), default=0.0)
    stalled = sum(worker.stalled for worker in workers)
    left = GaugeMetricFamily("zq_worker_left_bytes", "For jobs that say what they need", labels=["worker", "of"])
    for worker in workers:
        if worker.room is not None:
            left.add_metric([worker.instance, "disk"], worker.room.disk_bytes)
            left.add_metric([worker.instance, "memory"], worker.room.memory_bytes)
    return [
        GaugeMetricFamily("zq_workers", "Workers connected", value=len(workers)),
        GaugeMetricFamily("zq_worker_jobs", "Jobs that workers hold", value=sum(worker.running for worker in workers)),
        GaugeMetricFamily("zq_worker_stalled_jobs", "Of these, without a sign of life", value=stalled),
        left,
        GaugeMetricFamily("zq_worker_silent_seconds_max", "Silence of the worker heard last", value=silent_s),
    ]


def _of_schedules(schedules: Sequence[Shown]) -> list[Metric]:
    """Of those that have had a tick. Alarm on a last tick that is long past, and on missed ones."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    late = GaugeMetricFamily("zq_schedule_lateness_seconds", "Of the newest tick", labels=["schedule"])
    last = GaugeMetricFamily("zq_schedule_last_tick_timestamp_seconds", "Of the newest tick", labels=["schedule"])
    missed = CounterMetricFamily("zq_schedule_missed_ticks", "Nobody was there to submit them", labels=["schedule"])
    for one in schedules:
        progress = one.known.progress
        if progress is not None and progress.last_ms:
            late.add_metric([one.name], progress.late_ms / 1000)
            last.add_metric([one.name], progress.last_ms / 1000)
            missed.add_metric([one.name], progress.missed)
    return [late, last, missed]


def _of_broker(broker: BrokerInfo | None) -> list[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

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
    refused = CounterMetricFamily("zq_broker_refused", "Bad messages since its start", labels=["code"])
    for code, count in sorted(broker.refused.items()):
        refused.add_metric([code], count)
    commits = CounterMetricFamily("zq_journal_commits", "Commits since the broker's start", value=broker.commits)
    return [*found, refused, commits]
