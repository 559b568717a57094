"""Runs a plan on the real LMDB journal and says after each commit that it is acknowledged. Recorded by recorder.py.

    python workload.py FOLDER SEED BATCHES sync|nosync|nometasync
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import lmdb

from tests.durability.plan import make_plan
from zq.broker.lmdb_journal import LmdbJournal

MAP_SIZE_BYTES = 1 << 26
LOG_SIZE_BYTES = 128 << 10
"""Small enough that it is full now and then, and that some batches are larger than all of it."""
TEND_EVERY = 3
"""Batches between two looks at what is due."""


def say(word: str, number: int) -> None:
    os.write(1, f"{word} {number}\n".encode())


def main() -> None:
    folder, seed, batches, mode = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    plan = make_plan(seed, batches)
    if mode == "nometasync":
        # A defect on purpose that the journal offers no way to ask for.
        lmdb.open = functools.partial(_without_metasync, lmdb.open)  # type: ignore[assignment]
    journal = None
    for number, steps in enumerate(plan.batches, 1):
        if number in (1, batches // 2):
            if journal is not None:
                # As a killed broker leaves it: the next one finds the log.
                journal.abandon()
            journal = LmdbJournal(
                folder, map_size_bytes=MAP_SIZE_BYTES, log_size_bytes=LOG_SIZE_BYTES, sync=mode != "nosync"
            )
            say("EPOCH", journal.epoch)
        assert journal is not None
        journal.commit(steps, plan.time_ms(number))
        say("ACK", number)
        if number % TEND_EVERY == 0:
            journal.tend(plan.time_ms(number))
            journal.rest(plan.time_ms(number))


def _without_metasync(function, path, **options):  # type: ignore[no-untyped-def]
    return function(path, **{**options, "metasync": False})


if __name__ == "__main__":
    main()
