from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from zq.broker import resident


def resident_file_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))


def test_mapped_pages_are_let_go_and_read_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size_bytes = 32 << 20
    path = tmp_path / "data.mdb"
    path.write_bytes(b"zq" * (size_bytes // 2))
    monkeypatch.setattr(resident, "RESIDENT_FILE_BYTES_MAX", 0)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped.find(b"qq") == -1  # looks at every page
        full = resident_file_bytes()
        assert resident.let_go(path)
        assert resident_file_bytes() < full - size_bytes // 2
        assert mapped[size_bytes - 2 :] == b"zq"


def test_few_pages_are_left_alone(tmp_path: Path) -> None:
    assert not resident.let_go(tmp_path / "data.mdb")


def test_only_shared_mappings_of_the_file_itself_are_found() -> None:
    maps = (
        "7f0000000000-7f0000010000 r--s 00000000 fe:00 12 /var/zq/journal/data.mdb\n"
        "7f0000020000-7f0000030000 r--p 00000000 fe:00 12 /var/zq/journal/data.mdb\n"
        "7f0000040000-7f0000050000 r--s 00000000 fe:00 13 /var/zq/journal/data.mdb.old\n"
        "7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0 [stack]\n"
    )
    assert resident._ranges(maps, "/var/zq/journal/data.mdb") == [(0x7F0000000000, 0x10000)]
