"""The page's files, read once: with their types, their ETags, and compressed where that makes them smaller."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

FOLDER: Final = Path(__file__).resolve().parent / "static"
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
_COMPRESSED_BYTES_MIN: Final = 512


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file under /static/."""

    content: bytes
    compressed: bytes | None
    media_type: str
    etag: str

    def answer(self, request: Request, headers: Mapping[str, str]) -> Response:
        """The file, or 304 for who has it already. A browser asks again each time: an upgrade is seen at once."""
        sent = {**headers, "Cache-Control": "no-cache", "ETag": self.etag, "Vary": "Accept-Encoding"}
        if request.headers.get("if-none-match") == self.etag:
            return Response(status_code=304, headers=sent)
        sent["Content-Type"] = self.media_type
        if self.compressed is not None and "gzip" in request.headers.get("accept-encoding", ""):
            return Response(self.compressed, 200, {**sent, "Content-Encoding": "gzip"})
        return Response(self.content, 200, sent)


def page_files() -> dict[str, PageFile]:
    """By their path below /static/. Files of other types, such as licences and templates, are not served."""
    found = {}
    for path in sorted(FOLDER.rglob("*")):
        media_type = _TYPES.get(path.suffix)
        if media_type is not None and path.is_file():
            found[path.relative_to(FOLDER).as_posix()] = _read(path, media_type)
    return found


def _read(path: Path, media_type: str) -> PageFile:
    content = path.read_bytes()
    compressed = None
    if len(content) >= _COMPRESSED_BYTES_MIN and path.suffix != ".woff2":
        compressed = gzip.compress(content, 9, mtime=0)
    return PageFile(content, compressed, media_type, f'"{hashlib.sha256(content).hexdigest()[:24]}"')
