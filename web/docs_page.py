"""/docs: the OpenAPI document as a page of its own. No script, nothing from anywhere else; made once. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

_TITLES: Final = {
    "jobs": "Jobs",
    "dead": "Dead letters",
    "queues": "Queues",
    "workers": "Workers",
    "schedules": "Schedules",
    "events": "Events",
    "exams": "Exams, students and recordings",
    "api": "Older exam clients",
    "": "The server",
}
_CODE = re.compile(r"`([^`]*)`")
_REF = re.compile(r"#/components/schemas/(\w+)")


def page(document: Mapping[str, Any]) -> str:
    """HTML. The text of the document is escaped wherever it is put in."""
    groups: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            groups.setdefault(_group(path), []).append(_operation(method, path, operation))
    names = sorted(groups, key=lambda name: list(_TITLES).index(name) if name in _TITLES else 0)
    titles = {name: _TITLES.get(name, name.capitalize()) for name in names}
    links = "".join(f'<a href="#{name or "server"}">{escape(titles[name])}</a>' for name in names)
    sections = "".join(
        f'<section id="{name or "server"}"><h2>{escape(titles[name])}</h2>{"".join(groups[name])}</section>'
        for name in names
    )
    info = document["info"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>zq: HTTP API</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="/static/icon.svg"><link rel="stylesheet" href="/static/css/base.css">'
        '<link rel="stylesheet" href="/static/css/docs.css"></head><body><main class="docs"><header>'
        f"<h1>{escape(info['title'])} {escape(info['version'])}: HTTP API</h1>"
        "<p>Send a token with each call: <code>Authorization: Bearer …</code>. Errors are "
        '<a href="#schema-ProblemBody">problems</a> (RFC 9457), and say what to do. The same as data: '
        f'<a href="/openapi.json">/openapi.json</a> (OpenAPI 3.1).</p><nav aria-label="Parts">{links}'
        f'<a href="#schemas">Types</a></nav></header>{sections}{_schemas(document)}</main></body></html>'
    )


def _group(path: str) -> str:
    parts = path.strip("/").split("/")
    if parts[0] == "api":
        return "api"
    name = parts[1].partition(":")[0] if parts[0] == "v1" and len(parts) > 1 else ""
    return name if name.isidentifier() else ""


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    inside = f"<p>{_text(operation['description'])}</p>" if operation.get("description") else ""
    inside += _parameters(operation["parameters"])
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        inside += f"<h3>Body: {escape(kind)}</h3>"
        inside += f"<p>{_type(content['schema'])}</p>" if "schema" in content else "<p>bytes</p>"
    inside += f"<h3>Answers</h3><table><tbody>{''.join(_answers(operation['responses']))}</tbody></table>"
    inside += f"<h3>Example</h3><pre>{escape(_curl(method, path, operation))}</pre>"
    return (
        f'<details id="{escape(operation["operationId"])}">'
        f'<summary><span class="method {method}">{method.upper()}</span>'
        f'<code>{escape(path)}</code><span class="what">{escape(operation["summary"])}</span></summary>'
        f'<div class="inside">{inside}</div></details>'
    )


def _parameters(parameters: list[Mapping[str, Any]]) -> str:
    if not parameters:
        return ""
    rows = "".join(
        f"<tr><td><code>{escape(one['name'])}</code></td><td>{escape(one['in'])}{', required' * one['required']}</td>"
        f"<td>{_type(one['schema'])}</td><td>{_text(one.get('description', ''))}</td></tr>"
        for one in parameters
    )
    return f"<h3>Parameters</h3><table><tbody>{rows}</tbody></table>"


def _answers(responses: Mapping[str, Any]) -> Iterator[str]:
    refusals = [status for status, response in responses.items() if "$ref" in response]
    for status, response in responses.items():
        if "$ref" in response:
            continue
        content = response.get("content", {})
        kinds = ", ".join(
            _type(one["schema"]) if "schema" in one else f"<code>{escape(kind)}</code>" for kind, one in content.items()
        )
        yield f"<tr><td>{status}</td><td>{kinds}</td><td>{_text(response.get('description', ''))}</td></tr>"
    if refusals:
        yield f'<tr><td>{" ".join(refusals)}</td><td><a href="#schema-ProblemBody">problem</a></td><td></td></tr>'


def _text(text: str) -> str:
    """With what is between backticks as code."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def _type(schema: Mapping[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        found = _REF.fullmatch(schema["$ref"])
        name = found[1] if found else ""
        return f'<a href="#schema-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(f"<code>{escape(json.dumps(one, ensure_ascii=False))}</code>" for one in schema["enum"])
    kind = schema.get("type", "any JSON")
    if kind == "array":
        text = f"list of {_type(schema['items'])}" if "items" in schema else "list"
    elif kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        text = f"object of {_type(schema['additionalProperties'])}"
    else:
        text = escape(f"{kind} ({schema['format']})" if "format" in schema else str(kind))
    return text + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    for least, most, what in (
        ("minimum", "maximum", ""), ("minLength", "maxLength", " characters"), ("minItems", "maxItems", " items"),
    ):  # fmt: skip
        if least in schema and most in schema:
            return f", {schema[least]:g} to {_number(schema[most])}{what}"
        if most in schema:
            return f", at most {_number(schema[most])}{what}"
        if least in schema:
            return f", at least {schema[least]:g}{what}"
    return ""


def _number(value: float) -> str:
    return f"{int(value) if value == int(value) else value:,}"


def _schemas(document: Mapping[str, Any]) -> str:
    shown = "".join(_schema(name, schema) for name, schema in sorted(document["components"]["schemas"].items()))
    return f'<section id="schemas"><h2>Types</h2>{shown}</section>'


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    required = set(schema.get("required", []))
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code></td><td>{_type(one)}</td>"
        f"<td>{'required' if field in required else _default(one)}</td>"
        f"<td>{_text(one.get('description', ''))}</td></tr>"
        for field, one in schema.get("properties", {}).items()
    )
    said = _text(schema.get("description", ""))
    return (
        f'<details id="schema-{escape(name)}" open><summary><code>{escape(name)}</code><span class="what">{said}</span>'
        f'</summary><div class="inside"><table><tbody>{rows}</tbody></table></div></details>'
    )


def _default(schema: Mapping[str, Any]) -> str:
    if "default" not in schema:
        return ""
    return f"default <code>{escape(json.dumps(schema['default'], ensure_ascii=False))}</code>"


def _curl(method: str, path: str, operation: Mapping[str, Any]) -> str:
    lines = [f"curl -s -X {method.upper()} 'http://127.0.0.1:5555{path}'"] if method != "get" else [
        f"curl -s 'http://127.0.0.1:5555{path}'"
    ]
    if operation["security"]:
        lines.append('-H "Authorization: Bearer $ZQ_TOKEN"')
    for kind, content in list(operation.get("requestBody", {}).get("content", {}).items())[:1]:
        if kind == "application/octet-stream":
            lines.append("--data-binary @segment.webm")
        elif kind == "multipart/form-data":
            example = content.get("example", {})
            lines += [f"-F '{name}={value}'" for name, value in example.items()]
        else:
            example = json.dumps(content.get("example", {}), ensure_ascii=False)
            lines.append(f"-H 'Content-Type: {kind}' -d '{example}'")
    return " \\\n    ".join(lines)
