"""`zq broker`: run the broker in the foreground until SIGTERM."""

from __future__ import annotations

import click

from zq.broker.program import run


@click.command("broker")
@click.option("--config", "config_path", metavar="PATH", help="Configuration file (default: ZQ_CONFIG or ./zq.toml).")
def command(config_path: str | None) -> None:
    """Run the broker: accept jobs, keep them in the journal, give them to workers.

    It runs in the foreground and stops on SIGTERM or Ctrl-C with exit code 0. Exit code 78 means that a restart does
    not help (configuration, a journal that is in use or of another format); 74 that the journal failed, 71 that
    the memory limit was reached, 70 a defect.
    """
    run(config_path)


if __name__ == "__main__":
    command()
