"""The stages of a worker's life, from its first job to its leave. A table; `Session` applies it."""

from __future__ import annotations

from enum import Enum


class Work(Enum):
    WORKING = "working"
    DRAINING = "draining"
    """No new job; running ones may finish."""
    HANDING_BACK = "handing back"
    """Running jobs are ended and handed back, uncounted."""
    LEFT = "left"


class Push(Enum):
    """What moves the work on."""

    ASKED = "asked"
    TIME_UP = "time up"
    EMPTY = "empty"


WORK_STEPS: dict[tuple[Work, Push], Work] = {
    (Work.WORKING, Push.ASKED): Work.DRAINING,
    (Work.DRAINING, Push.ASKED): Work.HANDING_BACK,
    (Work.DRAINING, Push.TIME_UP): Work.HANDING_BACK,
    (Work.DRAINING, Push.EMPTY): Work.LEFT,
    (Work.HANDING_BACK, Push.ASKED): Work.LEFT,
    (Work.HANDING_BACK, Push.TIME_UP): Work.LEFT,
    (Work.HANDING_BACK, Push.EMPTY): Work.LEFT,
}
"""(work, push) → work. A pair that is not here changes nothing."""
