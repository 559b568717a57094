"""An S3-compatible bucket, as far as recordings need one: list, create, replace, read, copy, delete whole objects.

Credentials come from the environment as with every S3 program (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, a role of the
machine). An answer of "stored" is not believed for an object of several parts: its size is asked for. All calls block,
and let other threads run meanwhile. Safe to share between threads, not to use after a fork.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from zq.exams.bucket_keys import parse_url
from zq.exams.errors import ExamError

PART_BYTES = 8 << 20
"""Of an object that is sent or fetched in parts; each is a request of its own."""
ALONE_BYTES_MAX = 16 << 20
"""Up to so much is sent in one request, which the server can refuse if the key is taken."""
_REQUEST_S = timedelta(seconds=60)
_CONNECT_S = timedelta(seconds=5)
_RETRIES, _RETRY_S = 3, timedelta(seconds=15)
_SENT_AT_ONCE = 4
_PAGE = 1000


class ObjectChanged(Exception):
    """Another object has the key by now, or none."""


@dataclass(frozen=True, slots=True)
class Item:
    """An object. `etag` changes with its bytes; `modified_ms` is by the server's clock."""

    key: str
    size_bytes: int
    etag: str
    modified_ms: int


class Bucket:
    """Every call raises ExamError("unavailable") when the bucket does not answer, or refuses."""

    def __init__(self, url: str, endpoint: str = "", region: str = "") -> None:
        """Raises ExamError("invalid") for what cannot be a bucket, or where obstore is not installed."""
        place = parse_url(url)
        try:
            from obstore.store import S3Store
        except ImportError:
            raise ExamError("invalid", f"exams.storage is {url!r}, which needs obstore: pip install 'zq[s3]'") from None
        options: dict[str, Any] = {}
        if endpoint:
            options["endpoint"] = endpoint
        if region:
            options["region"] = region
        self.url = url
        self._store = S3Store(
            place.bucket,
            prefix=place.prefix or None,
            client_options={
                "timeout": _REQUEST_S,
                "connect_timeout": _CONNECT_S,
                "allow_http": endpoint.startswith("http://"),
            },
            retry_config={"max_retries": _RETRIES, "retry_timeout": _RETRY_S},
            **options,
        )

    def items(self, prefix: str) -> Iterator[Item]:
        """Every object below `prefix`/, by key."""
        import obstore

        with self._errors("list"):
            for page in obstore.list(self._store, prefix=prefix, chunk_size=_PAGE):
                yield from map(_item, page)

    def folders(self, prefix: str) -> set[str]:
        """What stands between `prefix`/ and the next slash of all keys that have one there."""
        import obstore

        with self._errors("list"):
            found = obstore.list_with_delimiter(self._store, prefix=prefix)["common_prefixes"]
            return {str(name).rpartition("/")[2] for name in found}

    def head(self, key: str) -> Item | None:
        import obstore

        with self._errors("look at"), suppress(FileNotFoundError):
            return _item(obstore.head(self._store, key))
        return None

    def create(self, key: str, content: bytes) -> bool:
        """Store an object of at most ALONE_BYTES_MAX; False, having stored nothing, if the key is taken."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._errors("write"):
            try:
                obstore.put(self._store, key, content, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
        return True

    def put(self, key: str, content: bytes) -> None:
        """Store an object, whatever was there before."""
        import obstore

        with self._errors("write"):
            obstore.put(self._store, key, content, use_multipart=False)

    def put_parts(self, key: str, parts: Iterable[bytes], size_bytes: int) -> Item:
        """Store an object of any size, whatever was there before: it appears whole. Its size is looked at then."""
        import obstore

        with self._errors("write"):
            obstore.put(
                self._store, key, iter(parts), use_multipart=True, chunk_size=PART_BYTES, max_concurrency=_SENT_AT_ONCE
            )
        stored = self.head(key)
        if stored is None or stored.size_bytes != size_bytes:
            what = "nothing" if stored is None else f"{stored.size_bytes} bytes"
            raise ExamError("unavailable", f"of {size_bytes} bytes sent to {key!r} in {self.url}, {what} arrived")
        return stored

    def parts(self, item: Item) -> Iterator[bytes]:
        """The object's bytes, in order. Raises ObjectChanged if it is not that object any more."""
        for first in range(0, item.size_bytes, PART_BYTES):
            yield self.range(item, first, min(PART_BYTES, item.size_bytes - first))

    def range(self, item: Item, first: int, length: int) -> bytes:
        """Some bytes of the object. Raises ObjectChanged if it is not that object any more."""
        import obstore
        from obstore.exceptions import PreconditionError

        with self._errors("read"):
            try:
                options: Any = {"range": (first, first + length), "if_match": item.etag}
                found = bytes(obstore.get(self._store, item.key, options=options).bytes())
            except (FileNotFoundError, PreconditionError):
                raise ObjectChanged(f"{item.key!r} was replaced or removed while it was read") from None
        if len(found) != length:
            raise ExamError("unavailable", f"{len(found)} of {length} bytes of {item.key!r} came from {self.url}")
        return found

    def read(self, key: str, bytes_max: int) -> bytes | None:
        """The whole of a small object; None if there is none. Raises ValueError if it is larger than that."""
        item = self.head(key)
        if item is None:
            return None
        if item.size_bytes > bytes_max:
            raise ValueError(f"{key!r} has {item.size_bytes} bytes, more than {bytes_max}")
        return b"".join(self.parts(item))

    def copy(self, source: str, target: str) -> None:
        import obstore

        with self._errors("copy"):
            obstore.copy(self._store, source, target)

    def delete(self, key: str) -> None:
        """Nothing there is fine."""
        import obstore

        with self._errors("delete"), suppress(FileNotFoundError):
            obstore.delete(self._store, key)

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError, ValueError) as error:
            # Below its first line is a dump of the library's own structures.
            why = str(error).strip().partition("\n")[0][:400]
            raise ExamError("unavailable", f"cannot {what} in {self.url}: {why}") from error


def _item(meta: Any) -> Item:
    return Item(meta["path"], meta["size"], meta["e_tag"] or "", int(meta["last_modified"].timestamp() * 1000))
