"""Exam clients that were there before zq: their calls, in their forms, without a token."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.web.conftest import Api, load, problem, write_config
from tests.web.test_web_exams import STUDENT, files, folder, make_exam
from zq.exams.segment_index import list_segments, read_index
from zq.web.forms import FIELD_BYTES_MAX, FIELDS_MAX
from zq.web.intake import WRITE_BYTES

WHO = {"student_id": "s1", "exam_id": "math"}


@pytest.fixture
def old(tmp_path: Path, broker_port: int) -> Iterator[Api]:
    """A server that hears clients on this machine without a token; calls bring none."""
    web = 'exam_client_networks = ["127.0.0.0/8", "10.1.0.0/16"]\nmax_segment_mib = 2\nbody_timeout_s = 20'
    api = Api(load(write_config(tmp_path, broker_port, web)))
    make_exam(api)
    del api._client.headers["Authorization"]
    yield api
    api.close()


def record(
    api: Api, content: bytes = b"segment", fields: dict[str, Any] | None = None, **options: Any
) -> httpx.Response:
    name = options.pop("name", "screen.mp4")
    form = {**WHO, "timestamp": "2026-06-30T09:01:00", "sequence": "1", "fps": "2", "quality": "high", **(fields or {})}
    return api("POST", "/api/screen_recording", data=form, files={"video": (name, content, "video/mp4")}, **options)


def as_admin(api: Api, method: str, path: str) -> httpx.Response:
    return api(method, path, headers={"Authorization": f"Bearer {api.token}"})


@pytest.mark.parametrize("form", ["json", "data", "files", "params"])
def test_an_exam_in_the_forms_of_an_old_client(old: Api, form: str) -> None:
    def sent(**fields: str) -> dict[str, Any]:
        found: dict[str, Any] = {**WHO, **fields}
        return {form: {name: (None, value) for name, value in found.items()} if form == "files" else found}

    login = old("POST", "/api/login", **sent(student_name="王小明"))
    assert login.status_code == 200, login.text
    assert (login.json()["status"], login.json()["success"]) == ("success", True)
    assert login.json()["student_name"] == "王小明"
    assert as_admin(old, "GET", STUDENT).json()["status"] == "online"
    assert old("POST", "/api/heartbeat", **sent()).json()["status"] == "success"
    stored = record(old).json()
    assert stored["filename"] == "s1_20260630_090100_seq_0001.mp4"
    assert (stored["size"], stored["sha256"]) == (7, hashlib.sha256(b"segment").hexdigest())
    logout = old("POST", "/api/logout", **sent()).json()
    assert logout["job"] is not None
    student = as_admin(old, "GET", STUDENT).json()
    assert (student["status"], student["recording"]["job_id"]) == ("logout", logout["job"])
    as_admin(old, "DELETE", f"/v1/jobs/{logout['job']}")


def test_ids_may_be_numbers_and_who_is_new_is_put_on_the_list(old: Api) -> None:
    make_exam_49 = {"id": "49", "name": "n", "start": 0, "end": 2_000_000_000_000}
    admin = {"Authorization": f"Bearer {old.token}"}
    assert old("POST", "/v1/exams", json=make_exam_49 | {"start": 1_999_000_000_000}, headers=admin).status_code == 201
    assert old("POST", "/api/login", json={"student_id": 7, "exam_id": 49, "username": "李四"}).status_code == 200
    assert as_admin(old, "GET", "/v1/exams/49/students/7").json()["name"] == "李四"
    problem(old("POST", "/api/login", json={"student_id": 8, "exam_id": 49}), 404)
    problem(old("POST", "/api/heartbeat", json={"student_id": 8, "exam_id": 49}), 404)


def test_what_a_segment_says_is_on_record(old: Api) -> None:
    record(old, b"one", {"timestamp": "2026-06-30T01:01:00.250Z", "sequence": "12"})
    record(old, b"two", {"timestamp": "2026-06-30 09:02:00", "sequence": ""}, name="屏幕.WEBM")
    first, second = list_segments(folder(old))
    assert (first.name, first.seq, first.ts_ms) == ("s1_20260630_090100_seq_0012.mp4", 12, 1782781260250)
    assert (second.name, second.seq, second.ts_ms) == ("s1_20260630_090200.webm", None, 1782781320000)


def test_a_client_that_does_not_say_when_is_taken_by_its_arrival(old: Api) -> None:
    answer = old("POST", "/api/screen_recording", data=WHO, files={"video": ("a.mkv", b"x")})
    assert answer.status_code == 200
    (segment,) = list_segments(folder(old))
    assert segment.ts_ms is not None
    assert segment.name.startswith("s1_20")


def test_the_same_again_is_fine_and_other_bytes_are_kept_beside(old: Api) -> None:
    first, again, other = record(old, b"one").json(), record(old, b"one").json(), record(old, b"two").json()
    assert (first["created"], again["created"], other["created"]) == (True, False, True)
    assert first["filename"] == again["filename"]
    assert other["filename"] == "s1-2_20260630_090100_seq_0001.mp4"
    assert record(old, b"two").json()["filename"] == other["filename"]
    assert {name: segment.seq for name, segment in read_index(folder(old)).items()} == {
        first["filename"]: 1, other["filename"]: 1
    }  # fmt: skip


def test_a_file_before_the_fields_and_larger_than_what_is_held_in_memory(old: Api) -> None:
    content = bytes(range(256)) * (WRITE_BYTES // 256 * 3 + 1)
    parts = [("video", ("a.mp4", content)), *((name, (None, value)) for name, value in WHO.items())]
    stored = old("POST", "/api/screen_recording", files=parts).json()
    assert stored["sha256"] == hashlib.sha256(content).hexdigest()
    assert (folder(old) / stored["filename"]).read_bytes() == content
    root = old.services.config.storage_path
    assert [path.name for path in root.iterdir()] == ["math"]


def test_what_is_wrong_is_said_and_leaves_nothing(old: Api) -> None:
    assert record(old, b"x" * (2 << 20)).status_code == 200
    problem(record(old, b"x" * ((2 << 20) + 1)), 413)
    for fields in ({"sequence": "one"}, {"timestamp": "yesterday"}, {"student_id": ""}, {"exam_id": "../x"}):
        problem(record(old, fields=fields), 422)
    for name in ("a.exe", "a", ".mp4x"):
        problem(record(old, name=name), 422)
    problem(record(old, b""), 422)
    problem(record(old, fields={"student_id": "nobody"}), 404)
    problem(record(old, fields={"quality": "x" * (FIELD_BYTES_MAX + 1)}), 413)
    problem(old("POST", "/api/screen_recording", data=WHO), 415)
    problem(old("POST", "/api/screen_recording", files={n: (None, v) for n, v in WHO.items()}), 422)
    two = [("video", ("a.mp4", b"x")), ("video", ("b.mp4", b"y"))]
    problem(old("POST", "/api/screen_recording", data=WHO, files=two), 422)
    problem(old("POST", "/api/login", data={str(number): "" for number in range(FIELDS_MAX + 1)}), 400)
    problem(old("POST", "/api/login", content=b"<xml/>", headers={"Content-Type": "text/xml"}), 415)
    problem(old("POST", "/api/login", json={"student_id": ["s1"], "exam_id": "math"}), 422)
    problem(old("POST", "/api/login", json={"exam_id": "math"}), 422)
    cut = b'--b\r\nContent-Disposition: form-data; name="video"; filename="a.mp4"\r\n\r\nhalf'
    multipart = {"Content-Type": "multipart/form-data; boundary=b"}
    problem(old("POST", "/api/screen_recording", content=cut, headers=multipart), 400)
    assert files(old) == {"s1_20260630_090100_seq_0001.mp4"}


def test_without_a_token_only_these_calls_and_only_from_their_networks(old: Api, api: Api) -> None:
    make_exam(api)
    del api._client.headers["Authorization"]
    for path in ("login", "heartbeat", "screen_recording", "logout"):
        problem(api("POST", f"/api/{path}", json=WHO), 401)
    assert old("POST", "/api/heartbeat", json=WHO).status_code == 200
    others = [("POST", f"{STUDENT}/heartbeat"), ("GET", STUDENT), ("GET", "/v1/jobs"), ("GET", "/api/login")]
    for method, path in others:
        problem(old(method, path), 401)
    problem(old("POST", "/api/heartbeat", json=WHO, headers={"Authorization": "Bearer wrong"}), 401)
    problem(old("POST", "/api/heartbeat", json=WHO, headers={"Origin": "https://evil.example"}), 401)
    assert old("POST", "/api/heartbeat", json=WHO, headers={"Origin": "http://zq.test"}).status_code == 200
    for address, status in [("10.1.9.9", 200), ("::ffff:10.1.2.3", 200), ("10.2.0.1", 401), ("::1", 401), ("", 401)]:
        transport = httpx.ASGITransport(old._app, client=(address, 1))
        there = httpx.AsyncClient(transport=transport, base_url="http://zq.test")
        assert old.run(there.post("/api/heartbeat", json=WHO)).status_code == status, address
        old.run(there.aclose())


def test_an_upload_token_opens_these_calls_for_its_student(api: Api) -> None:
    make_exam(api)
    token = {"Authorization": f"Bearer {api('POST', f'{STUDENT}/token').json()['token']}"}
    assert api("POST", "/api/heartbeat", json=WHO, headers=token).status_code == 200
    assert record(api, headers=token).status_code == 200
    other = {**WHO, "student_id": "s2"}
    problem(api("POST", "/api/heartbeat", json=other, headers=token), 403)
    problem(record(api, fields=other, headers=token), 403)
    problem(api("POST", "/api/logout", json=other, headers=token), 403)


URLENCODED = "application/x-www-form-urlencoded"
KINDS = ("multipart/form-data; boundary=b", "multipart/form-data", "application/json", URLENCODED)
PIECES = [
    b"--b\r\n", b"--b--", b"\r\n", b"Content-Disposition: form-data; name=", b"video", b'; filename="a.mp4"', b"\xff",
    b'"exam_id"', b"math",
]  # fmt: skip


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200) | st.lists(st.sampled_from(PIECES)).map(b"".join), st.sampled_from(KINDS))
def test_any_form_is_one_or_a_problem(old: Api, body: bytes, kind: str) -> None:
    for path in ("screen_recording", "login"):
        answer = old("POST", f"/api/{path}", content=body, headers={"Content-Type": kind})
        problem(answer, answer.status_code)
        assert answer.status_code in {400, 413, 415, 422}
