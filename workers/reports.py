"""What a slot says of an ended attempt, in the session's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from zq.protocol.job import Outcome
from zq.workers import session_io as io
from zq.workers.channel import AttemptResult, SlotOutcome
from zq.workers.watchdog import Sample, attempt_usage

_OUTCOMES: Final[Mapping[SlotOutcome, Outcome | None]] = {
    SlotOutcome.DONE: Outcome.DONE,
    SlotOutcome.FAILED: Outcome.FAILED,
    SlotOutcome.REJECTED: Outcome.REJECTED,
    SlotOutcome.NOT_OURS: None,
}


def reported(token: int, result: AttemptResult, sample: Sample | None) -> io.Reported:
    """`sample`: the last one of the attempt's tree, if there was one."""
    after_s = result.retry_after_s
    return io.Reported(
        token=token,
        outcome=_OUTCOMES[result.outcome],
        result=result.result,
        error=result.error,
        retry_after_ms=-1 if after_s is None else round(min(after_s, 1e9) * 1000),
        usage=attempt_usage(result.usage, sample),
        ran_ms=result.usage.running_s * 1000,
    )
