"""`zq worker`: run the tasks of one or more queues until SIGTERM."""

from __future__ import annotations

import os
import sys

import click

from zq.config import EXIT_CONFIG, Config, ConfigError, load
from zq.logs import configure
from zq.workers.begin import begin, configured
from zq.workers.choices import SLOTS_MAX, WrongOptions, choose, with_recycling, with_tags
from zq.workers.identity import NameRefused


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
        config = with_tags(configured(load(config_path), broker), tags)
        config = with_recycling(config, max_tasks_per_slot, max_memory_per_slot)
        plan = choose(config, queues, slots, concurrency, modules, name)
        configure(config.log.level, config.log.json)
        code = _run_reloading(config) if reloads else begin(plan)
    except WrongOptions as error:
        raise click.UsageError(str(error)) from None
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


if __name__ == "__main__":
    command()
