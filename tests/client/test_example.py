"""The ten lines of the README, run as a user runs them; and the client in a process that gevent has patched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.conftest import LiveBroker

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def environment(broker: LiveBroker) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("ZQ_")}
    return {**env, "ZQ_DATA_DIR": broker.config.data_dir, "ZQ_CLIENT_BROKER": broker.address}


def test_the_ten_lines_run(live_broker: LiveBroker) -> None:
    env = environment(live_broker)
    words = [sys.executable, "-m", "zq.workers", "--queue", "thumbnails", "--tasks", "thumbnails"]
    with open(live_broker.folder / "worker.log", "wb") as log:
        worker = subprocess.Popen(words, cwd=EXAMPLES, env=env, stdout=log, stderr=log)
    try:
        script = [sys.executable, str(EXAMPLES / "thumbnails.py")]
        ran = subprocess.run(script, capture_output=True, env=env, timeout=60, check=False)
    finally:
        worker.send_signal(signal.SIGTERM)
        try:
            worker.wait(30)
        finally:
            worker.kill()
            worker.wait()
    assert ran.returncode == 0, ran.stderr.decode() + (live_broker.folder / "worker.log").read_text()
    assert ran.stdout.decode().strip().endswith("a.png at 640 px")


GREENLETS = """
from gevent import monkey
monkey.patch_all()
import gevent, os, zq
client = zq.Client(timeout_s=10)
ticks = 0
def tick():
    global ticks
    while True:
        gevent.sleep(0.01)
        ticks += 1
ticker = gevent.spawn(tick)
submits = [gevent.spawn(client.submit, "m.f", args=(n,), queue="q") for n in range(100)]
gevent.joinall(submits, raise_error=True)
before = ticks
assert client.wait(submits[0].value.id, 0.5) is None
assert ticks - before > 10, "other greenlets stood still while one waited"
child = os.fork()
if child == 0:
    client.submit("m.f", queue="q")
    client.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert client.queues()[0].accepted == 101
client.close()
ticker.kill()
"""


def test_greenlets_run_while_one_waits(live_broker: LiveBroker) -> None:
    words = [sys.executable, "-W", "error::ResourceWarning", "-c", GREENLETS]
    ran = subprocess.run(words, capture_output=True, env=environment(live_broker), timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr.decode()
    assert b"Warning" not in ran.stderr
