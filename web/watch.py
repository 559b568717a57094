"""The web server's own look at the broker, for the page: a sample of the counts every few seconds, the usage of running
jobs, and one picture of the whole that all open pages share.

With nobody at the page this costs the broker one small question in ten seconds, and one more while jobs run. However
many pages are open, together they cost it three small questions a second while something changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

from zq.client.verbs import NEWEST
from zq.exceptions import Refused, Unavailable
from zq.protocol import limits
from zq.protocol.job import State
from zq.protocol.messages import BrokerInfo, EventInfo, QueueInfo, WorkerInfo
from zq.web import views
from zq.web.history import KEPT_MS, STEP_MS, History, counts_of, rewound
from zq.web.job_usage import JobUsage
from zq.web.services import Services, now_ms

log = logging.getLogger("zq.web")

ANSWER_S: Final = 3.0
"""A broker that has not answered by then is shown as away."""
FRESH_S: Final = 0.9
"""Between two looks at the broker, however many ask."""
RUNNING_SEEN_MAX: Final = 200
REWOUND_EVENTS_MAX: Final = 30_000
RATE_WINDOW_MS: Final = 2 * STEP_MS
DEAD_COUNTED_MAX: Final = 5_000
DEAD_REST_S: Final = 2.0
DEAD_AGAIN_S: Final = 60.0
DISK_LOW_BYTES: Final = 1 << 30
WORKER_SILENT_S: Final = 6.0
"""Three heartbeats of the default length."""


class BrokerView(views.View, frozen=True):
    software: str
    epoch: int
    """Starts of the broker."""
    uptime_s: float
    accepting: bool
    sessions: int
    journal_bytes: int
    disk_free_bytes: int
    commits: int
    commit_p99_s: float


class RatesView(views.View, frozen=True):
    """Jobs a second, over the last half minute or so."""

    accepted_per_s: float
    done_per_s: float
    failed_per_s: float


class AlarmView(views.View, frozen=True):
    """Something that somebody should see to."""

    kind: str
    """broker_away, not_accepting, disk_low, unserved, paused or worker_silent."""
    level: str
    """bad or warn."""
    subject: str
    """The queue's or worker's name; empty for the broker."""
    number: float
    """Jobs that wait, bytes that are free, seconds of silence."""
    detail: str


class LiveView(views.View, frozen=True):
    """All that is small and changes all the time."""

    at: str
    broker: BrokerView | None
    """null while it does not answer; then there are no queues and no workers here either."""
    queues: list[views.QueueView]
    workers: list[views.WorkerView]
    dead: dict[str, int]
    """By queue, the dead letters that are there; the queue's own count has those too that were dropped since."""
    rates: dict[str, RatesView]
    """By queue; a queue that is not here has not been known for long enough."""
    alarms: list[AlarmView]


@dataclass
class _DeadLetters:
    """By queue: those that are there, and what the broker counted when that was found out."""

    kept: dict[str, int] = field(default_factory=dict)
    ever: dict[str, int] = field(default_factory=dict)
    counted_s: float = -3600.0
    """The loop's time."""


class Watch:
    """Belongs to one event loop. Usable inside `running()`."""

    def __init__(self, services: Services) -> None:
        self.history = History()
        self.usage = JobUsage()
        self._services = services
        self._asked = asyncio.Lock()
        self._shown: tuple[float, LiveView] | None = None
        self._dead = _DeadLetters()

    def dead_letters_changed(self) -> None:
        """Some were dropped, which no count of the broker tells."""
        self._dead.counted_s = -DEAD_AGAIN_S

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        sampler = asyncio.create_task(self._sample_on(), name="samples")
        try:
            yield
        finally:
            sampler.cancel()
            await asyncio.gather(sampler, return_exceptions=True)

    @property
    def newest(self) -> LiveView | None:
        """The last picture, if it is fresh."""
        fresh = self._shown is not None and self._shown[0] > asyncio.get_running_loop().time() - FRESH_S
        return self._shown[1] if self._shown is not None and fresh else None

    async def picture(self, since_s: float) -> LiveView:
        """What there is, as seen not before `since_s` of the loop's time. Looks at most every FRESH_S, for all who ask.

        A broker that is away is part of the picture.
        """
        async with self._asked:
            time_s = asyncio.get_running_loop().time
            if self._shown is not None and self._shown[0] >= since_s:
                return self._shown[1]
            if self._shown is not None:
                await asyncio.sleep(self._shown[0] + FRESH_S - time_s())
            began_s = time_s()
            self._shown = began_s, await self._look()
            return self._shown[1]

    async def _look(self) -> LiveView:
        client = self._services.client
        try:
            async with asyncio.timeout(ANSWER_S):
                broker, queues, workers = await asyncio.gather(client.broker(), client.queues(), client.workers())
        except (Unavailable, Refused, TimeoutError) as error:
            detail = str(error) or f"the broker has not answered within {ANSWER_S:g} s"
            return away(now_ms(), detail)
        await self._count_dead(queues)
        at_ms = now_ms()
        rates = self.history.rates(counts_of(queues), at_ms, RATE_WINDOW_MS)
        return LiveView(
            at=views.when(at_ms) or "",
            broker=_broker_view(broker),
            queues=[views.queue_view(queue) for queue in queues],
            workers=[views.worker_view(worker) for worker in workers],
            dead={queue.name: self._dead.kept.get(queue.name, 0) for queue in queues if queue.dead},
            rates={
                name: RatesView(accepted_per_s=a, done_per_s=d, failed_per_s=f) for name, (a, d, f) in rates.items()
            },
            alarms=alarms(broker, queues, workers),
        )

    async def _count_dead(self, queues: list[QueueInfo]) -> None:
        """When the broker's counts have moved, and now and then, for they do not move when letters are dropped."""
        ever = {queue.name: queue.dead for queue in queues if queue.dead}
        at_s = asyncio.get_running_loop().time()
        age_s = at_s - self._dead.counted_s
        if age_s < DEAD_REST_S or (ever == self._dead.ever and age_s < DEAD_AGAIN_S):
            return
        kept: dict[str, int] = dict.fromkeys(ever, 0)
        after, seen = b"", 0
        with contextlib.suppress(Unavailable, Refused):
            while ever and seen < DEAD_COUNTED_MAX:
                page = await self._services.client.jobs("", State.DEAD, after, limits.PAGE_ROWS_MAX)
                for job in page.jobs:
                    kept[job.queue] = kept.get(job.queue, 0) + 1
                seen += len(page.jobs)
                after = page.next
                if not after:
                    break
            # Too many to be counted: what the broker says is the most that there can be.
            self._dead = _DeadLetters(kept if not after else ever, ever, at_s)

    async def _sample_on(self) -> None:
        trouble = False
        while True:
            try:
                if self.history.begins_at_ms is None:
                    await self._begin()
                await self._sample()
                trouble = False
            except (Unavailable, Refused) as error:
                if not trouble:
                    log.warning("the charts wait for the broker: %s", error)
                trouble = True
            except Exception:
                # A sampler that dies would leave the charts empty for ever.
                log.exception("a sample could not be taken")
            at_ms = now_ms()
            await asyncio.sleep((STEP_MS - at_ms % STEP_MS) / 1000)

    async def _sample(self) -> None:
        queues = await self._services.client.queues()
        at_ms = now_ms()
        self.history.add(at_ms, counts_of(queues))
        if any(queue.running for queue in queues):
            page = await self._services.client.jobs("", State.RUNNING, limit=RUNNING_SEEN_MAX)
            for job in page.jobs:
                self.usage.observe(job, at_ms)

    async def _begin(self) -> None:
        """The hours before this server's start, as far as the broker's events reach back and are not too many."""
        client = self._services.client
        newest = (await client.events(NEWEST, limit=1)).last
        queues = await client.queues()
        at_ms = now_ms()
        number = max(0, newest - REWOUND_EVENTS_MAX)
        events: list[EventInfo] = []
        while number < newest:
            found = await client.events(number, limit=limits.PAGE_ROWS_MAX)
            if found.last <= number:
                break
            events += [event for event in found.events if event.number <= newest]
            number = found.last
        if events:
            since_ms = max(events[0].at_ms, at_ms - KEPT_MS)
            for sample_ms, rows in await asyncio.to_thread(rewound, events, counts_of(queues), at_ms, since_ms):
                self.history.add(sample_ms, rows)


def away(at_ms: int, detail: str) -> LiveView:
    alarm = AlarmView(kind="broker_away", level="bad", subject="", number=0, detail=detail)
    return LiveView(at=views.when(at_ms) or "", broker=None, queues=[], workers=[], dead={}, rates={}, alarms=[alarm])


def alarms(broker: BrokerInfo, queues: list[QueueInfo], workers: list[WorkerInfo]) -> list[AlarmView]:
    """The worst first."""
    found = []

    def add(level: str, kind: str, subject: str = "", number: float = 0, detail: str = "") -> None:
        found.append(AlarmView(kind=kind, level=level, subject=subject, number=number, detail=detail))

    if not broker.accepting:
        add("bad", "not_accepting")
    if 0 < broker.disk_free_bytes < DISK_LOW_BYTES:
        add("bad", "disk_low", number=broker.disk_free_bytes)
    for queue in queues:
        if queue.ready and not queue.consumers and not queue.paused:
            add("bad", "unserved", queue.name, queue.ready, f"zq worker --queue {queue.name}")
    for worker in workers:
        if worker.silent_ms / 1000 >= WORKER_SILENT_S:
            add("warn", "worker_silent", worker.instance, worker.silent_ms / 1000)
    for queue in queues:
        if queue.paused and queue.ready + queue.scheduled:
            add("warn", "paused", queue.name, queue.ready + queue.scheduled)
    return found


def _broker_view(broker: BrokerInfo) -> BrokerView:
    return BrokerView(
        software=broker.software,
        epoch=broker.epoch,
        uptime_s=broker.uptime_ms / 1000,
        accepting=broker.accepting,
        sessions=broker.sessions,
        journal_bytes=broker.journal_bytes,
        disk_free_bytes=broker.disk_free_bytes,
        commits=broker.commits,
        commit_p99_s=broker.commit_p99_us / 1e6,
    )
