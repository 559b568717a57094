"""The journal's folder: making it, naming it, locking it, and saying what is wrong with it.

A journal is made under another name, whole and durable, and then renamed, so that a crash leaves none or a good one.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import lmdb

from zq.broker.journal import JournalError, JournalRefused

TABLES_FILE = "data.mdb"
LOG_FILE = "log"

_REMOTE_FILESYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs"})
"""No memory map with working locks there."""

_DISK_ERRORS = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What may have gone when the next broker starts. LMDB calls a full disk EIO as often as ENOSPC."""


def begin_new(folder: Path) -> Path:
    """An empty private folder beside `folder`, in which a journal can be made; what was left in it is gone."""
    new = folder.with_name(folder.name + ".new")
    if new.exists():
        for file in new.iterdir():
            file.unlink()
    new.mkdir(mode=0o700, exist_ok=True)
    return new


def put_in_place(new: Path, folder: Path) -> None:
    """Give the finished journal in `new` its name, durably."""
    sync_folder(new)
    new.rename(folder)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(folder: Path) -> int:
    """Lock the journal in `folder` for one broker, since LMDB itself would let two write in turn; the descriptor.

    The lock ends with the process or when the descriptor is closed. Raises JournalRefused if another has it.
    """
    path = folder.with_name(folder.name + ".lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 64, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise JournalRefused(
            f"another broker has this journal ({path}: pid {owner or 'unknown'}); stop it, or use another data_dir"
        ) from None
    # For people only: on a full disk the lock is taken without it.
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def in_use(folder: Path) -> bool:
    """Whether the broker that last locked the journal in `folder` is alive, as far as this process can see."""
    try:
        pid = int(folder.with_name(folder.name + ".lock").read_text(encoding="ascii"))
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def is_of_the_disk(error: lmdb.Error | OSError) -> bool:
    return (error.code if isinstance(error, lmdb.Error) else error.errno) in _DISK_ERRORS


def failed(folder: Path, error: lmdb.Error | OSError) -> JournalError:
    what = f"the disk under {folder} is full or fails" if is_of_the_disk(error) else "a commit failed"
    return JournalError(f"{what}: {error}")


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """What goes wrong when a journal is opened, as one of the two errors that a broker knows."""
    try:
        yield
    except (lmdb.Error, OSError) as error:
        if is_of_the_disk(error):
            raise failed(folder, error) from error
        raise JournalRefused(
            f"the journal in {folder} cannot be opened: {error}. Nothing was changed. Restore a backup (zq journal "
            "restore), or move the folder away to begin with an empty journal"
        ) from error


def make_parents(folder: Path) -> None:
    """Make the folder's parents, private, in such a way that a power failure takes none of them away again."""
    missing = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for parent in reversed(missing):
        sync_folder(parent.parent)


def refuse_remote(folder: Path) -> None:
    with suppress(OSError, ValueError, IndexError):
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
        inside = [(m[1], m[2]) for m in mounts if (str(folder.resolve()) + "/").startswith(m[1].rstrip("/") + "/")]
        _, kind = max(inside, key=lambda m: len(m[0]))
        if kind in _REMOTE_FILESYSTEMS:
            raise JournalRefused(
                f"{folder} is on {kind}: a journal needs a local file system (memory map, locks); set data_dir to one"
            )
