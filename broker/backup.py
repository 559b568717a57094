"""Copies of the journal: a backup from under a running broker, and putting one in the journal's place.

A backup is a folder with one LMDB file, as compact as LMDB makes it. It is checked before it gets its name, and a
damaged one is never put in place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import lmdb

from zq.broker.check import check
from zq.broker.journal import JournalError, JournalRefused
from zq.broker.journal_folder import LOG_FILE, TABLES_FILE, begin_new, in_use, lock, put_in_place, sync_folder
from zq.broker.lmdb_journal import LmdbJournal, bring_up
from zq.broker.lmdb_view import DATA_FORMAT, LmdbReader, has_log, open_to_read
from zq.broker.pages import damaged_pages

EPOCHS_SKIPPED = 1000
"""Restarts of the broker between a backup and its restore that are allowed for: the tokens and session ids which they
gave out must never be given out again, or a worker of then could speak for a job of now."""


def back_up(journal: Path, destination: Path, *, map_size_bytes: int = 1 << 30) -> int:
    """Copy the journal, as it is now, to the new folder `destination`; how many jobs it has.

    A broker may be running: LMDB gives a reader one state for as long as it reads, and the broker's file grows a
    little meanwhile. All that had a receipt when this began is in the copy. After a broker that was killed, its log is
    worked in first. Raises JournalRefused; then there is no `destination`.
    """
    if destination.exists():
        raise JournalRefused(f"{destination} exists; name a new folder")
    with _private(), _explained(destination):
        new = begin_new(destination)
        if not in_use(journal) and has_log(journal):
            LmdbJournal(journal, map_size_bytes=map_size_bytes).close()
        with open_to_read(journal, shared=True) as reader:
            reader.copy_to(new)
        with open_to_read(new, shared=False) as copy:
            _refuse_damaged(journal, copy)
            jobs = copy.totals().rows
        _sync_file(new / TABLES_FILE)
        put_in_place(new, destination)
    return jobs


def restore(backup: Path, journal: Path, *, force: bool, map_size_bytes: int) -> Path | None:
    """Put a copy of `backup`, brought up to today's format, in the journal's place. No broker may run.

    With `force`, a journal that is there is kept aside; the answer says where. At every moment the one or the other
    is in place, whole. Raises JournalRefused, and then nothing has changed.
    """
    with _private(), _explained(journal):
        journal.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = lock(journal)
        try:
            if journal.exists() and not force:
                raise JournalRefused(f"there is a journal in {journal}; --force moves it aside and keeps it")
            new = begin_new(journal)
            # Before LMDB sees it: LMDB may end the process over a damaged file.
            if problems := damaged_pages(backup):
                raise JournalRefused(f"the backup in {backup} is damaged: {problems[0]}")
            with lmdb.open(str(backup), readonly=True, create=False, lock=False, lib_version=DATA_FORMAT) as env:
                env.copy(str(new), compact=True)
            bring_up(new, EPOCHS_SKIPPED, map_size_bytes)
            with open_to_read(new, shared=False) as reader:
                _refuse_damaged(backup, reader)
            _sync_file(new / TABLES_FILE)
            if journal.exists():
                aside = journal.with_name(f"{journal.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
                _exchange(new, journal, aside)
            else:
                aside = None
                put_in_place(new, journal)
        finally:
            os.close(held)
    return aside


def _exchange(new: Path, journal: Path, aside: Path) -> None:
    """Put the tables of `new` in the place of the journal's, which are kept in `aside`: one rename does it."""
    aside.mkdir(mode=0o700)
    for name in (TABLES_FILE, LOG_FILE):
        if not (journal / name).exists():
            continue
        try:
            os.link(journal / name, aside / name)
        except OSError:  # a file system without links
            shutil.copyfile(journal / name, aside / name)
            _sync_file(aside / name)
    sync_folder(aside)
    sync_folder(aside.parent)
    (new / TABLES_FILE).rename(journal / TABLES_FILE)
    # The log belongs to the tables that were there. LMDB's locks speak of that file, too; a process that still reads
    # it keeps it, and them.
    for name in (LOG_FILE, "lock.mdb"):
        (journal / name).unlink(missing_ok=True)
    sync_folder(journal)
    shutil.rmtree(new)


def _refuse_damaged(folder: Path, reader: LmdbReader) -> None:
    problems = check(reader, problems_max=3)
    if problems:
        raise JournalRefused(f"the journal in {folder} is damaged: {'; '.join(problems)}")


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_folder(path.parent)


@contextmanager
def _private() -> Iterator[None]:
    """LMDB makes the files of a copy readable for everybody unless the umask says otherwise."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        # What was begun is of no use, and may be what has filled the disk.
        shutil.rmtree(folder.with_name(folder.name + ".new"), ignore_errors=True)
        if isinstance(error, OSError | lmdb.Error | JournalError):
            raise JournalRefused(f"{folder} cannot be written: {error}") from error
        raise
