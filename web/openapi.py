"""OpenAPI 3.1 from the table of operations and the types of their bodies: there is no second text to keep right."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from zq.exams import names
from zq.protocol import limits
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
    _describe_fields(unique, components)
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
            "headers": {
                name: {"description": text, "schema": {"type": kind}} for name, (kind, text) in _HEADERS.items()
            },
            "responses": {
                "problem": {
                    "description": "What is wrong, and what to do",
                    "content": _problem_content(),
                    "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in _HEADERS},
                }
            },
        },
    }


_ID = r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$"
_IN_PATH: dict[str, dict[str, Any]] = {
    "id": {"type": "string", "format": "uuid"},
    "exam_id": {"type": "string", "pattern": _ID, "minLength": 1, "maxLength": names.EXAM_ID_CHARS_MAX},
    "student_id": {"type": "string", "pattern": _ID, "minLength": 1, "maxLength": names.STUDENT_ID_CHARS_MAX},
    "name": {
        "type": "string",
        "pattern": r"^[A-Za-z0-9_][^/\\|]*\.(mp4|webm|mkv|mov|avi)$",
        "maxLength": names.FILE_NAME_BYTES_MAX,
        "description": "A plain file name, in any script, with the extension of its format",
    },
    "queue": {"type": "string", "pattern": r"^\S+$", "minLength": 1, "maxLength": limits.NAME_CHARS_MAX},
}

_HEADERS = {
    "Retry-After": ("integer", "Seconds until it is worth another try; with 429, 503 and 504"),
    "RateLimit": ("string", "What this caller has left, and in how many seconds it is full again"),
    "RateLimit-Policy": ("string", "The caller's bound, and its window in seconds"),
}


def _describe_fields(types: Sequence[Any], components: dict[str, Any]) -> None:
    """The text under a field in the code is the field's description."""
    structs: dict[str, type] = {}
    todo: list[Any] = [msgspec.inspect.type_info(one) for one in types]
    while todo:
        info = todo.pop()
        if isinstance(info, msgspec.inspect.StructType):
            if info.cls.__name__ in structs:
                continue
            structs[info.cls.__name__] = info.cls
            todo += [field.type for field in info.fields]
        todo += getattr(info, "types", ())
        todo += [inner for name in ("item_type", "value_type") if (inner := getattr(info, name, None)) is not None]
    for name, struct in structs.items():
        properties = components.get(name, {}).get("properties", {})
        for field, text in _texts(struct).items():
            if field in properties:
                properties[field]["description"] = text


def _texts(struct: type) -> dict[str, str]:
    """By field, with those of the classes it is made from."""
    found: dict[str, str] = {}
    for one in reversed(struct.__mro__):
        if not one.__module__.startswith("zq."):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(body, ast.ClassDef)
        for before, here in zip(body.body, body.body[1:], strict=False):
            if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and _is_text(here):
                found[before.target.id] = inspect.cleandoc(ast.literal_eval(here.value))  # type: ignore[attr-defined]
    return found


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )


def _problem_content() -> dict[str, Any]:
    return {CONTENT_TYPE: {"schema": {"$ref": _REF.format(name="ProblemBody")}}}


def _operation(operation: Operation, schema_of: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": operation.handler.__name__,
        "summary": operation.summary,
        "description": _opens_for(operation),
        "parameters": _parameters(operation),
        "responses": _responses(operation, schema_of),
        "security": [] if operation.scope is Scope.PUBLIC else [{"token": []}],
    }
    if operation.body is bytes:
        content: dict[str, Any] = {"application/octet-stream": {}}
        found["requestBody"] = {"required": True, "content": content}
    elif operation.body is not None:
        example = {"example": operation.example} if operation.example is not None else {}
        content = {name: {"schema": schema_of[repr(operation.body)], **example} for name in operation.body_types}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _opens_for(operation: Operation) -> str:
    """Who may call it."""
    if operation.scope is Scope.PUBLIC:
        return "Needs no token."
    queue = f":{operation.queue}" if operation.queue and operation.scope is Scope.SUBMIT else ""
    also = " A student's upload token opens it for this student." if operation.own else ""
    if operation.tokenless:
        also += " From the networks of web.exam_client_networks it needs no token."
    return f"Scope: {operation.scope}{queue}.{also}"


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": _IN_PATH.get(name, {"type": "string"})}
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
