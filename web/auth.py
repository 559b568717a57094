"""Who may do what: a bearer token in the header, or on the page a cookie that can only read, and a key for its tab.

There are the administrator's token, the tokens of `zq tokens` (`zq.web.tokens`), and students' upload tokens, which are
signed and kept nowhere. Pure but for `ensure_token`. Nothing here needs the web framework, so that `zq up` can make and
show the token. No token is kept in memory by the server, logged, or put into a cookie: only its SHA-256 is.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from zq.config import ConfigError
from zq.web.tokens import TokenBook

TOKEN_CHARS_MIN = 32
TOKEN_BYTES_MAX = 512
COOKIE = "zq_page"


class Scope(StrEnum):
    """What an operation asks of its caller."""

    PUBLIC = "public"
    READ = "read"
    SUBMIT = "submit"
    """Hand in jobs, each token to queues of its own; to the queue of the merges: what a student's client sends."""
    OPERATE = "operate"
    """Cancel, retry, make and change exams."""
    ADMIN = "admin"
    """All of it."""


ALL = frozenset(Scope)
ANY_QUEUE: Final = ("*",)
PAGE = frozenset({Scope.PUBLIC, Scope.READ})
"""What the page's cookie opens. Cookies are sent along by any page of the same host, whatever its port: one that could
change something would be open to forged requests."""
PAGE_TAB = PAGE | {Scope.OPERATE}
"""What the page's key opens. The page sends it in a header, as nobody else can: browsers do not add it by themselves,
and the storage it is kept in belongs to one port, and one tab, alone. Only to other tabs of the same page, which ask
it over a channel that is this origin's own, does the page hand it on."""
NOBODY = frozenset({Scope.PUBLIC})


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, and what it may do."""

    name: str
    """Whose requests are counted together, and whose Idempotency-Keys are one set. Empty for nobody."""
    scopes: frozenset[Scope]
    queues: tuple[str, ...] = ()
    """Patterns of the queues it may submit to."""
    student: tuple[str, str] | None = None
    """(exam id, student id) if it may only do what is this student's own."""
    requests_per_minute: int | None = None
    """None: as the server is configured."""

    def may_submit(self, queue: str) -> bool:
        return Scope.SUBMIT in self.scopes and any(fnmatchcase(queue, pattern) for pattern in self.queues)


STRANGER = Caller("", NOBODY)
STUDENT_TOKEN = "zqs_"
STUDENT_REQUESTS_PER_MINUTE: Final = 600
"""Heartbeats, chunks every second, and a backlog of them after a pause."""


class Gate:
    """Decides from a request's headers who it is."""

    def __init__(
        self, token: str, book: TokenBook | None = None, clock_s: Callable[[], float] = time.time
    ) -> None:
        self._digest = hashlib.sha256(token.encode()).digest()
        self._page_digest = hashlib.sha256(self.page_cookie_value().encode()).digest()
        self._page_key_digest = hashlib.sha256(self.page_key().encode()).digest()
        self._student_key = hmac.new(self._digest, b"zq student: upload", hashlib.sha256).digest()
        self._book = book
        self._clock_s = clock_s

    def scopes(self, authorization: str | None, cookie: str | None) -> frozenset[Scope]:
        return self.caller(authorization, cookie).scopes

    def caller(self, authorization: str | None, cookie: str | None) -> Caller:
        """A wrong bearer token opens nothing, even beside a right cookie."""
        if authorization is not None:
            scheme, _, given = authorization.partition(" ")
            return self._bearer(given.strip()) if scheme.lower() == "bearer" else STRANGER
        if cookie is not None and _same(cookie, self._page_digest):
            return Caller("page", PAGE)
        return STRANGER

    def _bearer(self, given: str) -> Caller:
        if given.startswith(STUDENT_TOKEN):
            return self._student(given)
        if self.is_token(given):
            return Caller("admin", ALL, ANY_QUEUE)
        if _same(given, self._page_key_digest):
            return Caller("page", PAGE_TAB)
        token = self._book.find(given, self._clock_s()) if self._book is not None else None
        if token is None:
            return STRANGER
        scopes, queues = _read_scopes(token.scopes)
        return Caller(f"token:{token.name}", scopes, queues, None, token.requests_per_minute)

    def is_token(self, given: str) -> bool:
        return _same(given, self._digest)

    def student_token(self, exam_id: str, student_id: str, expires_s: int) -> str:
        """An upload token for one student until a Unix time. It says whose it is, and nobody else can make one; it ends
        with the administrator's token. The ids have no colon (`zq.exams.names`)."""
        said = f"{exam_id}:{student_id}:{expires_s}".encode()
        return f"{STUDENT_TOKEN}{_text64(said)}.{_text64(self._signature(said))}"

    def _student(self, given: str) -> Caller:
        said, _, signature = given.removeprefix(STUDENT_TOKEN)[:1024].partition(".")
        try:
            text = _bytes64(said)
            if not hmac.compare_digest(_bytes64(signature), self._signature(text)):
                return STRANGER
        except (ValueError, binascii.Error):
            return STRANGER
        exam_id, student_id, expires_s = text.decode().split(":")
        if self._clock_s() >= int(expires_s):
            return STRANGER
        name = f"student:{exam_id}:{student_id}"
        scopes = NOBODY | {Scope.SUBMIT}
        return Caller(name, scopes, (), (exam_id, student_id), STUDENT_REQUESTS_PER_MINUTE)

    def _signature(self, said: bytes) -> bytes:
        return hmac.digest(self._student_key, said, "sha256")

    def page_cookie_value(self) -> str:
        """Follows from the token, does not reveal it, and changes with it. Any server on this host sees it."""
        return hmac.new(self._digest, b"zq page: read only", hashlib.sha256).hexdigest()

    def page_key(self) -> str:
        """The same for the key of the page's tab."""
        return hmac.new(self._digest, b"zq page: operate", hashlib.sha256).hexdigest()


def _read_scopes(texts: tuple[str, ...]) -> tuple[frozenset[Scope], tuple[str, ...]]:
    scopes, queues = set(NOBODY), []
    for text in texts:
        name, _, queue = text.partition(":")
        scopes.add(Scope(name))
        if name == Scope.SUBMIT:
            queues.append(queue or "*")
    return (ALL, ANY_QUEUE) if Scope.ADMIN in scopes else (frozenset(scopes), tuple(queues))


def _text64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes64(text: str) -> bytes:
    return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _same(given: str, digest: bytes) -> bool:
    # Hashing first makes the comparison's time independent of where the two differ, and of their lengths.
    return hmac.compare_digest(hashlib.sha256(given[:4096].encode("utf-8", "replace")).digest(), digest)


def token_path(data_dir: Path) -> Path:
    return data_dir / "token"


def ensure_token(data_dir: Path) -> str:
    """The administrator's token, made on first use: one file, readable by its owner alone, there whole or not at all.

    Safe when several processes start at once: they all get the same token. Raises ConfigError for a file that is not
    a token or that others can read.
    """
    path = token_path(data_dir)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _create(path)
        return _read(path)
    except OSError as error:
        raise ConfigError(f"{path}: the token file cannot be used: {error.strerror}") from None


def _create(path: Path) -> None:
    draft = path.with_name(f".token-{os.getpid()}-{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.write(handle, f"zq_{secrets.token_urlsafe(32)}\n".encode())
            os.fsync(handle)
        finally:
            os.close(handle)
        try:
            # Unlike a rename, a link does not replace what another process has just put there.
            os.link(draft, path)
        except FileExistsError:
            return
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        draft.unlink(missing_ok=True)


def _read(path: Path) -> str:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as file:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            raise ConfigError(f"{path}: not a regular file; remove it, a new token is made at the next start")
        if mode & 0o077:
            raise ConfigError(f"{path}: others on this machine can read the token; run: chmod 600 {path}")
        token = file.read(TOKEN_BYTES_MAX + 1).decode("ascii", "replace").strip()
    if not TOKEN_CHARS_MIN <= len(token) <= TOKEN_BYTES_MAX or not token.isprintable() or not token.isascii():
        raise ConfigError(
            f"{path}: not a token of at least {TOKEN_CHARS_MIN} printable characters; remove it, a new one is made at "
            "the next start"
        )
    return token
