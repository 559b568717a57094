"""Which pages of other origins may call the API from a browser (the Fetch standard's CORS). None, unless configured.

Never with cookies: a page of another origin brings a token of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.datastructures import Headers
from starlette.responses import Response

_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
_MAY_SEND = (
    "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Range, If-Range, If-None-Match, Content-Digest, "
    "Digest, X-Request-ID, X-Zq-Sequence, X-Zq-Timestamp-Ms, X-Zq-Sha256"
)
_MAY_READ = (
    "Location, Retry-After, RateLimit, RateLimit-Policy, ETag, Content-Range, Accept-Ranges, X-Request-ID, "
    "Idempotency-Replayed"
)
_REMEMBER_S = 600


class Cors:
    """Pure: headers in, headers out."""

    def __init__(self, origins: Sequence[str]) -> None:
        """`origins` as browsers write them (`https://exam.example.edu`), or `*` for all."""
        self._origins = frozenset(origins)

    def allows(self, origin: str | None) -> bool:
        return origin is not None and (origin in self._origins or "*" in self._origins)

    def preflight(self, method: str, headers: Headers) -> Response | None:
        """The answer to a browser's question before the call, without `headers`; None if this is none, or a page that
        may not asks it."""
        if not self._origins or method != "OPTIONS" or "access-control-request-method" not in headers:
            return None
        origin = headers.get("origin")
        if not self.allows(origin):
            return None
        return Response(
            status_code=204,
            headers={
                "Access-Control-Allow-Methods": _METHODS,
                "Access-Control-Allow-Headers": _MAY_SEND,
                "Access-Control-Max-Age": str(_REMEMBER_S),
            },
        )

    def headers(self, origin: str | None) -> Mapping[str, str]:
        """For any answer."""
        if not self._origins:
            return {}
        if origin is None or not self.allows(origin):
            return {"Vary": "Origin"}
        return {
            "Vary": "Origin",
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": _MAY_READ,
        }
