"""What the monitor asks of a real broker, and what it does not need to ask."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.conftest import LiveBroker
from zq import AsyncClient
from zq.monitor.fetch import Fetcher
from zq.monitor.model import History, Query, board
from zq.protocol.job import State
from zq.protocol.messages import JobDetail


class Counting(AsyncClient):
    asked = 0

    async def detail(self, id: Any) -> JobDetail:
        self.asked += 1
        return await super().detail(id)


def test_a_job_is_asked_for_only_where_it_has_no_key_and_once(live_broker: LiveBroker) -> None:
    async def story() -> None:
        client = Counting(live_broker.config, role="admin")
        async with client:
            await client.pause("q")
            await client.submit("m.f", queue="q", key="合并:1", time_limit_s=7, soft_time_limit_s=5)
            await client.submit("m.f", (49,), queue="q", time_limit_s=8, soft_time_limit_s=5)
            fetcher = Fetcher(client)
            for _ in range(3):
                snapshot = await fetcher.snapshot(Query("q", State.READY))
            history = History(0.0)
            history.observe(snapshot)
            shown = board(history, client.address, snapshot.taken_s)
            assert [(row.summary, row.limit_s) for row in shown.jobs] == [("合并:1", 7.0), ("49", 8.0)]
            assert [row.paused for row in shown.queues] == [True]
            assert client.asked == 1

    asyncio.run(story())
