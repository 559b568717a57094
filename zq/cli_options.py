"""What every job command takes, and how it reaches the broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from zq.config import Config, load

if TYPE_CHECKING:
    from zq.client.sync import Client

F = TypeVar("F", bound=Callable[..., Any])

config_option: Callable[[F], F] = click.option(
    "--config", "config_path", metavar="PATH", help="Configuration file (default: ZQ_CONFIG, then ./zq.toml)."
)
broker_option: Callable[[F], F] = click.option(
    "--broker", metavar="ADDRESS", help="The broker (default: client.broker of the configuration)."
)
json_option: Callable[[F], F] = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def connected(command: F) -> F:
    """--config and --broker."""
    return config_option(broker_option(command))


def open_client(
    config_path: str | None, broker: str | None, role: Literal["admin"] | None = None
) -> tuple[Config, Client]:
    """Raises ConfigError and Invalid. Close the client, or use it in a `with`. Some orders want the role "admin"."""
    from zq.client.sync import Client

    config = load(config_path)
    return config, Client(config, broker=broker, role=role)
