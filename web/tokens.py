"""Bearer tokens for programs: {data_dir}/tokens/NAME.toml holds a token's SHA-256 and what it opens.

The token itself is shown once, when it is made, and kept nowhere. It carries the id of its record, so that one record
is found and then compared in constant time. Revoking deletes the record; a running server looks there every second.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from zq.config import Config, ConfigError

log = logging.getLogger("zq.web")

TOKENS_MAX: Final = 1000
NAME_BYTES_MAX: Final = 100
SCOPES_MAX: Final = 32
REQUESTS_PER_MINUTE_MAX: Final = 100_000_000
LOOK_S: Final = 1.0
_NAME = re.compile(r"\w[\w.\-]*")
_SCOPE = re.compile(r"read|operate|admin|submit(?::[^\s\"\\]{1,200})?")
_TOKEN = re.compile(r"zq_([0-9a-f]{12})_[A-Za-z0-9_\-]{43}")
_NO_DIGEST = bytes(32)


class BadToken(ConfigError):
    """A token cannot be made, found or read. The text says what to do."""


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token: all but the token."""

    name: str
    id: str
    sha256: bytes
    scopes: tuple[str, ...]
    """`read`, `operate`, `admin`, `submit`, `submit:QUEUE` (a pattern)."""
    created_s: int
    expires_s: int | None = None
    requests_per_minute: int | None = None
    """None: as the server is configured."""


def tokens_folder(config: Config) -> Path:
    return config.data_path / "tokens"


def new_token(
    folder: Path,
    name: str,
    scopes: Sequence[str],
    *,
    expires_s: int | None = None,
    requests_per_minute: int | None = None,
) -> tuple[Token, str]:
    """The record, durably on disk, and the token's text. Raises BadToken for a name that is taken and bad scopes."""
    if not _NAME.fullmatch(name) or len(name.encode()) > NAME_BYTES_MAX:
        raise BadToken(f"{name!r} cannot name a token: letters, digits, '.', '_', '-', at most {NAME_BYTES_MAX} bytes")
    wanted = tuple(dict.fromkeys(scopes))
    if not 1 <= len(wanted) <= SCOPES_MAX or not all(_SCOPE.fullmatch(scope) for scope in wanted):
        raise BadToken(
            f"{', '.join(map(repr, wanted)) or 'no scope'}: give 1 to {SCOPES_MAX} of read, operate, admin, submit (any"
            " queue) and submit:QUEUE (* and ? stand for any characters)"
        )
    made = secrets.token_hex(6)
    text = f"zq_{made}_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(text.encode()).digest()
    token = Token(name, made, digest, wanted, int(time.time()), expires_s, requests_per_minute)
    with _locked(folder):
        if len(_files(folder)) >= TOKENS_MAX:
            raise BadToken(f"there are {TOKENS_MAX} tokens; revoke some (zq tokens ls)")
        path = folder / f"{name}.toml"
        if path.exists():
            raise BadToken(f"there is a token '{name}' already; revoke it first (zq tokens revoke {name})")
        _write(path, _record(token))
    return token, text


def revoke_token(folder: Path, name: str) -> None:
    """Durable when it returns. Raises BadToken if there is no such token."""
    path = folder / f"{name}.toml"
    if not _NAME.fullmatch(name) or not path.exists():
        raise BadToken(f"there is no token '{name}'; see `zq tokens ls`")
    path.unlink()
    _sync(folder)


def list_tokens(folder: Path) -> list[Token]:
    """By name. Raises BadToken for a file that is no record of a token."""
    return [_read(path) for path in _files(folder)]


class TokenBook:
    """The tokens of a folder, looked at again at most once a second. Belongs to one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_id: dict[str, Token] = {}
        self._seen_ns = -1
        self._looked_s = -LOOK_S

    def find(self, given: str, now_s: float) -> Token | None:
        """The token's record, unless it has expired or there is none."""
        found = _TOKEN.fullmatch(given)
        if found is None:
            return None
        self._look()
        token = self._by_id.get(found[1])
        digest = hashlib.sha256(given.encode()).digest()
        # Who is not known takes as long as who is.
        same = hmac.compare_digest(digest, token.sha256 if token is not None else _NO_DIGEST)
        if token is None or not same or (token.expires_s is not None and now_s >= token.expires_s):
            return None
        return token

    def _look(self) -> None:
        if time.monotonic() - self._looked_s < LOOK_S:
            return
        self._looked_s = time.monotonic()
        try:
            changed_ns = os.stat(self._folder).st_mtime_ns
        except OSError:
            self._by_id, self._seen_ns = {}, -1
            return
        if changed_ns == self._seen_ns:
            return
        # What changes within a tick of the file system's clock has the same time: look again until that is past.
        self._seen_ns = changed_ns if time.time_ns() - changed_ns > 2_000_000_000 else -1
        tokens = []
        for path in _files(self._folder):
            try:
                tokens.append(_read(path))
            except BadToken as error:
                log.error("a token opens nothing: %s", error)
        self._by_id = {token.id: token for token in tokens}


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.toml"))


def _record(token: Token) -> str:
    scopes = ", ".join(f'"{scope}"' for scope in token.scopes)
    lines = [
        f'id = "{token.id}"',
        f'sha256 = "{token.sha256.hex()}"',
        f"scopes = [{scopes}]",
        f"created = {when(token.created_s)}",
    ]
    if token.expires_s is not None:
        lines.append(f"expires = {when(token.expires_s)}")
    if token.requests_per_minute is not None:
        lines.append(f"requests_per_minute = {token.requests_per_minute}")
    return "\n".join(lines) + "\n"


def when(unix_s: int) -> str:
    """RFC 3339 in UTC, as TOML and JSON have it."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat().replace("+00:00", "Z")


def _read(path: Path) -> Token:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        made, expires, rate = table["created"], table.get("expires"), table.get("requests_per_minute")
        token = Token(
            name=path.stem,
            id=str(table["id"]),
            sha256=bytes.fromhex(table["sha256"]),
            scopes=tuple(table["scopes"]),
            created_s=int(made.timestamp()),
            expires_s=int(expires.timestamp()) if expires is not None else None,
            requests_per_minute=int(rate) if rate is not None else None,
        )
        if len(token.sha256) != 32 or not token.scopes or not all(_SCOPE.fullmatch(scope) for scope in token.scopes):
            raise ValueError("sha256 or scopes")
        if rate is not None and not 1 <= rate <= REQUESTS_PER_MINUTE_MAX:
            raise ValueError("requests_per_minute")
    except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise BadToken(f"{path}: not the record of a token ({error}); delete it, and make a new one") from None
    return token


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
