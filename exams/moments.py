"""The moments of an exam as jobs: its start, its end, and the merges after it. They move when its times are edited.

Each is a status check at that very moment, under a key of its own with the policy `reschedule`: submitting it again
moves it. The check's own rhythm would find the same a little later, so a moment that is lost costs seconds, and one
that comes too often costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from zq.client.requests import JobRequest
from zq.config import Config
from zq.exams.model import Exam
from zq.schedules import ONE_SHOT_KEYS, ONE_SHOT_QUEUE

if TYPE_CHECKING:
    from zq.client.sync import Client

TASK = "zq.workers.status.check_exams"
MERGE_AFTER_MS_MIN = 60_000
"""After the end, when segments that were still on their way are looked for."""
AHEAD_MS_MAX = 300 * 24 * 3600 * 1000
"""A moment that is further away is submitted when it has come nearer."""
BEHIND_MS = 100
"""So that the check finds the moment past, though the clocks of two machines never agree."""
EXPIRES_S = 60.0
"""Behind its time a moment is of no use: the next check has done it."""


def moments(exam: Exam, quiet_s: float) -> Iterator[tuple[str, int]]:
    """(name, Unix milliseconds). `quiet_s` is how long the last segments may take to come."""
    yield "start", exam.start_ms
    yield "end", exam.end_ms
    yield "merge", exam.end_ms + max(MERGE_AFTER_MS_MIN, round(quiet_s * 1000))


def requests_of(exam: Exam, config: Config, now_ms: int) -> list[JobRequest]:
    """The jobs of the moments that are still to come."""
    return [
        JobRequest(
            task=TASK,
            queue=ONE_SHOT_QUEUE,
            eta=datetime.fromtimestamp((at_ms + BEHIND_MS) / 1000, UTC),
            expires_s=(at_ms - now_ms) / 1000 + EXPIRES_S,
            max_retries=0,
            kwargs={"look_back": True} if name == "merge" else None,
            key=f"{ONE_SHOT_KEYS}{exam.id}:{name}",
            key_policy="reschedule",
        )
        for name, at_ms in moments(exam, config.exams.merge_quiet_s)
        if now_ms < at_ms <= now_ms + AHEAD_MS_MAX
    ]


class Moments:
    """Sees to it that the broker has the moments of all coming exams, whoever has made or moved them."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._told: dict[str, tuple[int, int]] = {}

    def tell(self, client: Client, exams: Iterable[Exam], now_ms: int) -> int:
        """Submit those that this object has not told yet, or that have moved; how many. `exams` are all that are
        coming or live. Raises Unavailable: the next call tells them."""
        coming = {exam.id: exam for exam in exams}
        self._told = {exam_id: times for exam_id, times in self._told.items() if exam_id in coming}
        new = [exam for exam in coming.values() if self._told.get(exam.id) != (exam.start_ms, exam.end_ms)]
        requests = [request for exam in new for request in requests_of(exam, self._config, now_ms)]
        if requests:
            client.submit_many(requests)
        self._told.update({exam.id: (exam.start_ms, exam.end_ms) for exam in new})
        return len(requests)
