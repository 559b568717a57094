"""`zq config check` and `zq config show`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import click
import msgspec

from zq.cli_options import config_option, json_option
from zq.cli_text import print_json
from zq.config import Config, load


@click.group()
def config() -> None:
    """Check or show the configuration: zq.toml, overridden by ZQ_SECTION_KEY variables."""


@config.command()
@json_option
@config_option
def check(as_json: bool, config_path: str | None) -> None:
    """Say whether the configuration can be used. Exit code 78 if not, with the key, and the nearest right one."""
    found = load(config_path)
    if as_json:
        print_json({"ok": True, "source": found.source, "data_dir": found.data_dir})
    else:
        click.echo(f"{found.source or 'no file, defaults'}: good; data in {found.data_dir}")


@config.command()
@json_option
@config_option
def show(as_json: bool, config_path: str | None) -> None:
    """Print every setting as it is in force, defaults and variables included, as TOML."""
    found = load(config_path)
    settings = msgspec.to_builtins(found)
    source = settings.pop("source")
    if as_json:
        print_json(settings)
    else:
        click.echo(f"# {source or 'defaults; no file was read'}")
        click.echo(to_toml(found), nl=False)


def to_toml(found: Config) -> str:
    """TOML that `load` reads as the same configuration. (The standard library reads TOML, but does not write it.)"""
    settings = msgspec.to_builtins(found)
    del settings["source"]
    return "\n".join(_table(settings, ())) + "\n"


def _table(table: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Plain values first, then the tables below; a setting that is None is one that is not there."""
    if path:
        yield f"\n[{'.'.join(map(_key, path))}]"
    for name, value in table.items():
        if value is not None and not isinstance(value, dict):
            yield f"{_key(name)} = {_value(value)}"
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _table(value, (*path, name))


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
        case list() | tuple():
            return f"[{', '.join(map(_value, value))}]"
        case dict():
            return "{" + ", ".join(f"{_key(name)} = {_value(item)}" for name, item in value.items()) + "}"
        case _:
            return repr(value)
