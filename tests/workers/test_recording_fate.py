"""What follows from a merge: the store's row, and a clean-up that waits for the merge to be durably done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import zq
from zq.client.requests import encode, raw_id
from zq.config import Config, WorkerSection
from zq.exams.status import MergeState
from zq.exams.store import ExamStore
from zq.exceptions import Refused, Reject, Retry, Unavailable
from zq.protocol.errors import Code
from zq.protocol.job import ENDED, State, format_id, new_job_id
from zq.protocol.messages import JobDetail, JobInfo
from zq.workers.merge_run import MergeResult
from zq.workers.recording_fate import RecordingFate, clean_up_request, require_done, trash_request

MERGE = format_id(bytes(range(16)))


class Broker:
    """Stands in for the client: answers with one state, or raises."""

    def __init__(self, answer: State | Exception) -> None:
        self.answer = answer

    def __call__(self, _config: Config) -> Broker:
        return self

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_error: object) -> None:
        return None

    def detail(self, job_id: bytes) -> JobDetail:
        if isinstance(self.answer, Exception):
            raise self.answer
        info = JobInfo(job_id, "t", "q", self.answer, 5, 1, 4, 1, 0, 0, 0, "", "", "", 1)
        return JobDetail(0, info, b"", [])


def broker_says(monkeypatch: pytest.MonkeyPatch, answer: State | Exception) -> None:
    monkeypatch.setattr(zq, "Client", Broker(answer))


def test_nothing_is_deleted_before_the_merge_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    broker_says(monkeypatch, State.DONE)
    require_done(Config(), MERGE)
    for state in set(State) - {State.DONE}:
        broker_says(monkeypatch, state)
        with pytest.raises(Reject if state in ENDED else Retry):
            require_done(Config(), MERGE)


def test_nothing_is_deleted_for_a_merge_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    broker_says(monkeypatch, Refused(Code.NOT_FOUND, "no such job"))
    with pytest.raises(Reject, match="merge_unknown"):
        require_done(Config(), MERGE)


def test_it_is_asked_again_when_the_broker_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    broker_says(monkeypatch, Unavailable("away"))
    with pytest.raises(Retry):
        require_done(Config(), MERGE)


def test_however_often_a_merge_is_repeated_its_clean_up_is_one_job() -> None:
    one = encode(clean_up_request(MERGE, "e", "s", ""), WorkerSection())
    two = encode(clean_up_request(MERGE, "e", "s", ""), WorkerSection())
    other = clean_up_request(format_id(bytes(16)), "e", "s", "")
    assert one == two
    assert raw_id(other.id) != one.id


def test_the_trash_of_an_exam_is_one_job() -> None:
    request = trash_request("e", 86_400)
    assert (request.key, request.key_policy) == ("trash:e", "reschedule")
    assert request.countdown is not None
    assert request.countdown > 86_400


def test_the_segments_of_a_recording_with_gaps_stay(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    taker = Taker(away=0)
    monkeypatch.setattr(zq, "Client", taker)
    RecordingFate(config, Attempt(), "e", "s").merged(RESULT, "", clean_up=False)  # type: ignore[arg-type]
    assert taker.taken == []


class Attempt:
    """As much of a job context as the fate of a recording needs."""

    def __init__(self) -> None:
        self.id = format_id(new_job_id())
        self.attempt = 1

    def check_soft_limit(self) -> None:
        """It has not passed."""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(data_dir=str(tmp_path))


@pytest.fixture
def store(config: Config) -> Iterator[ExamStore]:
    with contextlib.closing(ExamStore(config.database_url, config.exams.time_zone)) as store:
        yield store


RESULT = MergeResult(
    video="s_张伟_20250101_100000.webm",
    strategy="join",
    segments=7,
    runs=1,
    frames=100,
    duration_s=12.4,
    size_bytes=78_000,
    seconds=0.3,
    already=False,
)


class Taker(Broker):
    """Is away for the first submits."""

    def __init__(self, away: int) -> None:
        super().__init__(State.DONE)
        self.away = away
        self.taken: list[object] = []

    def submit_request(self, request: object) -> None:
        self.away -= 1
        if self.away >= 0:
            raise Unavailable("away")
        self.taken.append(request)


def test_a_merge_is_written_down_and_its_clean_up_waits_for_the_broker(
    config: Config, store: ExamStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create_exam("e", "Exam", 1_000_000_000_000, 1_000_000_100_000, now_ms=1)
    store.ensure_students("e", [("s", "张伟")])
    taker = Taker(away=3)
    monkeypatch.setattr(zq, "Client", taker)
    RecordingFate(config, Attempt(), "e", "s").merged(RESULT, "")  # type: ignore[arg-type]
    recording = store.get_student("e", "s").recording
    assert recording is not None
    assert (recording.state, recording.video, recording.duration_ms) == (MergeState.DONE, RESULT.video, 12_400)
    assert len(taker.taken) == 1


def test_a_failure_is_written_down_with_its_reason(config: Config, store: ExamStore) -> None:
    store.create_exam("e", "Exam", 1_000_000_000_000, 1_000_000_100_000, now_ms=1)
    store.ensure_students("e", [("s", "")])
    RecordingFate(config, Attempt(), "e", "s").failed("sequence_gap: 3 is missing")  # type: ignore[arg-type]
    recording = store.get_student("e", "s").recording
    assert recording is not None
    assert (recording.state, recording.error) == (MergeState.FAILED, "sequence_gap: 3 is missing")


def test_a_recording_the_store_does_not_know_is_cleaned_up_all_the_same(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    taker = Taker(away=0)
    monkeypatch.setattr(zq, "Client", taker)
    RecordingFate(config, Attempt(), "e", "nobody").merged(RESULT, "")  # type: ignore[arg-type]
    assert len(taker.taken) == 1
