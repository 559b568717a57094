"""`zq exam`: what an administrator does to the exam store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from zq.cli_options import config_option, json_option
from zq.cli_text import print_json
from zq.config import load

if TYPE_CHECKING:
    from zq.exams.migrate import Plan


@click.group("exam")
def exam() -> None:
    """The exam store: its database."""


@exam.command("migrate")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@click.option("--merge-duplicates", is_flag=True, help="Make one row of a student's rows in the same exam.")
@config_option
@json_option
def migrate(dry_run: bool, merge_duplicates: bool, config_path: str | None, as_json: bool) -> None:
    """Bring the exam database to the schema of this zq.

    Every process of zq does so when it starts; this command does it beforehand, and says what it found. A database of
    an older exam system is used as it is: its tables get what is missing (indexes, a unique pair of exam and student)
    and zq's own tables beside them; no column of theirs is changed.
    """
    from zq.exams import times
    from zq.exams.database import Database, plan

    config = load(config_path)
    found = plan(config.database_url)
    if not dry_run:
        Database(config.database_url, times.zone(config.exams.time_zone), merge_duplicates=merge_duplicates).close()
    if as_json:
        print_json(_as_json(found, dry_run))
        return
    for line in _lines(found, dry_run):
        click.echo(line)


def _as_json(found: Plan, dry_run: bool) -> dict[str, object]:
    from zq.exams.migrate import HEAD

    return {
        "from": found.version or None,
        "to": HEAD,
        "changed": not dry_run and not found.up_to_date,
        "adopted": list(found.adopted),
        "duplicates": [{"exam": exam, "student": student, "rows": rows} for exam, student, rows in found.duplicates],
    }


def _lines(found: Plan, dry_run: bool) -> list[str]:
    from zq.exams.migrate import HEAD

    if found.up_to_date:
        return [f"the exam database is at revision {HEAD}: nothing to do"]
    lines = [f"{'would go' if dry_run else 'went'} from {found.version or 'nothing'} to revision {HEAD}"]
    if found.adopted:
        lines.append(f"uses the tables that are there: {', '.join(found.adopted)}")
    if found.duplicates:
        told = "needs --merge-duplicates for" if dry_run else "made one row each of"
        lines.append(f"{told} {len(found.duplicates)} students who are in an exam more than once")
    return lines
