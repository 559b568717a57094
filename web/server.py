"""The shell around the application: the listening socket, uvicorn, and a clean end on SIGTERM and SIGINT."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from zq.config import ConfigError, WebSection
from zq.web.connection import Bounds, protocol_with

log = logging.getLogger("zq.web")

BACKLOG = 1024
KEEP_ALIVE_S = 15.0
DRAIN_S = 10
"""After a stop, how long requests under way may go on."""
WRITE_TIMEOUT_S = 60.0
DESCRIPTORS_BESIDE_CONNECTIONS = 256
SWITCH_S = 0.0005
"""How soon a thread that is busy with an upload gives the interpreter to the loop, which lets go of it at each read and
write of a connection. Beside busy programs heartbeats had half the p99 that Python's 5 ms give; alone, the same."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigError for an address that cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"web.host {host!r} is not an address of this machine: {error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} on {host} is in use; stop what uses it, or give --port or web.port another one"
            ) from None
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}") from None
    return listener


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def affordable_connections(wanted: int) -> int:
    """How many connections this process may have open, at most `wanted`; raises its limit of open files for them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = wanted + DESCRIPTORS_BESIDE_CONNECTIONS
    if soft == resource.RLIM_INFINITY or soft >= files:
        return wanted
    if hard != resource.RLIM_INFINITY and hard < files:
        # The hard limit is the administrator's. Fewer connections than hoped for are better than none.
        files = hard
        wanted = max(1, hard - DESCRIPTORS_BESIDE_CONNECTIONS)
        log.warning("this process may have %d open files: %d connections at once (ulimit -n allows more)", hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return wanted


class _Server(uvicorn.Server):
    """uvicorn ends by raising the signal again, which would make the exit code of a clean stop -15."""

    def __init__(self, config: uvicorn.Config, stopping: Callable[[], None]) -> None:
        super().__init__(config)
        self._stopping = stopping

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        if self.should_exit:
            # Asked twice: do not wait for requests under way.
            self.force_exit = True
        self.should_exit = True
        self._stopping()


def serve(app: ASGIApp, listener: socket.socket, section: WebSection, *, stopping: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT. `stopping` is called then, in the loop, so that long polls can end."""
    sys.setswitchinterval(SWITCH_S)
    bounds = Bounds(section.header_timeout_s, WRITE_TIMEOUT_S, affordable_connections(section.max_connections))
    config = uvicorn.Config(
        app,
        http=protocol_with(bounds),
        ws="none",
        loop="asyncio",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(section.trusted_proxies),
        forwarded_allow_ips=list(section.trusted_proxies),
        backlog=BACKLOG,
        timeout_keep_alive=int(KEEP_ALIVE_S),
        timeout_graceful_shutdown=DRAIN_S,
    )
    # zq logs its own start; uvicorn's lines are noise unless something is wrong.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    _Server(config, stopping).run(sockets=[listener])
