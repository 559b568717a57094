"""When a failed job is tried again. Pure, and the same for the same job and attempt: jitter comes from the job's id."""

from __future__ import annotations

from zq.broker.records import JobRow

BACKOFF_CAP_MS = 3_600_000
JITTER = 0.1
"""Delays are spread by ± this part, so that jobs that failed together do not come back together."""


def backoff_ms(row: JobRow) -> int:
    """The wait before the retry that follows the row's newest attempt: doubled each time, capped, jittered."""
    base_ms = row.backoff_ms
    failures = max(1, row.attempt - row.uncounted)
    delay_ms = min(base_ms << min(failures - 1, 32), max(BACKOFF_CAP_MS, base_ms))
    # The id's last bytes are random (RFC 9562); the attempt moves the draw.
    draw = (int.from_bytes(row.id[-4:], "big") * 2654435761 + row.attempt * 40503) % 10_000 / 10_000
    return round(delay_ms * (1 + JITTER * (2 * draw - 1)))
