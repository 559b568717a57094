"""Runs one of zq's programs for supervisord: `python -m zq.supervised zq.broker [ARGUMENT …]`.

supervisord starts whatever ends within `startsecs` again, without a look at its exit code. A program that ends with
a code that no restart can mend is therefore kept until it counts as started: then `exitcodes` holds, it is not started
again, and its log shows the reason once.
"""

from __future__ import annotations

import importlib
import signal
import sys
import time
from collections.abc import Sequence

from zq.config import EXIT_CONFIG

STARTED_AFTER_S = 1.5
"""More than startsecs in supervisord.conf."""
_HOPELESS = {2, EXIT_CONFIG}
"""A wrong command line (click's code) and a wrong configuration."""


def main() -> None:
    started_s = time.monotonic()
    module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    try:
        run(module, arguments)
    except SystemExit as end:
        if end.code in _HOPELESS:
            # A stop must not wait for us, whatever handlers the program had set.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(max(0.0, started_s + STARTED_AFTER_S - time.monotonic()))
        raise


def run(module: str, arguments: Sequence[str]) -> None:
    """Run it. What supervisord.conf has does without its command line, which would stay in memory: a megabyte each."""
    if module in ("zq.broker", "zq.scheduler") and not arguments:
        importlib.import_module(f"{module}.program").run()
    elif module == "zq.workers" and arguments and set(arguments[::2]) == {"--queue"} and len(arguments) % 2 == 0:
        importlib.import_module("zq.workers.begin").run(arguments[1::2])
    else:
        importlib.import_module(f"{module}.__main__").command(list(arguments))


if __name__ == "__main__":
    main()
