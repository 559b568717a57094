"""Both clients against a real broker, which is killed and started again under them."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.conftest import LiveBroker
from tests.ports import free_port
from tests.waiting import wait_until
from zq import AsyncClient, Client, JobRequest
from zq.client import connection, sync, verbs
from zq.client.blocking import IN_FLIGHT_MAX
from zq.client.link import ClientSocket
from zq.config import ClientSection, Config
from zq.exceptions import Conflict, Invalid, JobFailed, Refused, ResultTimeout, Unavailable
from zq.protocol import limits
from zq.protocol.errors import Code
from zq.protocol.job import State, format_id, new_job_id
from zq.protocol.messages import ReceiptStatus
from zq.protocol.transport import watch


def accepted(client: Client, queue: str = "q") -> int:
    return sum(one.accepted for one in client.queues() if one.name == queue)


def test_a_job_is_submitted_seen_and_cancelled(live_broker: LiveBroker) -> None:
    with Client(live_broker.config) as client:
        job = client.submit("m.f", args=("张伟.webm",), kwargs={"n": 1}, queue="合并", priority=9)
        assert job.state() is State.READY
        assert job.warnings == ["no worker serves queue '合并' now"]
        assert client.job(job.id) == job
        assert [format_id(one.id) for one in client.jobs("合并").jobs] == [job.id]
        with pytest.raises(ResultTimeout, match="goes on"):
            job.result(timeout_s=0.05)
        with pytest.raises(ResultTimeout):
            job.result(timeout_s=0)
        assert job.cancel().code is None
        with pytest.raises(JobFailed, match="cancelled"):
            job.result(timeout_s=5)
        with pytest.raises(JobFailed, match="cancelled"):
            job.result(timeout_s=0)
        assert client.retry([job.id])[0].state is State.READY
        assert client.workers() == []
        assert client.broker().accepting


def test_an_answer_is_awaited_awake_only_where_no_other_thread_needs_the_interpreter(
    live_broker: LiveBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched: list[bool] = []

    def noted(sock: ClientSocket, until_s: float) -> bool:
        watched.append(watch(sock, until_s))
        return watched[-1]

    monkeypatch.setattr(connection, "watch", noted)
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # the test runner has threads of its own
    with Client(live_broker.config) as client:
        client.submit("m.f", queue="q")
        assert watched
        monkeypatch.setattr(threading, "active_count", lambda: 2)
        before = len(watched)
        client.submit("m.f", queue="q")
        assert len(watched) == before


def test_the_same_id_is_one_job_and_another_body_a_conflict(live_broker: LiveBroker) -> None:
    job_id = new_job_id()
    with Client(live_broker.config) as client:
        first = client.submit("m.f", args=(1,), queue="q", id=job_id)
        again = client.submit("m.f", args=(1,), queue="q", id=job_id)
        assert (again.id, again.deduplicated) == (first.id, False)
        with pytest.raises(Conflict):
            client.submit("m.f", args=(2,), queue="q", id=job_id)
        assert accepted(client) == 1


def test_a_taken_key_gives_the_job_that_has_it(live_broker: LiveBroker) -> None:
    with Client(live_broker.config) as client:
        first = client.submit("m.f", queue="q", key="merge:7:张伟")
        second = client.submit("m.f", queue="q", key="merge:7:张伟")
        assert (second.id, second.deduplicated) == (first.id, True)
        assert not first.deduplicated


def test_a_batch_has_a_receipt_for_each_in_order(live_broker: LiveBroker) -> None:
    requests = [JobRequest(task="m.f", queue="q", args=(n,)) for n in range(limits.BATCH_ITEMS_MAX + 10)]
    requests.append(JobRequest(task="m.f", queue="q", args=("other",), id=requests[0].id))
    large = [JobRequest(task="m.f", queue="large", args=(b"x" * 200_000,)) for _ in range(40)]
    with Client(live_broker.config) as client:
        receipts = client.submit_many([*requests, *large])
        ids = [request.id for request in [*requests, *large]]
        assert [receipt.job_id for receipt in receipts] == ids
        assert receipts[len(requests) - 1].code is Code.CONFLICT
        others = [receipt for receipt in receipts if receipt.status is not ReceiptStatus.REFUSED]
        assert len(others) == len(ids) - 1
        assert (accepted(client), accepted(client, "large")) == (len(requests) - 1, 40)
        assert client.submit_many([]) == []


def test_a_generator_is_read_while_the_jobs_before_are_sent(
    live_broker: LiveBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verbs, "SUBMIT_JOBS_MAX", 10)
    count = (IN_FLIGHT_MAX + 2) * 10
    accepted_when_read: list[int] = []

    def requests(other: Client, last: JobRequest) -> Iterator[JobRequest]:
        for number in range(count):
            yield JobRequest(task="m.f", queue="q", args=(number,))
        accepted_when_read.append(accepted(other))
        yield last

    with Client(live_broker.config) as client, Client(live_broker.config) as other:
        receipts = client.submit_many(requests(other, JobRequest(task="m.f", queue="q")))
        assert [receipt.status for receipt in receipts] == [ReceiptStatus.ACCEPTED] * (count + 1)
        assert len({receipt.job_id for receipt in receipts}) == accepted(client) == count + 1
        assert accepted_when_read[0] >= 10  # more than may be under way had been read
        with pytest.raises(Invalid, match="task"):
            client.submit_many(requests(other, JobRequest(task="", queue="q")))
        assert accepted(client) > count + 1
        assert client.submit("m.f", queue="q").state() is State.READY


def test_a_message_that_is_refused_as_a_whole_refuses_each_of_its_jobs(
    live_broker: LiveBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verbs, "SUBMIT_JOBS_MAX", 2)
    requests = [JobRequest(task="m.f", queue="q") for _ in range(5)]
    with Client(live_broker.config, role="monitor") as client:
        receipts = client.submit_many(requests)
        assert [receipt.job_id for receipt in receipts] == [request.id for request in requests]
        assert {(receipt.status, receipt.code) for receipt in receipts} == {(ReceiptStatus.REFUSED, Code.FORBIDDEN)}
        with pytest.raises(Refused, match="monitor may not"):
            client.submit_request(requests[0])
        assert accepted(client) == 0


def test_what_does_not_exist_is_said(live_broker: LiveBroker) -> None:
    with Client(live_broker.config) as client:
        for ask in (client.detail, client.result):
            with pytest.raises(Refused) as caught:
                ask(new_job_id())
            assert caught.value.code == Code.NOT_FOUND
        assert client.cancel([new_job_id()])[0].code is Code.NOT_FOUND
        with pytest.raises(Invalid, match="list of job ids"):
            client.cancel(format_id(new_job_id()))


def test_a_receipt_survives_a_killed_broker(live_broker: LiveBroker) -> None:
    with Client(live_broker.config) as client:
        job = client.submit("m.f", queue="q")
        live_broker.end(signal.SIGKILL)
        live_broker.start(wait=False)
        assert job.state() is State.READY
        assert client.submit("m.f", queue="q", id=job.id).id == job.id  # the same body: the same job
        assert accepted(client) == 1


def test_a_broker_killed_between_submit_and_receipt_has_one_job(live_broker: LiveBroker) -> None:
    """Stopped, it takes the question into its socket and cannot answer; killed, it has never read it."""
    with Client(live_broker.config, timeout_s=30) as client:
        client.queues()
        assert live_broker.process is not None
        live_broker.process.send_signal(signal.SIGSTOP)
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(client.submit, "m.f", queue="q")
            wait_until(lambda: client._pools[os.getpid()]._all[0].session.waiting == 1)
            live_broker.end(signal.SIGKILL)
            live_broker.start(wait=False)
            assert job.result(20).state() is State.READY
        assert accepted(client) == 1


def test_a_result_is_waited_for_through_a_restart(live_broker: LiveBroker) -> None:
    with Client(live_broker.config, timeout_s=30) as client, Client(live_broker.config) as other:
        job = client.submit("m.f", queue="q")
        with ThreadPoolExecutor(1) as pool:
            ended = pool.submit(client.wait, job.id, 60)
            wait_until(lambda: client._pools[os.getpid()]._all[0].session.waiting == 1)
            live_broker.end(signal.SIGTERM)
            live_broker.start(wait=False)
            other.cancel([job.id])
            found = ended.result(30)
        assert found is not None
        assert found.state is State.CANCELLED


def test_a_broker_that_is_away_is_said_with_its_address_and_what_to_do() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with Client(Config(), broker=address, timeout_s=0.2) as client:
        began_s = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            client.submit("m.f", queue="q", id=bytes(16))
        assert 0.15 < time.monotonic() - began_s < 2
    for said in (address, "zq broker", "client.broker", "unknown", format_id(bytes(16))):
        assert said in str(caught.value)


def test_nothing_is_sent_of_what_cannot_be_asked_for() -> None:
    with Client(Config(), broker=f"tcp://127.0.0.1:{free_port()}", timeout_s=0.2) as client:
        with pytest.raises(Invalid):
            client.submit("m.f", args=(object(),), queue="q")
        with pytest.raises(Invalid):
            client.submit_many([JobRequest(task="m.f", queue="q"), JobRequest(task="", queue="q")])
        with pytest.raises(Invalid, match="none of scheduled"):
            client.jobs("q", "sleeping")
        assert client._pools == {}


@pytest.mark.parametrize("address", ["127.0.0.1:5570", "udp://127.0.0.1:1", "tcp://", "tcp://127.0.0.1:port"])
def test_an_address_that_is_none_is_said(address: str) -> None:
    with pytest.raises(Invalid, match="broker address"), Client(Config(), broker=address, timeout_s=0.2) as client:
        client.queues()


def test_a_closed_client_says_so_and_closing_twice_is_harmless(live_broker: LiveBroker) -> None:
    client = Client(live_broker.config)
    client.queues()
    client.close()
    client.close()
    with pytest.raises(Invalid, match="closed"):
        client.queues()


def test_many_threads_share_a_client(live_broker: LiveBroker) -> None:
    with Client(live_broker.config) as client, ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda n: client.submit("m.f", args=(n,), queue="q"), range(200)))
        assert len({job.id for job in jobs}) == 200
        assert accepted(client) == 200
        assert len(client._pools[os.getpid()]._all) <= 9


def test_more_threads_than_connections_wait_for_one(live_broker: LiveBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "CONNECTIONS_MAX", 1)
    with Client(live_broker.config, timeout_s=0.3) as client:
        job = client.submit("m.f", queue="q")
        with ThreadPoolExecutor(2) as pool:
            waiting = pool.submit(client.wait, job.id, 1.0)
            wait_until(lambda: client._pools[os.getpid()]._all[0].session.waiting == 1)
            with pytest.raises(Unavailable, match="AsyncClient"):
                client.queues()
            assert waiting.result() is None
        assert client.queues()


def test_a_forked_child_opens_its_own_connections(live_broker: LiveBroker) -> None:
    with Client(live_broker.config) as client:
        client.submit("m.f", queue="q")
        child = os.fork()
        if child == 0:
            try:
                client.submit("m.f", queue="q")
                client.close()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        client.submit("m.f", queue="q")
        assert accepted(client) == 3


def test_ctrl_c_ends_a_call_and_the_client_goes_on(live_broker: LiveBroker) -> None:
    with Client(live_broker.config) as client:
        job = client.submit("m.f", queue="q")
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            client.wait(job.id, 30)
        timer.join()
        assert accepted(client) == 1


def test_a_call_ends_in_time_however_often_a_signal_comes(live_broker: LiveBroker) -> None:
    """As with a profiler's timer: each signal interrupts the wait, which goes on for what is left of it."""
    before = signal.signal(signal.SIGALRM, lambda number, frame: None)
    try:
        with Client(live_broker.config, timeout_s=0.5) as client:
            client.queues()
            assert live_broker.process is not None
            live_broker.process.send_signal(signal.SIGSTOP)
            signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
            with pytest.raises(Unavailable, match="connected but silent"):
                client.queues()
            with pytest.raises(Unavailable, match="connected but silent"):
                client.submit("m.f", queue="q")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        live_broker.end(signal.SIGKILL)


# ---------------------------------------------------------------------------------------------------- asyncio


def run_async(main: Callable[[AsyncClient], Awaitable[Any]], config: Config) -> None:
    async def go() -> None:
        async with AsyncClient(config, timeout_s=30) as client:
            await main(client)

    asyncio.run(go())


def test_async_submits_of_one_turn_are_one_message(live_broker: LiveBroker) -> None:
    async def main(client: AsyncClient) -> None:
        await client.broker()
        assert client._wire is not None
        session = client._wire._connection.session
        asked_before = session._next_request
        jobs = await asyncio.gather(*(client.submit("m.f", args=(n,), queue="q") for n in range(500)))
        assert len({job.id for job in jobs}) == 500
        assert session._next_request - asked_before == 1
        assert await jobs[0].state() is State.READY
        assert (await client.queues())[0].accepted == 500

    run_async(main, live_broker.config)


def test_async_batches_come_from_lists_and_generators(
    live_broker: LiveBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verbs, "SUBMIT_JOBS_MAX", 10)

    async def main(client: AsyncClient) -> None:
        requests = [JobRequest(task="m.f", queue="q", args=(n,)) for n in range((IN_FLIGHT_MAX + 2) * 10)]
        receipts = await client.submit_many(request for request in requests)
        assert [receipt.job_id for receipt in receipts] == [request.id for request in requests]
        again = await client.submit_many(requests)
        assert {receipt.status for receipt in again} == {ReceiptStatus.DUPLICATE}
        with pytest.raises(Invalid):
            await client.submit_many([*requests[:10], JobRequest(task="", queue="other")])
        assert [queue.name for queue in await client.queues()] == ["q"]

    run_async(main, live_broker.config)


def test_async_errors_are_those_of_the_one_submit(live_broker: LiveBroker) -> None:
    async def main(client: AsyncClient) -> None:
        job_id = new_job_id()
        results = await asyncio.gather(
            client.submit("m.f", args=(1,), queue="q", id=job_id),
            client.submit("m.f", args=(2,), queue="q", id=job_id),
            client.submit("m.f", args=(object(),), queue="q"),
            client.submit("m.f", queue="q"),
            return_exceptions=True,
        )
        assert [type(one).__name__ for one in results] == ["AsyncJob", "Conflict", "PayloadError", "AsyncJob"]

    run_async(main, live_broker.config)


def test_async_waits_and_questions_are_under_way_together(live_broker: LiveBroker) -> None:
    async def main(client: AsyncClient) -> None:
        jobs = await asyncio.gather(*(client.submit("m.f", queue="q") for _ in range(20)))
        waits = [asyncio.ensure_future(job.result(timeout_s=30)) for job in jobs]
        assert (await client.queues())[0].ready == 20
        await client.cancel([job.id for job in jobs])
        found = await asyncio.gather(*waits, return_exceptions=True)
        assert all(isinstance(one, JobFailed) for one in found)
        with pytest.raises(ResultTimeout):
            await (await client.submit("m.f", queue="q")).result(timeout_s=0.05)

    run_async(main, live_broker.config)


def test_async_a_cancelled_call_is_forgotten(live_broker: LiveBroker) -> None:
    async def main(client: AsyncClient) -> None:
        job = await client.submit("m.f", queue="q")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.wait(job.id, 60), 0.05)
        assert client._wire is not None
        assert client._wire._asked == {}
        assert client._wire._connection.session.waiting == 0

    run_async(main, live_broker.config)


def test_async_a_killed_broker_is_asked_again_when_it_is_back(live_broker: LiveBroker) -> None:
    async def main(client: AsyncClient) -> None:
        await client.queues()
        assert live_broker.process is not None
        live_broker.process.send_signal(signal.SIGSTOP)
        submits = [asyncio.ensure_future(client.submit("m.f", args=(n,), queue="q")) for n in range(50)]
        await asyncio.sleep(0)
        live_broker.end(signal.SIGKILL)
        live_broker.start(wait=False)
        assert len({job.id for job in await asyncio.gather(*submits)}) == 50
        assert (await client.queues())[0].accepted == 50

    run_async(main, live_broker.config)


def test_async_a_broker_that_is_away_and_a_close_meanwhile() -> None:
    config = Config(client=ClientSection(broker=f"tcp://127.0.0.1:{free_port()}", timeout_s=0.2))

    async def main() -> None:
        async with AsyncClient(config) as client:
            with pytest.raises(Unavailable, match="unknown"):
                await client.submit("m.f", queue="q")
        client = AsyncClient(config, timeout_s=60)
        asked = asyncio.ensure_future(client.queues())
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(Unavailable, match="closed"):
            await asked
        with pytest.raises(Invalid, match="closed"):
            await client.queues()

    asyncio.run(main())


def test_async_a_client_belongs_to_one_loop(live_broker: LiveBroker) -> None:
    client = AsyncClient(live_broker.config)
    with asyncio.Runner() as first:
        first.run(client.queues())
        with pytest.raises(Invalid, match="event loop"):
            asyncio.run(client.queues())
        first.run(client.close())
