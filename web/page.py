"""The page, and the way in: the link with the token, or the token in a form, becomes a cookie that can only read, and a
key with which that one tab may also operate."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from typing import Final
from urllib.parse import parse_qs, quote, urlencode

from starlette.requests import Request
from starlette.responses import Response

from zq.web import auth
from zq.web.answers import query
from zq.web.bodies import read_body
from zq.web.operations import Handler, Operation
from zq.web.page_files import FOLDER, PageFile, page_files
from zq.web.problems import Problem
from zq.web.services import Services

PATHS: Final = (
    "/", "/queues", "/queues/{queue:anything}", "/jobs", "/jobs/{id}", "/dead", "/schedules", "/workers", "/exams",
    "/exams/{exam_id}", "/exams/{exam_id}/students/{student_id}",
)  # fmt: skip
"""Each part of the page has an address of its own. What is shown there is the script's matter."""

LANGUAGES: Final = ("en", "zh")
LANGUAGE_COOKIE: Final = "zq_language"
THEMES: Final = ("light", "dark")
THEME_COOKIE: Final = "zq_theme"
LOGIN_BYTES_MAX: Final = 8192
NEXT_CHARS_MAX: Final = 1024

_SECURITY: Mapping[str, str] = {
    # Text becomes elements by the templates of lit-html alone: the name of a job cannot, let alone a script in it.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; media-src 'self'; "
        "font-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types lit-html"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

_LOCKED_WORDS: Final = {
    "en": {
        "title": "This page is locked",
        "text": "Open it with the link that <code>zq up</code> shows, or enter the token. It is in the file "
        "<code>token</code> of the data folder.",
        "label": "Token",
        "enter": "Open",
        "wrong": "That is not the token.",
    },
    "zh": {
        "title": "此页面已锁定",
        "text": "请使用 <code>zq up</code> 显示的链接打开，或输入令牌。令牌在数据目录的 <code>token</code> 文件中。",
        "label": "令牌",
        "enter": "打开",
        "wrong": "令牌不正确。",
    },
}


class PageRoutes:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._gate = services.gate
        self._page = (FOLDER / "page.html").read_text("utf-8")
        self._locked = (FOLDER / "locked.html").read_text("utf-8")
        self._files = page_files()
        self._page = self._page.replace("{preload}", _preload(self._files))

    async def page(self, request: Request) -> Response:
        given = query(request, "token")
        there = safe_path(request.url.path)
        rest = [(name, value) for name, value in request.query_params.multi_items() if name != "token"]
        if rest:
            there += f"?{urlencode(rest)}"
        if given is not None:
            right = self._gate.is_token(given)
            return self._enter(request, there) if right else self._refuse(request, there, wrong=True)
        allowed = self._gate.scopes(request.headers.get("authorization"), request.cookies.get(auth.COOKIE))
        if auth.Scope.READ not in allowed:
            return self._refuse(request, there)
        return _html(request, self._page, 200)

    async def lost(self, request: Request) -> Response:
        """Where nothing is, for who reads with a browser: the page says so, with the way to what is there."""
        response = await self.page(request)
        if response.status_code == 200:
            response.status_code = 404
        return response

    async def show_login(self, request: Request) -> Response:
        """For a tab that can only read, and wants to operate."""
        return self._refuse(request, safe_path(query(request, "next") or "/"), status=200)

    async def login(self, request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0] != "application/x-www-form-urlencoded":
            raise Problem(415, "not-a-form", "send the form of the page itself")
        timeout_s = self._services.config.web.body_timeout_s
        data = await read_body(request, max_bytes=LOGIN_BYTES_MAX, timeout_s=timeout_s)
        form = parse_qs(data.decode("utf-8", "replace"), max_num_fields=8)
        there = safe_path(form.get("next", ["/"])[0])
        if self._gate.is_token(form.get("token", [""])[0].strip()):
            return self._enter(request, there)
        return self._refuse(request, there, wrong=True)

    def _enter(self, request: Request, there: str) -> Response:
        # The token leaves the address bar, and with it the history, at once. What is behind the # is never sent
        # anywhere; the page takes it out of the address, and keeps it for its tab.
        location = f"{there}#operate={self._gate.page_key()}"
        response = Response(status_code=303, headers={**_SECURITY, "Location": location})
        response.set_cookie(
            auth.COOKIE, self._gate.page_cookie_value(), httponly=True, samesite="strict", path="/",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return response

    def _refuse(self, request: Request, there: str, *, wrong: bool = False, status: int = 401) -> Response:
        words = _LOCKED_WORDS[language(request)]
        text = self._locked.replace("{next}", escape(there))
        for name, word in words.items():
            text = text.replace(f"{{{name}}}", word if name != "wrong" or wrong else "")
        return _html(request, text, status)

    def operations(self) -> list[Operation]:
        public = auth.Scope.PUBLIC
        pages = [Operation("GET", path, self.page, "The page", public) for path in PATHS]
        files = [
            Operation("GET", f"/static/{name}", _serving(file), name, public) for name, file in self._files.items()
        ]
        return [
            *pages,
            *files,
            Operation("GET", "/login", self.show_login, "The form for the token", public),
            Operation("POST", "/login", self.login, "The token, from the form", public),
        ]


def language(request: Request) -> str:
    """The one that was chosen on the page; else the first of ours that the browser asks for; else English."""
    chosen = request.cookies.get(LANGUAGE_COOKIE)
    if chosen in LANGUAGES:
        return chosen
    return preferred(request.headers.get("accept-language", ""))


def preferred(header: str) -> str:
    """The language of ours with the greatest weight in an Accept-Language header (RFC 9110, 12.5.4); else English."""
    best, best_weight = "en", 0.0
    for part in header[:1000].split(","):
        tag, _, parameter = part.strip().partition(";")
        found = re.fullmatch(r"\s*q=([01](?:\.\d{0,3})?)\s*", parameter) if parameter else None
        weight = 1.0 if not parameter else float(found[1]) if found else 0.0
        name = tag.strip().lower().partition("-")[0]
        if name in LANGUAGES and weight > best_weight:
            best, best_weight = name, weight
    return best


def safe_path(text: str) -> str:
    """A path of the page itself to come back to, with its query; `/` for whatever would lead elsewhere."""
    path, mark, rest = text.partition("?") if len(text) <= NEXT_CHARS_MAX else ("/", "", "")
    known = re.fullmatch(r"/(?:(?:queues|jobs|dead|schedules|workers|exams)(?:/.*)?)?", path, re.DOTALL)
    if not known or not path.isprintable():
        return "/"
    return quote(path, safe="/%:") + mark + quote(rest, safe="=&%+*:")


def _html(request: Request, text: str, status: int) -> Response:
    chosen = language(request)
    theme = request.cookies.get(THEME_COOKIE)
    text = text.replace("{lang}", "zh-CN" if chosen == "zh" else "en")
    text = text.replace("{theme}", theme if theme in THEMES else "auto")
    return Response(text, status, {**_SECURITY, "Vary": "Accept-Language, Cookie"}, "text/html")


def _preload(files: Mapping[str, PageFile]) -> str:
    """All modules at once, instead of one after the other as each is found to be imported."""
    scripts = [name for name in files if name.endswith(".js")]
    return "\n".join(f'<link rel="modulepreload" href="/static/{name}">' for name in scripts)


def _serving(file: PageFile) -> Handler:
    async def serve(request: Request) -> Response:
        return file.answer(request, _SECURITY)

    return serve
