"""The worker's connection: one DEALER, and a monitor that tells when it breaks. Never blocks.

A socket lives for one TCP connection: within it nothing is lost or reordered. When the connection ends, libzmq would
quietly make another one; the monitor's word comes first, and the session opens a new socket and greets again.
"""

from __future__ import annotations

import contextlib
import logging
import struct
from collections.abc import Container, Iterator

import zmq

from zq.config import Config, ConfigError
from zq.keys import KeyFile, client_key
from zq.protocol import codec
from zq.protocol.errors import WireError
from zq.protocol.messages import BrokerMessage, PeerMessage
from zq.protocol.transport import dials, use_keys
from zq.workers.session_io import LinkBroken

LINGER_MS = 1_000
"""How long the last words (BYE, results) may take to leave."""
FRAMES_PER_ROUND = 256
_KEYS = "does one side use CURVE and the other not, or is the key not the broker's? (see `zq keys`)"
_BREAKS: dict[int, str] = {
    zmq.EVENT_DISCONNECTED: "the connection ended",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "the broker does not accept this worker's key (see `zq keys`)",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: f"the handshake failed: {_KEYS}",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: f"the handshake failed: {_KEYS}",
}
_EVENT = struct.Struct("=HI")
_logger = logging.getLogger("zq.workers")


class Wire:
    def __init__(self, config: Config) -> None:
        self._config = config
        self._address = config.client.broker
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._broken: LinkBroken | None = None
        self.changes = 0
        """How often `sockets` has changed."""

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        """To be polled for reading; other ones after `open` and `close`."""
        return [sock for sock in (self._socket, self._monitor) if sock is not None]

    def open(self) -> LinkBroken | None:
        """Connect in the background. The key is read each time: it may be made, or replaced, later than the worker."""
        self.close()
        try:
            key = client_key(self._config)
            self._socket = _dealer(self._context, self._address, key)
            self._monitor = self._socket.get_monitor_socket(sum(_BREAKS))
            self._socket.connect(self._address)
        except ConfigError as error:
            return LinkBroken(str(error))
        except zmq.ZMQError as error:
            self.close()
            return LinkBroken(f"cannot connect to {self._address}: {error}")
        return None

    def close(self, linger_ms: int = 0) -> None:
        self.changes += 1
        if self._socket is not None:
            self._socket.disable_monitor()
            self._socket.close(linger=linger_ms)
        if self._monitor is not None:
            self._monitor.close(linger=0)
        self._socket = self._monitor = None
        self._broken = None

    def end(self) -> None:
        """Close for good; waits up to LINGER_MS for what has not left yet."""
        self.close(LINGER_MS)
        self._context.term()

    def send(self, message: PeerMessage) -> LinkBroken | None:
        if self._socket is None:
            return LinkBroken("there is no connection")
        try:
            self._socket.send(codec.encode(message), zmq.DONTWAIT)
        except zmq.Again:
            return LinkBroken("the broker takes nothing more")
        return None

    def receive(self, ready: Container[object]) -> Iterator[BrokerMessage | LinkBroken]:
        """What has come, a bounded number, and last of all that the connection broke. Stops when it is closed.

        `ready` has those of `sockets` that are readable.
        """
        sock = self._socket
        # First: what came before the break can then be read, and all of it is (RCVHWM bounds it).
        if self._monitor in ready:
            self._broken = self._broken or self._take_break()
        frames = 0
        while sock is not None and sock is self._socket and (self._broken is not None or frames < FRAMES_PER_ROUND):
            try:
                frame = sock.recv(zmq.DONTWAIT)
            except zmq.Again:
                break
            frames += 1
            try:
                message = codec.decode_from_broker(frame)
            except WireError as error:
                _logger.error("the broker sent what cannot be read: %s", error)
                continue
            yield message
        if self._broken is not None and sock is self._socket:
            yield self._broken

    def _take_break(self) -> LinkBroken | None:
        with contextlib.suppress(zmq.Again):
            while self._monitor is not None:
                # Read by hand, as in zmq_socket_monitor(3): pyzmq's reader would bring all of asyncio with it.
                number, *_ = _EVENT.unpack(self._monitor.recv_multipart(zmq.DONTWAIT)[0])
                why = _BREAKS.get(number)
                if why is not None:
                    return LinkBroken(why)
        return None


def _dealer(context: zmq.Context[zmq.Socket[bytes]], address: str, key: KeyFile | None) -> zmq.Socket[bytes]:
    sock = context.socket(zmq.DEALER)
    dials(sock, address)
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.SNDHWM, 1_000)
    sock.setsockopt(zmq.HANDSHAKE_IVL, 5_000)
    if key is not None:
        use_keys(sock, key.public_key, key.secret_key, key.server_key)
    return sock
