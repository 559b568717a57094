"""/openapi.json, believed by somebody who has read nothing else: schemathesis asks, and checks the answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.result import Ok

from tests.web.conftest import Api, load, write_config

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

