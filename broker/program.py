"""The broker as a program, without its command line: what `zq up` runs does without click, a megabyte."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

import zmq

import zq
from zq.broker.journal import JournalError, JournalRefused
from zq.broker.memory import EXIT_MEMORY, bound, unbound
from zq.broker.server import EXIT_JOURNAL, Server
from zq.config import EXIT_CONFIG, ConfigError, load
from zq.logs import configure

log = logging.getLogger("zq.broker")


def run(config_path: str | None = None) -> NoReturn:
    """Serve until SIGTERM; exits as `zq broker --help` says."""
    try:
        config = load(config_path)
        configure(config.log.level, config.log.json)
        bound(config.broker.memory_limit_mib << 20)
        server = Server(config, software=f"zq {zq.__version__}")
    except (ConfigError, JournalRefused) as error:
        _leave(EXIT_CONFIG, str(error))
    except JournalError as error:
        _leave(EXIT_JOURNAL, str(error))
    except zmq.ZMQError as error:
        _leave(1, f"cannot listen on {config.broker.bind}: {error}; is another broker there?")
    log.info("the broker accepts jobs", extra={"address": server.address, "epoch": server.core.epoch})
    try:
        code = server.run()
    except MemoryError:
        # A decision may have been left half made: not one more word, and the next start reads what is on disk.
        unbound()
        log.critical("broker.memory_limit_mib is reached; the broker ends at once", exc_info=True)
        logging.shutdown()
        os._exit(EXIT_MEMORY)
    log.info("the broker has stopped")
    sys.exit(code)


def _leave(code: int, why: str) -> NoReturn:
    print(f"zq broker: {why}", file=sys.stderr)
    sys.exit(code)
