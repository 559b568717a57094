"""`zq journal`: check, back up and restore the broker's journal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from zq.broker.backup import back_up, restore
from zq.broker.check import check
from zq.broker.journal import JournalRefused
from zq.broker.journal_folder import lock
from zq.broker.lmdb_view import open_to_read
from zq.broker.pages import damaged_pages
from zq.config import EXIT_CONFIG, Config, ConfigError, load


@click.group("journal")
def command() -> None:
    """Check, back up or restore the journal. Run these on the broker's machine, as the broker's user.

    Exit codes: 0 done, 1 refused or damaged, 2 wrong usage, 78 wrong configuration.
    """


_config_option = click.option("--config", "config_path", metavar="PATH", help="Configuration file.")


@command.command("check")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--pages", is_flag=True, help="Also every page of the file. The broker must be stopped.")
@_config_option
def check_command(folder: Path | None, pages: bool, config_path: str | None) -> None:
    """Check the journal, or the backup in FOLDER: every job against indexes, counts, attempts, history and body.

    The broker may run. Of a backup, every page is checked, too. Prints what is wrong, a line each.
    """
    with _reported():
        place = folder if folder is not None else journal_folder(load(config_path))
        jobs = 0
        problems = _check_pages(place) if pages or not _in_use(place) else []
        if not problems:
            with open_to_read(place, shared=_in_use(place)) as reader:
                problems = check(reader)
                jobs = reader.totals().rows
        for problem in problems:
            click.echo(problem)
        if problems:
            raise JournalRefused(f"the journal in {place} is damaged")
        click.echo(f"the journal in {place} is whole: {jobs} jobs")


@command.command("backup")
@click.argument("folder", type=click.Path(path_type=Path))
@_config_option
def backup_command(folder: Path, config_path: str | None) -> None:
    """Copy the journal, as it is now, to the new FOLDER, and check the copy. The broker may run."""
    with _reported():
        config = load(config_path)
        jobs = back_up(journal_folder(config), folder, map_size_bytes=config.broker.map_size_gib << 30)
        click.echo(f"{folder}: {jobs} jobs")


@command.command("restore")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Move a journal that is there aside.")
@_config_option
def restore_command(folder: Path, force: bool, config_path: str | None) -> None:
    """Put a copy of the backup in FOLDER in the journal's place. The broker must be stopped.

    Jobs are then as they were when the backup was made: those that have run since run again, those accepted since are
    not known.
    """
    with _reported():
        config = load(config_path)
        map_size_bytes = config.broker.map_size_gib << 30
        aside = restore(folder, journal_folder(config), force=force, map_size_bytes=map_size_bytes)
        if aside is not None:
            click.echo(f"the journal that was there is in {aside}")
        click.echo(f"{journal_folder(config)} is the backup in {folder}; start the broker")


def journal_folder(config: Config) -> Path:
    return config.data_path / "journal"


def _check_pages(folder: Path) -> list[str]:
    held = lock(folder) if _in_use(folder) else None
    try:
        return damaged_pages(folder)
    finally:
        if held is not None:
            os.close(held)


def _in_use(folder: Path) -> bool:
    """Whether a broker may have it open. A backup has no lock file, and looking at one must not make one."""
    return (folder / "lock.mdb").exists()


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        click.echo(f"zq journal: {error}", err=True)
        sys.exit(EXIT_CONFIG)
    except JournalRefused as error:
        click.echo(f"zq journal: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    command()
