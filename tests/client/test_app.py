from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import zq
import zq.testing
from tests.conftest import LiveBroker
from zq import registry
from zq.app import App, task_name
from zq.client.requests import JobRequest
from zq.command import Template
from zq.config import Config
from zq.exceptions import Conflict, Invalid, JobFailed, LeaseLost, ResultTimeout, SoftTimeLimitExceeded
from zq.payload import PayloadError
from zq.protocol.job import State

app = App(Config())


@app.task(queue="thumbnails", name="test_app.thumbnail", priority=7, max_retries=1, time_limit_s=60)
def thumbnail(path: str, width_px: int = 320) -> str:
    """Make it small."""
    return f"{path} {width_px}"


@app.task(queue="thumbnails", name="test_app.flaky", backoff_s=5)
def flaky(good_at: int) -> int:
    attempt = zq.current_job().attempt
    zq.current_job().progress(attempt, good_at, "张伟")
    if attempt < good_at:
        raise ValueError("not yet")
    return attempt


@app.task(queue="other", name="test_app.publisher")
def publisher(path: str, words: list[str]) -> list[str]:
    lines: list[str] = []
    with zq.current_job().publish(Path(path)) as part:
        part.write_text(" ".join(words))
        zq.current_job().run_process(["cat", str(part)], on_stdout_line=lines.append)
    return lines


@app.task(queue="other", name="test_app.rejecter")
def rejecter() -> None:
    raise zq.Reject("never")


@app.task(queue="other", name="test_app.outer")
def outer() -> str:
    inner = thumbnail.delay("inner.png").result(timeout_s=10)
    return f"{zq.current_job().task} {inner}"


@app.task(queue="other", name="test_app.returner")
def returner() -> object:
    return object()


def test_a_task_is_still_a_function() -> None:
    assert thumbnail("a.png", width_px=64) == "a.png 64"
    assert (thumbnail.__name__, thumbnail.__doc__) == ("thumbnail", "Make it small.")
    found = registry.lookup("test_app.thumbnail")
    assert found is not None
    assert found.function("b.png") == "b.png 320"


def test_delay_takes_what_the_function_takes_and_nothing_else() -> None:
    with zq.testing.memory(app) as broker:
        with pytest.raises(TypeError, match="height_px"):
            thumbnail.delay("a.png", height_px=3)  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            thumbnail.apply_async(())
        with pytest.raises(PayloadError, match=r"args\[0\]"):
            thumbnail.delay(Path("a.png"))  # type: ignore[arg-type]
        assert broker.queues() == []
        job = thumbnail.delay("a.png", width_px=64)
        assert job.state() is State.READY
        assert job.result(timeout_s=1) == "a.png 64"
        for wrong in ({"height_px": 3}, {"path": "b.png"}):  # also after calls of its kind that were right
            with pytest.raises(TypeError):
                thumbnail.delay("a.png", **wrong)
        with pytest.raises(TypeError):
            thumbnail.delay("a.png", 64, 64)  # type: ignore[call-arg]
        with pytest.raises(PayloadError, match="generator"):
            thumbnail.apply_async(part for part in ("a.png",))  # type: ignore[arg-type]


def test_options_are_the_tasks_unless_given() -> None:
    declared = thumbnail.request()
    assert (declared.priority, declared.max_retries, declared.time_limit_s) == (7, 1, 60)
    given = thumbnail.request(priority=0, max_retries=0, queue="q")
    assert (given.priority, given.max_retries, given.queue) == (0, 0, "q")
    tagged = App(Config()).task(
        queue="q", name="test_app.tagged", tags=("gpu",), concurrency_key="k", concurrency_limit=2, key_policy="replace"
    )(lambda: None)
    asks = tagged.request(concurrency_limit=3)
    assert (asks.tags, asks.concurrency_key, asks.concurrency_limit, asks.key_policy) == (("gpu",), "k", 3, "replace")
    assert tagged.request(tags=()).tags == ()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"queue": "a b"}, "queue"),
        ({"queue": "q", "priority": 11}, "priority"),
        ({"queue": "q", "tags": "gpu"}, "tags"),
        ({"queue": "q", "key_policy": "steal"}, "key_policy"),
        ({"queue": "q", "soft_time_limit_s": 9, "time_limit_s": 5}, "comes first"),
        ({"queue": "q", "name": ""}, None),
        ({"queue": "q", "name": "a\nb"}, "task"),
        ({"queue": "q", "soft_time_limit_s": 7200}, None),
    ],
)
def test_wrong_options_are_found_where_they_are_written(options: dict[str, Any], said: str | None) -> None:
    def function() -> None: ...

    if said is None:
        App(Config()).task(**options)(function)
        return
    with pytest.raises(Invalid, match=said):
        App(Config()).task(**options)(function)


def test_a_generator_is_refused() -> None:
    def function() -> Iterator[None]:
        yield

    with pytest.raises(Invalid, match="generator"):
        app.task(queue="q")(function)


def test_an_app_reads_and_opens_nothing_before_the_first_submit(tmp_path: Path) -> None:
    lazy = App(tmp_path / "none.toml")

    @lazy.task(queue="q", name="test_app.lazy")
    def lazy_task() -> int:
        return 1

    assert lazy_task() == 1
    with pytest.raises(zq.config.ConfigError, match=r"none\.toml"):
        lazy_task.delay()


def test_names_are_module_and_function() -> None:
    assert task_name(test_a_generator_is_refused).endswith("test_app.test_a_generator_is_refused")


def test_a_script_names_its_tasks_as_a_worker_will(tmp_path: Path) -> None:
    script = tmp_path / "缩略图.py"
    script.write_text("import zq\n@zq.App().task(queue='q')\ndef f() -> None: ...\nprint(f.name)\n", encoding="utf-8")
    env = {"PYTHONPATH": str(tmp_path), "PYTHONIOENCODING": "utf-8"}
    for how in ([str(script)], ["-m", "缩略图"]):
        ran = subprocess.run([sys.executable, *how], capture_output=True, check=True, env=env, cwd=tmp_path)
        assert ran.stdout.decode().strip() == "缩略图.f"


def test_retries_progress_and_attempts_in_memory() -> None:
    with zq.testing.memory(app) as broker:
        job = flaky.delay(3)
        assert job.result(timeout_s=60) == 3
        assert [run.reported for run in broker.ran] == [[(n, 3, "张伟")] for n in (1.0, 2.0, 3.0)]
        assert [one.outcome.name for one in job.detail().attempts if one.outcome] == ["FAILED", "FAILED", "DONE"]
        assert "ValueError: not yet" in job.detail().attempts[0].error
        lost = flaky.delay(9)
        with pytest.raises(JobFailed, match="dead"):
            lost.result()
        assert len(broker.ran) == 3 + 4


def test_files_are_published_and_programs_run_in_memory(tmp_path: Path) -> None:
    target = tmp_path / "合并.txt"
    assert zq.testing.run(publisher, str(target), ["a", "b"]) == ["a b"]
    assert target.read_text() == "a b"
    assert list(tmp_path.iterdir()) == [target]


def test_a_lost_lease_publishes_nothing_and_a_soft_limit_ends_a_program(tmp_path: Path) -> None:
    target = tmp_path / "x"
    with zq.testing.job() as job:
        job.lose_lease()
        with pytest.raises(LeaseLost):
            publisher(str(target), ["a"])
        assert list(tmp_path.iterdir()) == []
    with zq.testing.job() as job:
        job.pass_soft_limit()
        with pytest.raises(SoftTimeLimitExceeded):
            job.check_soft_limit()
        with pytest.raises(SoftTimeLimitExceeded):
            job.run_process(["sleep", "60"])


def test_rejections_keys_delays_and_expiry_in_memory() -> None:
    with zq.testing.memory(app) as broker:
        with pytest.raises(JobFailed, match="never"):
            rejecter.delay().result()
        with pytest.raises(JobFailed, match="returned what cannot be kept"):
            returner.delay().result()
        later = thumbnail.apply_async(("a.png",), key="a", countdown=60)
        assert thumbnail.apply_async(("a.png",), key="a").deduplicated
        with pytest.raises(ResultTimeout):
            later.result(timeout_s=10)
        assert later.result(timeout_s=100) == "a.png 320"
        soon = thumbnail.apply_async(("b.png",), eta=datetime.now(UTC) + timedelta(hours=5))
        assert soon.result(timeout_s=6 * 3600) == "b.png 320"
        stale = thumbnail.apply_async(("c.png",), expires=5)
        broker.advance(6)
        with pytest.raises(JobFailed, match="expired"):
            stale.result()
        with pytest.raises(Conflict):
            thumbnail.apply_async(("other.png",), id=later.id)


def test_a_task_may_submit_and_wait_in_memory() -> None:
    with zq.testing.memory(app) as broker:
        assert outer.delay().result(timeout_s=60) == "test_app.outer inner.png 320"
        assert broker.run_all() == 0


def test_a_task_nobody_imported_is_dead_with_the_names_there_are() -> None:
    with zq.testing.memory(app) as broker:
        job = broker.submit_request(JobRequest(task="no.such", queue="q"))
        with pytest.raises(JobFailed, match=r"test_app\.thumbnail"):
            job.result()


def test_an_app_is_used_from_threads_and_closed(live_broker: LiveBroker) -> None:
    live = App(live_broker.config)
    task = live.task(queue="q", name="test_app.live")(lambda: None)
    threads = [threading.Thread(target=task.delay) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client = live.client
    live.close()
    live.close()
    assert live.client is not client
    with zq.Client(live_broker.config) as other:
        assert other.queues()[0].accepted == 8
    live.close()


def test_importing_zq_imports_no_transport() -> None:
    code = "import sys, zq; print([m for m in ('zmq', 'msgpack', 'lmdb', 'psutil', 'click') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert ran.stdout.strip() == "[]"
    assert {"App", "Client", "AsyncClient"} <= set(zq.__all__)
    for name in zq.__all__:
        assert getattr(zq, name) is not None
    with pytest.raises(AttributeError, match="Clinet"):
        _ = zq.Clinet


@app.task(queue="thumbnails", name="test_app.fetch")
async def fetch(folder: str) -> list[str]:
    job = zq.current_job()
    await job.still_mine_async()
    ended = await job.run_process_async(["sh", "-c", "exit 3"])
    async with job.publish_async(Path(folder, "page")) as part:
        part.write_text("page")
    return [job.task, str(ended.returncode)]


def test_an_async_task_is_awaited_when_called_and_run_in_tests(tmp_path: Path) -> None:
    assert zq.testing.run(fetch, str(tmp_path)) == ["test_app.fetch", "3"]
    assert (tmp_path / "page").read_text() == "page"
    with zq.testing.memory(app) as broker:
        job = fetch.delay(str(tmp_path))
        assert job.result(timeout_s=10) == ["test_app.fetch", "3"]
        assert [one.task for one in broker.ran] == ["test_app.fetch"]
    assert asyncio.run(zq.testing.run_async(fetch, str(tmp_path))) == ["test_app.fetch", "3"]

    async def lost() -> None:
        with zq.testing.job() as job:
            job.lose_lease()
            with pytest.raises(LeaseLost):
                await fetch(str(tmp_path))

    asyncio.run(lost())


@app.command(["echo", "{text}"], queue="thumbnails", name="test_app.say")
def say(text: str) -> None: ...


def test_a_command_runs_here_when_it_is_called_and_its_template_is_checked() -> None:
    assert say("你好") == {"exit_code": 0, "output": "你好"}
    assert zq.testing.run(say, "a b") == {"exit_code": 0, "output": "a b"}
    for argv in ([], "echo {text}", ["echo"], ["echo", "{other}"], ["echo", "{text!r}"], ["echo", "{text"], ["{0}"]):
        with pytest.raises(Invalid):

            @app.command(argv, queue="q", name="test_app.wrong")
            def wrong(text: str) -> None: ...


@pytest.mark.parametrize("value", ["-rf", "a\0b", True, {"a": 1}, ["ok", "-x"], b"bytes"])
def test_what_cannot_be_an_argument_is_rejected(value: Any) -> None:
    with pytest.raises(zq.Reject):
        say(value)


@given(st.lists(st.text().filter(lambda text: "\0" not in text)))
def test_values_are_arguments_and_never_anything_else(values: list[str]) -> None:
    filled = Template(["program", "--", "{values}", "a="]).fill({"values": values})
    assert filled == ["program", "--", *values, "a="]
