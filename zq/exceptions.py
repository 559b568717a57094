"""What zq raises, and what a task may raise: one small tree.

    ZqError
    ├── Unavailable            no answer in time: the outcome is unknown, a retry with the same id is safe
    ├── Refused                the broker answered no; `code` says why, the text what to do
    │   └── Conflict           the same job id was used for another job
    ├── Invalid                what was given cannot be asked for; nothing was sent
    ├── JobFailed              raised by result(): the job ended dead, cancelled or expired
    ├── ResultTimeout          raised by result(): the job has not ended yet
    └── TaskSignal             raised inside a task
        ├── Retry              run me again after a while
        ├── Reject             never run me again: straight to the dead letters
        ├── SoftTimeLimitExceeded
        └── LeaseLost          the broker gave the job to somebody else: stop, publish nothing
"""

from __future__ import annotations


class ZqError(Exception):
    """Base of everything zq raises on purpose."""


class Unavailable(ZqError):
    """The broker did not answer in time. Whether it did the work is unknown; asking again with the same id is safe."""


class Refused(ZqError):
    """The broker refused. `code` is one of `zq.protocol.errors.Code`; `retry_after_s` is set where waiting helps."""

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


class Conflict(Refused):
    """The same job id was submitted before with another body."""


class Invalid(ZqError, ValueError):
    """What was given cannot be sent: a wrong name, a wrong time, a value that is not plain. Nothing was sent."""


class JobFailed(ZqError):
    """The job ended without a result. `state` is dead, cancelled or expired; `error` is what the last attempt said."""

    def __init__(self, job_id: str, state: str, error: str) -> None:
        super().__init__(f"job {job_id} is {state}{': ' + error if error else ''}")
        self.job_id = job_id
        self.state = state
        self.error = error


class ResultTimeout(ZqError, TimeoutError):
    """The job had not ended when the wait was over. It goes on."""


class TaskSignal(ZqError):
    """Base of what a task raises, or has raised in it, to say how its attempt ends."""


class Retry(TaskSignal):
    """Run this job again after `after_s` seconds (default: the job's backoff). Counts as an attempt."""

    def __init__(self, reason: str = "", *, after_s: float | None = None) -> None:
        super().__init__(reason or "the task asked for a retry")
        self.after_s = after_s


class Reject(TaskSignal):
    """Do not run this job again: it goes to the dead letters at once, with `reason`."""


class SoftTimeLimitExceeded(TaskSignal):
    """The soft limit has passed: finish or give up now; the hard limit ends the whole process tree."""


class LeaseLost(TaskSignal):
    """This attempt no longer holds the job. Publish nothing, clean up what only this attempt made."""
