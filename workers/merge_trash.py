"""Where merged segments wait before they are gone for good, and the way back for those a new merge needs.

    {recordings}/.zq-trash/{name of the segments' folder}/{segment}

Beside the recordings, so that going there and coming back are renames. How long a segment has been there is told by its
change time, which a rename sets and nobody can set back; its modification time stays what it was, for order may hang
on it. One trash folder serves all merges of a student: the same name with other bytes never comes twice, for the
upload refuses it, and if it does all the same the older one gives way.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zq.exams.segment_index import sync_folder
from zq.exams.segments import MergeRefused
from zq.workers.merge_files import SegmentChanged
from zq.workers.merge_marker import Input, has_bytes

TRASH = ".zq-trash"

log = logging.getLogger("zq.workers")


def trash_folder(target: Path, folder: str) -> Path:
    """Of the segments that were in `target/folder`; it may not exist."""
    return target / TRASH / folder


def throw_away(path: Path, trash: Path) -> None:
    """Move a segment into the trash, which `open_trash` made. Durable after `sync_folder` of both folders."""
    os.rename(path, trash / path.name)


def open_trash(target: Path, folder: str) -> Path:
    """Make the trash folder of a student if it is not there. Raises OSError; NotADirectoryError if it is a link."""
    trash = trash_folder(target, folder)
    for step in (trash.parent, trash):
        with contextlib.suppress(FileExistsError):
            os.mkdir(step, 0o700)
            sync_folder(step.parent)
        if not stat.S_ISDIR(os.lstat(step).st_mode):
            raise NotADirectoryError(f"{step} is no folder; remove it")
    return trash


def state_of(segment: Input, folder: Path) -> str:
    """same, changed or gone: what of a manifest's segment lies in `folder`.

    Read again only if it may have been touched since the merge read it: a rename keeps what tells that.
    """
    path = folder / segment.name
    try:
        same = has_bytes(path, segment.size_bytes, segment.sha256, segment.inode, segment.mtime_ns)
        return "same" if same else "changed"
    except FileNotFoundError:
        return "gone"
    except (MergeRefused, SegmentChanged):
        return "changed"


def restore(target: Path, folder: Path, missing: list[Input]) -> int:
    """Bring these segments of an earlier merge back into `folder`; returns how many came.

    Those with other bytes stay where they are. Killed in between and run again it ends the same.
    """
    trash = trash_folder(target, folder.name)
    if trash.parent.is_symlink() or trash.is_symlink():
        return 0
    restored = 0
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    for segment in missing:
        if state_of(segment, trash) == "same":
            os.rename(trash / segment.name, folder / segment.name)
            restored += 1
    if restored:
        sync_folder(folder)
        sync_folder(trash)
        log.info("%d segments of %s are taken out of the trash for a new merge", restored, folder.name)
    return restored


@dataclass(frozen=True)
class Emptied:
    """What `empty` has deleted, and what is not old enough yet. `due_s`: in so many seconds the oldest of that is."""

    deleted: int
    freed_bytes: int
    kept: int
    due_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def empty(
    target: Path, keep_s: float, now_s: float, *, on_folder: Callable[[int, int], None] = lambda done, total: None
) -> Emptied:
    """Delete what has been in the trash of one exam for `keep_s` or longer; `target` is the exam's folder of videos.

    Follows no link. Raises OSError if the disk refuses; a retry goes on.
    """
    if (target / TRASH).is_symlink():
        return Emptied(0, 0, 0)
    deleted = freed_bytes = kept = 0
    oldest_s = now_s
    folders = sorted(target.glob(f"{TRASH}/*"))
    for done, folder in enumerate(folders):
        on_folder(done, len(folders))
        if folder.is_symlink() or not folder.is_dir():
            continue
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            if entry.is_dir(follow_symlinks=False):
                continue
            found = entry.stat(follow_symlinks=False)
            if now_s - found.st_ctime < keep_s:
                kept += 1
                oldest_s = min(oldest_s, found.st_ctime)
                continue
            with contextlib.suppress(FileNotFoundError):  # a new merge has taken it back
                os.unlink(entry.path)
                deleted += 1
                freed_bytes += found.st_size
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()
    with contextlib.suppress(OSError):
        (target / TRASH).rmdir()
    return Emptied(deleted, freed_bytes, kept, max(0.0, oldest_s + keep_s - now_s) if kept else 0.0)
