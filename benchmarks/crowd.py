"""Many connected workers that have nothing to do: what they cost the broker, and how soon a job still starts.

The crowd is one process with a socket for each worker, which says HELLO, RESUME and CREDIT and then beats as a worker
does: `python -m benchmarks.crowd ADDRESS COUNT`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import zmq

from benchmarks.footprint import resting
from benchmarks.peers import URL_VARIABLE
from benchmarks.servers import Zq
from zq.protocol import codec
from zq.protocol import messages as m
from zq.protocol.transport import dials

_QUEUE = "crowd"


def measure(folder: Path, count: int, seconds: float) -> dict[str, float]:
    server = Zq(folder)
    crowd: subprocess.Popen[str] | None = None
    try:
        command = [sys.executable, "-m", __name__, server.address, str(count)]
        crowd = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert crowd.stdout is not None
        if crowd.stdout.readline().strip() != "ready":
            raise RuntimeError(f"{count} workers could not be connected")
        rest = resting([server.process.pid], settle_s=5.0, during_s=seconds)
        starts = _starts(server, folder)
        return {
            "crowd_workers": count,
            "crowd_broker_cpu_percent": rest["cpu_percent"],
            "crowd_broker_own_mib": rest["own_mib"],
            **starts,
        }
    finally:
        if crowd is not None:
            crowd.kill()
            crowd.communicate()
        server.end()


def _starts(server: Zq, folder: Path) -> dict[str, float]:
    """Latencies of jobs of a real worker, among the crowd; in a process of its own, as the driver's."""
    code = (
        "import sys, json, pathlib\n"
        "from benchmarks import driver, peers\n"
        "run = driver.Run(peers.make('zq'), pathlib.Path(sys.argv[1]), 1, driver.Scale())\n"
        "run.idle_worker(late=False)\n"
        "run.peer.close()\n"
        "json.dump(run.figures, sys.stdout)\n"
    )
    here = folder / "starts"
    here.mkdir()
    env = os.environ | {URL_VARIABLE: server.url, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    run = subprocess.run([sys.executable, "-c", code, str(here)], env=env, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(run.stderr[-2000:])
    return {f"crowd_{name}": value for name, value in json.loads(run.stdout).items()}


# ---------------------------------------------------------------------------------------------- the crowd itself


def _connect(context: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    dealer = context.socket(zmq.DEALER)
    dials(dealer, address)
    dealer.connect(address)
    return dealer


def _join(dealer: zmq.Socket[bytes], number: int) -> int:
    """The session; raises RuntimeError when the broker does not answer as it should."""
    slots = [m.QueueSlots(_QUEUE, 1)]
    dealer.send(codec.encode(m.Hello(1, 1, m.Role.WORKER, f"crowd-{number}", os.urandom(16), slots, ["never"])))
    welcome = codec.decode_from_broker(dealer.recv())
    if not isinstance(welcome, m.Welcome):
        raise RuntimeError(f"worker {number}: {welcome!r}")
    dealer.send(codec.encode(m.Resume(welcome.session, [])))
    dealer.recv()
    dealer.send(codec.encode(m.Credit(welcome.session, slots)))
    return welcome.session


def main() -> None:
    address, count = sys.argv[1], int(sys.argv[2])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, count + 64)
    workers = []
    for number in range(count):
        dealer = _connect(context, address)
        workers.append((dealer, _join(dealer, number)))
    print("ready", flush=True)
    every_s = 2.0
    while True:
        start_s = time.monotonic()
        told_s = every_s
        for index, (dealer, session) in enumerate(workers):
            dealer.send(codec.encode(m.Beat(session, 0, [], [], [m.QueueSlots(_QUEUE, 1)])))
            while dealer.poll(0):
                answer = codec.decode_from_broker(dealer.recv())
                # As a real worker does: in a large fleet it is told to beat less often while it is idle.
                told_s = max(2.0, answer.idle_ms / 1000) if isinstance(answer, m.BeatOk) else told_s
            # Spread over the time between two beats, as so many real workers would be.
            time.sleep(max(0.0, start_s + every_s * (index + 1) / len(workers) - time.monotonic()))
        every_s = told_s


if __name__ == "__main__":
    main()
