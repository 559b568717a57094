"""A peer that speaks ZMTP 3.0 (RFC 23) by itself, and says with it what no ZeroMQ socket would."""

from __future__ import annotations

import socket
import struct

_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\x00" + bytes(31)
_READY = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER" + b"\x08Identity" + bytes(4)


def connect(address: str) -> socket.socket:
    """A connection that a ROUTER takes for a DEALER's."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    peer = socket.create_connection((host, int(port)))
    peer.sendall(_GREETING)
    _read(peer, 64)
    peer.sendall(bytes((4, len(_READY))) + _READY)
    _, length = _read(peer, 2)
    _read(peer, length)
    return peer


def more(size_bytes: int) -> bytes:
    """A frame that says that another one of its message follows."""
    head = bytes((1, size_bytes)) if size_bytes < 256 else b"\x03" + struct.pack(">Q", size_bytes)
    return head + bytes(size_bytes)


def last(frame: bytes) -> bytes:
    """A whole message, or the last frame of one."""
    head = bytes((0, len(frame))) if len(frame) < 256 else b"\x02" + struct.pack(">Q", len(frame))
    return head + frame


def _read(peer: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = peer.recv(count - len(data))
        assert part, "the broker has closed the connection"
        data += part
    return data
