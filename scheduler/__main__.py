"""`zq scheduler`."""

from __future__ import annotations

import click

from zq.scheduler.program import run


@click.command("scheduler")
@click.option("--config", "config_path", metavar="FILE", help="Else ZQ_CONFIG, else ./zq.toml.")
@click.option("--broker", metavar="URL", help="Instead of client.broker.")
def command(config_path: str | None, broker: str | None) -> None:
    """Submit the jobs of the schedules, each at its time. TERM ends it; any number of them may run."""
    run(config_path, broker)


if __name__ == "__main__":
    command()
