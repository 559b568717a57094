"""The exam store of a service that may wait for weeks until an exam is held: opened when it is first needed.

Until then the process does without SQLAlchemy and what it imports (15 MiB).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zq.config import Config
from zq.exams import times
from zq.exams.at_rest import at_rest
from zq.exams.heartbeats import Presence, Recorded, StatusNews, StudentKey
from zq.exams.model import Heartbeat

if TYPE_CHECKING:
    from zq.exams.store import ExamStore


def presence_of(config: Config, store: ExamStore) -> Presence:
    """Raises ExamError("invalid") for an `exams.presence` that cannot be used."""
    if config.exams.presence:
        from zq.exams.redis_presence import RedisPresence

        return RedisPresence(config.exams.presence, store.database)
    from zq.exams.presence import SqlPresence

    return SqlPresence(store.database)


class LateStore:
    """Has every method of ExamStore; the first call of one opens the database, in the thread that calls.

    Raises ExamError as ExamStore does: from the constructor for a time zone that does not exist, and for a database
    that cannot be used if there is something in it to be watched; else from the first call. Safe to share between
    threads.
    """

    def __init__(self, config: Config) -> None:
        self.zone = times.zone(config.exams.time_zone)
        self._config = config
        self._store: ExamStore | None = None
        self._presence: Presence | None = None
        self._lock = threading.Lock()
        if not at_rest(config):
            self.open()

    @property
    def is_open(self) -> bool:
        return self._store is not None

    def open(self) -> ExamStore:
        """The store itself."""
        with self._lock:
            if self._store is None:
                from zq.exams.store import ExamStore

                self._store = ExamStore(self._config.database_url, self._config.exams.time_zone)
            return self._store

    def presence(self) -> Presence:
        """Where the configuration keeps signs of life."""
        store = self.open()
        with self._lock:
            if self._presence is None:
                self._presence = presence_of(self._config, store)
            return self._presence

    def rests(self) -> bool:
        """Whether nothing needs the store yet. A look at the database, of a millisecond."""
        return self._store is None and at_rest(self._config)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return functools.partial(self._call, name)

    def _call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.open(), name)(*args, **kwargs)


class LatePresence:
    """Presence in that store. While it rests there is no student whose silence could count, and nothing is written."""

    def __init__(self, store: LateStore) -> None:
        self._store = store
        self._rested = False

    @property
    def others_write(self) -> bool:
        return self._store.presence().others_write

    def activity(self, exam_ids: Sequence[str]) -> Mapping[StudentKey, int]:
        return self._store.presence().activity(exam_ids)

    def tell(self, news: Sequence[StatusNews]) -> None:
        self._store.presence().tell(news)

    def record(self, beats: Sequence[Heartbeat], now_ms: int, *, after_gap: bool) -> Recorded:
        if not beats and self._store.rests():
            self._rested = True
            return Recorded(0, (), ())
        # What was not written down is a gap: the clock of silence starts anew, and nobody goes offline for it.
        recorded = self._store.presence().record(beats, now_ms, after_gap=after_gap or self._rested)
        self._rested = False
        return recorded
