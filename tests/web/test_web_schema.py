"""/openapi.json, believed by somebody who has read nothing else: schemathesis asks, and checks the answers."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.result import Ok

from tests.ports import free_port
from tests.web.conftest import Api, Process, load, write_config

ENDLESS = re.compile(r"/events$")
"""Streams have no last byte to wait for; test_web_streams.py reads them."""
CASES = 12


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory, broker_port: int) -> Iterator[Api]:
    made = Api(load(write_config(tmp_path_factory.mktemp("schema"), broker_port)))
    yield made
    made.close()


def test_every_operation_answers_as_it_is_described(described: Api) -> None:
    schema = schemathesis.openapi.from_dict(described("GET", "/openapi.json").json())
    asked = set()
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        operation = result.ok()
        if ENDLESS.search(operation.path):
            continue
        check(described, operation)
        asked.add(operation.path)
    assert len(asked) > 20


def check(api: Api, operation: Any) -> None:
    """The page's cases: each that is sent is answered with a status, a type and a body that the description has."""
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    @settings(
        max_examples=CASES, deadline=None, database=None, phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(operation.as_strategy())
    def ask(case: Any) -> None:
        request = case.as_transport_kwargs(base_url="http://zq.test")
        # As it would travel: forms with files have boundaries.
        made = requests.Request(
            request["method"], request["url"], params=request.get("params"), json=request.get("json"),
            data=request.get("data"), files=request.get("files"),
            headers={name: value for name, value in (request["headers"] or {}).items() if name != "Authorization"},
        ).prepare()  # fmt: skip
        answer = api(str(made.method), str(made.url), headers=dict(made.headers), content=made.body)
        case.validate_response(
            answer,
            checks=[
                not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance
            ],
        )  # fmt: skip

    ask()



@pytest.mark.long
@pytest.mark.timeout(600)
def test_schemathesis_finds_nothing_over_the_whole_api(tmp_path: Path, broker_port: int) -> None:
    """Its command, with all checks but one: that all which fits the types must be taken. Names that are there, times
    that end before they begin and the like fit the types."""
    port = free_port()
    server = Process("zq.web", write_config(tmp_path, broker_port, f"port = {port}"), port, tmp_path / "log")
    token = (tmp_path / "var" / "token").read_text().strip()
    exam = {"id": "math", "name": "n", "start": 0, "end": 1_000_000, "students": [{"id": "s1", "name": "王"}]}
    made = httpx.post(f"http://127.0.0.1:{port}/v1/exams", json=exam, headers={"Authorization": f"Bearer {token}"})
    assert made.status_code == 201, made.text
    # Else hardly any call would meet an exam that is there. Headers that nobody knows are no fault of a request.
    (tmp_path / "schemathesis.toml").write_text(
        '[parameters]\n"path.exam_id" = "math"\n"path.student_id" = "s1"\n'
        "[phases.coverage.generation]\nallow-extra-parameters = false\n[generation]\nallow-extra-parameters = false\n"
    )
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"http://127.0.0.1:{port}/openapi.json",
        "-H", f"Authorization: Bearer {token}", "--checks", "all", "--exclude-checks", "positive_data_acceptance",
        "--exclude-path-regex", ENDLESS.pattern, "--phases", "examples,coverage,fuzzing,stateful",
        "--max-examples", "25", "--no-color",
        "--request-timeout", "65", "--max-response-time", "65",  # longer than the longest poll
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=580, check=False)
    finally:
        assert server.stop() == 0
    assert done.returncode == 0, done.stdout[-6000:]
    assert "Traceback" not in (tmp_path / "log").read_text()
