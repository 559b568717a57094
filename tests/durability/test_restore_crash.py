"""`zq journal restore --force` dies at a system call: a whole journal is in place, and the earlier one is not lost."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from tests.broker.test_journal import accept, row_of
from zq.broker.backup import back_up
from zq.broker.check import check
from zq.broker.lmdb_journal import LmdbJournal
from zq.broker.lmdb_view import open_to_read

MAP_BYTES = 1 << 22
BACKED_UP, LATER = accept(1), accept(2)
RESTORE = (
    "import sys; from pathlib import Path; from zq.broker.backup import restore\n"
    "restore(Path(sys.argv[1]), Path(sys.argv[2]), force=True, map_size_bytes=1 << 22)"
)
KILLED = -9


def make(folder: Path) -> tuple[Path, Path]:
    """A backup with one job, and the journal it is of, with one more by now."""
    journal = LmdbJournal(folder / "journal", map_size_bytes=MAP_BYTES)
    journal.commit([BACKED_UP], 1000)
    journal.close()
    back_up(folder / "journal", folder / "backup")
    journal = LmdbJournal(folder / "journal", map_size_bytes=MAP_BYTES)
    journal.commit([LATER], 2000)
    journal.close()
    return folder / "backup", folder / "journal"


def has_later(folder: Path) -> bool:
    with open_to_read(folder, shared=False) as reader:
        assert check(reader) == []
        assert reader.row(row_of(BACKED_UP).id) is not None
        return reader.row(row_of(LATER).id) is not None


@pytest.mark.parametrize(
    "call",
    [
        "rename", "unlink", pytest.param("link", marks=pytest.mark.long), pytest.param("mkdir", marks=pytest.mark.long),
        pytest.param("fsync", marks=pytest.mark.long), pytest.param("pwrite64", marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_a_journal_is_in_place_whatever_call_it_dies_at(strace: str, tmp_path: Path, call: str) -> None:
    for number in itertools.count(1):
        backup, journal = make(tmp_path / str(number))
        aside = journal.parent.glob("journal.before-*")
        traced = [strace, "-D", "-f", "-qqq", "-o", "/dev/null", "-e", f"inject={call}:signal=KILL:when={number}"]
        words = [*traced, sys.executable, "-B", "-c", RESTORE, str(backup), str(journal)]
        died = subprocess.run(words, check=False).returncode
        if died == 0:
            break
        assert died == KILLED
        if not has_later(journal):
            assert [has_later(folder) for folder in aside] == [True]
        again = LmdbJournal(journal, map_size_bytes=MAP_BYTES)
        again.close()
    assert number > 1, f"{call} was never called"
    assert not has_later(journal)
    assert [has_later(folder) for folder in journal.parent.glob("journal.before-*")] == [True]
