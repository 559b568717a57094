"""What slots, keeper and parent say: bounds, and whatever bytes may come."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zq.protocol import limits
from zq.workers import channel

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
