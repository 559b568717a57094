from __future__ import annotations

import contextlib
import random
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zq import payload
from zq.exceptions import Invalid
from zq.payload import PayloadError
from zq.protocol import limits

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@given(st.lists(plain, max_size=5), st.dictionaries(st.text(), plain, max_size=5))
def test_arguments_come_back_as_they_were(args: list[Any], kwargs: dict[str, Any]) -> None:
    assert payload.decode_arguments(payload.encode_arguments(args, kwargs)) == (args, kwargs)


@given(plain)
def test_a_result_comes_back_as_it_was(value: Any) -> None:
    assert payload.decode_result(payload.encode_result(value)) == value


@given(plain)
def test_the_bytes_are_those_of_msgpack(value: Any) -> None:
    """The same job has the same bytes, whichever library made them: a job's digest depends on it."""
    assert payload.encode_arguments([value], {}) == msgpack.packb([[value], {}])


def test_no_arguments_are_the_protocols_default() -> None:
    from zq.protocol.job import JobSpec

    default = JobSpec(id=bytes(16), task="t", queue="q").arguments
    assert payload.decode_arguments(default) == ([], {})


@given(st.binary(max_size=300))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    for decode in (payload.decode_arguments, payload.decode_result):
        with contextlib.suppress(PayloadError):
            decode(data)


@given(st.randoms(use_true_random=False), plain)
def test_damaged_payloads_are_decoded_or_refused(rng: random.Random, value: Any) -> None:
    data = bytearray(payload.encode_arguments([value], {}))
    for _ in range(3):
        data[rng.randrange(len(data))] = rng.randrange(256)
    try:
        args, kwargs = payload.decode_arguments(bytes(data))
    except PayloadError:
        return
    payload.encode_arguments(args, kwargs)  # what was let in is plain


class Colour(IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (datetime(2025, 1, 1, tzinfo=UTC), "isoformat"),
        (Path("/a"), r"pass str"),
        ({1, 2}, "sorted"),
        (bytearray(b"a"), "bytes"),
        (Colour.RED, "Colour"),
        (object(), "builtins.object"),
        (1 << 64, "64 bits"),
        (-(1 << 63) - 1, "64 bits"),
        ("\ud800", "surrogate"),
        ({1: "a"}, "keys are text"),
        ({b"a": 1}, "keys are text"),
        ({"\ud800": 1}, "surrogate"),
    ],
)
def test_what_is_not_plain_is_named_with_its_place(value: object, said: str) -> None:
    with pytest.raises(PayloadError, match=said) as caught:
        payload.encode_arguments(["ok", {"deep": [value]}], {})
    assert "args[1]['deep'][0]" in str(caught.value)
    with pytest.raises(Invalid):
        payload.encode_result([value])


@pytest.mark.parametrize("value", [1 << 64, -(1 << 63) - 1, "\ud800", datetime(2025, 1, 1, tzinfo=UTC), Colour.RED])
def test_what_is_not_plain_is_found_also_where_nothing_is_nested(value: object) -> None:
    with pytest.raises(PayloadError, match=r"args\[1\]"):
        payload.encode_arguments([1, value], {})
    with pytest.raises(PayloadError, match=r"kwargs\['b'\]"):
        payload.encode_arguments((1, "a"), {"a": 1, "b": value})
    with pytest.raises(PayloadError, match="kwargs"):
        payload.encode_arguments((), {value: 1})  # type: ignore[dict-item]
    with pytest.raises(PayloadError, match="result is"):
        payload.encode_result(value)


def test_any_sequence_and_any_mapping_are_arguments() -> None:
    plain = payload.encode_arguments([0, 1, 2], {"a": 1})
    assert payload.encode_arguments(range(3), MappingProxyType({"a": 1})) == plain


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def test_depth_at_the_bound_and_one_past_it() -> None:
    payload.decode_result(payload.encode_result(nested(payload.DEPTH_MAX)))
    with pytest.raises(PayloadError, match="nested"):
        payload.encode_result(nested(payload.DEPTH_MAX + 1))
    with pytest.raises(PayloadError, match="nested"):
        payload.decode_result(msgpack.packb(nested(payload.DEPTH_MAX + 1)))


def test_a_loop_ends() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(PayloadError, match="nested"):
        payload.encode_result(loop)


def test_sizes_at_the_bound_and_one_past_it() -> None:
    overhead = len(payload.encode_arguments([b"x" * 100_000], {})) - 100_000
    largest = b"x" * (limits.ARGUMENTS_BYTES_MAX - overhead)
    data = payload.encode_arguments([largest], {})
    assert len(data) == limits.ARGUMENTS_BYTES_MAX
    assert payload.decode_arguments(data)[0] == [largest]
    with pytest.raises(PayloadError, match="at most 262144"):
        payload.encode_arguments([largest + b"x"], {})
    with pytest.raises(PayloadError, match="at most 262144"):
        payload.decode_arguments(data + b"\x00")


@pytest.mark.parametrize(
    ("kind", "bound"), [(list, payload.LIST_ITEMS_MAX), (dict, payload.DICT_ITEMS_MAX)]
)
def test_items_at_the_bound_and_one_past_it(kind: type, bound: int) -> None:
    def make(count: int) -> object:
        return [1] * count if kind is list else {str(i): 1 for i in range(count)}

    assert payload.decode_result(payload.encode_result(make(bound))) == make(bound)
    with pytest.raises(PayloadError, match="items"):
        payload.encode_result(make(bound + 1))
    with pytest.raises(PayloadError):
        payload.decode_result(msgpack.packb(make(bound + 1)))


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\xff\xff\xff\xff",  # an array that claims 4 G items
        b"\xc6\xff\xff\xff\xff",  # bytes that claim 4 G
        b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\xc7\x0c\xff" + b"\xff" * 12,  # a timestamp out of every range
        b"\xd4\x01a",  # an extension type
        b"\x92\x90\x80\x00",  # something behind the end
        b"\xc1",
        b"\x92" + b"\x91" * 200_000,
        b"\x92\x91\xa1\xff\x80",  # not UTF-8
        b"\x92\x90\x81\x01\x02",  # a number as a keyword
    ],
)
def test_bombs_and_foreign_types_are_refused(data: bytes) -> None:
    with pytest.raises(PayloadError):
        payload.decode_arguments(data)
    with pytest.raises(PayloadError):
        payload.decode_result(data)


@pytest.mark.parametrize("shape", [[], [[]], [[], {}, 1], {"args": []}, [{}, []], [[], {"a": {1: 2}}]])
def test_arguments_have_one_shape(shape: object) -> None:
    with pytest.raises(PayloadError):
        payload.decode_arguments(msgpack.packb(shape))


def test_a_single_text_is_no_list_of_arguments() -> None:
    with pytest.raises(PayloadError, match=r"args=\(value,\)"):
        payload.encode_arguments("a.png", {})
