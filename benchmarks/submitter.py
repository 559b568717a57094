"""One client process that submits single jobs for a while: `python -m benchmarks.submitter CONFIG KIND SECONDS`.

Says "ready" when it is connected, reads a time of CLOCK_MONOTONIC at which to begin, so that several of these begin
together, and prints how many jobs were confirmed.
"""

from __future__ import annotations

import asyncio
import sys
import time

import zq
from benchmarks.peers.zq_jobs import QUEUE
from zq.config import Config, load

IN_FLIGHT = 50


def begin_at_s() -> float:
    print("ready", flush=True)
    return float(sys.stdin.readline())


def one_at_a_time(config: Config, seconds: float) -> int:
    with zq.Client(config) as client:
        client.broker()
        start_s = begin_at_s()
        time.sleep(max(0.0, start_s - time.monotonic()))
        count = 0
        while time.monotonic() < start_s + seconds:
            client.submit("noop", (count,), queue=QUEUE)
            count += 1
    return count


async def pipelined(config: Config, seconds: float) -> int:
    """`IN_FLIGHT` coroutines, each of which submits the next job when its last one is confirmed."""
    async with zq.AsyncClient(config) as client:
        await client.broker()
        start_s = begin_at_s()
        await asyncio.sleep(max(0.0, start_s - time.monotonic()))
        count = 0

        async def submit() -> None:
            nonlocal count
            while time.monotonic() < start_s + seconds:
                await client.submit("noop", (count,), queue=QUEUE)
                count += 1

        await asyncio.gather(*(submit() for _ in range(IN_FLIGHT)))
    return count


def main() -> None:
    path, kind, seconds = sys.argv[1:]
    config = load(path)
    if kind == "pipelined":
        count = asyncio.run(pipelined(config, float(seconds)))
    else:
        count = one_at_a_time(config, float(seconds))
    print(count)


if __name__ == "__main__":
    main()
