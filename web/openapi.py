"""OpenAPI 3.1 from the table of operations and the types of their bodies: there is no second text to keep right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from zq.web.auth import Scope
from zq.web.operations import Operation
from zq.web.problems import CONTENT_TYPE, ProblemBody

_PARAMETER = re.compile(r"\{([a-z_]+)(:[a-z]+)?\}")
_REF = "#/components/schemas/{name}"


def document(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    types: list[Any] = [ProblemBody]
    for operation in operations:
        types += [t for t in (operation.body, *(t for _, t in operation.answers)) if t not in (None, bytes)]
    unique = list({repr(t): t for t in types}.values())
    schemas, components = msgspec.json.schema_components(unique, ref_template=_REF)
    schema_of = {repr(t): schema for t, schema in zip(unique, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = _PARAMETER.sub(r"{\1}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "zq", "version": version, "summary": "Jobs, exams and recordings"},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "responses": {"problem": {"description": "What is wrong, and what to do", "content": _problem_content()}},
        },
    }


def _problem_content() -> dict[str, Any]:
    return {CONTENT_TYPE: {"schema": {"$ref": _REF.format(name="ProblemBody")}}}


def _operation(operation: Operation, schema_of: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": operation.handler.__name__,
        "summary": operation.summary,
        "parameters": _parameters(operation),
        "responses": _responses(operation, schema_of),
        "security": [] if operation.scope is Scope.PUBLIC else [{"token": []}],
    }
    if operation.body is bytes:
        content: dict[str, Any] = {"application/octet-stream": {}}
        found["requestBody"] = {"required": True, "content": content}
    elif operation.body is not None:
        content = {name: {"schema": schema_of[repr(operation.body)]} for name in operation.body_types}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name, _ in _PARAMETER.findall(operation.path)
    ]
    others = [
        {
            "name": parameter.name,
            "in": parameter.where,
            "required": parameter.required,
            "description": parameter.description,
            "schema": msgspec.json.schema(parameter.type),
        }
        for parameter in operation.parameters
    ]
    return in_path + others


def _responses(operation: Operation, schema_of: dict[str, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, answer in operation.answers:
        response: dict[str, Any] = {"description": HTTPStatus(status).phrase}
        if answer is not None:
            response["content"] = {operation.media_type: {"schema": schema_of[repr(answer)]}}
        elif operation.media_type != "application/json":
            response["content"] = {operation.media_type: {}}
        responses[str(status)] = response
    refusals = {*operation.errors, *(() if operation.scope is Scope.PUBLIC else (401, 403, 429))}
    for status in sorted(refusals):
        responses[str(status)] = {"$ref": "#/components/responses/problem"}
    return responses
