"""What an uploader declares of a segment, as its headers say it."""

from __future__ import annotations

import base64
import hashlib

import pytest
from starlette.requests import Request

from zq.web.problems import Problem
from zq.web.uploads import read_declared

DIGEST = hashlib.sha256(b"segment")
BASE64 = base64.b64encode(DIGEST.digest()).decode()


def declared(header: str, value: str) -> str | None:
    return read_declared(Request({"type": "http", "headers": [(header.encode(), value.encode())]}), 1000).sha256


@pytest.mark.parametrize(
    "value",
    [f"sha-256=:{BASE64}:", f"SHA-256={BASE64}", f"sha-512=:AAAA:, sha-256=:{BASE64}:", f"sha-256=:{BASE64}:;x=1"],
)
def test_a_digest_in_each_of_its_forms(value: str) -> None:
    assert declared("content-digest", value) == DIGEST.hexdigest()


@pytest.mark.parametrize("value", ["sha-256=:AAAA:", "sha-256=", f"sha-256=:{BASE64[:-4]}:", "sha-512=:A:,sha-256=:x:"])
def test_a_digest_that_cannot_be_checked_is_not_taken_for_one_that_was(value: str) -> None:
    with pytest.raises(Problem) as refused:
        declared("content-digest", value)
    assert refused.value.status == 422


def test_digests_of_other_kinds_are_left_alone() -> None:
    assert declared("digest", "md5=x, sha-512=:sha-256:") is None
