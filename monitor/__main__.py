"""`zq-top`: the monitor in a terminal, or once as text or JSON."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from typing import NoReturn

import click

from zq.client.aio import AsyncClient
from zq.config import EXIT_CONFIG, Config, ConfigError, load
from zq.exceptions import Invalid, Refused, Unavailable, ZqError
from zq.monitor import views
from zq.monitor.drawing import ASCII, UTF8, Signs, to_text
from zq.monitor.fetch import Fetcher
from zq.monitor.model import Board, History, Query, board
from zq.monitor.report import as_json
from zq.protocol.messages import Role

EXIT_UNAVAILABLE = 69
"""The broker did not answer (EX_UNAVAILABLE, sysexits(3))."""
EXIT_REFUSED = 1
"""The broker does not let this key look; the code that `zq` has for it."""
TIMEOUT_S_MAX = 5.0
"""For one question: somebody is looking at the screen. A shorter `client.timeout_s` is kept."""
PIPE_CELLS = 120
"""Width of --once where there is no terminal and no COLUMNS."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--once", is_flag=True, help="Print everything once and leave; rates are measured over one interval.")
@click.option("--json", "as_json_", is_flag=True, help="With --once: as JSON.")
@click.option("--interval", "interval_s", type=click.FloatRange(0.2, 3600), default=1.0, show_default=True,
              help="Seconds from refresh to refresh.")  # fmt: skip
@click.option("--config", "config_path", type=click.Path(), default=None, help="Path of zq.toml.")
@click.option("--broker", default=None, help="Address of the broker, as tcp://HOST:5570.")
@click.option("--key", default=None, type=click.Path(), help="Key file of `zq keys new`, with role monitor or admin.")
@click.option("--ascii", "ascii_only", is_flag=True, help="Nothing but ASCII characters.")
def main(
    once: bool, as_json_: bool, interval_s: float, config_path: str | None, broker: str | None, key: str | None,
    ascii_only: bool,
) -> None:  # fmt: skip
    """Queues, workers and jobs of a zq broker, live.

    Press ? for the keys. NO_COLOR is honoured. Exit codes: 0 all right, 1 the broker refuses this key, 2 wrong usage,
    69 the broker does not answer (both with --once), 78 the configuration is wrong.
    """
    if as_json_ and not once:
        raise click.UsageError("--json needs --once")
    try:
        config = load(config_path)
        client = _client(config, broker, key, Role.MONITOR)
    except (ConfigError, Invalid, OSError) as error:
        _fail(str(error), EXIT_CONFIG)
    signs = ASCII if ascii_only or not _can_show(UTF8) else UTF8
    # Changing jobs takes more rights than looking: a connection of its own, opened when somebody does it.
    fetcher = Fetcher(client, lambda: _client(config, broker, key, Role.ADMIN))
    if once:
        _once(fetcher, client.address, interval_s, signs, as_json_)
    else:
        _live(fetcher, client.address, interval_s, signs)


def _client(config: Config, broker: str | None, key: str | None, role: Role) -> AsyncClient:
    timeout_s = min(config.client.timeout_s, TIMEOUT_S_MAX)
    return AsyncClient(config, broker=broker, key=key, timeout_s=timeout_s, role=role)


def _can_show(signs: Signs) -> bool:
    """Whether standard output's encoding has our signs; a terminal without UTF-8 gets ASCII by itself."""
    try:
        (signs.full + signs.more + signs.pointer).encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"zq-top: {message}", err=True)
    sys.exit(code)


# --------------------------------------------------------------------------------------------------- once


def _once(fetcher: Fetcher, address: str, interval_s: float, signs: Signs, json: bool) -> None:
    try:
        seen = asyncio.run(_look_twice(fetcher, address, interval_s))
    except Unavailable as error:
        _fail(str(error), EXIT_UNAVAILABLE)
    except Refused as error:
        _fail(str(error), EXIT_REFUSED)
    except ZqError as error:
        _fail(str(error), EXIT_CONFIG)
    except KeyboardInterrupt:
        sys.exit(130)
    if json:
        text = as_json(seen, ascii_only=signs.ascii_only)
    else:
        width = shutil.get_terminal_size((PIPE_CELLS, 24)).columns
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        text = to_text(views.report(seen, width, signs), colour=colour)
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough; the interpreter must not try to flush again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def _look_twice(fetcher: Fetcher, address: str, interval_s: float) -> Board:
    """Two snapshots make rates."""
    history = History(time.monotonic(), interval_s)
    try:
        history.observe(await fetcher.snapshot(Query()))
        await asyncio.sleep(interval_s)
        history.observe(await fetcher.snapshot(Query()))
    finally:
        await fetcher.close()
    return board(history, address, time.monotonic())


# --------------------------------------------------------------------------------------------------- live


def _live(fetcher: Fetcher, address: str, interval_s: float, signs: Signs) -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("the live screen needs a terminal; use --once, or --once --json")
    try:
        from zq.monitor.app import ZqTop  # the only part that needs textual
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("textual", "rich"):
            raise
        _fail("the live screen needs textual: pip install 'zq[top]'. --once works without it", EXIT_CONFIG)
    app = ZqTop(fetcher, address, interval_s=interval_s, signs=signs)

    async def run() -> None:
        try:
            await app.run_async(mouse=False)  # so that the terminal's own selection and copying work
        finally:
            await fetcher.close()

    asyncio.run(run())
    sys.exit(app.return_code or 0)


if __name__ == "__main__":
    main(prog_name="zq-top")
