"""The manifest of a merged recording, `<merged file>.zq.json`: what it is and what it was made of.

It is the proof that a merge is done. A later attempt that finds it does nothing; the clean-up deletes exactly the
segments it names and refuses without it. It appears after the merged file, whole, by a rename.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from zq.exams.segment_index import sync_folder
from zq.exams.segments import MergeRefused, check_name
from zq.workers.merge_files import Collected, hash_file, open_regular, sync_file

log = logging.getLogger("zq.workers")

SUFFIX = ".zq.json"
BYTES_MAX = 64 * 1024 * 1024
_Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Size = Annotated[int, Meta(ge=0)]


class Input(msgspec.Struct, frozen=True):
    """One segment that is in the merged file (or, with `duplicate_of`, is byte for byte the same as one that is)."""

    name: str
    size_bytes: _Size
    sha256: _Sha256
    duplicate_of: str = ""
    inode: _Size = 0
    mtime_ns: int = 0
    """Of the file that was read and hashed. 0: not known, as in a bucket, in manifests of older versions, and of a file
    that had just been written."""
    key: str = ""
    """In a bucket: of the object that it was, and that object's `etag`."""
    etag: str = ""


class Marker(msgspec.Struct, frozen=True, kw_only=True):
    """`folder` is the name of the segments' folder, beside the merged file `output`."""

    v: int = 1
    job_id: str
    attempt: int
    exam_id: str
    student_id: str
    output: str
    output_size_bytes: _Size
    output_sha256: _Sha256
    output_inode: _Size = 0
    output_mtime_ns: int = 0
    """As those of an `Input`."""
    duration_s: float
    frames: int
    strategy: str
    runs: int
    input_digest: _Sha256
    folder: str
    inputs: tuple[Input, ...]
    gaps: tuple[str, ...] = ()
    """What is missing, where the operator chose to have recordings with gaps merged."""


class MarkerBroken(Exception):
    """A manifest that cannot be read as one. Nothing is deleted on its word."""


def digest_inputs(ordered: Sequence[Collected]) -> str:
    """One hash for the segments of a recording, their names, bytes and order."""
    digest = hashlib.sha256()
    for segment in ordered:
        digest.update(f"{segment.sha256} {segment.size_bytes} {segment.name}\0".encode())
    return digest.hexdigest()


def write_marker(marker: Marker, path: Path) -> None:
    """Write and sync; the rename to its place is the caller's."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(marker), indent=1) + b"\n")
    sync_file(path)


def place_marker(written: Path, target: Path, output: str) -> Path:
    """Put a written manifest beside its merged file, durably."""
    place = target / (output + SUFFIX)
    os.replace(written, place)
    sync_folder(target)
    return place


def read_marker(path: Path) -> Marker:
    """Raises MarkerBroken, OSError (FileNotFoundError: there is none)."""
    with open(open_regular(path), "rb") as file:
        return decode_marker(file.read(BYTES_MAX + 1), path.name)


def decode_marker(content: bytes, where: str) -> Marker:
    """Raises MarkerBroken, which names the place `where` it is."""
    try:
        marker = msgspec.json.decode(content, type=Marker)
        for name in (marker.output, marker.folder, *(i.name for i in marker.inputs)):
            check_name(name)
    except (msgspec.DecodeError, ValueError) as error:
        raise MarkerBroken(f"{where}: not a manifest of a merged recording: {error}") from None
    if len(content) > BYTES_MAX or marker.v != 1:
        raise MarkerBroken(f"{where}: too large, or made by another version of zq")
    return marker


def has_bytes(path: Path, size_bytes: int, sha256: str, inode: int = 0, mtime_ns: int = 0) -> bool:
    """Whether the file has these bytes. Not read if it is still the very one of `inode` (0: not known) and `mtime_ns`
    whose bytes were hashed. Raises FileNotFoundError, and MergeRefused for a link.
    """
    if inode and _identity(path) == (size_bytes, inode, mtime_ns):
        return True
    # The size first: most wrong files are found without reading them.
    if os.lstat(path).st_size != size_bytes:
        return False
    return hash_file(path) == (size_bytes, sha256)


def _identity(path: Path) -> tuple[int, int, int]:
    handle = open_regular(path)  # not by its name alone: NFS would tell what it has remembered of that
    try:
        now = os.fstat(handle)
    finally:
        os.close(handle)
    return now.st_size, now.st_ino, now.st_mtime_ns


def output_is_right(marker: Marker, target: Path, *, read_again: bool = True) -> bool:
    """Whether the merged file is there with the bytes its manifest says. Not `read_again`: as in `has_bytes`."""
    known = (0, 0) if read_again else (marker.output_inode, marker.output_mtime_ns)
    try:
        return has_bytes(target / marker.output, marker.output_size_bytes, marker.output_sha256, *known)
    except FileNotFoundError:
        return False


def find_marker(target: Path, exam_id: str, student_id: str) -> Marker | None:
    """The manifest of this student's merged recording, if there is one. Raises OSError.

    One that cannot be read is no manifest; the file it belongs to is then in the way, and stays.
    """
    found: list[Marker] = []
    prefix = student_id + "_"
    with os.scandir(target) as entries:
        names = sorted(e.name for e in entries if e.name.startswith(prefix) and e.name.endswith(SUFFIX))
    for name in names:
        try:
            marker = read_marker(target / name)
        except (MarkerBroken, MergeRefused) as error:
            log.warning("a manifest is left out of account: %s", error)
            continue
        if (marker.exam_id, marker.student_id) == (exam_id, student_id) and name == marker.output + SUFFIX:
            found.append(marker)
    return max(found, key=lambda m: len(m.inputs), default=None)


def adopt(work: Path, name: str, target: Path) -> None:
    """Finish what an attempt left undone that died between publishing its file and placing the manifest."""
    try:
        marker = read_marker(work / name)
    except (MarkerBroken, MergeRefused, OSError):
        return
    if output_is_right(marker, target):
        place_marker(work / name, target, marker.output)


def contains(new: Iterable[Collected], old: Marker) -> bool:
    """Whether every segment of an earlier merge is among the new ones, with the same bytes."""
    have = {(c.name, c.sha256) for c in new}
    return all((i.name, i.sha256) in have for i in old.inputs)
