"""CURVE keys: who may connect to a broker that is reached over a network, and as what.

    {data_dir}/keys/broker.key            the broker's own pair; its secret never leaves this folder
    {data_dir}/keys/authorized/NAME.toml  what the broker knows of a key: role, queues, public key
    {data_dir}/keys/NAME.key              what NAME's machine needs: its pair and the broker's public key
    {data_dir}/keys/local.key             the same for the processes of `zq up`, made by the broker

Secret files are 0600 in a folder 0700; one that others can read is refused. Keys are Z85 text (ZeroMQ RFC 32), so
they fit into TOML as they are. Revoking deletes the file in authorized/; the broker looks there every second and
refuses the key's next message.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import zmq

from zq.config import Config, ConfigError

ROLES = ("submitter", "worker", "monitor", "admin", "scheduler")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")
LOCAL = "local"
_RESERVED = frozenset({"broker", LOCAL})


class BadKey(ConfigError):
    """A key or key file cannot be used. The text says which and what to do."""


@dataclass(frozen=True)
class KeyFile:
    """A peer's key pair and the public key of the broker it belongs to; all Z85, 40 bytes each."""

    name: str
    role: str
    public_key: bytes
    secret_key: bytes
    server_key: bytes


@dataclass(frozen=True)
class AuthorizedKey:
    """What the broker knows of a key."""

    name: str
    role: str
    public_key: bytes
    queues: tuple[str, ...]


def keys_folder(config: Config) -> Path:
    return config.data_path / "keys"


def client_key(config: Config) -> KeyFile | None:
    """The key this process connects with; None where the broker is reached without CURVE.

    With `broker.curve` and no key of its own, a process is one of the broker's machine: it uses the local key of
    `data_dir`, and makes it if it is the first to ask. Raises BadKey when a key cannot be used.
    """
    if config.client.key:
        return load_key_file(Path(config.client.key).expanduser())
    if config.broker.curve:
        ensure_local_key(keys_folder(config))
        return load_key_file(keys_folder(config) / f"{LOCAL}.key")
    return None


def load_key_file(path: Path) -> KeyFile:
    """Raises BadKey if the file is missing, readable by others, or not a key file."""
    table = _read(path, secret=True)
    return KeyFile(
        _text(table, "name", path),
        _text(table, "role", path),
        _z85(table, "public", path),
        _z85(table, "secret", path),
        _z85(table, "server", path),
    )


def load_authorized(folder: Path) -> dict[bytes, AuthorizedKey]:
    """The keys in {data_dir}/keys/authorized, by public key. Raises BadKey for a file that is none."""
    found = {}
    for path in sorted((folder / "authorized").glob("*.toml")):
        table = _read(path, secret=False)
        role = _text(table, "role", path)
        queues = table.get("queues", ["*"])
        if role not in ROLES or not isinstance(queues, list) or not all(isinstance(q, str) for q in queues):
            raise BadKey(f"{path}: role must be one of {', '.join(ROLES)}, and queues a list of patterns")
        key = AuthorizedKey(path.stem, role, _z85(table, "public", path), tuple(queues))
        found[key.public_key] = key
    return found


def broker_pair(folder: Path) -> tuple[bytes, bytes]:
    """(public, secret) of the broker, made at the first call."""
    path = folder / "broker.key"
    with _locked(folder):
        if not path.exists():
            public, secret = zmq.curve_keypair()
            _write_new(path, f'public = "{public.decode()}"\nsecret = "{secret.decode()}"\n', 0o600)
    table = _read(path, secret=True)
    return _z85(table, "public", path), _z85(table, "secret", path)


def new_key(folder: Path, name: str, role: str, queues: tuple[str, ...] = ("*",)) -> Path:
    """Make a key, authorize it, and return the path of the file for its owner's machine.

    Raises BadKey if the name is taken or no name, or the role unknown.
    """
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise BadKey(f"{name!r} cannot name a key: letters, digits, '.', '_' and '-' can, but 'broker' and 'local'")
    broker_pair(folder)
    with _locked(folder):
        return _new_key(folder, name, role, queues)


def ensure_local_key(folder: Path) -> None:
    """The key of this machine's own processes, made by the first of them."""
    if not (folder / f"{LOCAL}.key").exists():
        broker_pair(folder)
        with _locked(folder):
            if not (folder / f"{LOCAL}.key").exists():
                _new_key(folder, LOCAL, "admin", ("*",))


def _new_key(folder: Path, name: str, role: str, queues: tuple[str, ...]) -> Path:
    if role not in ROLES:
        raise BadKey(f"{role!r} is not a role; there are {', '.join(ROLES)}")
    server = _z85(_read(folder / "broker.key", secret=True), "public", folder / "broker.key")
    public, secret = zmq.curve_keypair()
    path = folder / f"{name}.key"
    authorized = folder / "authorized" / f"{name}.toml"
    if path.exists() or authorized.exists():
        raise BadKey(f"there is a key '{name}' already; revoke it first (zq keys revoke {name})")
    _make_folder(authorized.parent)
    pair = f'public = "{public.decode()}"\n'
    owner = f'name = "{name}"\nrole = "{role}"\n{pair}secret = "{secret.decode()}"\nserver = "{server.decode()}"\n'
    _write_new(path, owner, 0o600)
    patterns = ", ".join('"' + q.replace("\\", "\\\\").replace('"', '\\"') + '"' for q in queues)
    _write_new(authorized, f'role = "{role}"\nqueues = [{patterns}]\n{pair}', 0o600)
    return path


def revoke(folder: Path, name: str) -> None:
    """Take the key's rights away and delete its file here. Raises BadKey if there is no such key."""
    authorized = folder / "authorized" / f"{name}.toml"
    if not _NAME.fullmatch(name) or not authorized.exists():
        raise BadKey(f"there is no key '{name}'; see `zq keys ls`")
    authorized.unlink()
    (folder / f"{name}.key").unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Several processes of one machine may want the same key made at once: the first makes it."""
    _make_folder(folder)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _write_new(path: Path, text: str, mode: int) -> None:
    """Write a file that never stands there half written, under a mode it has from the first byte."""
    part = path.with_name(path.name + ".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)


def _read(path: Path, *, secret: bool) -> dict[str, object]:
    import tomllib

    try:
        if secret and path.stat().st_mode & 0o077:
            raise BadKey(f"{path}: others can read this secret; run: chmod 600 {path}")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadKey(f"{path}: no such key file; make one on the broker's machine: zq keys new NAME") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadKey(f"{path}: cannot be read as a key file: {error}") from None


def _text(table: dict[str, object], field: str, path: Path) -> str:
    value = table.get(field)
    if not isinstance(value, str):
        raise BadKey(f"{path}: '{field}' is missing; the file is not a key file of zq's")
    return value


def _z85(table: dict[str, object], field: str, path: Path) -> bytes:
    value = _text(table, field, path).encode()
    if len(value) != 40:
        raise BadKey(f"{path}: '{field}' is not a Z85 key of 40 characters")
    return value
