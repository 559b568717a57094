"""The `zq` command. Subcommands are imported when they are used: `zq len` does not load the web server.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 69 the broker is away (EX_UNAVAILABLE), 78 the configuration
cannot be used (EX_CONFIG). Errors go to standard error and say what to do.
"""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import click

import zq
from zq.config import EXIT_CONFIG, ConfigError
from zq.exceptions import Invalid, Unavailable, ZqError

EXIT_REFUSED: Final = 1
EXIT_USAGE: Final = 2
EXIT_BROKER_AWAY: Final = 69


class Lazy(NamedTuple):
    """A command: where it is, what `zq --help` says of it, and which extra brings what it imports."""

    module: str
    attribute: str
    help: str
    extra: str = ""


COMMANDS: Final[dict[str, Lazy]] = {
    "submit": Lazy("zq.cli_jobs", "submit", "Submit a job by the name of its task."),
    "show": Lazy("zq.cli_show", "show", "Show all that is known of a job."),
    "why": Lazy("zq.cli_show", "why_command", "Say why a job does not run."),
    "logs": Lazy("zq.cli_logs", "logs", "Print what the tasks of a job have logged."),
    "cancel": Lazy("zq.cli_jobs", "cancel", "Cancel jobs."),
    "retry": Lazy("zq.cli_jobs", "retry", "Run dead, cancelled or expired jobs again."),
    "len": Lazy("zq.cli_queues", "length", "Count the jobs of queues, by state."),
    "ls": Lazy("zq.cli_queues", "ls", "List the jobs of a queue. Consumes nothing."),
    "pause": Lazy("zq.cli_limits", "pause", "Start no more jobs of a queue."),
    "resume": Lazy("zq.cli_limits", "resume", "Start the jobs of a paused queue again."),
    "limit": Lazy("zq.cli_limits", "limit", "Bound a queue: jobs a second, at once, waiting."),
    "dead": Lazy("zq.cli_dead", "dead", "List, retry or drop dead jobs, thousands at once."),
    "events": Lazy("zq.cli_events", "events", "Print what happens to jobs and queues."),
    "schedules": Lazy("zq.cli_schedules", "schedules", "List, pause, resume and run what the clock submits."),
    "workers": Lazy("zq.cli_queues", "workers", "List the workers that are connected."),
    "audit": Lazy("zq.cli_audit", "audit", "Check that every accepted job is accounted for."),
    "config": Lazy("zq.cli_config", "config", "Check or show the configuration."),
    "up": Lazy("zq.control", "up", "Start the whole system on this machine.", "control"),
    "down": Lazy("zq.control", "down", "Stop it; returns when nothing of it is left.", "control"),
    "status": Lazy("zq.control", "status", "Say what of it runs.", "control"),
    "restart": Lazy("zq.control", "restart", "Restart one of its processes.", "control"),
    "broker": Lazy("zq.broker.__main__", "command", "Run the broker in the foreground.", "broker"),
    "journal": Lazy("zq.broker.journal_cli", "command", "Check, back up or restore the broker's journal.", "broker"),
    "worker": Lazy("zq.workers.__main__", "command", "Run a worker in the foreground.", "worker"),
    "scheduler": Lazy("zq.scheduler.__main__", "command", "Run the scheduler in the foreground.", "scheduler"),
    "web": Lazy("zq.web.__main__", "command", "Run the web service in the foreground.", "web"),
    "top": Lazy("zq.monitor.__main__", "main", "Watch queues, workers and jobs live (also: zq-top).", "top"),
    "tokens": Lazy("zq.tokens_cli", "command", "Make, list and revoke tokens for the HTTP API.", "web"),
    "exam": Lazy("zq.cli_exam", "exam", "Prepare the exam database.", "web"),
    "keys": Lazy("zq.keys_cli", "command", "Make, list and revoke the keys of other machines."),
}


class LazyGroup(click.Group):
    """A group whose commands are found in `COMMANDS`, and where zq's errors become exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        lazy = COMMANDS.get(cmd_name)
        if lazy is None:
            return None
        try:
            command: click.Command = getattr(importlib.import_module(lazy.module), lazy.attribute)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "zq":
                raise
            raise click.ClickException(
                f"`zq {cmd_name}` needs {error.name}, which is not installed; pip install 'zq[{lazy.extra or 'all'}]'"
            ) from None
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            if not near:
                raise
            raise click.UsageError(f"{error.message} Did you mean '{near[0]}'?", error.ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `zq --help`, without importing a single command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.help) for name, lazy in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        with reported(ctx):
            return super().invoke(ctx)


@contextmanager
def reported(ctx: click.Context) -> Iterator[None]:
    """zq's exceptions as a line on standard error and an exit code."""
    try:
        yield
    except Unavailable as error:
        click.echo(f"zq: {error}", err=True)
        ctx.exit(EXIT_BROKER_AWAY)
    except ConfigError as error:
        click.echo(f"zq: {error}", err=True)
        ctx.exit(EXIT_CONFIG)
    except Invalid as error:
        click.echo(f"zq: {error}", err=True)
        ctx.exit(EXIT_USAGE)
    except ZqError as error:
        click.echo(f"zq: {error}", err=True)
        ctx.exit(EXIT_REFUSED)


@click.group("zq", cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "config_path", metavar="PATH", help="Configuration file (else ZQ_CONFIG, else ./zq.toml).")
@click.version_option(zq.__version__, prog_name="zq")
def main(config_path: str | None) -> None:
    """zq: durable jobs on ZeroMQ and LMDB.

    `zq up` starts a system on this machine, `zq submit` gives it work, `zq top` shows it. `zq COMMAND --help` says
    more. Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 69 broker away, 78 wrong configuration.
    """
    if config_path is not None:
        os.environ["ZQ_CONFIG"] = config_path  # every command reads it there, whoever's it is


if __name__ == "__main__":
    main()
