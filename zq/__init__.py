"""zq: a durable distributed worker framework on ZeroMQ and LMDB."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zq.context import JobContext, ProcessLimits, ProcessResult, current_job
from zq.exceptions import (
    Conflict,
    Invalid,
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

if TYPE_CHECKING:
    from zq.app import App, Task
    from zq.client.aio import AsyncClient
    from zq.client.follow import Gap
    from zq.client.job import AsyncJob, Job
    from zq.client.requests import JobRequest
    from zq.client.sync import Client

__all__ = [
    "App",
    "AsyncClient",
    "AsyncJob",
    "Client",
    "Conflict",
    "Gap",
    "Invalid",
    "Job",
    "JobContext",
    "JobFailed",
    "JobRequest",
    "LeaseLost",
    "ProcessLimits",
    "ProcessResult",
    "Refused",
    "Reject",
    "ResultTimeout",
    "Retry",
    "SoftTimeLimitExceeded",
    "Task",
    "Unavailable",
    "ZqError",
    "current_job",
]
__version__ = "0.1.0"

_LAZY = {
    "App": "zq.app",
    "Task": "zq.app",
    "AsyncClient": "zq.client.aio",
    "AsyncJob": "zq.client.job",
    "Client": "zq.client.sync",
    "Gap": "zq.client.follow",
    "Job": "zq.client.job",
    "JobRequest": "zq.client.requests",
}
"""Imported when they are first used: this module is imported by every process of zq's, the broker's among them."""


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'zq' has no attribute '{name}'")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value
