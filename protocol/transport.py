"""Socket options that belong to the protocol (SPEC.md, section 1), set in one place for the broker and its peers."""

from __future__ import annotations

import os
import time
from typing import Any, Final, cast

import zmq

from zq.protocol import limits

_POLLIN: Final = int(zmq.POLLIN)
"""As a plain integer: arithmetic on pyzmq's flags is written in Python."""


def readable(sock: zmq.Socket[Any]) -> bool:
    """Whether a message is there. As every look at ZMQ_EVENTS it arms the socket's descriptor anew."""
    return bool(cast(int, sock.getsockopt(zmq.EVENTS)) & _POLLIN)


def watch(sock: zmq.Socket[Any], until_s: float) -> bool:
    """Look for a message without going to sleep, until `time.monotonic()` is `until_s`; whether one has come.

    To be woken up costs a processor that has gone to sleep, too, a good part of what an answer costs. Other processes
    may run meanwhile (sched_yield(2)), other threads of this one may not.
    """
    while not readable(sock):
        if time.monotonic() >= until_s:
            return False
        os.sched_yield()
    return True


def guard(sock: zmq.Socket[Any]) -> None:
    """What every socket of the protocol has: the bounds of a frame and of what waits."""
    sock.setsockopt(zmq.MAXMSGSIZE, limits.FRAME_BYTES_MAX)
    sock.setsockopt(zmq.RCVHWM, 10_000)
    sock.setsockopt(zmq.TCP_KEEPALIVE, 1)


def dials(sock: zmq.Socket[Any], address: str) -> None:
    """`guard`, and what a DEALER that is to connect to `address` has besides."""
    guard(sock)
    # ZMTP heartbeats find a dead link. The peers' are enough for both ends: each PING says how soon the broker, too,
    # may give the connection up, and thousands of PINGs of its own would be most of what an idle broker does.
    sock.setsockopt(zmq.HEARTBEAT_IVL, 2_000)
    sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, 6_000)
    sock.setsockopt(zmq.HEARTBEAT_TTL, 10_000)
    sock.setsockopt(zmq.RECONNECT_IVL, 100)
    sock.setsockopt(zmq.RECONNECT_IVL_MAX, 1_000)
    if address.startswith("tcp://["):
        sock.setsockopt(zmq.IPV6, 1)


def use_keys(sock: zmq.Socket[Any], public_key: bytes, secret_key: bytes, server_key: bytes) -> None:
    """CURVE for a peer: its own pair and the broker's public key, Z85."""
    sock.setsockopt(zmq.CURVE_PUBLICKEY, public_key)
    sock.setsockopt(zmq.CURVE_SECRETKEY, secret_key)
    sock.setsockopt(zmq.CURVE_SERVERKEY, server_key)
