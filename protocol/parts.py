"""What messages of both directions are made of."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from zq.protocol import limits
from zq.protocol.job import Bytes, Name

PROTOCOL_VERSION = 1

JobId = Annotated[bytes, Meta(min_length=16, max_length=16)]
Token = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Request = Number
"""Chosen by the asker, repeated in the answer."""
SessionId = Number
Attempt = Annotated[int, Meta(ge=1, le=1 << 31)]
Text = Annotated[str, Meta(max_length=limits.MESSAGE_CHARS_MAX)]
ErrorText = Annotated[str, Meta(max_length=limits.ERROR_CHARS_MAX)]
Items = Meta(max_length=limits.BATCH_ITEMS_MAX)


class Role(StrEnum):
    """What a peer is; with CURVE its key must allow it."""

    WORKER = "worker"
    SUBMITTER = "submitter"
    SCHEDULER = "scheduler"
    MONITOR = "monitor"
    ADMIN = "admin"
    TASK = "task"
    """A task that runs on a worker, with the worker's key: it may submit to the queues of that key what follows from
    its job, and ask about jobs in them."""


class Part(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of what stands in the lists of messages."""


class QueueSlots(Part, frozen=True):
    queue: Name
    slots: Annotated[int, Meta(ge=0, le=limits.CREDIT_MAX)]


class Usage(Part, frozen=True):
    """What the whole process tree of an attempt has used."""

    cpu_ms: Number = 0
    peak_rss_bytes: Number = 0
    read_bytes: Number = 0
    write_bytes: Number = 0
    processes: Number = 0


class Room(Part, frozen=True):
    """What a worker's machine has for jobs that say what they need: what is free, and what such jobs of this worker
    have used of their needs already. So it does not fall as they grow, and what is left is this less all their needs.
    """

    disk_bytes: Bytes
    memory_bytes: Bytes
    disk: Annotated[str, Meta(max_length=limits.DISK_NAME_CHARS_MAX)] = ""
    """Name of the disk: workers that say the same share it. Empty: its own."""
    machine: Annotated[str, Meta(max_length=limits.DISK_NAME_CHARS_MAX)] = ""
    """Likewise of whose memory it is."""
