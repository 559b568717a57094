"""zq: a durable distributed worker framework on ZeroMQ and LMDB."""

from zq.context import JobContext, ProcessLimits, ProcessResult, current_job
from zq.exceptions import (
    Conflict,
    JobFailed,
    LeaseLost,
    Refused,
    Reject,
    ResultTimeout,
    Retry,
    SoftTimeLimitExceeded,
    Unavailable,
    ZqError,
)

__all__ = [
    "Conflict",
    "JobContext",
    "JobFailed",
    "LeaseLost",
    "ProcessLimits",
    "ProcessResult",
    "Refused",
    "Reject",
    "ResultTimeout",
    "Retry",
    "SoftTimeLimitExceeded",
    "Unavailable",
    "ZqError",
    "current_job",
]
__version__ = "0.1.0"
