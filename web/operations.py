"""An operation: one method on one path, with all that the router, the gate and OpenAPI need to know of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from zq.web.auth import Scope

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Parameter:
    """In a query or a header; those of the path are read from the path itself."""

    name: str
    description: str
    where: str = "query"
    type: Any = str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    method: str
    path: str
    """As Starlette writes it; `{name:path}` also takes what has slashes, to say what is wrong with it."""
    handler: Handler
    summary: str
    scope: Scope
    queue: str = ""
    """The queue that a token must be allowed to submit to; without one, its own handler asks for that."""
    own: bool = False
    """A student's token opens it for what is this student's own: `{exam_id}` and `{student_id}` of the path, or, if the
    path has none, what the handler finds in the body."""
    tokenless: bool = False
    """Opens without a token for the networks of `web.exam_client_networks`."""
    often: bool = False
    """Looked for before all others. No other path fits what its path fits."""
    body: Any = None
    """The type of its JSON body; `bytes` for a raw one."""
    example: Any = None
    """A body, as it would be in JSON."""
    body_types: tuple[str, ...] = ("application/json",)
    answers: tuple[tuple[int, Any], ...] = ((200, None),)
    """Status and type of the body; None for no body or one that is not JSON."""
    media_type: str = "application/json"
    parameters: tuple[Parameter, ...] = ()
    errors: tuple[int, ...] = ()
    """Beside 401, which every operation but the public ones may answer."""
