"""Streams over a real connection, from a broker that is killed and started again meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port
from tests.web.conftest import Api, Process, problem, write_config
from tests.web.hands import hands
from zq.web import auth, event_feed, streams

SILENCE_S = 20.0
STREAMS_MAX = 5  # a quarter of max_connections


class System:
    """A broker and a web server of their own."""

    def __init__(self, folder: Path, max_connections: int = STREAMS_MAX * 4) -> None:
        self.folder = folder
        self.broker_port, self.port = free_port(), free_port()
        web = f"port = {self.port}\nmax_connections = {max_connections}"
        self.config = write_config(folder, self.broker_port, web, client="timeout_s = 10")
        self.broker = self.start_broker()
        self.web = Process("zq.web", self.config, self.port, folder / "web.log")
        self.token = auth.ensure_token(folder / "var")

    def start_broker(self) -> Process:
        return Process("zq.broker", self.config, self.broker_port, self.folder / "broker.log")

    def stop(self) -> int:
        code = self.web.stop()
        self.broker.stop()
        return code

    def restart_broker(self) -> None:
        self.broker.process.send_signal(signal.SIGKILL)
        self.broker.process.wait()
        self.broker = self.start_broker()

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[http.client.HTTPResponse, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SILENCE_S)
        headers |= {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer, connection

    def json(self, method: str, path: str, body: Any = None) -> Any:
        answer, connection = self.call(method, path, body)
        with contextlib.closing(connection):
            return json.loads(answer.read())

    def submit(self, queue: str) -> str:
        job_id: str = self.json("POST", "/v1/jobs", {"task": "t", "queue": queue})["id"]
        return job_id

    @contextlib.contextmanager
    def stream(self, path: str, last: int | None = None) -> Iterator[Stream]:
        answer, connection = self.call("GET", path, **({} if last is None else {"Last-Event-ID": str(last)}))
        with contextlib.closing(connection):
            assert answer.status == 200, answer.read()
            assert answer.headers["Content-Type"] == "text/event-stream"
            assert answer.headers["X-Accel-Buffering"] == "no"
            yield Stream(answer)


class Stream:
    """Reads as a browser does."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self._answer = answer
        self.last = ""

    def next(self) -> tuple[str, dict[str, Any]]:
        """The next event: its type and its data. Raises EOFError at the end."""
        kind, data = "message", ""
        while True:
            line = self._answer.readline().decode()
            if not line:
                raise EOFError
            name, _, value = line.rstrip("\n").partition(": ")
            if name == "id":
                self.last = value
            elif name == "event":
                kind = value
            elif name == "data":
                data = value
            elif not name and data:
                return kind, json.loads(data)

    def causes(self, count: int) -> list[str]:
        return [self.next()[1]["cause"] for _ in range(count)]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    made = System(tmp_path_factory.mktemp("streams"))
    yield made
    assert made.stop() == 0


def test_a_stream_begins_now_and_brings_every_step_of_its_queue(system: System) -> None:
    queue = f"流{uuid.uuid4().hex}"
    system.submit(queue)
    quoted = "%E6%B5%81" + queue[1:]
    with system.stream(f"/v1/events?queue={quoted}") as stream, hands(system.broker_port, queue) as worker:
        system.submit("other")
        worker.end(worker.take())
        assert stream.causes(2) == ["dispatch", "finish"]
        job_id = system.submit(queue)
        kind, event = stream.next()
        assert (kind, event["cause"], event["job_id"], event["queue"]) == ("message", "accept", job_id, queue)
        assert int(stream.last) == event["number"]


def test_a_stream_resumes_without_a_gap_also_over_a_broker_that_was_killed(system: System) -> None:
    queue = f"q{uuid.uuid4().hex}"
    with system.stream("/v1/events") as stream:
        ids = [system.submit(queue)]
        seen = [stream.next()[1]]
        system.restart_broker()
        ids.append(system.submit(queue))
        seen.append(stream.next()[1])  # the stream itself went on
        last = int(stream.last)
    ids += [system.submit(queue) for _ in range(3)]
    system.restart_broker()
    ids.append(system.submit(queue))
    with system.stream("/v1/events", last) as stream:
        seen += [stream.next()[1] for _ in range(4)]
        ids.append(system.submit(queue))
        seen.append(stream.next()[1])
    assert [event["job_id"] for event in seen] == ids
    assert [event["number"] for event in seen] == list(range(seen[0]["number"], seen[0]["number"] + len(ids)))
    with system.stream(f"/v1/events?after={last}&queue={queue}") as stream:
        assert [stream.next()[1]["job_id"] for _ in range(5)] == ids[2:]


def test_a_number_that_the_journal_does_not_have_is_a_gap(system: System) -> None:
    with system.stream("/v1/events", 10**15) as stream:
        kind, gap = stream.next()
        assert kind == "gap"
        assert gap["number"] < 10**15
        job_id = system.submit("gap")
        assert stream.next()[1]["job_id"] == job_id


def test_a_jobs_stream_has_its_history_its_progress_and_an_end(system: System) -> None:
    queue = f"q{uuid.uuid4().hex}"
    system.submit(f"q{uuid.uuid4().hex}")  # so that event 1, below, is not this job's
    job_id = system.submit(queue)
    with hands(system.broker_port, queue) as worker:
        lease = worker.take()
        with system.stream(f"/v1/jobs/{job_id}/events") as stream:
            assert stream.causes(2) == ["accept", "dispatch"]
            worker.progress(lease, 3, 10, "合并")
            assert stream.next() == ("progress", {"done": 3.0, "total": 10.0, "message": "合并"})
            system.submit(queue)  # another job's steps are not in it
            worker.end(lease)
            assert stream.causes(1) == ["finish"]
            assert stream.next() == ("end", {"id": job_id, "state": "done"})
            with pytest.raises(EOFError):
                stream.next()
            last = stream.last
    with system.stream(f"/v1/jobs/{job_id}/events", 1) as stream:
        assert stream.causes(3) == ["accept", "dispatch", "finish"]
    answer, connection = system.call("GET", f"/v1/jobs/{job_id}/events", **{"Last-Event-ID": last})
    connection.close()
    assert answer.status == 204  # a browser does not come again after this


def test_what_is_no_stream(system: System) -> None:
    for path, status in [
        (f"/v1/jobs/{uuid.uuid4()}/events", 404), ("/v1/jobs/x/events", 422), ("/v1/events?after=-1", 422),
        (f"/v1/events?queue={'q' * 201}", 422),
    ]:  # fmt: skip
        answer, connection = system.call("GET", path)
        connection.close()
        assert answer.status == status
    answer, connection = system.call("HEAD", "/v1/events")
    connection.close()
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream")


def test_streams_are_bounded_and_give_their_place_back(system: System) -> None:
    with contextlib.ExitStack() as stack:
        open_ones = [stack.enter_context(system.stream("/v1/events")) for _ in range(STREAMS_MAX)]
        answer, connection = system.call("GET", "/v1/events")
        body = json.loads(answer.read())
        connection.close()
        assert (answer.status, body["type"]) == (503, "urn:zq:problem:busy")
        assert answer.headers["Retry-After"] == "5"
        job_id = system.submit("many")
        assert [stream.next()[1]["job_id"] for stream in open_ones] == [job_id] * STREAMS_MAX
    for _ in range(200):
        answer, connection = system.call("GET", "/v1/events")
        connection.close()
        if answer.status == 200:
            return
    raise AssertionError("a place was not given back")


class Pipe:
    """A stream inside this process. What is sent waits until it is taken."""

    def __init__(self, api: Api, path: str) -> None:
        self.sent: asyncio.Queue[bytes] = asyncio.Queue(1)
        path, _, query = path.partition("?")
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET",
            "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
            "headers": [(b"authorization", f"Bearer {api.token}".encode())],
        }  # fmt: skip
        self.task = asyncio.ensure_future(api._app(scope, self._receive, self._send))

    async def _receive(self) -> Any:
        await asyncio.Event().wait()

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.body":
            await self.sent.put(message["body"])

    async def take(self) -> bytes:
        return await asyncio.wait_for(self.sent.get(), SILENCE_S)


def test_a_slow_reader_is_not_gathered_for_and_misses_nothing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_feed, "RING_EVENTS", 10)
    queue = f"q{uuid.uuid4().hex}"
    jobs = {"jobs": [{"task": "t", "queue": queue}] * 500}

    async def slow() -> tuple[int, bytes]:
        pipe = Pipe(api, f"/v1/events?queue={queue}")
        assert await pipe.take() == b"retry: 2000\n\n"
        await api.send("POST", "/v1/jobs:batch", json=jobs)
        first = await pipe.take()
        for _ in range(3):
            await api.send("POST", "/v1/jobs:batch", json=jobs)
        ring = api.services.events._ring
        assert ring is not None
        kept = len(ring._events)
        received = first
        while received.count(b'"cause":"accept"') < 2000:
            received += await pipe.take()
        pipe.task.cancel()
        await asyncio.wait([pipe.task])
        assert api.services.events.listeners == 0
        return kept, received

    kept, received = api.run(slow())
    assert kept <= 10
    numbers = [int(line[4:]) for line in received.splitlines() if line.startswith(b"id: ")]
    assert numbers == list(range(numbers[0], numbers[0] + 2000))


def test_a_stream_beats_moves_its_place_and_ends_with_the_server(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BEAT_S", 0.3)

    async def quiet() -> None:
        pipe = Pipe(api, "/v1/events?queue=quiet")
        await pipe.take()
        before = await pipe.take()
        assert before.startswith(b": beat\nid: ")
        await api.send("POST", "/v1/jobs", json={"task": "t", "queue": "loud"})
        number = int(before.split(b"id: ")[1])
        while int((await pipe.take()).split(b"id: ")[1]) == number:
            pass
        api.services.stopping.set()
        await asyncio.wait_for(pipe.task, 5)

    api.run(quiet())


def test_a_step_between_the_two_questions_of_a_jobs_stream_is_told_once(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def raced() -> list[str]:
        accepted = await api.send("POST", "/v1/jobs", json={"task": "t", "queue": "q", "countdown_s": 60})
        job_id = accepted.json()["id"]

        async def before_it_was_accepted() -> int:
            return (await api.services.client.detail(job_id)).history[0].number - 1

        monkeypatch.setattr(api.services.events, "newest", before_it_was_accepted)
        pipe = Pipe(api, f"/v1/jobs/{job_id}/events")
        received = await pipe.take() + await pipe.take()
        await api.send("DELETE", f"/v1/jobs/{job_id}")
        while b"event: end" not in received:
            received += await pipe.take()
        await asyncio.wait_for(pipe.task, 5)
        return [json.loads(line[6:])["cause"] for line in received.splitlines() if line.startswith(b'data: {"number')]

    assert api.run(raced()) == ["accept", "cancel"]


def test_a_stream_needs_the_broker_once_and_resuming_not_at_all(lonely_api: Api) -> None:
    problem(lonely_api("GET", "/v1/events"), 503)

    async def resumed() -> None:
        pipe = Pipe(lonely_api, "/v1/events?after=7")
        assert await pipe.take() == b"retry: 2000\n\n"
        lonely_api.services.stopping.set()
        await asyncio.wait_for(pipe.task, 5)

    lonely_api.run(resumed())
