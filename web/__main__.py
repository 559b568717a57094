"""`zq web`: the HTTP API and the page."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from zq import config as configuration
from zq import logs
from zq.config import EXIT_CONFIG, Config, ConfigError

log = logging.getLogger("zq.web")


@click.command(name="web", help="Serve the HTTP API and the page.")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="zq.toml to read (or ZQ_CONFIG).")
@click.option("--host", help="Address to listen on (web.host).")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on (web.port).")
def command(config_path: Path | None, host: str | None, port: int | None) -> None:
    try:
        run(configuration.load(config_path), host, port)
    except ConfigError as error:
        click.echo(f"zq web: {error}", err=True)
        sys.exit(EXIT_CONFIG)


def run(config: Config, host: str | None = None, port: int | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigError for what a restart cannot mend."""
    # Here, so that `zq --help` and a wrong configuration do not wait for them.
    from zq.exams.errors import ExamError
    from zq.web import auth, server
    from zq.web.app import create_app
    from zq.web.services import Services

    logs.configure(config.log.level, config.log.json)
    host, port = host or config.web.host, port or config.web.port
    token = auth.ensure_token(config.data_path)
    listener = server.listen(host, port)
    try:
        services = Services(config, token)
    except ExamError as error:
        if error.code == "invalid":
            raise ConfigError(error.detail) from None
        click.echo(f"zq web: {error.detail}", err=True)
        sys.exit(1)
    if not server.is_loopback(host):
        log.warning("anybody who reaches %s can read what is sent here: put TLS (nginx, Caddy) in front of it", host)
    log.info("listening on http://%s:%d/", host, port)
    if sys.stderr.isatty():
        # For a person who started it by hand; a log file is no place for the token.
        click.echo(f"The page: http://{host}:{port}/?token={token}", err=True)
    server.serve(create_app(services), listener, config.web, stopping=services.stopping.set)


if __name__ == "__main__":
    command()
