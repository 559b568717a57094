"""The pages of a journal's file, read from the file itself: LMDB reads them through a map, and the kernel ends who
looks behind a file's end there."""

from __future__ import annotations

from pathlib import Path

import lmdb

from zq.broker.journal import JournalRefused
from zq.broker.journal_folder import TABLES_FILE


def damaged_pages(folder: Path) -> list[str]:
    """What is wrong with the pages of a journal that nobody writes to. Raises JournalRefused if there is none."""
    from lmdb import verify  # a broker at rest does without

    try:
        return [str(problem) for problem in verify.verify(str(folder))]  # type: ignore[no-untyped-call]
    except FileNotFoundError:
        raise JournalRefused(f"there is no journal in {folder}") from None
    except (OSError, verify.VerifyError) as error:
        raise JournalRefused(f"the journal in {folder} cannot be read: {error}") from None


def refuse_cut_short(env: lmdb.Environment, folder: Path) -> None:
    """Raise JournalRefused if pages are missing at the end of the file; `env` has just been opened on it.

    A file may rightly end before the last page that was ever given out, for one that was given back at once is never
    written: then all are looked at.
    """
    size_bytes = (folder / TABLES_FILE).stat().st_size
    if size_bytes >= (env.info()["last_pgno"] + 1) * env.stat()["psize"]:
        return
    problems = damaged_pages(folder)
    if problems:
        raise JournalRefused(
            f"{folder / TABLES_FILE} is shorter than it was, and pages are missing: {problems[0]}. Nothing was changed."
            " Restore a backup (zq journal restore)"
        )
