"""What slots, keeper and parent say: bounds, and whatever bytes may come; plain values."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zq.protocol import limits
from zq.workers import channel
from zq.workers.plain import DEPTH_MAX, NotPlain, check_plain, decode_arguments, encode_result

RESULT = channel.AttemptResult(1, channel.SlotOutcome.DONE, b"x", "é", 2.5)
DECODERS: list[msgspec.msgpack.Decoder[Any]] = [
    channel.to_slot,
    channel.from_slot,
    channel.to_keeper,
    channel.from_keeper,
]


def assignment(size_bytes: int = 0) -> channel.Assignment:
    return channel.Assignment(1, "id", 1, "task", "q", b"x" * size_bytes, 1.0, 1.0)


@given(st.lists(st.integers(0, 5), max_size=30), st.data())
def test_frames_survive_any_cut(sizes: list[int], data: st.DataObject) -> None:
    messages = [channel.Finished([RESULT] * size) for size in sizes]
    stream = b"".join(channel.frame(message) for message in messages)
    reader = channel.FrameReader()
    out: list[channel.FromSlotMessage] = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        out += [channel.decode(channel.from_slot, body) for body in reader.feed(stream[:cut])]
        stream = stream[cut:]
    assert out == messages


def test_frame_at_its_bound_and_past_it() -> None:
    size = channel.FRAME_BYTES_MAX
    reader = channel.FrameReader()
    assert list(reader.feed(size.to_bytes(4, "big"))) == []
    assert [len(body) for body in reader.feed(bytes(size))] == [size]
    with pytest.raises(channel.ChannelError, match="at most"):
        list(reader.feed((size + 1).to_bytes(4, "big")))
    with pytest.raises(ValueError, match="at most"):
        channel.frame(channel.Run([assignment(limits.ARGUMENTS_BYTES_MAX)] * 5))


@given(st.sampled_from(DECODERS), st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_channel_error(decoder: msgspec.msgpack.Decoder[Any], data: bytes) -> None:
    with contextlib.suppress(channel.ChannelError):
        channel.decode(decoder, data)


@given(st.binary(min_size=1, max_size=3), st.integers(0, 10_000))
def test_damaged_messages_are_a_message_or_a_channel_error(noise: bytes, place: int) -> None:
    good = channel.encode(channel.Finished([RESULT, RESULT]))
    place %= len(good)
    with contextlib.suppress(channel.ChannelError):
        channel.decode(channel.from_slot, good[:place] + noise + good[place + len(noise) :])


def test_jobs_are_split_to_fit_frames() -> None:
    jobs = [assignment(200_000) for _ in range(12)]
    parts = list(channel.split_jobs(jobs))
    assert [job for part in parts for job in part] == jobs
    assert all(channel.frame(channel.Run(part)) for part in parts)
    assert len(parts) == 3
    tiny = [assignment() for _ in range(limits.BATCH_ITEMS_MAX + 1)]
    assert [job for part in channel.split_jobs(tiny) for job in part] == tiny
    assert all(len(part) <= limits.BATCH_ITEMS_MAX for part in channel.split_jobs(tiny))
    assert list(channel.split_jobs([])) == []


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=9)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(PLAIN, max_size=4), st.dictionaries(st.text(max_size=5), PLAIN, max_size=4))
def test_plain_values_travel(positional: list[Any], keyword: dict[str, Any]) -> None:
    data = encode_result([positional, keyword])
    assert decode_arguments(data) == (positional, keyword)


@given(st.binary(max_size=300))
def test_any_arguments_are_plain_or_refused(data: bytes) -> None:
    try:
        positional, keyword = decode_arguments(data)
    except NotPlain:
        return
    check_plain([positional, keyword], "arguments")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc0",
        b"\x92\x90\x90",
        b"\x92\x80\x80",
        b"\x93\x90\x80\x80",
        b"\x92\x90\x81\x01\x02",  # a number as a keyword
        b"\x92\x91\xd6\xff\x00\x00\x00\x00\x80",  # a timestamp
        b"\x92\x91\xd4\x05\x00\x80",  # an extension
        b"\x92\x91\xdd\xff\xff\xff\xff",  # an array of 4 G
        b"\x92" + b"\x91" * 200_000,
        b"\x92\x91" + b"\x91" * (DEPTH_MAX + 1) + b"\x90\x80",
        b"\x92\x91\xa1\xff\x80",  # not UTF-8
        b"\xc0" * (limits.ARGUMENTS_BYTES_MAX + 1),
    ],
)
def test_arguments_that_are_refused(data: bytes) -> None:
    with pytest.raises(NotPlain):
        decode_arguments(data)


class _Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({1: 2}, "key 1, a int"),
        ([{"a": {3}}], r"result\[0\]\['a'\] is a builtins.set"),
        (_Text("x"), "_Text"),
        (1 << 64, "64 bits"),
        (-(1 << 63) - 1, "64 bits"),
        ("\ud800", "surrogate"),
        ({"\ud800": 1}, "surrogate"),
        (object(), "builtins.object"),
    ],
)
def test_results_that_are_not_plain_say_where(value: object, says: str) -> None:
    with pytest.raises(NotPlain, match=says):
        encode_result(value)


def test_result_that_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(NotPlain, match="deep"):
        encode_result(loop)


def test_tuples_become_lists_and_none_is_nothing() -> None:
    assert msgspec.msgpack.decode(encode_result((1, (2,)))) == [1, [2]]
    assert encode_result(None) == b""
