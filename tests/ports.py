"""Loopback ports that nobody uses, also while several runs of the tests share a machine."""

from __future__ import annotations

import random
import socket

# Below Linux's range for outgoing connections (from 32768), so that none of those takes a port between its choice
# and its use; and chosen anew each time, not by the kernel's order, which two runs would follow side by side.
LOWEST, HIGHEST = 12_000, 32_000
_choice = random.SystemRandom()  # Hypothesis seeds the common generator: two tests would choose the same


def free_port() -> int:
    while True:
        port = _choice.randrange(LOWEST, HIGHEST)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: old connections may linger
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
