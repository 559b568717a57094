"""The page, its files, and the way in: the link with the token becomes a cookie that can only read, and a key with
which that one tab may also operate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from zq.web import auth
from zq.web.answers import query
from zq.web.operations import Handler, Operation
from zq.web.services import Services

_FOLDER = Path(__file__).resolve().parent / "static"
_FILES = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "widgets.js": "text/javascript; charset=utf-8",
}

_SECURITY: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; media-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


class PageRoutes:
    def __init__(self, services: Services) -> None:
        self._gate = services.gate
        self._page = (_FOLDER / "page.html").read_bytes()
        self._locked = (_FOLDER / "locked.html").read_bytes()

    async def page(self, request: Request) -> Response:
        given = query(request, "token")
        if given is not None and self._gate.is_token(given):
            # The token leaves the address bar, and with it the history, at once. What is behind the # is never sent
            # anywhere; the page takes it out of the address, and keeps it for its tab.
            there = f"/#operate={self._gate.page_key()}"
            response = Response(status_code=303, headers={**_SECURITY, "Location": there})
            response.set_cookie(auth.COOKIE, self._gate.page_cookie_value(), httponly=True, samesite="strict", path="/")
            return response
        allowed = self._gate.scopes(request.headers.get("authorization"), request.cookies.get(auth.COOKIE))
        if auth.Scope.READ not in allowed or given is not None:
            return Response(self._locked, 401, _SECURITY, "text/html")
        return Response(self._page, 200, _SECURITY, "text/html")

    def operations(self) -> list[Operation]:
        files = [
            Operation("GET", f"/static/{name}", _file(name, media_type), name, auth.Scope.PUBLIC)
            for name, media_type in _FILES.items()
        ]
        return [Operation("GET", "/", self.page, "The page", auth.Scope.PUBLIC), *files]


def _file(name: str, media_type: str) -> Handler:
    content = (_FOLDER / name).read_bytes()

    async def file(request: Request) -> Response:
        return Response(content, 200, {**_SECURITY, "Cache-Control": "no-cache", "Content-Type": media_type})

    return file
