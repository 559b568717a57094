"""Who may do what: a bearer token in the header, or on the page a cookie that can only read, and a key for its tab.

Pure but for `ensure_token`. Nothing here needs the web framework, so that `zq up` can make and show the token.
The token itself is never kept in memory by the server, logged, or put into a cookie: only its SHA-256 is.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from enum import StrEnum
from pathlib import Path

from zq.config import ConfigError

TOKEN_CHARS_MIN = 32
TOKEN_BYTES_MAX = 512
COOKIE = "zq_page"


class Scope(StrEnum):
    """What an operation asks of its caller."""

    PUBLIC = "public"
    READ = "read"
    SUBMIT = "submit"
    """Hand in jobs, and what a student's client sends."""
    OPERATE = "operate"
    """Cancel, retry, make and change exams."""


ALL = frozenset(Scope)
PAGE = frozenset({Scope.PUBLIC, Scope.READ})
"""What the page's cookie opens. Cookies are sent along by any page of the same host, whatever its port: one that could
change something would be open to forged requests."""
PAGE_TAB = PAGE | {Scope.OPERATE}
"""What the page's key opens. The page sends it in a header, as nobody else can: browsers do not add it by themselves,
and the storage it is kept in belongs to one port, and one tab, alone."""
NOBODY = frozenset({Scope.PUBLIC})


class Gate:
    """Decides from a request's headers what it may do."""

    def __init__(self, token: str) -> None:
        self._digest = hashlib.sha256(token.encode()).digest()
        self._page_digest = hashlib.sha256(self.page_cookie_value().encode()).digest()
        self._page_key_digest = hashlib.sha256(self.page_key().encode()).digest()

    def scopes(self, authorization: str | None, cookie: str | None) -> frozenset[Scope]:
        """A wrong bearer token opens nothing, even beside a right cookie."""
        if authorization is not None:
            scheme, _, given = authorization.partition(" ")
            if scheme.lower() != "bearer":
                return NOBODY
            if self.is_token(given.strip()):
                return ALL
            return PAGE_TAB if _same(given.strip(), self._page_key_digest) else NOBODY
        if cookie is not None and _same(cookie, self._page_digest):
            return PAGE
        return NOBODY

    def is_token(self, given: str) -> bool:
        return _same(given, self._digest)

    def page_cookie_value(self) -> str:
        """Follows from the token, does not reveal it, and changes with it. Any server on this host sees it."""
        return hmac.new(self._digest, b"zq page: read only", hashlib.sha256).hexdigest()

    def page_key(self) -> str:
        """The same for the key of the page's tab."""
        return hmac.new(self._digest, b"zq page: operate", hashlib.sha256).hexdigest()


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
