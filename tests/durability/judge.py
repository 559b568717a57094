"""Opens images of a journal and says what is wrong with them; a process of its own, since LMDB may abort on one.

    python judge.py SEED BATCHES        then a JSON line in, a JSON line out, for each image
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmdb import verify

from tests.durability.images import Image
from tests.durability.plan import BATCH_MS, Plan, content, make_plan
from tests.durability.workload import LOG_SIZE_BYTES, MAP_SIZE_BYTES
from zq.broker.check import check
from zq.broker.journal import JournalError, JournalRefused
from zq.broker.lmdb_journal import LmdbJournal


def judge(folder: Path, plan: Plan, acked: int, epoch: int) -> Iterator[str]:
    """What is wrong with the journal in `folder`, which must have at least `acked` batches of the plan."""
    if (folder / "data.mdb").exists():
        for problem in verify.verify(str(folder)):  # type: ignore[no-untyped-call]
            yield f"verify: {problem}"
    try:
        journal = LmdbJournal(folder, map_size_bytes=MAP_SIZE_BYTES, log_size_bytes=LOG_SIZE_BYTES)
    except (JournalRefused, JournalError) as error:
        yield f"refused: {error}"
        return
    try:
        for problem in check(journal):
            yield f"check: {problem}"
        if journal.epoch <= epoch:
            yield f"epoch {journal.epoch} is given out again"
        batches = journal.time_ms // BATCH_MS
        if batches < acked:
            yield f"lost: it has {batches} batches, {acked} were acknowledged"
        elif batches > acked + 1:
            yield f"it has {batches} batches, and {acked} were acknowledged"
        if content(journal) != plan.contents[batches]:
            yield f"partial: it is not what {batches} batches leave"
        elif batches < len(plan.batches):
            # It must also be good for writing.
            journal.commit(plan.batches[batches], plan.time_ms(batches + 1))
            if content(journal) != plan.contents[batches + 1] or check(journal):
                yield "it does not take the next batch"
    finally:
        journal.close()


def main() -> None:
    plan = make_plan(int(sys.argv[1]), int(sys.argv[2]))
    for line in sys.stdin:
        case = json.loads(line)
        problems = list(judge(Path(case["folder"]), plan, case["acked"], case["epoch"]))
        print(json.dumps(problems), flush=True)


class Judge:
    """The process, started again whenever an image has ended it."""

    def __init__(self, seed: int, batches: int) -> None:
        # In memory where there is such a file system: the images do not have to be durable, and there are many.
        self._place = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        self._folder = Path(self._place.name)
        self._words = [sys.executable, "-m", "tests.durability.judge", str(seed), str(batches)]
        self._process: subprocess.Popen[str] | None = None
        self._count = 0

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process is not None:
            self._process.communicate()
        self._place.cleanup()

    def problems(self, image: Image) -> list[str]:
        self._count += 1
        place = self._folder / f"image-{self._count}" / "journal"
        place.parent.mkdir()
        if image.data is not None:
            place.mkdir(mode=0o700)
            for name, data in image.data.items():
                (place / name).write_bytes(data)
        found = self._ask({"folder": str(place), "acked": max(image.acked, 0), "epoch": image.epoch})
        shutil.rmtree(place.parent)
        return found

    def _ask(self, case: dict[str, Any]) -> list[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(case) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if answer:
            problems: list[str] = json.loads(answer)
            return problems
        _, said = process.communicate()
        self._process = None
        return [f"the process ended with {process.returncode}: {said[-300:]}"]


if __name__ == "__main__":
    main()
