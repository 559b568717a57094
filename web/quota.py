"""How many requests a caller may send: a token bucket each, told in RateLimit headers. Pure.

The bucket holds a minute's requests and fills evenly: a burst of a whole minute passes, a steady stream too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

CALLERS_MAX: Final = 100_000
"""Callers that are remembered. Who is forgotten begins with a full bucket."""
WINDOW_S: Final = 60


@dataclass(slots=True)
class _Bucket:
    per_minute: int
    left: float
    at_s: float


@dataclass(frozen=True, slots=True)
class Left:
    """What a caller has left after this request."""

    per_minute: int
    requests: int
    full_in_s: int
    wait_s: float
    """0 if the request was within the bound, else when the next one will be."""

    def headers(self) -> Mapping[str, str]:
        """As in draft-ietf-httpapi-ratelimit-headers."""
        return {
            "RateLimit-Policy": f'"caller";q={self.per_minute};w={WINDOW_S}',
            "RateLimit": f'"caller";r={self.requests};t={self.full_in_s}',
        }


class Quotas:
    """Counts requests by caller. `now_s` never goes back (a monotonic clock)."""

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}

    def take(self, caller: str, per_minute: int, now_s: float) -> Left:
        """One request of `caller`, who may send `per_minute`."""
        bucket = self._buckets.get(caller)
        if bucket is None:
            if len(self._buckets) >= CALLERS_MAX:
                del self._buckets[next(iter(self._buckets))]
            bucket = self._buckets[caller] = _Bucket(per_minute, float(per_minute), now_s)
        rate = per_minute / WINDOW_S
        bucket.per_minute = per_minute
        bucket.left = min(float(per_minute), bucket.left + (now_s - bucket.at_s) * rate)
        bucket.at_s = now_s
        if bucket.left < 1:
            return Left(per_minute, 0, math.ceil((per_minute - bucket.left) / rate), (1 - bucket.left) / rate)
        bucket.left -= 1
        return Left(per_minute, int(bucket.left), math.ceil((per_minute - bucket.left) / rate), 0.0)
