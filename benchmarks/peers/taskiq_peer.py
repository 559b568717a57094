"""taskiq on Redis."""
# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator"

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from taskiq import TaskiqScheduler
from taskiq_redis import ListRedisScheduleSource, RedisAsyncResultBackend, RedisStreamBroker

from benchmarks import evidence
from benchmarks.peers import Peer, url

_GATHERED = 100
results = RedisAsyncResultBackend(url(), result_ex_time=60)
broker = RedisStreamBroker(url(), consumer_id="0").with_result_backend(results)
schedules = ListRedisScheduleSource(url())
scheduler = TaskiqScheduler(broker, [schedules])


@broker.task(task_name="noop")
async def noop(number: int) -> int:
    return evidence.record(number)


class TaskiqPeer(Peer):
    setting = "Redis streams, a process a slot, 100 coroutines each (default), acknowledged after the result is saved"
    drain_jobs = 12000
    bulk = f"{_GATHERED} kiqs gathered"

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._runner.run(broker.startup())
        self._runner.run(schedules.startup())

    def submit_each(self, numbers: Iterable[int]) -> None:
        async def submit() -> None:
            for number in numbers:
                await noop.kiq(number)

        self._runner.run(submit())

    def submit_all(self, numbers: Sequence[int]) -> None:
        async def submit() -> None:
            for start in range(0, len(numbers), _GATHERED):
                await asyncio.gather(*(noop.kiq(number) for number in numbers[start : start + _GATHERED]))

        self._runner.run(submit())

    def submit_each_later(self, numbers: Iterable[int], delay_s: float) -> None:
        async def submit() -> None:
            for number in numbers:
                due = datetime.now(UTC) + timedelta(seconds=delay_s)
                await noop.schedule_by_time(schedules, due, number)

        self._runner.run(submit())

    def call_each(self, numbers: Iterable[int]) -> None:
        async def call() -> None:
            for number in numbers:
                task = await noop.kiq(number)
                result = await task.wait_result(check_interval=0.001, timeout=10)
                if result.return_value != number:
                    raise RuntimeError(f"job {number} returned {result!r}")

        self._runner.run(call())

    def commands(self, slots: int) -> list[list[str]]:
        worker = [sys.executable, "-m", "taskiq", "worker", f"{__name__}:broker", "--workers", str(slots)]
        return [[*worker, "--log-level", "ERROR"]]

    def due_commands(self) -> list[list[str]]:
        scheduler = [sys.executable, "-m", "taskiq", "scheduler", f"{__name__}:scheduler", "--log-level", "ERROR"]
        return [[*scheduler, "--update-interval", "1"]]

    def close(self) -> None:
        self._runner.run(broker.shutdown())
        self._runner.run(schedules.shutdown())
        self._runner.close()


PEER = TaskiqPeer
