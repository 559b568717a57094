"""The status check as a task: submitted by the scheduler every `exams.status_every_s`, run by the status worker."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import zq
from zq import config
from zq.exams.at_rest import at_rest
from zq.exams.errors import ExamError

if TYPE_CHECKING:
    from zq.exams.check import StatusReport
    from zq.exams.model import MergeRequest
    from zq.exams.reconcile import Reconciled

SHOWN_MAX = 100
"""Students named in a result; a whole exam may go offline at once."""

MOMENTS_AHEAD_MS = 24 * 3600 * 1000
"""Exams that start within a day have their moments with the broker."""

LOOK_BACK_EVERY_MS = 300_000

NOTHING = {
    "started": [], "completed": [], "live": 0, "online": 0, "went_offline": [], "came_online": [], "closed": [],
}  # fmt: skip
"""The result where there is nothing to check."""

app = zq.App()
log = logging.getLogger("zq.workers")


class _Slot:
    """What a slot opens once and keeps from check to check: not before an exam is there to be checked."""

    def __init__(self) -> None:
        from zq.client.sync import Client
        from zq.exams.late_store import presence_of
        from zq.exams.moments import Moments
        from zq.exams.reconcile import Reconciler
        from zq.exams.recording_place import open_recordings
        from zq.exams.store import ExamStore

        self.config = config.load()
        self.store = ExamStore(self.config.database_url, self.config.exams.time_zone)
        self.storage = open_recordings(self.config)
        self.client = Client(self.config)
        self.reconciler = Reconciler(self.store)
        self.moments = Moments(self.config)
        self.presence = presence_of(self.config, self.store)
        self._looked_back_ms: int | None = None

    def look_back_ms(self, now_ms: int, asked: bool) -> int:
        """Far at first, for whoever was forgotten while nobody checked; then every few minutes, and when asked."""
        from zq.exams.check import LOOK_BACK_MS, LOOK_FAR_BACK_MS

        last_ms, self._looked_back_ms = self._looked_back_ms, now_ms
        if last_ms is None:
            return LOOK_FAR_BACK_MS
        if asked or not 0 <= now_ms - last_ms < LOOK_BACK_EVERY_MS:
            return LOOK_BACK_MS
        self._looked_back_ms = last_ms
        return 0


@functools.cache
def _slot() -> _Slot:
    return _Slot()


@app.task(queue="status_check", max_retries=0, soft_time_limit_s=60, time_limit_s=90)
def check_exams(look_back: bool = False) -> dict[str, Any]:
    """Bring exams and students to what the clock and their signs of life say, and submit the merges that are due.

    Merges that have ended without a word to the store (killed, cancelled, lost) are written down as failed, or asked
    for again. `look_back`: now also look for segments of exams that ended lately that nobody has asked to merge, which
    is done every few minutes otherwise. Not retried: the next tick does the same. A merge that the broker does not
    take now is handed out again by the next check.
    """
    if not _slot.cache_info().currsize and at_rest(config.load()):
        return dict(NOTHING)
    from zq.exams.check import check

    slot = _slot()
    now_ms = time.time_ns() // 1_000_000
    report = check(
        slot.store,
        now_ms,
        slot.config.exams.offline_after_s,
        has_segments=slot.storage.had_segments,
        presence=slot.presence,
        look_back_ms=slot.look_back_ms(now_ms, look_back),
    )
    result = summary(report)
    _tell(slot, report)
    found = _reconcile(slot, now_ms)
    if found.failed or found.merged or found.again:
        result["reconciled"] = {"failed": found.failed, "merged": found.merged, "again": len(found.again)}
    merges = [*report.merges, *found.again]
    if merges:
        result["merges"], result["trouble"] = _submit(slot, merges)
    _tell_moments(slot, now_ms)
    return result


def _tell_moments(slot: _Slot, now_ms: int) -> None:
    """Of exams that somebody else has made or moved, and of those whose web service could not reach the broker."""
    try:
        slot.moments.tell(slot.client, slot.store.coming_exams(now_ms + MOMENTS_AHEAD_MS), now_ms)
    except (zq.Unavailable, zq.Refused, ExamError) as error:
        log.warning("the broker was not told when exams begin and end; the next check tells it: %s", error)


def _tell(slot: _Slot, report: StatusReport) -> None:
    """The database has it; whoever reads it elsewhere sees it a little later, or not."""
    if not report.presence_known:
        log.warning("signs of life cannot be read: nobody's presence was judged")
    try:
        slot.presence.tell(report.news)
    except ExamError as error:
        log.warning("who went online and offline was not told: %s", error)


def _reconcile(slot: _Slot, now_ms: int) -> Reconciled:
    from zq.exams.reconcile import Reconciled

    try:
        return slot.reconciler.check(slot.client, now_ms)
    except (zq.Unavailable, zq.Refused, ExamError) as error:
        log.warning("the broker was not asked what became of merges; the next check asks: %s", error)
        return Reconciled()


def _submit(slot: _Slot, merges: Sequence[MergeRequest]) -> tuple[int, str]:
    """How many of the merges the broker has, and why not all of them."""
    from zq.exams.merging import submit_merges

    try:
        submitted = submit_merges(slot.client, slot.store, slot.config, merges)
    except (zq.Unavailable, ExamError) as error:
        # What the check wrote is written; failing now would only hide it.
        log.warning("the merges wait for the next check: %s", error)
        return 0, str(error)
    refused = [item.detail for item in submitted if not item.accepted]
    return len(submitted) - len(refused), refused[0] if refused else ""


def summary(report: StatusReport) -> dict[str, Any]:
    """The report as a job's result: plain and bounded."""
    return {
        "started": list(report.started[:SHOWN_MAX]),
        "completed": list(report.completed[:SHOWN_MAX]),
        "live": report.live,
        "online": report.online,
        "went_offline": [list(key) for key in report.went_offline[:SHOWN_MAX]],
        "came_online": [list(key) for key in report.came_online[:SHOWN_MAX]],
        "closed": [list(key) for key in report.closed[:SHOWN_MAX]],
    }
