"""Every bound of the protocol and the broker, in one place, each with its unit in its name.

A bound is enforced where the input enters, and tested at the bound and one past it.
"""

from __future__ import annotations

FRAME_BYTES_MAX = 1 << 20
"""One message is one frame. Large enough for one job with the largest arguments, and for batches of small ones."""

ARGUMENTS_BYTES_MAX = 256 << 10
RESULT_BYTES_MAX = 256 << 10
SPEC_BYTES_MAX = ARGUMENTS_BYTES_MAX + (8 << 10)
"""A whole encoded job: its arguments and the rest."""

BATCH_BYTES_MAX = FRAME_BYTES_MAX - (64 << 10)
"""Senders split lists so that a frame stays below this; the rest is room for the envelope."""

BATCH_ITEMS_MAX = 4096
"""Items in one list of a message: jobs of a SUBMIT, leases of a DISPATCH, results of an ACK."""

NAME_CHARS_MAX = 200
"""Task, queue, worker and key names."""
KEY_CHARS_MAX = 255
ERROR_CHARS_MAX = 8192
"""An attempt's error with its traceback and the tail of standard error."""
MESSAGE_CHARS_MAX = 512
"""A progress message, a refusal's detail."""
TRACE_CHARS_MAX = 256
TAG_CHARS_MAX = 64
TAGS_MAX = 8
"""Tags that a job requires."""
WORKER_TAGS_MAX = 32
NEED_BYTES_MAX = 1 << 53
"""Disk or memory that a job may ask for, or a worker say it has."""
DISK_NAME_CHARS_MAX = 128
EVENTS_KEPT_MAX = 1_000_000
"""Events in the journal; older ones are forgotten, and with them the older part of jobs' histories."""
HISTORY_EVENTS_MAX = 200
"""Newest events of one job that are shown."""
HISTORY_BYTES_MAX = 128 << 10

TASKS_PER_WORKER_MAX = 1024
QUEUES_PER_WORKER_MAX = 64
SLOTS_PER_WORKER_MAX = BATCH_ITEMS_MAX // 4
"""So that all it holds, with results that are not acknowledged yet, fits into one message."""
QUEUES_MAX = 1024
CREDIT_MAX = 4096
"""Leases one session may hold in one queue."""

PRIORITY_MIN, PRIORITY_MAX, PRIORITY_DEFAULT = 0, 9, 5
RETRIES_MAX = 100
DURATION_MS_MAX = 366 * 24 * 3600 * 1000

SESSIONS_MAX = 16_384
WAITERS_MAX = 65_536
"""Clients that wait for the end of a job, all together."""
WAITERS_PER_JOB_MAX = 64

REGISTERS_MAX = 512
REGISTER_BYTES_MAX = 1024
"""All registers with their names fit into one frame."""

PAGE_ROWS_MAX = 1000
PAGE_BYTES = BATCH_BYTES_MAX // 2
"""A page ends early when it is about so large; one row more still fits into the frame."""
LIVE_JOBS_PER_QUEUE_MAX = 20_000_000

RESEND_BYTES_MAX = 64 << 20
"""What a client or worker keeps unacknowledged before it refuses more."""
