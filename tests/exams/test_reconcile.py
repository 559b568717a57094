"""Merges that ended without a word to the store, with a real broker."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.conftest import LiveBroker
from zq import Client, payload
from zq.client.link import ClientContext, open_socket
from zq.config import Config, load
from zq.exams import reconcile
from zq.exams.merging import QUEUE, submit_merges
from zq.exams.model import Recording
from zq.exams.reconcile import PER_CHECK_MAX, SETTLE_MS, Fate, Reconciler, fate_of
from zq.exams.status import MergeState
from zq.exams.storage import RecordingStorage
from zq.exams.store import ExamStore
from zq.protocol import codec, messages
from zq.protocol.job import Outcome, State, format_id, new_job_id
from zq.protocol.messages import JobDetail, JobInfo
from zq.workers import status

LONG_AGO_MS = 1_700_000_000_000
NOW_MS = LONG_AGO_MS + SETTLE_MS
RESULT = {"video": "s_张伟.webm", "segments": 7, "size_bytes": 78_000, "duration_s": 12.4, "strategy": "join"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ExamStore]:
    with contextlib.closing(ExamStore(f"sqlite:///{tmp_path / 'exams.db'}", "Asia/Shanghai")) as store:
        store.create_exam("e", "Exam", LONG_AGO_MS, LONG_AGO_MS + 1000, now_ms=LONG_AGO_MS)
        store.ensure_students("e", [("s", "张伟")])
        yield store


@pytest.fixture
def client(live_broker: LiveBroker) -> Iterator[Client]:
    with Client(live_broker.config, role="admin") as client:
        yield client


def recording(store: ExamStore, student: str = "s") -> Recording:
    found = store.get_student("e", student).recording
    assert found is not None
    return found


def submit(store: ExamStore, client: Client) -> str:
    merge = store.request_merge("e", "s", now_ms=LONG_AGO_MS)
    (submitted,) = submit_merges(client, store, Config(), [merge])
    assert submitted.accepted
    assert recording(store).state is MergeState.SUBMITTED
    return submitted.job_id


class Worker:
    """Plays one on the wire: takes a job, and then what the test says."""

    def __init__(self, client: Client) -> None:
        self._context = ClientContext()
        self._socket = open_socket(self._context, client._link)
        self._socket.setsockopt(zmq.RCVTIMEO, 20_000)
        slots = [messages.QueueSlots(QUEUE, 1)]
        self._say(messages.Hello(1, 1, messages.Role.WORKER, "player", os.urandom(16), slots))
        welcome = self._hear(messages.Welcome)
        self.session: int = welcome.session
        self._say(messages.Resume(self.session, []))
        self._say(messages.Credit(self.session, slots))
        self.lease: messages.Lease = self._hear(messages.Dispatch).leases[0]

    def _say(self, message: Any) -> None:
        self._socket.send(codec.encode(message))

    def _hear(self, kind: type) -> Any:
        while not isinstance(message := codec.decode_from_broker(self._socket.recv()), kind):
            pass
        return message

    def finish(self, result: object) -> None:
        lease, data = self.lease, payload.encode_result(result)
        done = messages.Result(lease.job_id, lease.attempt, lease.token, Outcome.DONE, data)
        self._say(messages.Ack(self.session, [done]))
        self._hear(messages.Acked)
        self.die()

    def die(self) -> None:
        """As a worker that is killed: nobody says how the attempt ended, and nobody writes into the store."""
        self._say(messages.Bye(self.session))
        self._socket.close(linger=500)
        self._context.term()


def test_a_merge_whose_workers_are_killed_until_it_is_dead_is_written_down_as_failed(
    store: ExamStore, client: Client
) -> None:
    job_id = submit(store, client)
    reconciler = Reconciler(store)
    for attempt in range(1, 5):
        assert reconciler.check(client, NOW_MS) == reconcile.Reconciled()
        assert recording(store).state is MergeState.SUBMITTED
        worker = Worker(client)
        assert worker.lease.attempt == attempt
        worker.die()
    ended = client.wait(job_id, 20)
    assert ended is not None
    assert ended.state is State.DEAD
    assert reconciler.check(client, NOW_MS).failed == 1
    assert recording(store).state is MergeState.FAILED
    assert job_id in recording(store).error
    assert ended.error in recording(store).error
    assert reconciler.check(client, NOW_MS) == reconcile.Reconciled()
    client.retry([job_id])  # an operator's retry that succeeds corrects it
    store.merge_succeeded("e", "s", job_id, now_ms=NOW_MS, video="v.webm", segments=1, size_bytes=1, duration_ms=1)
    assert recording(store).state is MergeState.DONE


def test_a_cancelled_merge_is_failed(store: ExamStore, client: Client) -> None:
    client.cancel([submit(store, client)])
    assert Reconciler(store).check(client, NOW_MS).failed == 1
    assert recording(store).state is MergeState.FAILED
    assert "is cancelled" in recording(store).error


def test_a_merge_that_the_broker_does_not_know_is_asked_for_again(
    store: ExamStore, client: Client, live_broker: LiveBroker
) -> None:
    first = submit(store, client)
    live_broker.end(signal.SIGKILL)
    shutil.rmtree(live_broker.config.data_path)
    live_broker.start()
    done = Reconciler(store).check(client, NOW_MS)
    (merge,) = done.again
    assert merge.job_id != first
    assert recording(store).state is MergeState.REQUESTED
    assert submit_merges(client, store, Config(), done.again)[0].accepted
    assert recording(store).state is MergeState.SUBMITTED
    assert client.job(merge.job_id).state() is State.READY


def test_a_merge_that_is_done_and_was_not_written_down_is(store: ExamStore, client: Client) -> None:
    submit(store, client)
    Worker(client).finish(RESULT)
    assert Reconciler(store).check(client, NOW_MS).merged == 1
    found = recording(store)
    assert (found.state, found.video, found.segments, found.duration_ms) == (
        MergeState.DONE, RESULT["video"], 7, 12_400,
    )  # fmt: skip


def test_young_requests_and_what_the_task_has_told_meanwhile_are_left_alone(
    store: ExamStore, client: Client
) -> None:
    job_id = submit(store, client)
    client.cancel([job_id])
    assert Reconciler(store).check(client, NOW_MS - 1) == reconcile.Reconciled()

    class Late:
        """While the broker is asked, another merge is requested."""

        def details(self, ids: Sequence[Any]) -> list[JobDetail | None]:
            store.request_merge("e", "s", now_ms=NOW_MS)
            return client.details(ids)

    Reconciler(store).check(Late(), NOW_MS)
    assert recording(store).state is MergeState.REQUESTED
    assert store.merge_lost("e", "s", job_id, now_ms=NOW_MS) is None


def test_a_long_queue_of_live_merges_hides_no_dead_one(store: ExamStore) -> None:
    students = [f"s{n:03}" for n in range(PER_CHECK_MAX + 5)]
    store.ensure_students("e", [(student, "") for student in students])
    for student in students:
        merge = store.request_merge("e", student, now_ms=LONG_AGO_MS)
        store.merge_submitted("e", student, merge.job_id)
    dead = recording(store, students[-1]).job_id
    asked: list[int] = []

    class Broker:
        def details(self, ids: Sequence[Any]) -> list[JobDetail | None]:
            asked.append(len(ids))
            return [detail(State.DEAD if one == dead else State.READY) for one in ids]

    reconciler = Reconciler(store)
    assert [reconciler.check(Broker(), NOW_MS).failed for _ in range(3)] == [0, 1, 0]
    assert asked == [PER_CHECK_MAX, 5, PER_CHECK_MAX]


def detail(state: State, result: bytes = b"", *, kept: bool = True) -> JobDetail:
    info = JobInfo(new_job_id(), "t", QUEUE, state, 5, 4, 4, 1, 0, 0, 0, "", "", "", 1)
    return JobDetail(0, info, b"", [], result, kept)


@pytest.mark.parametrize(
    ("found", "fate"),
    [
        (None, Fate.LOST),
        (detail(State.SCHEDULED), Fate.OPEN),
        (detail(State.READY), Fate.OPEN),
        (detail(State.RUNNING), Fate.OPEN),
        (detail(State.DEAD), Fate.FAILED),
        (detail(State.CANCELLED), Fate.FAILED),
        (detail(State.EXPIRED), Fate.FAILED),
        (detail(State.DONE, payload.encode_result(RESULT)), Fate.MERGED),
        (detail(State.DONE, kept=False), Fate.LOST),
        (detail(State.DONE, payload.encode_result(["no", "such"])), Fate.LOST),
        (detail(State.DONE, payload.encode_result({**RESULT, "duration_s": float("inf")})), Fate.LOST),
        (detail(State.DONE, payload.encode_result({**RESULT, "video": "../v"})), Fate.LOST),
        (detail(State.DONE, b"\xc1"), Fate.LOST),
    ],
)
def test_each_state_has_its_fate(found: JobDetail | None, fate: Fate) -> None:
    assert fate_of(found) is fate


def test_the_status_check_does_it(
    tmp_path: Path, live_broker: LiveBroker, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZQ_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("ZQ_CLIENT_BROKER", live_broker.address)
    monkeypatch.chdir(tmp_path)
    status._slot.cache_clear()
    config = load()
    with RecordingStorage(config.storage_path).open_segment("e", "s", "1.webm", size_bytes_max=10) as writer:
        writer.write(b"x")
        writer.commit()
    try:
        store = status._slot().store
        store.create_exam("e", "Exam", LONG_AGO_MS, LONG_AGO_MS + 1000, now_ms=LONG_AGO_MS)
        store.ensure_students("e", [("s", "张伟"), ("lost", "")])
        job_id = submit(store, client)
        client.cancel([job_id])
        merge = store.request_merge("e", "lost", now_ms=LONG_AGO_MS)
        store.merge_submitted("e", "lost", merge.job_id, format_id(new_job_id()))
        result = status.check_exams()
        assert result["reconciled"] == {"failed": 1, "merged": 0, "again": 1}
        assert (result["merges"], result["trouble"]) == (1, "")
        assert recording(store).state is MergeState.FAILED
        assert recording(store, "lost").state is MergeState.SUBMITTED
        live_broker.end()
        monkeypatch.setattr(status._slot().client, "timeout_s", 0.2)
        assert "reconciled" not in status.check_exams()
    finally:
        status._slot().client.close()
        status._slot().store.close()
        status._slot.cache_clear()
