"""The Celery system that zq replaces, at rest: a tick each 30 seconds, a status queue and a merge queue."""
# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator"

from __future__ import annotations

import subprocess
import sys

from celery import Celery

from benchmarks.peers import url

app = Celery("exams", broker=url(), backend=url())
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    task_routes={"status": {"queue": "status_check"}, "merge": {"queue": "video_merge"}},
    beat_schedule={"tick": {"task": "status", "schedule": 30.0}},
    broker_connection_retry_on_startup=True,
)


@app.task(name="status", ignore_result=True)
def status() -> None:
    """The real one would open a database; left out, in Celery's favour."""


@app.task(name="merge", ignore_result=True)
def merge(folder: str) -> None:
    subprocess.run(["ffmpeg", "-f", "concat", "-i", folder], check=True)


def commands(folder: str, port: int) -> list[list[str]]:
    """Beat, two prefork workers and Flower; with Redis that makes eight processes."""
    celery = [sys.executable, "-m", "celery", "-A", "benchmarks.peers.celery_system"]
    return [
        [*celery, "beat", "--schedule", f"{folder}/beat", "-l", "warning"],
        [*celery, "worker", "-Q", "status_check", "-c", "1", "-n", "status@%h", "-l", "warning"],
        [*celery, "worker", "-Q", "video_merge", "-c", "2", "-n", "merge@%h", "-l", "warning"],
        [*celery, "flower", "--address=127.0.0.1", f"--port={port}", "--logging=warning"],
    ]


if __name__ == "__main__":
    for command in commands(sys.argv[1], int(sys.argv[2])):
        print("\t".join(command))
