"""The jobs that zq is measured with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from zq.client.requests import JobRequest

QUEUE: Final = "bench"


def requests(numbers: Sequence[int]) -> Iterator[JobRequest]:
    """A generator, so that `submit_many` makes them while the broker works on those before."""
    return (JobRequest(task="noop", queue=QUEUE, args=(number,)) for number in numbers)
