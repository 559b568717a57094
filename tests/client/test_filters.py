"""Which jobs a filter means."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zq import payload
from zq.client.filters import LISTED_ERROR_CHARS, JobFilter, condition, json_or_text
from zq.exceptions import Invalid
from zq.protocol.job import JobSpec, State, encode_spec
from zq.protocol.messages import JobInfo


def job(error: str = "", task: str = "m.f", ended_ms: int = 1000) -> JobInfo:
    return JobInfo(bytes(16), task, "q", State.DEAD, 5, 4, 4, 1, 0, 1, ended_ms, "w", "", error, 10)


def spec(*args: Any, **kwargs: Any) -> bytes:
    return encode_spec(JobSpec(bytes(16), "m.f", "q", payload.encode_arguments(args, kwargs)))


@pytest.mark.parametrize(
    ("where", "holds"),
    [
        ("n=3", True),
        ("n=3.0", True),
        ("n=4", False),
        ("name=张伟", True),
        ("name=张", False),
        ("number=42", True),  # it is the text "42"
        ("number=042", False),
        ('number="42"', True),
        ("on=true", True),
        ("on=1", False),  # true is no number
        ("one=true", False),
        ("none=null", True),
        ("0=a.png", True),
        ("1=7", True),
        ("2=7", False),
        ("missing=1", False),
        ("list=[1, 2]", True),
        ("empty=", True),
        ("a=b=c", True),
    ],
)
def test_arguments_are_compared_as_json_or_as_text(where: str, holds: bool) -> None:
    encoded = spec(
        "a.png", 7, n=3, name="张伟", number="42", on=True, one=1, none=None, list=[1, 2], empty="", a="b=c"
    )
    assert JobFilter(where=[condition(where)]).matches(job(), encoded) is holds


def test_all_that_is_given_must_hold() -> None:
    found = JobFilter(
        task="m.*", error="不见", where=[condition("n=3"), condition("m=4")], ended_before_ms=2000
    )
    assert found.matches(job("ValueError: 文件不见了"), spec(n=3, m=4))
    assert not found.matches(job("ValueError: 文件不见了"), spec(n=3, m=5))
    assert not found.matches(job("ValueError"), spec(n=3, m=4))
    assert not found.matches(job("不见", task="other.f"), spec(n=3, m=4))
    assert not found.matches(job("不见", ended_ms=2000), spec(n=3, m=4))
    assert not found.matches(job("不见", ended_ms=0), spec(n=3, m=4))
    assert JobFilter().matches(job())
    assert JobFilter(error="VALUEERROR").matches(job("ValueError"))


def test_an_error_that_was_cut_is_open_until_the_whole_of_it_is_there() -> None:
    found = JobFilter(task="m.f", error="disk full")
    cut = job("x" * LISTED_ERROR_CHARS)
    assert not found.matches(cut)
    assert found.is_open(cut)
    assert found.matches(cut, b"", "x" * LISTED_ERROR_CHARS + "disk full")
    assert not found.is_open(job("x" * (LISTED_ERROR_CHARS - 1)))
    assert not found.is_open(job("x" * LISTED_ERROR_CHARS, task="other"))
    assert not JobFilter(task="n").is_open(cut)


@pytest.mark.parametrize("text", ["", "a", "=", "=1"])
def test_a_condition_has_a_name_and_a_value(text: str) -> None:
    with pytest.raises(Invalid, match="name=value"):
        condition(text)


@given(st.text(), st.binary(max_size=200))
def test_whatever_is_compared_with_whatever_is_true_or_false(text: str, data: bytes) -> None:
    one = condition(f"n={text}")
    assert JobFilter(where=[one]).matches(job(), data) in (True, False)
    assert JobFilter(where=[one]).matches(job(), spec(n=text)) in (True, False)
    assert one.holds([], {"n": text})


def test_deep_json_is_text() -> None:
    deep = "[" * 100_000
    assert json_or_text(deep) == deep
