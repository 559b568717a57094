"""Small things that every route needs: JSON out, query parameters in."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from zq.web.problems import invalid

QUERY_CHARS_MAX = 1024

_encoder = msgspec.json.Encoder()


def json_response(body: msgspec.Struct, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(_encoder.encode(body), status, {"Cache-Control": "no-store", **(headers or {})}, "application/json")


def query(request: Request, name: str) -> str | None:
    """One parameter of the query. Raises Problem if it is there twice or too long."""
    values = request.query_params.getlist(name)
    if len(values) > 1:
        raise invalid(f"#/query/{name}", f"{name} is given {len(values)} times; give it once")
    if not values:
        return None
    if len(values[0]) > QUERY_CHARS_MAX:
        raise invalid(f"#/query/{name}", f"{name} has {len(values[0])} characters; at most {QUERY_CHARS_MAX}")
    return values[0]


def whole_number(request: Request, name: str, default: int, least: int, most: int) -> int:
    """Raises Problem unless the parameter, if it is there, is a whole number between `least` and `most`."""
    text = query(request, name)
    if text is None:
        return default
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
    if not least <= value <= most:
        raise invalid(f"#/query/{name}", f"{name} is {text!r:.40}; give a whole number from {least} to {most}")
    return value
