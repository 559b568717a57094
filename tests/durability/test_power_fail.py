"""I1: what a power failure may leave of the journal's files, at any moment, has all that was acknowledged.

kill -9 is blind to all of this, since the kernel keeps what was written: so the writes are recorded, and every image
that a disk may keep of them is opened. A journal that does not sync must be found out, or these tests show nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.durability.images import SECTOR_BYTES, Image, images
from tests.durability.judge import Judge
from tests.durability.recorder import Event, Rename, Say, Sync, Write, record

BATCHES = 40


def judged(events: list[Event], seed: int, sample: int | None) -> list[tuple[Image, list[str]]]:
    chosen = list(images(events, seed))
    if sample is not None:
        chosen = random.Random(seed).sample(chosen, min(sample, len(chosen)))
    with Judge(seed, BATCHES) as judge:
        return [(image, judge.problems(image)) for image in chosen]


def bad(results: list[tuple[Image, list[str]]]) -> list[str]:
    return [f"{image.moment}: {problems}" for image, problems in results if problems]


def test_no_image_lacks_what_was_acknowledged(strace: str, tmp_path: Path) -> None:
    events = record(strace, tmp_path, 1, BATCHES, "sync")
    assert [event.number for event in events if isinstance(event, Say) and event.word == "ACK"] == [
        *range(1, BATCHES + 1)
    ]
    results = judged(events, 1, 150)
    assert bad(results) == []
    assert len({image.acked for image, _ in results}) > BATCHES // 2, "the sample is one-sided"


def test_the_meta_page_is_written_in_one_sector_after_the_data_is_synced(strace: str, tmp_path: Path) -> None:
    """What a checkpoint relies on: no disk tears a sector. And no word is said while anything is unsynced."""
    events = record(strace, tmp_path, 2, 20, "sync")
    unsynced: Counter[str] = Counter()
    metas = records = 0
    named = False
    for event in events:
        named = named or isinstance(event, Rename)
        if isinstance(event, Sync):
            unsynced[event.file] = 0
        elif isinstance(event, Write) and event.synced and named:
            assert event.offset // SECTOR_BYTES == (event.offset + len(event.data) - 1) // SECTOR_BYTES
            assert unsynced["data.mdb"] == 0, "the meta page before the pages it names"
            metas += 1
        elif isinstance(event, Write):
            unsynced[event.file] += 1
            records += named and event.file == "log"
        elif isinstance(event, Say):
            assert unsynced["log"] == unsynced["data.mdb"] == 0, "something was said that is not on the disk"
    assert metas >= 6
    assert records >= 15


@pytest.mark.parametrize("mode", ["nosync", "nometasync"])
def test_a_journal_that_does_not_sync_is_found_out(strace: str, tmp_path: Path, mode: str) -> None:
    events = record(strace, tmp_path, 1, BATCHES, mode)
    found = Counter(problem.split(":")[0] for _, problems in judged(events, 1, 40) for problem in problems)
    assert found["lost"] > 3, found


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(10, 20))
def test_no_image_of_many_lacks_what_was_acknowledged(strace: str, tmp_path: Path, seed: int) -> None:
    events = record(strace, tmp_path, seed, BATCHES, "sync")
    assert bad(judged(events, seed, None)) == []
