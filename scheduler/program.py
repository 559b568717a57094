"""The scheduler as a program, without its command line: what `zq up` runs does without click, a megabyte."""

from __future__ import annotations

import contextlib
import logging
import sys

from zq import logs
from zq.client.requests import encode
from zq.client.sync import Client
from zq.config import EXIT_CONFIG, ConfigError, load
from zq.exceptions import Invalid
from zq.protocol.messages import Role
from zq.scheduler.service import ANSWER_S, Service, Stopping, request_of, schedules_of
from zq.scheduler.ticks import Tick


def run(config_path: str | None = None, broker: str | None = None) -> None:
    """Serve until SIGTERM. Exits with 78 for what a restart cannot mend."""
    try:
        config = load(config_path)
        logs.configure(config.log.level, config.log.json)
        log = logging.getLogger("zq.scheduler")
        if not config.scheduler.enabled:
            log.info("scheduler.enabled is false: nothing to do")
            return
        schedules = schedules_of(config)
        client = Client(config, broker=broker, timeout_s=ANSWER_S, role=Role.SCHEDULER)
        for schedule in schedules:
            _check(client, Tick(schedule, 0))
    except (ConfigError, Invalid) as error:
        print(f"zq scheduler: {error}", file=sys.stderr)
        sys.exit(EXIT_CONFIG)
    with client, contextlib.closing(Stopping()) as stopping:
        told = ", ".join(f"{schedule.name} {schedule.text}" for schedule in schedules)
        log.info("scheduling: %s", told)
        Service(client, schedules).run(stopping)
    log.info("stopped")


def _check(client: Client, tick: Tick) -> None:
    """Raises ConfigError for a schedule whose jobs could never be submitted."""
    try:
        encode(request_of(tick), client.config.worker)
    except Invalid as error:
        raise ConfigError(f"schedules.{tick.schedule.name}: {error}") from None
