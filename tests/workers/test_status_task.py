"""The status check as a task: what it reports, and the merges it asks for when the broker is there or away."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from zq.client.requests import JobRequest, encode
from zq.config import Config, WorkerSection, load
from zq.exams.status import MergeState
from zq.exams.storage import RecordingStorage
from zq.exams.store import ExamStore
from zq.exceptions import Unavailable
from zq.protocol.job import State
from zq.protocol.messages import Receipt, ReceiptStatus
from zq.workers import status

NOW_MS = time.time_ns() // 1_000_000


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    monkeypatch.setenv("ZQ_DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    status._slot.cache_clear()
    yield load()
    with contextlib.suppress(AttributeError):
        status._slot().store.close()
    status._slot.cache_clear()


@pytest.fixture
def store(config: Config) -> Iterator[ExamStore]:
    with contextlib.closing(ExamStore(config.database_url, config.exams.time_zone)) as store:
        yield store


class Broker:
    def __init__(self, *, away: bool) -> None:
        self.away = away
        self.taken: list[bytes] = []

    def submit_many(self, requests: Sequence[JobRequest]) -> list[Receipt]:
        if self.away:
            raise Unavailable("away")
        self.taken += [encode(request, WorkerSection()).id for request in requests]
        return [Receipt(job_id, ReceiptStatus.ACCEPTED, State.READY) for job_id in self.taken[-len(requests) :]]


def end_an_exam(store: ExamStore, config: Config) -> None:
    """One student who was online to the end, with a segment."""
    store.create_exam("e", "Exam", NOW_MS - 3_600_000, NOW_MS + 1_000, now_ms=NOW_MS - 3_600_000)
    store.login("e", "s", now_ms=NOW_MS - 5_000, ip="127.0.0.1", name="张伟")
    store.edit_times("e", now_ms=NOW_MS - 4_000, end=NOW_MS - 3_000)
    with RecordingStorage(config.storage_path).open_segment("e", "s", "1.webm", size_bytes_max=10) as writer:
        writer.write(b"x")
        writer.commit()


def merge_state(store: ExamStore) -> MergeState:
    recording = store.get_student("e", "s").recording
    assert recording is not None
    return recording.state


def test_an_exam_that_is_over_has_its_merges_submitted(
    config: Config, store: ExamStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_an_exam(store, config)
    broker = Broker(away=False)
    monkeypatch.setattr(status._slot(), "client", broker)
    result = status.check_exams()
    assert result["closed"] == [["e", "s"]]
    assert (result["merges"], result["trouble"]) == (1, "")
    assert merge_state(store) is MergeState.SUBMITTED
    assert len(broker.taken) == 1


def test_while_the_broker_is_away_the_merges_stay_open_and_the_check_is_done(
    config: Config, store: ExamStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_an_exam(store, config)
    monkeypatch.setattr(status._slot(), "client", Broker(away=True))
    result = status.check_exams()
    assert (result["merges"], result["trouble"]) == (0, "away")
    assert merge_state(store) is MergeState.REQUESTED


def test_nothing_to_do_is_a_plain_report(config: Config, store: ExamStore) -> None:
    assert status.check_exams() == {
        "started": [], "completed": [], "live": 0, "online": 0, "went_offline": [], "came_online": [], "closed": [],
    }  # fmt: skip
