from __future__ import annotations

import re
from typing import Any

import pytest

from tests.web.conftest import Api, problem


def test_the_description_is_whole(api: Api) -> None:
    document: dict[str, Any] = api("GET", "/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    assert document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/JobSubmission"
    }
    text = str(document)
    for reference in set(re.findall(r"#/components/(\w+)/(\w+)", text)):
        assert reference[1] in document["components"][reference[0]]
    names = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))


def test_every_described_path_is_there(api: Api) -> None:
    document = api("GET", "/openapi.json").json()
    for path, operations in document["paths"].items():
        assert set(re.findall(r"\{(\w+)\}", path)) == {
            parameter["name"]
            for parameter in next(iter(operations.values()))["parameters"]
            if parameter["in"] == "path"
        }
        filled = re.sub(r"\{\w+\}", "x", path)
        answer = api("TRACE", filled)
        problem(answer, 405)
        assert {method.upper() for method in operations} <= set(answer.headers["allow"].split(", "))


def test_a_defect_is_a_problem_and_tells_nothing(api: Api, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def broken(**_options: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(api.services.store, "list_exams", broken)
    answer = api("GET", "/v1/exams")
    problem(answer, 500)
    assert "secret" not in answer.text
    assert "secret" in caplog.text
