"""Any bytes and any requests: an answer with a reason, never a defect."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from typing import Any, get_args
from urllib.parse import unquote

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.ports import free_port
from tests.web.conftest import Api, load, write_config
from zq.exams.errors import ExamErrorCode
from zq.protocol.errors import Code
from zq.web.bodies import DEPTH_MAX, decode
from zq.web.dead import DeadFilter, check_filter
from zq.web.exams import ExamCreation
from zq.web.listing import read_cursor
from zq.web.problems import CODE_STATUS, EXAM_STATUS, Problem
from zq.web.queues import QueueChange
from zq.web.submissions import JobBatch, JobSubmission, idempotency_key

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
STRUCTS = (JobSubmission, JobBatch, DeadFilter, QueueChange, ExamCreation)
fields = st.sampled_from([*{name for struct in STRUCTS for name in struct.__struct_fields__}, "x", ""])


def outcome(read: Callable[[], Any]) -> Any:
    """What a reader gave, or the status of its refusal; anything else it raises is a defect."""
    try:
        return read()
    except Problem as problem:
        msgspec.json.decode(problem.body())
        return problem.status


@given(st.binary(max_size=300) | st.dictionaries(fields, json_values).map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_body_or_a_problem(data: bytes) -> None:
    for struct in STRUCTS:
        found = outcome(lambda struct=struct: decode(data, struct))  # type: ignore[misc]
        assert found in {400, 422} if isinstance(found, int) else isinstance(found, struct)


@given(st.text(), st.lists(st.text(), max_size=3), st.booleans())
def test_any_filter_of_dead_letters_is_one_or_a_problem(text: str, ids: list[str], every: bool) -> None:
    found = outcome(lambda: check_filter(DeadFilter(queue=text, ids=ids, all=every)))
    assert found == 422 or not ids


@given(st.text())
def test_any_text_is_a_cursor_or_a_problem(text: str) -> None:
    for read in (read_cursor, idempotency_key):
        found = outcome(lambda read=read: read(text))  # type: ignore[misc]
        assert not isinstance(found, int) or found in {400, 422}


def test_a_key_twice_is_refused_at_any_depth() -> None:
    with pytest.raises(Problem, match="'a' twice"):
        decode(b'{"task":"t","queue":"q","kwargs":{"x":[{"a":1,"a":1}]}}', JobSubmission)


def test_the_depth_that_is_allowed_and_one_more() -> None:
    def body(levels: int) -> bytes:
        return b'{"task":"t","queue":"q","args":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"

    decode(body(DEPTH_MAX), JobSubmission)
    with pytest.raises(Problem, match="deeper"):
        decode(body(DEPTH_MAX + 1), JobSubmission)


def test_a_mistyped_field_in_a_list_is_told_its_nearest_name() -> None:
    text = b'{"id":"e","name":"n","start":1,"end":2,"students":[{"id":"a"},{"idd":"b"}]}'
    with pytest.raises(Problem) as caught:
        decode(text, ExamCreation)
    assert caught.value.errors[0].pointer == "#/students/1/idd"
    assert "did you mean 'id'" in caught.value.errors[0].detail


def test_every_refusal_has_a_status() -> None:
    assert set(CODE_STATUS) == set(Code)
    assert set(EXAM_STATUS) == set(get_args(ExamErrorCode))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("fuzz")
    made = Api(load(write_config(folder, free_port(), client="timeout_s = 0.01")))
    start_ms = 1_999_000_000_000
    exam = {"id": "e", "name": "n", "start": start_ms, "end": start_ms + 1, "students": [{"id": "s"}]}
    assert made("POST", "/v1/exams", json=exam).status_code == 201
    yield made
    made.close()


piece = st.sampled_from(
    ["v1", "jobs", "jobs:batch", "exams", "queues", "workers", "schedules", "events", "why", "dead", "dead:retry", "e",
     "s", "students", "segments", "recording", "heartbeat", "finish", "login",
     "x.webm", ":retry", ":pause", "q:resume", "metrics", "openapi.json", "..",
     "%00", "%2e%2e", "%2f", "%ff", "%E7%8E%8B", "00000000-0000-0000-0000-000000000000"]
) | st.text(string.printable, max_size=8)  # fmt: skip
question = st.builds(
    "{}={}".format,
    st.sampled_from(["where", "state", "queue", "task", "error", "cursor", "limit", "after", "wait_s", "token"]),
    st.text(string.printable, max_size=8) | st.sampled_from(["a%3D1", "dead", "7", "%ff", "BQ"]),
)
headers = st.dictionaries(
    st.sampled_from(
        ["Range", "Last-Event-ID", "If-Range", "Idempotency-Key", "X-Zq-Sequence", "X-Zq-Sha256", "Digest",
         "Content-Type"]
    ),
    st.text(string.printable.replace("\r", "").replace("\n", "").replace("\x0b", "").replace("\x0c", ""), max_size=20)
    | st.just("application/json"),
    max_size=3,
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]),
    st.lists(piece, max_size=7),
    st.text(string.printable, max_size=12) | st.lists(question, max_size=3).map("&".join),
    headers,
    st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode()),
)
def test_no_request_is_a_defect(
    alone: Api, method: str, parts: list[str], query: str, given_headers: dict[str, str], body: bytes
) -> None:
    answer = raw(alone, method, ("/" + "/".join(parts)).encode(), query.encode(), given_headers, body)
    assert answer != 500


STUDENT = "/v1/exams/e/students/s"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(
        [("POST", "/v1/jobs"), ("POST", "/v1/jobs:batch"), ("POST", "/v1/dead:retry"), ("POST", "/v1/dead:drop"),
         ("PATCH", "/v1/queues/q"), ("POST", "/v1/exams"), ("PATCH", "/v1/exams/e"), ("POST", f"{STUDENT}/login"),
         ("POST", f"{STUDENT}/heartbeat"), ("PUT", f"{STUDENT}/segments/a.webm"), ("POST", f"{STUDENT}/finish")]
    ),
    st.dictionaries(fields, json_values).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60),
)  # fmt: skip
def test_no_body_is_a_defect(alone: Api, target: tuple[str, str], body: bytes) -> None:
    assert raw(alone, target[0], target[1].encode(), b"", {"Content-Type": "application/json"}, body) != 500


def raw(api: Api, method: str, path: bytes, query: bytes, given_headers: dict[str, str], body: bytes) -> int:
    """The status of an answer to what no client library would send."""
    statuses: list[int] = []
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method,
        "scheme": "http", "path": unquote(path.decode("latin-1")), "raw_path": path, "query_string": query,
        "root_path": "", "client": ("127.0.0.1", 1), "server": ("zq.test", 80),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in given_headers.items()]
        + [(b"authorization", f"Bearer {api.token}".encode())],
    }  # fmt: skip
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    api.run(api._app(scope, receive, send))
    return statuses[0] if statuses else 0
