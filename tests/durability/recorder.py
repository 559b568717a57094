"""Which bytes of the journal's two files were where when: the system calls of a workload, recorded with strace.

What a power failure may leave of a file is what was synced, and any part of what was not. A write through an O_DSYNC
descriptor is on the disk, by itself, when it returns. A rename is there or not until its folder is synced.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_CALLS = "openat,close,pwrite64,pwritev,write,writev,lseek,fdatasync,fsync,msync,ftruncate,rename"
_CALL = re.compile(r"^(\w+)\((.*)\)\s+= (-?\d+)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


FILES = ("data.mdb", "log")


@dataclass(frozen=True)
class Write:
    file: str
    offset: int
    data: bytes
    synced: bool
    """Through an O_DSYNC descriptor."""


@dataclass(frozen=True)
class Sync:
    """All that was written to the file is on the disk."""

    file: str


@dataclass(frozen=True)
class Rename:
    """The journal has got its name, in memory."""


@dataclass(frozen=True)
class FolderSync:
    """Names are on the disk."""


@dataclass(frozen=True)
class Say:
    word: str
    number: int


Event = Write | Sync | Rename | FolderSync | Say


def record(strace: str, folder: Path, seed: int, batches: int, mode: str) -> list[Event]:
    """Run workload.py on `folder`/journal; what it did to the journal's files and said, in order."""
    log = folder / "strace.log"
    words = [strace, "-qq", "-xx", "-s", "10000000", "-e", f"trace={_CALLS}", "-o", str(log), sys.executable]
    arguments = ["-m", "tests.durability.workload", str(folder / "journal"), str(seed), str(batches), mode]
    subprocess.run([*words, *arguments], check=True, stdout=subprocess.DEVNULL, timeout=110)
    with log.open(encoding="ascii") as lines:
        return list(_events(lines, folder))


def _events(lines: Iterator[str], folder: Path) -> Iterator[Event]:
    open_files: dict[int, tuple[str, bool]] = {}
    position: dict[int, int] = {}
    for line in lines:
        match = _CALL.match(line)
        if match is None or match[3].startswith("-"):
            continue
        call, arguments, answer = match[1], match[2], int(match[3])
        texts = [bytes.fromhex(text.replace("\\x", "")) for text in _TEXT.findall(arguments)]
        if call == "openat":
            open_files[answer] = (texts[0].decode(), "O_DSYNC" in arguments or "O_SYNC" in arguments)
            position[answer] = 0
            continue
        if call == "rename":
            if texts[1].decode() == str(folder / "journal"):
                yield Rename()
            continue
        descriptor = int(arguments.partition(",")[0])
        path, dsync = open_files.get(descriptor, ("", False))
        if call == "close":
            open_files.pop(descriptor, None)
        elif descriptor == 1 and call == "write":
            word, number = texts[0].split()
            yield Say(word.decode(), int(number))
        elif call in ("fsync", "fdatasync") and path == str(folder):
            yield FolderSync()
        elif (file := path.rpartition("/")[2].removesuffix(".new")) in FILES:
            data = b"".join(texts)
            if call in ("fsync", "fdatasync"):
                yield Sync(file)
            elif call == "lseek":
                position[descriptor] = answer
            elif call in ("pwrite64", "pwritev"):
                assert answer == len(data), f"a short write: {line[:100]}"
                yield Write(file, int(arguments.rpartition(",")[2]), data, dsync)
            elif call in ("write", "writev"):
                assert answer == len(data), f"a short write: {line[:100]}"
                yield Write(file, position[descriptor], data, dsync)
                position[descriptor] += answer
            else:
                raise AssertionError(f"the recorder does not know what {call} does to the journal")
