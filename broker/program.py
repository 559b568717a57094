"""The broker as a program, without its command line: what `zq up` runs does without click, a megabyte."""

from __future__ import annotations

import errno
import faulthandler
import logging
import os
import resource
import sys
from typing import NoReturn

import lmdb
import zmq

import zq
from zq.broker.journal import JournalError, JournalRefused
from zq.broker.log_entry import UNREADABLE
from zq.broker.memory import EXIT_MEMORY, bound, unbound
from zq.broker.server import EXIT_JOURNAL, Server
from zq.config import EXIT_CONFIG, ConfigError, load
from zq.logs import configure

log = logging.getLogger("zq.broker")

FILES_MAX = 65_536
"""Each connection is an open file; a process is often given 1024."""
LIBZMQ_LEAST = (4, 3, 5)
"""Older ones can be crashed or taken over by who connects (CVE-2019-13132, CVE-2020-15166, CVE-2021-20234 and more)."""
EXIT_DEFECT = 70
"""EX_SOFTWARE of sysexits(3)."""
_UNREADABLE = (lmdb.Error, *UNREADABLE)
"""What reading the journal raises when its bytes are not what was written. Frames of peers raise neither here."""


def run(config_path: str | None = None) -> NoReturn:
    """Serve until SIGTERM; exits as `zq broker --help` says."""
    if zmq.zmq_version_info() < LIBZMQ_LEAST:
        least = ".".join(map(str, LIBZMQ_LEAST))
        _leave(EXIT_CONFIG, f"libzmq is {zmq.zmq_version()}, which is not safe; pip install -U pyzmq brings {least}")
    faulthandler.enable()  # a file of the journal that has become shorter is a SIGBUS: the log says where
    try:
        config = load(config_path)
        configure(config.log.level, config.log.json)
        _allow_files()
        bound(config.broker.memory_limit_mib << 20)
        server = Server(config, software=f"zq {zq.__version__}")
    except (ConfigError, JournalRefused) as error:
        _leave(EXIT_CONFIG, str(error))
    except JournalError as error:
        _leave(EXIT_JOURNAL, str(error))
    except (AssertionError, *_UNREADABLE) as error:
        _leave(EXIT_CONFIG, f"the journal contradicts itself ({error!r}); `zq journal check` says where")
    except zmq.ZMQError as error:
        _leave(1, f"cannot listen on {config.broker.bind}: {error}; is another broker there?")
    log.info("the broker accepts jobs", extra={"address": server.address, "epoch": server.core.epoch})
    try:
        code = server.run()
    except Exception as error:
        # A decision may be half made, or half a message be with libzmq: not one more word, and the next start reads
        # what is on disk.
        unbound()
        # Python says SystemError where it has no memory left to say MemoryError.
        if isinstance(error, (MemoryError, SystemError)) or (
            isinstance(error, zmq.ZMQError) and error.errno == errno.ENOMEM
        ):
            _end_at_once(EXIT_MEMORY, "broker.memory_limit_mib is reached; the broker ends at once")
        if isinstance(error, _UNREADABLE):
            _end_at_once(EXIT_JOURNAL, "the journal cannot be read; the broker ends at once; zq journal check")
        _end_at_once(EXIT_DEFECT, "a defect, of the broker or of its journal (zq journal check); it ends at once")
    log.info("the broker has stopped")
    sys.exit(code)


def _allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _end_at_once(code: int, why: str) -> NoReturn:
    log.critical(why, exc_info=True)
    logging.shutdown()
    os._exit(code)


def _leave(code: int, why: str) -> NoReturn:
    print(f"zq broker: {why}", file=sys.stderr)
    sys.exit(code)
