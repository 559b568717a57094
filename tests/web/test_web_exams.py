from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.web.conftest import Api, load, problem, write_config
from zq.client.aio import AsyncClient
from zq.exams.errors import ExamError
from zq.exams.model import Student
from zq.exams.segment_index import list_segments, read_index
from zq.exams.storage import RecordingStorage
from zq.exams.store import ExamStore
from zq.web.intake import BYTES_PER_S_MIN, GATHERED_BYTES, WRITE_BYTES, WRITE_BYTES_MIN, gather_bytes
from zq.web.services import now_ms

STUDENT = "/v1/exams/math/students/s1"


def make_exam(api: Api, **changed: Any) -> httpx.Response:
    now = datetime.now(UTC)
    body = {
        "id": "math",
        "name": "高等数学 期末",
        "start": (now - timedelta(hours=1)).isoformat(),
        "end": (now + timedelta(hours=1)).isoformat(),
        "students": [{"id": "s1", "name": "王小明"}, {"id": "s2", "name": "李"}],
    }
    return api("POST", "/v1/exams", json=body | changed)


def put(api: Api, name: str, content: bytes = b"segment", headers: dict[str, str] | None = None) -> httpx.Response:
    return api("PUT", f"{STUDENT}/segments/{quote(name, safe='')}", content=content, headers=headers)


def folder(api: Api) -> Path:
    return RecordingStorage(api.services.config.storage_path).student_folder("math", "s1")


def files(api: Api) -> set[str]:
    return {path.name for path in folder(api).iterdir() if not path.name.startswith(".zq")}


def test_an_exam_is_made_once_and_listed(api: Api) -> None:
    made = make_exam(api, start="2026-06-30 09:00:00", end="2026-06-30 11:00:00")
    assert made.status_code == 201
    assert made.json()["students_added"] == 2
    assert made.json()["exam"]["start"] == "2026-06-30T09:00:00+08:00"
    more = [{"id": "s1"}, {"id": "s3", "name": "赵"}]
    again = make_exam(api, start="2026-06-30T01:00:00Z", end="2026-06-30 11:00:00", students=more)
    assert (again.status_code, again.json()["students_added"]) == (200, 1)
    problem(make_exam(api, name="Physics", start="2026-06-30 09:00:00", end="2026-06-30 11:00:00"), 409)
    assert [exam["id"] for exam in api("GET", "/v1/exams").json()["exams"]] == ["math"]
    detail = api("GET", "/v1/exams/math").json()
    assert [(s["id"], s["name"], s["status"]) for s in detail["students"]] == [
        ("s1", "王小明", "pending"), ("s2", "李", "pending"), ("s3", "赵", "pending")
    ]  # fmt: skip
    assert detail["counts"] == {"pending": 3, "online": 0, "offline": 0, "logout": 0}


def test_a_whole_exam_of_students_in_one_call(api: Api) -> None:
    students = [{"id": f"2026{number:06}", "name": "欧阳娜娜"} for number in range(5000)]
    assert make_exam(api, students=students).json()["students_added"] == 5000
    assert "5000" in problem(make_exam(api, students=[*students, {"id": "x"}]), 422)["detail"]
    page = api("GET", "/v1/exams/math").json()
    assert (len(page["students"]), page["counts"]["pending"]) == (1000, 5000)


def test_lists_of_exams_and_students_go_on(api: Api) -> None:
    for number in range(3):
        make_exam(api, id=f"e{number}", start=1_000_000 * (number + 1), end=10_000_000)
    first = api("GET", "/v1/exams?limit=2").json()
    second = api("GET", f"/v1/exams?limit=2&before={first['next']}").json()
    assert [exam["id"] for exam in first["exams"] + second["exams"]] == ["e2", "e1", "e0"]
    page = api("GET", "/v1/exams/e0?limit=1").json()
    assert (page["students"][0]["id"], page["next"]) == ("s1", "s1")
    assert api("GET", "/v1/exams/e0?limit=1&after=s1").json()["students"][0]["id"] == "s2"


def test_times_are_edited(api: Api) -> None:
    make_exam(api, start="2026-06-30 09:00:00", end="2026-06-30 11:00:00")
    moved = api("PATCH", "/v1/exams/math", json={"end": "2026-06-30 12:00:00"}).json()
    assert (moved["start"], moved["end"]) == ("2026-06-30T09:00:00+08:00", "2026-06-30T12:00:00+08:00")
    for body in ({}, {"end": "2026-06-30 08:00:00"}, {"end": "tomorrow"}, {"ende": 1}):
        problem(api("PATCH", "/v1/exams/math", json=body), 422)
    problem(api("PATCH", "/v1/exams/physics", json={"end": 1}), 404)


def test_what_is_not_there_is_404_and_what_cannot_be_is_422(api: Api) -> None:
    make_exam(api)
    for method, path in [
        ("GET", "/v1/exams/physics"), ("GET", "/v1/exams/math/students/s9"), ("GET", f"{STUDENT}/recording"),
        ("POST", "/v1/exams/math/students/s9/heartbeat"), ("POST", "/v1/exams/math/students/s9/finish"),
        ("PUT", "/v1/exams/math/students/s9/segments/a.webm"),
    ]:  # fmt: skip
        problem(api(method, path), 404)
    for path in ("/v1/exams/%E7%8E%8B", "/v1/exams/-x", "/v1/exams/math/students/a:b", f"/v1/exams/{'x' * 65}"):
        problem(api("GET", path), 422)
    problem(make_exam(api, id="../x"), 422)
    problem(make_exam(api, students=[{"id": "s", "nam": "x"}]), 422)


def test_heartbeats_are_written_in_batches_and_bring_a_student_online(api: Api) -> None:
    make_exam(api)
    for _ in range(3):
        answer = api("POST", f"{STUDENT}/heartbeat")
        assert (answer.status_code, answer.content) == (204, b"")
    api("POST", "/v1/exams/math/students/s2/heartbeat", json={"ignored": True})
    assert len(api.services.heartbeats) <= 2  # one a student, whatever was flushed meanwhile
    api.services.heartbeats.flush(now_ms())
    students = api("GET", "/v1/exams/math").json()["students"]
    assert [student["status"] for student in students] == ["online", "online"]
    assert students[0]["last_active_at"].endswith("+08:00")


def test_a_heartbeat_asks_the_database_once_a_student(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    make_exam(api)
    asked: list[tuple[str, str]] = []
    find = api.services.store.get_student

    def counted(exam_id: str, student_id: str) -> Student:
        asked.append((exam_id, student_id))
        return find(exam_id, student_id)

    monkeypatch.setattr(api.services.store, "get_student", counted)
    for _ in range(5):
        api("POST", f"{STUDENT}/heartbeat")
    assert asked == [("math", "s1")]


def test_heartbeats_are_written_without_being_asked(api: Api) -> None:
    make_exam(api)
    api("POST", f"{STUDENT}/heartbeat")
    deadline = time.monotonic() + 10
    while api("GET", STUDENT).json()["status"] != "online":
        assert time.monotonic() < deadline


def test_the_last_heartbeats_are_written_when_the_server_stops(tmp_path: Path, broker_port: int) -> None:
    api = Api(load(write_config(tmp_path, broker_port)))
    make_exam(api)
    api.services.stopping.set()
    api("POST", "/v1/exams/math/students/s2/heartbeat")
    deadline = time.monotonic() + 10
    while api("GET", "/v1/exams/math/students/s2").json()["status"] != "online":
        assert time.monotonic() < deadline
    api("POST", f"{STUDENT}/heartbeat")  # of a request that was under way
    config = api.services.config
    api.close()
    store = ExamStore(config.database_url, config.exams.time_zone)
    assert store.get_student("math", "s1").status == "online"
    store.close()


def test_a_segment_is_on_disk_and_on_record_before_its_answer(api: Api) -> None:
    make_exam(api)
    content = b"\x1aE\xdf\xa3" * 200_000
    digest = hashlib.sha256(content)
    name = "s1_王 小明'\"; rm -rf 01.webm"
    answer = put(
        api, name, content,
        {"X-Zq-Sequence": "7", "X-Zq-Timestamp-Ms": "1795449373936", "X-Zq-Sha256": digest.hexdigest().upper()},
    )  # fmt: skip
    assert answer.status_code == 201
    assert answer.json() == {"name": name, "size_bytes": len(content), "sha256": digest.hexdigest(), "created": True}
    (segment,) = list_segments(folder(api))
    assert (segment.name, segment.seq, segment.ts_ms, segment.sha256) == (name, 7, 1795449373936, digest.hexdigest())
    assert (folder(api) / name).read_bytes() == content
    assert api("GET", STUDENT).json()["segments"] == 1


def test_an_upload_may_be_repeated_but_not_changed(api: Api) -> None:
    make_exam(api)
    assert put(api, "1.webm", b"one").status_code == 201
    recorded = (folder(api) / ".zq-segments.jsonl").read_bytes()
    again = put(api, "1.webm", b"one")
    assert (again.status_code, again.json()["created"]) == (200, False)
    assert (folder(api) / ".zq-segments.jsonl").read_bytes() == recorded
    problem(put(api, "1.webm", b"two"), 409)
    assert (folder(api) / "1.webm").read_bytes() == b"one"


def test_what_is_declared_is_checked(api: Api) -> None:
    make_exam(api)
    right = hashlib.sha256(b"segment").digest()
    text = base64.b64encode(right).decode()
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    for number, headers in enumerate([{"Content-Digest": f"sha-256=:{text}:"}, {"Digest": f"md5=x,SHA-256={text}"}]):
        assert put(api, f"{number}.webm", headers=headers).status_code == 201
    for headers in [
        {"X-Zq-Sha256": "0" * 64}, {"Content-Digest": f"sha-256=:{wrong}:"}, {"Digest": f"sha-256={wrong}"},
        {"X-Zq-Sha256": "xyz"}, {"X-Zq-Sequence": "-1"}, {"X-Zq-Sequence": "1.5"}, {"X-Zq-Timestamp-Ms": "9" * 17},
    ]:  # fmt: skip
        problem(put(api, "bad.webm", headers=headers), 422)
    problem(put(api, "bad.webm", b""), 422)
    problem(put(api, "bad.webm", b"seven..", {"Content-Length": "9"}), 400)
    problem(put(api, "bad.webm", headers={"Content-Length": str(1 << 40)}), 413)
    assert files(api) == {"0.webm", "1.webm"}


@pytest.mark.parametrize(
    "name", ["..", "../x.webm", "a/b.webm", "a\\b.webm", ".hidden.webm", "a\n.webm", "a\0.webm", "x.exe",
             "a|b.webm", "x" * 300 + ".webm", "x\u202e.webm", "\udcff.webm"]
)  # fmt: skip
def test_hostile_names_are_refused_and_leave_nothing(api: Api, name: str) -> None:
    make_exam(api)
    raw = quote(name.encode("utf-8", "surrogateescape"), safe="")
    answer = api("PUT", f"{STUDENT}/segments/{raw}", content=b"x")
    problem(answer, 400 if name.startswith("\udcff") else 422 if name != ".." else answer.status_code)
    assert answer.status_code < 500
    assert not folder(api).exists() or files(api) == set()


def test_finish_submits_the_merge_once(api: Api) -> None:
    make_exam(api)
    api("POST", f"{STUDENT}/login", json={})
    put(api, "1.webm")
    first = api("POST", f"{STUDENT}/finish")
    assert first.status_code == 202
    body = first.json()
    assert (body["first"], body["submitted"], body["student"]["status"]) == (True, True, "logout")
    assert body["student"]["recording"]["state"] == "submitted"
    found = api("GET", first.headers["location"]).json()
    assert found["job"]["id"] == body["job"]
    assert found["job"]["task"] == "zq.workers.merge.merge_recording"
    assert (found["job"]["queue"], found["job"]["key"]) == ("video_merge", "merge:math:s1")
    assert found["kwargs"] == {"exam_id": "math", "student_id": "s1", "student_name": "王小明"}
    again = api("POST", f"{STUDENT}/finish")
    assert (again.status_code, again.json()["first"], again.json()["job"]) == (202, False, body["job"])
    answer = api("GET", f"{STUDENT}/recording")
    assert "submitted" in problem(answer, 409)["detail"]
    assert answer.headers["retry-after"] == "5"
    api("DELETE", first.headers["location"])


def test_finish_without_segments_has_nothing_to_merge(api: Api) -> None:
    make_exam(api)
    answer = api("POST", f"{STUDENT}/finish")
    assert (answer.status_code, answer.json()["job"]) == (200, None)


def test_finish_while_the_broker_is_away_is_on_record_and_healed_by_a_repeat(lonely_api: Api, broker_port: int) -> None:
    make_exam(lonely_api)
    put(lonely_api, "1.webm")
    first = lonely_api("POST", f"{STUDENT}/finish")
    assert (first.status_code, first.json()["submitted"]) == (202, False)
    assert first.json()["student"]["recording"]["state"] == "requested"

    async def with_broker() -> httpx.Response:
        away, lonely_api.services._client = (
            lonely_api.services._client,
            AsyncClient(lonely_api.services.config, broker=f"tcp://127.0.0.1:{broker_port}", timeout_s=5),
        )
        try:
            again = await lonely_api.send("POST", f"{STUDENT}/finish")
            await lonely_api.send("DELETE", f"/v1/jobs/{again.json()['job']}")
            return again
        finally:
            await lonely_api.services.client.close()
            lonely_api.services._client = away

    again = lonely_api.run(with_broker())
    assert (again.json()["job"], again.json()["submitted"]) == (first.json()["job"], True)


def test_a_late_segment_asks_for_a_new_merge(api: Api) -> None:
    make_exam(api)
    put(api, "1.webm")
    job = api("POST", f"{STUDENT}/finish").json()["job"]
    assert put(api, "2.webm").status_code == 201
    assert api("GET", STUDENT).json()["recording"]["job_id"] == job  # it waits still, and will see the late one too
    api("DELETE", f"/v1/jobs/{job}")
    assert put(api, "3.webm").status_code == 201
    recording = api("GET", STUDENT).json()["recording"]
    assert recording["job_id"] != job
    assert recording["state"] == "submitted"
    api("DELETE", f"/v1/jobs/{recording['job_id']}")


def test_a_late_segment_whose_merge_could_not_be_asked_for_is_not_forgotten(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database was away for a moment: the upload is an error, and its repeat finds the segment on disk."""
    make_exam(api)
    put(api, "1.webm")
    job = api("POST", f"{STUDENT}/finish").json()["job"]
    succeed(api, job)

    def away(*_: Any, **__: Any) -> None:
        raise ExamError("unavailable", "the exam database cannot be used now; try again")

    with monkeypatch.context() as broken:
        broken.setattr(api.services.store, "request_merge", away)
        problem(put(api, "2.webm"), 503)
    again = put(api, "2.webm")
    assert (again.status_code, again.json()["created"]) == (200, False)
    recording = api("GET", STUDENT).json()["recording"]
    assert recording["state"] != "done"
    assert put(api, "2.webm").status_code == 200
    assert put(api, "1.webm").status_code == 200
    assert api("GET", STUDENT).json()["recording"] == recording, "asked for once"
    for each in (job, recording["job_id"]):
        api("DELETE", f"/v1/jobs/{each}")


def test_an_upload_repeated_after_the_merge_does_not_come_back(api: Api) -> None:
    make_exam(api)
    put(api, "1.webm")
    job = api("POST", f"{STUDENT}/finish").json()["job"]
    succeed(api, job)
    (folder(api) / "1.webm").unlink()
    again = put(api, "1.webm")
    assert (again.status_code, again.json()["created"]) == (200, False)
    assert files(api) == set()
    assert api("GET", STUDENT).json()["recording"]["state"] == "done"
    finished = api("POST", f"{STUDENT}/finish")
    assert (finished.status_code, finished.json()["student"]["recording"]["video"]) == (200, f"{STUDENT}/recording")
    assert put(api, "1.webm", b"other").status_code == 201  # not what is in the video
    assert read_index(folder(api))["1.webm"].sha256 == hashlib.sha256(b"other").hexdigest()
    api("DELETE", f"/v1/jobs/{job}")


def succeed(api: Api, job: str, content: bytes = b"0123456789", video: str = "s1_王小明_20260630_110000.webm") -> None:
    target = RecordingStorage(api.services.config.storage_path).exam_folder("math")
    target.mkdir(parents=True, exist_ok=True)
    (target / video).write_bytes(content)
    api.services.store.merge_succeeded(
        "math", "s1", job, now_ms=now_ms(), video=video, segments=1, size_bytes=len(content), duration_ms=1000
    )


def test_a_finish_during_an_upload_makes_the_segment_late(api: Api) -> None:
    make_exam(api)
    put(api, "1.webm")
    jobs: list[str] = []

    async def body() -> AsyncIterator[bytes]:
        yield b"begun "
        job = (await api.send("POST", f"{STUDENT}/finish")).json()["job"]
        await api.send("DELETE", f"/v1/jobs/{job}")  # as if it had run by now, without this segment
        jobs.append(job)
        yield b"and ended"

    assert api("PUT", f"{STUDENT}/segments/2.webm", content=body()).status_code == 201
    recording = api("GET", STUDENT).json()["recording"]
    assert recording["job_id"] != jobs[0]
    assert recording["state"] == "submitted"
    api("DELETE", f"/v1/jobs/{recording['job_id']}")


def test_many_uploads_at_once_gather_less_each() -> None:
    assert gather_bytes(1) == WRITE_BYTES
    assert gather_bytes(10_000) == WRITE_BYTES_MIN
    for uploads in (1, 50, 128, 129, 500, 2000):
        assert uploads * gather_bytes(uploads) <= GATHERED_BYTES


def test_a_slow_line_may_send_a_segment_as_long_as_it_goes_on(tmp_path: Path, broker_port: int) -> None:
    api = Api(load(write_config(tmp_path, broker_port, web="body_timeout_s = 0.3")))
    make_exam(api)

    async def body(piece: bytes) -> AsyncIterator[bytes]:
        for _ in range(2):
            yield piece
            await asyncio.sleep(0.4)
        yield b"end"

    path = f"{STUDENT}/segments/slow.webm"
    assert api("PUT", path, content=body(b"x" * 10 * BYTES_PER_S_MIN)).status_code == 201
    assert "bytes/s" in problem(api("PUT", path, content=body(b"x")), 408)["detail"]
    as_json = {"Content-Type": "application/json"}
    problem(api("POST", "/v1/exams", content=body(b"{" + b" " * 500_000), headers=as_json), 408)
    api.close()
