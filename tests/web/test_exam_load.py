"""`zq exam load`: what it measures is right, and it says so when something is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.ports import free_port
from tests.web.conftest import Process, write_config
from zq import exam_load
from zq.cli import main
from zq.exam_load_figures import Figures, Outcome, lines, percentile, report
from zq.exam_load_http import Answer, Connection, Cut


def test_percentiles_are_of_the_calls_that_were_made() -> None:
    assert percentile([], 0.99) == 0
    assert percentile([3.0], 0.99) == 3.0
    values = [float(number) for number in range(100, 0, -1)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1.0)) == (50.0, 99.0, 100.0)


def test_a_padded_video_is_as_large_as_asked_with_boxes_that_are_skipped() -> None:
    video = b"ftyp" * 10
    padded = exam_load.padded(video, 1000)
    assert len(padded) + exam_load.TAIL_BYTES == 1000
    assert padded.startswith(video)
    size_bytes = int.from_bytes(padded[40:44], "big")
    assert (padded[44:48], 40 + size_bytes) == (b"free", len(padded))
    assert exam_load.padded(video, 0) == video, "as it is"
    with pytest.raises(exam_load.LoadError, match="--segment-kib of 1, or 0"):
        exam_load.padded(video, 50)


def test_a_report_is_not_ok_when_anything_is_missing() -> None:
    figures = Figures()
    figures.done("heartbeat", 0.001)
    assert report(figures, Outcome(), {})["ok"]
    for wrong in (Outcome(lost=["x"]), Outcome(merges_failed=1), Outcome(unaccounted_jobs=1)):
        assert not report(figures, wrong, {})["ok"]
        assert "NOT OK" in lines(report(figures, wrong, {}))
    figures.failed("segment", "503 busy")
    found = report(figures, Outcome(), {})
    assert not found["ok"]
    assert found["errors_said"] == {"segment: 503 busy": 1}


class Script:
    """A server that answers with given bytes, one after the other, and closes after each where it says so."""

    def __init__(self, answers: list[tuple[bytes, bool]]) -> None:
        self._answers = answers
        self._tasks: list[asyncio.Task[None]] = []

    async def ended(self) -> None:
        await asyncio.gather(*self._tasks)

    def start(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.append(asyncio.create_task(self.serve(reader, writer)))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while self._answers:
            try:
                await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            answer, closes = self._answers.pop(0)
            for at in range(0, len(answer), 7):
                writer.write(answer[at : at + 7])
                await writer.drain()
            if closes:
                break
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def test_a_connection_reads_answers_in_pieces_and_opens_itself_anew() -> None:
    whole = b"HTTP/1.1 201 Created\r\nContent-Length: 5\r\n\r\nhello"
    none = b"HTTP/1.1 204 No Content\r\n\r\n"
    cut = b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhalf"

    async def talk() -> list[Answer | str]:
        script = Script([(none, False), (whole, True), (whole, False), (cut, True)])
        server = await asyncio.start_server(script.start, "127.0.0.1", 0)
        connection = Connection("127.0.0.1", server.sockets[0].getsockname()[1])
        heard: list[Answer | str] = []
        for _ in range(4):
            try:
                heard.append(await connection.ask(b"GET / HTTP/1.1\r\n\r\n"))
            except Cut:
                heard.append("cut")
            if len(heard) == 2:
                while connection._transport is not None:  # the server's close has to arrive
                    await asyncio.sleep(0.001)
        connection.close()
        server.close()
        await script.ended()
        return heard

    assert asyncio.run(talk()) == [Answer(204, b""), Answer(201, b"hello"), Answer(201, b"hello"), "cut"]


def test_a_request_that_meets_a_close_is_sent_once_more_and_a_new_one_is_not() -> None:
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    async def talk() -> list[Answer | str]:
        # Takes the request of a used connection, and hangs up without a word.
        script = Script([(whole, False), (b"", True), (whole, False), (b"", True)])
        server = await asyncio.start_server(script.start, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        connection, heard = Connection("127.0.0.1", port), list[Answer | str]()
        for one in (connection, connection, Connection("127.0.0.1", port)):
            try:
                heard.append(await one.ask(b"POST / HTTP/1.1\r\n\r\n"))
            except Cut:
                heard.append("cut")
        connection.close()
        server.close()
        await script.ended()
        return heard

    assert asyncio.run(talk()) == [Answer(200, b"ok"), Answer(200, b"ok"), "cut"]


@pytest.fixture
def web(tmp_path: Path, broker_port: int) -> Iterator[Path]:
    port = free_port()
    config = write_config(tmp_path, broker_port, f"port = {port}")
    process = Process("zq.web", config, port, tmp_path / "log")
    yield config
    process.stop()


def load(config: Path, *options: str) -> Result:
    (config.parent / "a.mp4").write_bytes(b"not looked at before a merge")
    fixed = ["--config", str(config), "--segment", str(config.parent / "a.mp4"), "--segment-kib", "2", "--json"]
    return CliRunner().invoke(main, ["exam", "load", *fixed, *options])


def test_a_run_counts_what_was_sent_and_finds_it(web: Path) -> None:
    options = ["--students", "6", "--minutes", "0.05", "--heartbeat-s", "1", "--segment-s", "1", "--exits", "0"]
    run = load(web, *options)
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert found["ok"]
    assert found["calls"]["login"] == found["calls"]["login"] | {"calls": 12, "errors": 0}
    assert found["calls"]["heartbeat"]["calls"] >= 12
    assert found["segments"]["acknowledged"] == found["segments"]["found"] >= 12
    assert found["calls"]["heartbeat"]["p50_ms"] > 0
    folder = web.parent / "var" / "exams" / found["exam"] / "recordings"
    assert sum(path.stat().st_size == 2048 for path in folder.rglob("*.mp4")) == found["segments"]["found"]


def test_a_segment_that_vanishes_is_called_lost(web: Path) -> None:
    storage = web.parent / "var" / "exams"
    stop = threading.Event()

    def thief() -> None:
        while not stop.wait(0.01):
            for path in storage.rglob("L000001_*.mp4"):
                path.unlink()

    thread = threading.Thread(target=thief)
    thread.start()
    try:
        run = load(web, "--students", "2", "--minutes", "0.05", "--segment-s", "1", "--exits", "0")
    finally:
        stop.set()
        thread.join()
    assert run.exit_code == 1
    found = json.loads(run.stdout)
    assert not found["ok"]
    assert found["segments"]["students_with_loss"] == 1
    assert "L000001" in found["segments"]["lost"][0]


def test_a_system_that_is_not_there_and_a_disk_that_is_too_small(tmp_path: Path) -> None:
    config = write_config(tmp_path, 1, f"port = {free_port()}")
    (tmp_path / "var").mkdir()
    away = load(config, "--students", "1", "--minutes", "0.05")
    assert (away.exit_code, "is it running" in away.output) == (1, True)
    huge = load(config, "--students", "20000", "--minutes", "1440", "--segment-kib", "200000")
    assert (huge.exit_code, "free" in huge.output) == (1, True)
