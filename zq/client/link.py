"""Where the broker is and how to reach it: address, key, and the options of every client socket."""

from __future__ import annotations

import os
import random
import socket as os_socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq

from zq.client.session import ClientSession
from zq.config import Config
from zq.exceptions import Invalid
from zq.protocol.job import valid_name
from zq.protocol.messages import Role
from zq.protocol.transport import dials, use_keys

if TYPE_CHECKING:
    from zq.keys import KeyFile

LINGER_MS = 500
"""How long a closing client waits for its last words (BYE) to leave."""


@dataclass(frozen=True)
class Link:
    """All that a connection needs to know. `public_key` is empty without CURVE."""

    address: str
    role: Role
    instance: str
    software: str
    public_key: bytes = b""
    secret_key: bytes = b""
    server_key: bytes = b""

    def __repr__(self) -> str:
        return f"Link({self.address!r}, {self.role.value}, {self.instance!r}, curve={bool(self.public_key)})"


def make_link(
    config: Config,
    broker: str | None = None,
    key: str | os.PathLike[str] | None = None,
    role: Role | str | None = None,
    instance: str | None = None,
) -> Link:
    """Without `role` it is the key's (a task's for that of a worker), or submitter.

    Raises Invalid for an address, role or name that cannot be, and BadKey (a ConfigError) for a key that is configured
    but cannot be used.
    """
    address = broker or config.client.broker
    if not address.startswith(("tcp://", "ipc://")):
        raise Invalid(f"broker address {address!r}: give tcp://HOST:PORT, as in tcp://127.0.0.1:5570")
    name = instance or f"{_host()}-{os.getpid()}"
    if not valid_name(name):
        raise Invalid(f"instance {name!r}: a name is printable characters without blanks")
    pair = _key(config, key)
    try:
        named = Role(role or (pair.role if pair is not None else Role.SUBMITTER))
    except ValueError:
        raise Invalid(f"role {role!r} is none of {', '.join(Role)}") from None
    if named is Role.WORKER and not role:
        # A client is no worker: it is one of the tasks that run on it.
        named = Role.TASK
    link = Link(address, named, name, _software())
    if pair is None:
        return link
    return replace(link, public_key=pair.public_key, secret_key=pair.secret_key, server_key=pair.server_key)


def _key(config: Config, path: str | os.PathLike[str] | None) -> KeyFile | None:
    if not (path or config.client.key or config.broker.curve):
        return None
    from zq.keys import client_key, load_key_file  # where CURVE is used, and nowhere else

    return load_key_file(Path(path).expanduser()) if path else client_key(config)


def _host() -> str:
    name = os_socket.gethostname()
    return name if valid_name(name) else "client"


def _software() -> str:
    from zq import __version__

    return f"zq/{__version__}"


class _Owned:
    """A forked child inherits the objects, not what they stand for: collecting them there is nobody's fault.

    pyzmq itself touches nothing under another pid, but warns of an unclosed socket that the child cannot close.
    """

    owner_pid = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.owner_pid = os.getpid()

    def __del__(self) -> None:
        if os.getpid() == self.owner_pid:
            super().__del__()  # type: ignore[misc]


class ClientSocket(_Owned, zmq.Socket[bytes]):
    pass


class ClientContext(_Owned, zmq.Context[ClientSocket]):
    _socket_class = ClientSocket


def new_session(link: Link) -> ClientSession:
    return ClientSession(link.role, link.instance, os.urandom(16), link.software, random.random())


def open_socket(context: ClientContext, link: Link) -> ClientSocket:
    """A DEALER that connects in the background.

    IMMEDIATE: nothing is queued for a broker that is not there; the session's table is the only queue, so that after a
    reconnect nothing is sent twice. A send that would block means: not connected.
    """
    sock = context.socket(zmq.DEALER)
    try:
        dials(sock, link.address)
        sock.setsockopt(zmq.IMMEDIATE, 1)
        sock.setsockopt(zmq.LINGER, LINGER_MS)
        sock.setsockopt(zmq.SNDHWM, 0)  # bounded by limits.RESEND_BYTES_MAX in the session
        if link.public_key:
            use_keys(sock, link.public_key, link.secret_key, link.server_key)
        sock.connect(link.address)
    except zmq.ZMQError as error:
        sock.close(linger=0)
        raise Invalid(f"broker address {link.address!r}: {error}; give tcp://HOST:PORT") from None
    return sock
