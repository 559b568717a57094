"""The jobs that zq is measured with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from zq.client.requests import JobRequest

QUEUE: Final = "bench"


def requests(numbers: Sequence[int]) -> list[JobRequest]:
    return [JobRequest(task="noop", queue=QUEUE, args=(number,)) for number in numbers]
