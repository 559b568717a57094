"""procrastinate on PostgreSQL. It keeps no results."""
# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator"

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from procrastinate import App, PsycopgConnector

from benchmarks import evidence
from benchmarks.peers import Peer, url

app = App(connector=PsycopgConnector(conninfo=url()))


@app.task(name="noop", queue="bench")
async def noop(number: int) -> None:
    evidence.record(number)


class ProcrastinatePeer(Peer):
    setting = "synchronous_commit on, a process a slot, 10 coroutines each, LISTEN/NOTIFY, polls each 0.1 s"
    drain_jobs = 2000
    bulk_jobs = 8000
    bulk = "batch_defer"
    results = False

    def __init__(self) -> None:
        app.open()
        app.schema_manager.apply_schema()

    def submit_each(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            noop.defer(number=number)

    def submit_all(self, numbers: Sequence[int]) -> None:
        noop.batch_defer(*({"number": number} for number in numbers))

    def submit_each_later(self, numbers: Iterable[int], delay_s: float) -> None:
        for number in numbers:
            noop.configure(schedule_in={"seconds": delay_s}).defer(number=number)

    def commands(self, slots: int) -> list[list[str]]:
        worker = [sys.executable, "-m", "procrastinate", "--app", f"{__name__}.app", "worker", "--queues", "bench"]
        return [[*worker, "--concurrency", "10", "--delete-jobs", "successful", "-p", "0.1"] for _ in range(slots)]

    def close(self) -> None:
        app.close()


PEER = ProcrastinatePeer
