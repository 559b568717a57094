"""Who sent a request: what the door has found out, for the routes."""

from __future__ import annotations

import re
from typing import Final

from starlette.requests import Request

from zq.exams import names
from zq.web.auth import Caller
from zq.web.problems import Problem

CALLER: Final = "zq.caller"
"""Where it is in an ASGI scope."""

_ADDRESS = re.compile(rf"[0-9A-Fa-f:.]{{1,{names.IP_CHARS_MAX}}}")


def caller_of(request: Request) -> Caller:
    found: Caller = request.scope[CALLER]
    return found


def check_queue(caller: Caller, queue: str) -> None:
    """Raises Problem 403 for a token that may not submit there."""
    if not caller.may_submit(queue):
        raise Problem(403, "forbidden", f"this token may not submit to the queue {queue!r:.80}")


def client_ip(request: Request) -> str:
    """As this server saw it, or a trusted proxy; empty behind a Unix socket. An IPv6 zone is left out."""
    host = request.client.host.partition("%")[0] if request.client is not None else ""
    return host if _ADDRESS.fullmatch(host) else ""
