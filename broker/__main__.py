"""`zq broker`: run the broker in the foreground until SIGTERM."""

from __future__ import annotations

import logging
import sys

import click
import zmq

import zq
from zq.broker.journal import JournalError, JournalRefused
from zq.broker.server import EXIT_JOURNAL, Server
from zq.config import EXIT_CONFIG, ConfigError, load
from zq.logs import configure

log = logging.getLogger("zq.broker")


@click.command("broker")
@click.option("--config", "config_path", metavar="PATH", help="Configuration file (default: ZQ_CONFIG or ./zq.toml).")
def command(config_path: str | None) -> None:
    """Run the broker: accept jobs, keep them in the journal, give them to workers.

    It runs in the foreground and stops on SIGTERM or Ctrl-C with exit code 0. Exit code 78 means that a restart does
    not help (configuration, a journal that is in use or of another format); 74 that the journal failed.
    """
    try:
        config = load(config_path)
        configure(config.log.level, config.log.json)
        server = Server(config, software=f"zq {zq.__version__}")
    except (ConfigError, JournalRefused) as error:
        click.echo(f"zq broker: {error}", err=True)
        sys.exit(EXIT_CONFIG)
    except JournalError as error:
        click.echo(f"zq broker: {error}", err=True)
        sys.exit(EXIT_JOURNAL)
    except zmq.ZMQError as error:
        click.echo(f"zq broker: cannot listen on {config.broker.bind}: {error}; is another broker there?", err=True)
        sys.exit(1)
    log.info("the broker accepts jobs", extra={"address": server.address, "epoch": server.core.epoch})
    code = server.run()
    log.info("the broker has stopped")
    sys.exit(code)


if __name__ == "__main__":
    command()
