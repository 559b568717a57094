"""How a worker begins: from what was chosen to its loop. Without the command line, which would stay in memory."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from zq.config import EXIT_CONFIG, Config, ConfigError, load
from zq.logs import configure
from zq.workers.choices import Plan, WrongOptions, choose, with_tags
from zq.workers.identity import NameRefused, take_name
from zq.workers.keeper_fork import begin_marked

EXIT_USAGE = 2


def run(queues: Sequence[str]) -> NoReturn:
    """Serve the queues as the configuration says, until SIGTERM: `zq worker --queue NAME …` without its command line.
    Exits as `zq worker --help` says.
    """
    try:
        config = with_tags(configured(load()), ())
        plan = choose(config, queues)
        configure(config.log.level, config.log.json)
        code = begin(plan)
    except WrongOptions as error:
        _leave(EXIT_USAGE, str(error))
    except (ConfigError, NameRefused) as error:
        _leave(EXIT_CONFIG, str(error))
    sys.exit(code)


def _leave(code: int, why: str) -> NoReturn:
    print(f"zq worker: {why}", file=sys.stderr)
    sys.exit(code)


def configured(config: Config, broker: str | None = None) -> Config:
    """The configuration as this worker uses it; its tasks see the same, by the environment. Raises ConfigError."""
    if broker is not None:
        config = msgspec.structs.replace(config, client=msgspec.structs.replace(config.client, broker=broker))
        os.environ["ZQ_CLIENT_BROKER"] = broker
    address = config.client.broker
    if not address.startswith(("tcp://", "ipc://")):
        raise ConfigError(f"broker address {address!r}: give tcp://HOST:PORT, as in tcp://127.0.0.1:5570")
    if config.source:
        os.environ["ZQ_CONFIG"] = config.source
    if config.client.key:
        from zq.keys import load_key_file  # with ZeroMQ

        load_key_file(Path(config.client.key).expanduser())  # a wrong path is told now, not in a log later
    return config


def begin(plan: Plan) -> int:
    """Be that worker; the exit code. Begins this process anew first, see `begin_marked`.

    Raises NameRefused.
    """
    with take_name(plan.config.data_path, list(plan.slots), plan.name) as identity:
        begin_marked(identity.instance)
        from zq.workers.runner import Runner  # with ZeroMQ, for the process that stays

        import_own(plan.modules)
        return Runner(plan.config, identity, plan.slots, plan.modules, plan.concurrency).run()


def import_own(modules: Sequence[str]) -> None:
    """zq's own task modules, before the keeper is forked. Others are imported by the keeper alone, for nobody knows
    what they do; but whatever a process imports after the fork makes it copy half of what it shared.
    """
    for module in modules:
        if module.startswith("zq."):
            with contextlib.suppress(Exception):  # the keeper says what is wrong with it
                importlib.import_module(module)
