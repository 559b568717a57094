"""Async tasks, hooks and command tasks for the tests of whole workers; imported by their slots, not by the tests."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from pathlib import Path

import zq

app = zq.App()
pool: dict[str, int] = {}
pids_seen: list[int] = []


@app.on_start
async def open_pool() -> None:
    await asyncio.sleep(0)
    if Path("no-start").exists():
        raise RuntimeError("the pool cannot be opened")
    pool["opened by"] = os.getpid()


@app.on_stop
def close_pool() -> None:
    Path(f"stopped-{os.getpid()}").touch()


@app.on_stop
async def close_client() -> None:
    await asyncio.sleep(0.01)
    Path(f"closed-{os.getpid()}").touch()


@app.task(queue="q")
async def who(seconds: float = 0.0) -> dict[str, object]:
    job = zq.current_job()
    before = job.id
    await asyncio.sleep(seconds)
    child = await asyncio.create_task(_id_in_child())
    return {"id": zq.current_job().id, "before": before, "child": child, "pid": os.getpid(), "pool": pool["opened by"]}


async def _id_in_child() -> str:
    await asyncio.sleep(0)
    return zq.current_job().id


@app.task(queue="q")
async def meet(folder: str, name: str, others: int) -> int:
    """Returns when so many others are here at the same time."""
    Path(folder, f"here-{name}").touch()
    until_s = time.monotonic() + 30
    while len(list(Path(folder).glob("here-*"))) <= others:
        assert time.monotonic() < until_s
        await asyncio.sleep(0.01)
    return os.getpid()


@app.task(queue="q", soft_time_limit_s=0.3, time_limit_s=60)
async def softly() -> str:
    try:
        await asyncio.sleep(60)
    except zq.SoftTimeLimitExceeded as error:
        await asyncio.sleep(0)  # not cancelled again
        return f"{error}; {asyncio.current_task().cancelling()}"  # type: ignore[union-attr]
    return "slept"


@app.task(queue="q", max_retries=0)
async def wait_for_ever(folder: str, heed: bool = True) -> None:
    Path(folder, "waiting").touch()
    while True:
        try:
            await asyncio.sleep(60)
        except (asyncio.CancelledError, zq.SoftTimeLimitExceeded):
            if heed:
                Path(folder, "cancelled").touch()
                raise


@app.task(queue="q", max_retries=0)
async def leave() -> None:
    sys.exit(3)


@app.task(queue="q", max_retries=0)
async def block() -> None:
    zq.current_job().run_process(["true"])


@app.task(queue="q")
async def services(folder: str) -> dict[str, object]:
    job = zq.current_job()
    job.progress(1, 2, "半")
    lines: list[str] = []
    fed = Path(folder, "fed")
    fed.write_text("一\n二\n")
    script = "cat; echo oops >&2; exit 3"
    runs = [
        job.run_process_async(["sh", "-c", script], on_stdout_line=lines.append, feed_stdin=[fed]),
        job.run_process_async(["sleep", "0.1"]),
    ]
    ended = await asyncio.gather(*runs)
    await asyncio.gather(job.still_mine_async(), job.still_mine_async())
    async with job.publish_async(Path(folder, "out.txt")) as part:
        part.write_text("published")
    return {"codes": [one.returncode for one in ended], "stderr": ended[0].stderr_tail, "lines": lines}


@app.task(queue="q", soft_time_limit_s=0.4, time_limit_s=60, max_retries=0)
async def program_past_its_time(folder: str) -> None:
    Path(folder, "go-on").touch()
    script = f"trap 'touch {folder}/asked; exit 0' TERM; while :; do sleep 0.05; done"
    await zq.current_job().run_process_async(["sh", "-c", script])


@app.task(queue="q")
def plain() -> int:
    return os.getpid()


@app.command(
    ["sh", "-c", 'printf "%s|" "$@"; echo; echo 3 of 4', "sh", "--", "{path}", "{more}", "w={width}"],
    queue="q", progress=r"(?P<done>\d+) of (?P<total>\d+)", max_retries=0,
)  # fmt: skip
def show(path: str, more: list[str] | None = None, width: int = 320) -> None: ...


@app.command(["sh", "-c", "echo 坏 >&2; exit $0", "{code}"], queue="q", reject_codes=[4], max_retries=1, backoff_s=0.01)
def end_with(code: int) -> None: ...


log = logging.getLogger("my.module")


@app.task(queue="q")
async def say_async(name: str) -> None:
    for number in range(3):
        print(f"{name}: {number}, ", end="")
        await asyncio.sleep(0.01)
    print("end", file=sys.stderr)
    log.warning("%s has spoken", name, extra={"秒": 3})


@app.task(queue="q")
def say_plain(name: str) -> None:
    print("第一行\nsecond line of", name)
    thread = threading.Thread(target=log.info, args=("from a thread",))
    thread.start()
    thread.join()
    zq.current_job().run_process(["sh", "-c", "echo 程序 >&2; seq 300 >&2"])
    try:
        raise ValueError("traced")
    except ValueError:
        log.exception("it went wrong\nforged line")
    print("no end of line", end="")
