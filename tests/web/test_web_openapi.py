from __future__ import annotations

import json
import re
from typing import Any

import pytest
from starlette.routing import Route

from tests.web.conftest import Api, problem
from zq.web import docs_page
from zq.web.bodies import decode
from zq.web.dead import DeadRoutes
from zq.web.exam_clients import ExamClientRoutes
from zq.web.exams import ExamRoutes
from zq.web.queues import QueueRoutes
from zq.web.submissions import SubmissionRoutes
from zq.web.uploads import UploadRoutes


def test_the_description_is_whole(api: Api) -> None:
    document: dict[str, Any] = api("GET", "/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    assert document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/JobSubmission"
    }
    text = str(document)
    for reference in set(re.findall(r"#/components/(\w+)/([\w\-]+)", text)):
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


def test_what_the_code_says_of_a_field_is_its_description(api: Api) -> None:
    schemas = api("GET", "/openapi.json").json()["components"]["schemas"]
    assert schemas["JobSubmission"]["properties"]["expires_s"]["description"] == "Not started by then: expired."
    assert "deduplicated" in schemas["JobAccepted"]["properties"]
    assert schemas["JobAccepted"]["properties"]["deduplicated"]["description"].startswith("A job with this id")


def test_every_example_is_a_body_that_is_taken(api: Api) -> None:
    found = 0
    for routes in (SubmissionRoutes, DeadRoutes, QueueRoutes, ExamRoutes):
        for operation in routes(api.services).operations():
            if operation.body is not None and operation.example is not None:
                decode(json.dumps(operation.example).encode(), operation.body)
                found += 1
            assert operation.body in (None, bytes) or operation.example is not None, operation.path
    assert found >= 8
    document = api("GET", "/openapi.json").json()
    for path in ("/api/login", "/api/screen_recording"):
        for content in document["paths"][path]["post"]["requestBody"]["content"].values():
            assert set(content["example"]) >= {"student_id", "exam_id"}


def test_the_page_of_the_description_is_whole_and_calls_nobody_else(api: Api) -> None:
    answer = api("GET", "/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = answer.text
    document = api("GET", "/openapi.json").json()
    for path, operations in document["paths"].items():
        assert f"<code>{path}</code>" in page
        for operation in operations.values():
            assert f'id="{operation["operationId"]}"' in page
    for link in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{link}"' in page, link
    for name in re.findall(r'(?:src|href)="(/[^"]+)"', page):
        assert api("GET", name).status_code == 200, name
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)
    assert "<script" not in page
    problem(api("GET", "/docs", headers={"Authorization": "Bearer wrong"}), 401)


def test_what_a_description_holds_is_text_on_its_page() -> None:
    evil = "<script>alert(1)</script>"
    operation = {
        "operationId": "x", "summary": evil, "description": evil, "security": [],
        "parameters": [{"name": evil, "in": "query", "required": True, "schema": {"enum": [evil]}}],
        "requestBody": {"content": {"application/json": {"schema": {"type": evil}, "example": {evil: evil}}}},
        "responses": {"200": {"description": evil}},
    }  # fmt: skip
    schema = {"description": evil, "properties": {evil: {"type": "string", "default": evil, "description": evil}}}
    page = docs_page.page(
        {
            "info": {"title": evil, "version": evil},
            "paths": {f"/v1/{evil}": {"get": operation}},
            "components": {"schemas": {"A": schema}},
        }
    )
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 10


def test_what_is_looked_for_first_takes_nothing_from_others(api: Api) -> None:
    exams = ExamRoutes(api.services)
    routes = (exams, UploadRoutes(api.services), ExamClientRoutes(api.services, exams))
    often = [operation.path for one in routes for operation in one.operations() if operation.often]
    assert len(often) >= 6
    found = [route for route in api._app.router.routes if isinstance(route, Route)]
    assert {route.path for route in found[: len(often)]} == set(often)
    for path in often:
        filled = re.sub(r"\{[^}]+\}", "x:pause", path)
        assert [route.path for route in found if route.path_regex.match(filled)] == [path]
