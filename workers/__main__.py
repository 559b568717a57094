"""`zq worker`: run the tasks of one or more queues until SIGTERM."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
import msgspec

from zq.config import EXIT_CONFIG, Config, ConfigError, load
from zq.keys import load_key_file
from zq.logs import configure
from zq.protocol import limits
from zq.protocol.job import valid_name
from zq.workers.identity import NameRefused, take_name
from zq.workers.keeper_fork import begin_marked
from zq.workers.session import SLOTS_MAX

log = logging.getLogger("zq.workers")
_QUEUES_MAX = 64


@click.command("worker")
@click.option("--queue", "queues", multiple=True, metavar="NAME", help="Queue to serve; may be given several times.")
@click.option(
    "--slots", type=click.IntRange(1, SLOTS_MAX), multiple=True, metavar="N",
    help="Jobs run at once, one --slots for each --queue in the same order (default: from the configuration, or 1).",
)  # fmt: skip
@click.option(
    "--concurrency", type=click.IntRange(1, 512), multiple=True, metavar="N",
    help="Async tasks that each slot runs at once, one for each --queue in the same order (default: configured, or 1).",
)
@click.option("--tasks", "modules", multiple=True, metavar="MODULE", help="Module that holds tasks; also several.")
@click.option(
    "--tag", "tags", multiple=True, metavar="K=V",
    help="What this worker has, such as disk=a or gpu, for jobs that require it; adds to worker.tags. Repeatable.",
)
@click.option(
    "--max-tasks-per-slot", type=click.IntRange(0), metavar="N", help="Replace a slot after N jobs; 0: never."
)
@click.option(
    "--max-memory-per-slot", type=click.IntRange(0), metavar="MIB",
    help="Replace a slot that is larger than this after a job; 0: never.",
)
@click.option("--broker", metavar="URL", help="Address of the broker, such as tcp://HOST:5570.")
@click.option("--name", default="", metavar="NAME", help="Name of this worker (default: HOST:QUEUES:1, …:2, …).")
@click.option("--reload", "reloads", is_flag=True, help="For development: start again when code has changed.")
@click.option("--config", "config_path", metavar="PATH", help="Configuration file (default: ZQ_CONFIG or ./zq.toml).")
def command(
    queues: tuple[str, ...], slots: tuple[int, ...], concurrency: tuple[int, ...], modules: tuple[str, ...],
    tags: tuple[str, ...], max_tasks_per_slot: int | None, max_memory_per_slot: int | None,
    broker: str | None, name: str, reloads: bool, config_path: str | None,
) -> None:  # fmt: skip
    """Run the tasks of the named queues.

    It runs in the foreground. SIGTERM or Ctrl-C: it takes no more jobs, lets running ones finish for worker.drain_s,
    hands back what still runs without costing an attempt, and exits with code 0. A second time: it hands back at
    once. A third time: it ends all it runs and leaves.

    Exit code 78 means that a restart does not help (configuration, a task module that cannot be imported).
    """
    try:
        config = _configured(load(config_path), broker)
        slots_of = choose_slots(config, queues, slots)
        at_once = choose_concurrency(config, slots_of, concurrency)
        chosen = choose_modules(config, queues, modules)
        config = with_recycling(with_tags(config, tags), max_tasks_per_slot, max_memory_per_slot)
        configure(config.log.level, config.log.json)
        if reloads:
            sys.exit(_run_reloading(config))
        with take_name(config.data_path, list(slots_of), name) as identity:
            begin_marked(identity.instance)
            from zq.workers.runner import Runner  # with ZeroMQ and psutil, for the process that stays

            code = Runner(config, identity, slots_of, chosen, at_once).run()
    except (ConfigError, NameRefused) as error:
        click.echo(f"zq worker: {error}", err=True)
        sys.exit(EXIT_CONFIG)
    sys.exit(code)


def _run_reloading(config: Config) -> int:
    from zq.workers.reload import Reloader, roots_of, worker_argv

    return Reloader(worker_argv(_words()), roots_of(os.environ), config.data_path).run()


def _words() -> list[str]:
    """This command line, however it was begun, without --reload."""
    context = click.get_current_context()
    words: list[str] = []
    for option in context.command.params:
        value = context.params.get(option.name or "")
        if option.name != "reloads" and value not in (None, ""):
            for one in value if isinstance(value, tuple) else (value,):
                words += [option.opts[0], str(one)]
    return words


def _configured(config: Config, broker: str | None) -> Config:
    """The configuration as this worker uses it; its tasks see the same, by the environment."""
    if broker is not None:
        config = msgspec.structs.replace(config, client=msgspec.structs.replace(config.client, broker=broker))
        os.environ["ZQ_CLIENT_BROKER"] = broker
    address = config.client.broker
    if not address.startswith(("tcp://", "ipc://")):
        raise ConfigError(f"broker address {address!r}: give tcp://HOST:PORT, as in tcp://127.0.0.1:5570")
    if config.source:
        os.environ["ZQ_CONFIG"] = config.source
    if config.client.key:
        load_key_file(Path(config.client.key).expanduser())  # a wrong path is told now, not in a log later
    return config


def choose_slots(config: Config, queues: Sequence[str], slots: Sequence[int]) -> dict[str, int]:
    """queue → slots. Raises click.UsageError when the options do not say which queues, or how many slots for which."""
    known = ", ".join(config.queues) or "none"
    if not queues:
        raise click.UsageError(f"name the queues to serve: --queue NAME; configured here: {known}")
    if len(set(queues)) != len(queues) or len(queues) > _QUEUES_MAX:
        raise click.UsageError(f"name each --queue once, and at most {_QUEUES_MAX}")
    for queue in queues:
        if not valid_name(queue):
            raise click.UsageError(f"--queue {queue!r} is no name; configured here: {known}")
    if slots and len(slots) != len(queues):
        raise click.UsageError(f"{len(queues)} --queue but {len(slots)} --slots: one for each, in order, or none")
    chosen = dict(zip(queues, slots, strict=True)) if slots else dict(_configured_slots(config, queues))
    if sum(chosen.values()) > SLOTS_MAX:
        raise click.UsageError(f"{sum(chosen.values())} slots; one worker has at most {SLOTS_MAX}: start several")
    return chosen


def choose_concurrency(config: Config, slots: Mapping[str, int], given: Sequence[int]) -> dict[str, int]:
    """queue → async tasks at once in each of its slots. Raises click.UsageError where that is too much."""
    if given and len(given) != len(slots):
        raise click.UsageError(f"{len(slots)} --queue but {len(given)} --concurrency: one for each, in order, or none")
    configured = [config.queues[queue].concurrency if queue in config.queues else 1 for queue in slots]
    chosen = dict(zip(slots, given or configured, strict=True))
    jobs = sum(count * chosen[queue] for queue, count in slots.items())
    if jobs > SLOTS_MAX:
        raise click.UsageError(f"{jobs} jobs at once; one worker has at most {SLOTS_MAX}: start several")
    return chosen


def with_recycling(config: Config, max_tasks: int | None, max_memory_mib: int | None) -> Config:
    given = {"max_tasks_per_slot": max_tasks, "max_memory_per_slot_mib": max_memory_mib}
    changes = {name: value for name, value in given.items() if value is not None}
    return msgspec.structs.replace(config, worker=msgspec.structs.replace(config.worker, **changes))


def _configured_slots(config: Config, queues: Sequence[str]) -> Iterator[tuple[str, int]]:
    for queue in queues:
        yield queue, config.queues[queue].slots if queue in config.queues else 1


def choose_modules(config: Config, queues: Sequence[str], modules: Sequence[str]) -> list[str]:
    """What to import: `modules`, else the queues' `tasks`; and worker.tasks. Raises click.UsageError for nothing."""
    of_queues = [module for queue in queues if queue in config.queues for module in config.queues[queue].tasks]
    chosen = list(dict.fromkeys([*(modules or of_queues), *config.worker.tasks]))
    if not chosen:
        raise click.UsageError(
            f"no task module for {', '.join(queues)}: give --tasks MODULE, or `tasks` under [queues.NAME] in zq.toml"
        )
    return chosen


def with_tags(config: Config, tags: Sequence[str]) -> Config:
    """The worker has the configured tags and these. Raises click.UsageError, or ConfigError for configured ones."""
    for tag in tags:
        if not valid_name(tag) or len(tag) > limits.TAG_CHARS_MAX:
            most = limits.TAG_CHARS_MAX
            raise click.UsageError(f"--tag {tag!r:.80}: 1 to {most} printable characters without blanks, as in disk=a")
    wrong = [tag for tag in config.worker.tags if not valid_name(tag)]
    if wrong:
        raise ConfigError(f"worker.tags has {wrong[0]!r}: a tag is printable characters without blanks")
    together = tuple(sorted({*config.worker.tags, *tags}))
    if len(together) > limits.WORKER_TAGS_MAX:
        raise click.UsageError(f"{len(together)} tags; a worker has at most {limits.WORKER_TAGS_MAX}")
    return msgspec.structs.replace(config, worker=msgspec.structs.replace(config.worker, tags=together))


if __name__ == "__main__":
    command()
