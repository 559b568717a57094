"""What an operator asks and orders through the client, against a real broker."""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import Any, cast

import pytest

import zq
import zq.config
import zq.testing
from tests.conftest import LiveBroker
from zq import AsyncClient, Client, Gap
from zq.exceptions import Invalid, Refused
from zq.protocol.errors import Code
from zq.protocol.job import Cause, State, new_job_id
from zq.protocol.messages import EventInfo, WhyReason


def test_why_a_job_waits(live_broker: LiveBroker) -> None:
    with Client(live_broker.config, role="admin") as client:
        job = client.submit("m.f", queue="合并")
        assert job.why().reason is WhyReason.NO_CONSUMER
        assert client.pause("合并").paused
        assert client.why(job.id).reason is WhyReason.PAUSED
        assert not client.resume("合并").paused
        later = client.submit("m.f", queue="合并", countdown=60)
        why = later.why()
        assert why.reason is WhyReason.NOT_DUE
        assert 0 < why.wait_ms <= 60_000
        with pytest.raises(Refused) as caught:
            client.why(new_job_id())
        assert caught.value.code == Code.NOT_FOUND


def test_limits_of_a_queue_stay_over_a_kill_and_are_taken_away_by_nought(live_broker: LiveBroker) -> None:
    with Client(live_broker.config, role="admin") as client:
        client.set_queue("q", rate_per_s=2.5, running_max=3, length_max=1)
        client.pause("q")
        live_broker.end(signal.SIGKILL)
        live_broker.start()
        (info,) = client.queues()
        assert (info.paused, info.rate_per_s, info.running_max, info.length_max) == (True, 2.5, 3, 1)
        client.submit("m.f", queue="q")
        with pytest.raises(Refused) as caught:
            client.submit("m.f", queue="q")
        assert caught.value.code == Code.QUEUE_FULL
        info = client.set_queue("q", rate_per_s=0, running_max=0, length_max=0)
        assert (info.paused, info.rate_per_s, info.running_max, info.length_max) == (True, 0, 0, 0)


def test_orders_of_who_is_no_admin_are_refused_with_what_to_do(live_broker: LiveBroker) -> None:
    with Client(live_broker.config) as client:
        for order in (lambda: client.pause("q"), lambda: client.drop([new_job_id()])):
            with pytest.raises(Refused, match="role='admin'") as caught:
                order()
            assert caught.value.code == Code.FORBIDDEN


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"queue": "a b"}, "without blanks"),
        ({"paused": 1}, "True or False"),
        ({"rate_per_s": -1}, "jobs a second"),
        ({"rate_per_s": float("nan")}, "jobs a second"),
        ({"rate_per_s": 1_000_001}, "jobs a second"),
        ({"rate_per_s": True}, "jobs a second"),
        ({"running_max": 1.5}, "number of jobs"),
        ({"running_max": (1 << 20) + 1}, "number of jobs"),
        ({"length_max": -1}, "number of jobs"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_sent(settings: dict[str, Any], said: str) -> None:
    with Client(broker="tcp://127.0.0.1:9") as client, pytest.raises(Invalid, match=said):
        client.set_queue(**{"queue": "q", **settings})


def test_ended_jobs_are_dropped_and_others_are_not(live_broker: LiveBroker) -> None:
    with Client(live_broker.config, role="admin") as client:
        gone, stays = client.submit("m.f", queue="q"), client.submit("m.f", queue="q")
        gone.cancel()
        changes = client.drop([gone.id, stays.id, bytes(16)])
        assert [change.code for change in changes] == [None, Code.NOT_ALLOWED, Code.NOT_FOUND]
        assert [one and one.job.id for one in client.details([gone.id, stays.id])] == [None, stays.raw_id]
        (info,) = client.queues()
        assert (info.cancelled, info.accepted) == (1, 2)


def test_what_a_job_asks_for_is_seen_and_its_arguments_on_the_page(live_broker: LiveBroker) -> None:
    with Client(live_broker.config) as client:
        job = client.submit(
            "m.f", (1,), queue="q", tags=["gpu", "disk=甲"], concurrency_key="许可证", concurrency_limit=2
        )
        page = client.jobs("q", with_specs=True)
        assert client.jobs("q").specs == []
        (info,) = page.jobs
        assert (info.tags, info.concurrency_key) == (("disk=甲", "gpu"), "许可证")
        assert len(page.specs) == 1
        assert "gpu" in "".join(job.warnings) or "no worker" in "".join(job.warnings)


def test_key_policies(live_broker: LiveBroker) -> None:
    with Client(live_broker.config) as client:
        first = client.submit("m.f", queue="q", key="k")
        second = client.submit("m.f", queue="q", key="k", key_policy="replace")
        assert (second.deduplicated, first.state()) == (False, State.CANCELLED)
        assert first.history()[-1].cause is Cause.REPLACE
        third = client.submit("m.f", queue="q", key="k", key_policy="reschedule", countdown=3600)
        assert (third.id, third.deduplicated) == (second.id, True)
        assert third.state() is State.SCHEDULED


def test_events_are_followed_through_a_kill_of_the_broker(live_broker: LiveBroker) -> None:
    with Client(live_broker.config) as client:
        early = client.submit("m.f", queue="q")
        follow = client.follow(0, queue="q")
        seen: list[EventInfo | Gap] = [next(follow)]
        got_second = threading.Event()

        def read() -> None:
            while sum(isinstance(one, EventInfo) and one.job_id != bytes(16) for one in seen) < 3:
                seen.append(next(follow))
                got_second.set()

        reader = threading.Thread(target=read)
        reader.start()
        client.submit("m.f", queue="other")
        early.cancel()
        assert got_second.wait(20)
        live_broker.end(signal.SIGKILL)
        live_broker.start()
        late = client.submit("m.f", queue="q")
        reader.join(20)
        assert not reader.is_alive()
    events = [one for one in seen if isinstance(one, EventInfo)]
    assert [(one.job_id, one.cause) for one in events if one.job_id in (early.raw_id, late.raw_id)] == [
        (early.raw_id, Cause.ACCEPT),
        (early.raw_id, Cause.CANCEL),
        (late.raw_id, Cause.ACCEPT),
    ]


def test_an_answer_that_may_take_longer_than_the_timeout_is_waited_for(live_broker: LiveBroker) -> None:
    with Client(live_broker.config, timeout_s=1) as client:
        newest = client.events(1 << 62)
        assert newest.gap
        answer = client.events(newest.last, wait_s=2.5)
        assert (answer.events, answer.gap) == ([], False)
        for after in (-1, 1 << 63, cast(int, 1.5)):
            with pytest.raises(Invalid, match="number of an event"):
                client.follow(after)


def test_the_async_client_asks_the_same(live_broker: LiveBroker) -> None:
    async def story() -> None:
        async with AsyncClient(live_broker.config, role="admin") as client:
            follow = client.follow(queue="q")
            first = asyncio.ensure_future(anext(follow))
            await asyncio.wait([first], timeout=0.3)
            assert (await client.pause("q")).paused
            assert not (await client.resume("q")).paused
            job = await client.submit("m.f", queue="q", tags=("gpu",), key="k", key_policy="replace")
            assert (await job.why()).reason is WhyReason.NO_CONSUMER
            assert (await client.why(job.id)).reason is WhyReason.NO_CONSUMER
            assert isinstance(await asyncio.wait_for(first, 20), EventInfo)
            assert (await job.history())[0].cause is Cause.ACCEPT
            assert [one.id for one in (await client.jobs("q", with_specs=True)).jobs] == [job.raw_id]
            await job.cancel()
            assert (await client.drop([job.id]))[0].code is None
            assert await client.details([job.id]) == [None]
            assert (await client.events(0, wait_s=1)).events
            assert (await client.set_queue("q", running_max=2)).running_max == 2
            assert (await client.workers()).not_listed == 0

    asyncio.run(story())


def test_all_of_it_in_memory() -> None:
    app = zq.App(zq.config.Config())

    @app.task(queue="m", name="test_client_orders.tagged", tags=("gpu",), concurrency_key="one", backoff_s=1)
    def tagged(n: int) -> int:
        return n

    with zq.testing.memory(app) as broker:
        job = tagged.delay(1)
        assert broker.detail(job.id).job.tags == ("gpu",)
        broker.pause("m")
        assert broker.run_all() == 0
        assert job.why().reason is WhyReason.PAUSED
        broker.resume("m")
        assert job.result(timeout_s=1) == 1
        assert [event.cause for event in job.history()] == [Cause.ACCEPT, Cause.DISPATCH, Cause.FINISH]
        broker.set_queue("m", rate_per_s=0.1)
        before_ms = broker.now_ms()
        for n in range(3):
            tagged.apply_async((n,))
        assert broker.run_all() == 3
        assert broker.now_ms() - before_ms >= 19_000
        first = tagged.apply_async((7,), key="k")
        assert tagged.apply_async((8,), key="k", key_policy="replace").result(timeout_s=60) == 8
        assert first.state() is State.CANCELLED
        assert broker.drop([first.id])[0].code is None
        follow = broker.follow(0, job_id=job.id)
        assert [type(next(follow)) for _ in range(3)] == [EventInfo] * 3
        assert broker.events(broker.events(1 << 62).last, job_id=job.id, wait_s=60).events == []
