"""The HTTP API as a client sees it, on the standard library."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

ANSWER_S = 20.0


class Deviation(Exception):
    """Something did not go as it must."""


class Api:
    """Calls the system at host:port. One connection per call: the broker and others are killed meanwhile."""

    def __init__(self, address: str, token: str) -> None:
        self.address = address
        self._token = token

    def call(
        self,
        method: str,
        path: str,
        body: bytes | Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The JSON of the answer, or its bytes. Raises Deviation for an answer that is not 2xx, and OSError."""
        sent = {"Authorization": f"Bearer {self._token}", **(headers or {})}
        data: bytes | None
        if isinstance(body, Mapping):
            data = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        else:
            data = body
        connection = http.client.HTTPConnection(self.address, timeout=ANSWER_S)
        try:
            connection.request(method, path, body=data, headers=sent)
            answer = connection.getresponse()
            content = answer.read()
            if not 200 <= answer.status < 300:
                raise Deviation(f"{method} {path} answered {answer.status}: {content[:500].decode('utf-8', 'replace')}")
            is_json = "json" in (answer.getheader("Content-Type") or "")
            return json.loads(content) if is_json and content else content
        finally:
            connection.close()


def wait_until(what: str, look: Callable[[], T | None], timeout_s: float, step_s: float = 0.1) -> T:
    """What `look` finds at last. An answer no, or none, only means not yet: parts of the system are killed here."""
    until_s = time.monotonic() + timeout_s
    last = ""
    while True:
        try:
            found = look()
            if found is not None:
                return found
        except (Deviation, OSError, http.client.HTTPException) as error:
            last = f" (last: {error})"
        if time.monotonic() > until_s:
            raise Deviation(f"{what}: not within {timeout_s:g} s{last}")
        time.sleep(step_s)
