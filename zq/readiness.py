"""Is the system ready to work? Asked from outside, over HTTP, as any of its users would."""

from __future__ import annotations

import http.client
import json
from typing import Any, NamedTuple

from zq.config import Config
from zq.web.auth import ensure_token

_ANSWER_S = 5.0
_ANSWER_BYTES_MAX = 4 << 20


class Readiness(NamedTuple):
    ok: bool
    reasons: list[str]
    """Why not; and what is wrong although it is."""


def base_url(config: Config) -> str:
    """Where the web server is reached from this machine."""
    host = config.web.host
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{config.web.port}"


def page_link(config: Config) -> str:
    """The page, with the token that opens it. Makes the token if there is none yet."""
    return f"{base_url(config)}/?token={ensure_token(config.data_path)}"


def ask(config: Config, token: str) -> Readiness:
    """Ready is: the web server and the broker answer, nothing is amiss, and each queue of zq.toml has a worker."""
    try:
        status, health = _get(config, token, "/readyz")
        if status == 401:
            return Readiness(False, [f"{base_url(config)} is the web server of another system: it refuses our token"])
        reasons = [str(reason) for reason in health.get("reasons", [])]
        if status != 200 or health.get("status") != "ok":
            return Readiness(False, reasons or [f"/readyz answers {status}"])
        _status, listed = _get(config, token, "/v1/queues")
        served = {queue["name"] for queue in listed.get("queues", []) if queue["consumers"]}
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        return Readiness(False, [f"the web server does not answer on {base_url(config)}: {error}"])
    missing = [f"no worker serves the queue {queue} yet" for queue in config.queues if queue not in served]
    return Readiness(not missing, missing)


def _get(config: Config, token: str, path: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(base_url(config).removeprefix("http://"), timeout=_ANSWER_S)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        body = json.loads(answer.read(_ANSWER_BYTES_MAX))
        return answer.status, body if isinstance(body, dict) else {}
    finally:
        connection.close()
