"""`zq keys`: make, list and revoke the CURVE keys of other machines."""

from __future__ import annotations

import json
import sys
from typing import NoReturn

import click

from zq.config import EXIT_CONFIG, ConfigError, load
from zq.keys import ROLES, BadKey, keys_folder, load_authorized, new_key, revoke


@click.group("keys")
def command() -> None:
    """Keys for peers on other machines (CURVE). Run these on the broker's machine."""


_config_option = click.option("--config", "config_path", metavar="PATH", help="Configuration file.")


@command.command("new")
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), required=True, help="What the owner of the key may be.")
@click.option("--queue", "queues", multiple=True, metavar="PATTERN", help="Queues it may use (repeatable).")
@_config_option
def new_command(name: str, role: str, queues: tuple[str, ...], config_path: str | None) -> None:
    """Make a key named NAME and print the path of its file.

    Copy that file to the other machine (it is a secret: mode 0600), and name it there: `client.key = "PATH"` in
    zq.toml, or ZQ_CLIENT_KEY=PATH.
    """
    try:
        click.echo(new_key(keys_folder(load(config_path)), name, role, queues or ("*",)))
    except (ConfigError, BadKey) as error:
        _fail(error)


@command.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_config_option
def ls_command(as_json: bool, config_path: str | None) -> None:
    """List the keys that may connect."""
    try:
        keys = sorted(load_authorized(keys_folder(load(config_path))).values(), key=lambda key: key.name)
    except (ConfigError, BadKey) as error:
        _fail(error)
    if as_json:
        rows = [
            {"name": k.name, "role": k.role, "queues": k.queues, "public_key": k.public_key.decode()} for k in keys
        ]
        click.echo(json.dumps(rows, ensure_ascii=False))
        return
    for key in keys:
        click.echo(f"{key.name:<24} {key.role:<10} {', '.join(key.queues)}")


@command.command("revoke")
@click.argument("name")
@_config_option
def revoke_command(name: str, config_path: str | None) -> None:
    """Take a key's rights away. The broker refuses its next message within about a second."""
    try:
        revoke(keys_folder(load(config_path)), name)
    except (ConfigError, BadKey) as error:
        _fail(error)
    click.echo(f"revoked {name}")


def _fail(error: Exception) -> NoReturn:
    click.echo(f"zq keys: {error}", err=True)
    sys.exit(EXIT_CONFIG)
