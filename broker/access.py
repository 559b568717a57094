"""Who may connect: CURVE on the socket, and the ZAP handler (ZeroMQ RFC 27) that knows the authorized keys.

The handler is answered in the broker's own loop, not by a thread: if the loop is not there, nobody gets in.
`zap_enforce_domain` makes libzmq refuse everybody when no handler answers; without it any key would be let in.
A key that is revoked keeps its connection, so every message's key is looked up again.
"""

from __future__ import annotations

import logging

import zmq
from zmq.utils import z85

from zq.broker.sessions import Identity
from zq.config import Config, ConfigError
from zq.keys import AuthorizedKey, BadKey, broker_pair, ensure_local_key, keys_folder, load_authorized
from zq.protocol.messages import Role

log = logging.getLogger("zq.broker")

_DOMAIN = b"zq"
_ENDPOINT = "inproc://zeromq.zap.01"


class Access:
    """Without CURVE the address must be loopback, and whoever can reach it is trusted."""

    def __init__(self, config: Config) -> None:
        self.curve = config.broker.curve
        self._folder = keys_folder(config)
        self._keys: dict[bytes, AuthorizedKey] = {}
        self._identities: dict[str, Identity] = {}
        self.zap: zmq.Socket[bytes] | None = None
        if not self.curve and not is_loopback(config.broker.bind):
            raise ConfigError(
                f"broker.bind = {config.broker.bind!r} can be reached from other machines: set broker.curve = true and "
                "make keys (zq keys new NAME --role worker), or bind to 127.0.0.1"
            )
        if self.curve:
            self._server_key, self._server_secret = broker_pair(self._folder)
            ensure_local_key(self._folder)
            self.reload()

    def begin(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        if self.curve:
            self.zap = context.socket(zmq.REP)
            self.zap.setsockopt(zmq.LINGER, 0)
            self.zap.bind(_ENDPOINT)

    def secure(self, router: zmq.Socket[bytes]) -> None:
        if self.curve:
            router.setsockopt(zmq.CURVE_SERVER, 1)
            router.setsockopt(zmq.CURVE_SECRETKEY, self._server_secret)
            router.setsockopt(zmq.CURVE_PUBLICKEY, self._server_key)
            router.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN)
            router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def reload(self) -> None:
        """Read the authorized keys again. A file that cannot be read takes nobody's rights away and gives none."""
        if not self.curve:
            return
        try:
            self._keys = load_authorized(self._folder)
        except BadKey as error:
            log.error("keys were not read again", extra={"error": str(error)})
            return
        self._identities = {
            key.public_key.decode(): Identity(key.name, Role(key.role), key.queues) for key in self._keys.values()
        }

    def answer(self) -> None:
        """Answer the handshakes that are waiting."""
        while self.zap is not None:
            try:
                request = self.zap.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            self.zap.send_multipart(self._reply(request))

    def _reply(self, request: list[bytes]) -> list[bytes]:
        """[version, request id, domain, address, identity, mechanism, key] → [version, id, status, text, user, …]."""
        request_id = request[1] if len(request) > 1 else b""
        if len(request) == 7 and request[2] == _DOMAIN and request[5] == b"CURVE" and len(request[6]) == 32:
            public_key = z85.encode(request[6])
            if public_key not in self._keys:
                self.reload()  # it may have been made this very second
            key = self._keys.get(public_key)
            if key is not None:
                return [b"1.0", request_id, b"200", b"OK", key.public_key, b""]
        address = request[3].decode(errors="replace") if len(request) > 3 else "?"
        log.warning("a stranger's key was refused", extra={"address": address})
        return [b"1.0", request_id, b"400", b"no such key", b"", b""]

    def identity(self, frame: object) -> Identity | None:
        """Whose message this is; None if its key is not known (any more)."""
        assert isinstance(frame, zmq.Frame)
        try:
            user = frame.get("User-Id")
        except zmq.ZMQError:
            return None
        return self._identities.get(user) if isinstance(user, str) else None

    def end(self) -> None:
        if self.zap is not None:
            self.zap.close()


def is_loopback(address: str) -> bool:
    """Whether a bind address is reachable from this machine alone."""
    kind, _, rest = address.partition("://")
    if kind in ("ipc", "inproc"):
        return True
    host = rest.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")
