from __future__ import annotations

import contextlib
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import zq.protocol.messages as m
from zq.protocol import codec, limits
from zq.protocol.errors import Code, WireError
from zq.protocol.job import JobSpec, decode_spec, encode_spec, new_job_id

BEAT = m.Beat(session=7, dispatches_seen=3, leases=[1, 2, 3])


def test_a_message_comes_out_as_it_went_in() -> None:
    spec = encode_spec(JobSpec(new_job_id(), "录像.合并", "video_merge"))
    for message in (BEAT, m.Submit(1, 2, [spec, spec]), m.Hello(1, 1, m.Role.WORKER, "机器:1", bytes(16))):
        assert codec.decode_from_peer(codec.encode(message)) == message
    refusal = m.Refusal(4, Code.BUSY, "später")
    assert codec.decode_from_broker(codec.encode(refusal)) == refusal


def test_fields_of_a_later_version_are_ignored_and_missing_ones_have_defaults() -> None:
    fields = msgspec.msgpack.decode(codec.encode(BEAT))
    assert codec.decode_from_peer(msgspec.msgpack.encode([*fields, "new", 1])) == BEAT
    assert codec.decode_from_peer(msgspec.msgpack.encode(fields[:4])) == BEAT


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"", Code.MALFORMED),
        (b"\xc1", Code.MALFORMED),
        (b"\x90", Code.INVALID),
        (b"\x91\x63", Code.INVALID),
        (codec.encode(BEAT) + b"x", Code.MALFORMED),
        (b"\xdd\xff\xff\xff\xff", Code.MALFORMED),
        (b"\x91" * 100_000, Code.INVALID),
        (msgspec.msgpack.encode([3, 1, 1, [-1]]), Code.INVALID),
        (msgspec.msgpack.encode([3, 1, 1, list(range(limits.BATCH_ITEMS_MAX + 1))]), Code.INVALID),
        (bytes(limits.FRAME_BYTES_MAX + 1), Code.TOO_LARGE),
    ],
)
def test_a_bad_frame_is_one_typed_error(frame: bytes, code: Code) -> None:
    with pytest.raises(WireError) as caught:
        codec.decode_from_peer(frame)
    assert caught.value.code is code


def test_the_longest_list_is_read() -> None:
    message = m.Beat(1, 1, list(range(limits.BATCH_ITEMS_MAX)))
    assert codec.decode_from_peer(codec.encode(message)) == message


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_wire_error(data: bytes) -> None:
    for decode in (codec.decode_from_peer, codec.decode_from_broker):
        with contextlib.suppress(WireError):
            decode(data)


@given(st.data())
def test_a_damaged_message_is_a_message_or_a_wire_error(data: st.DataObject) -> None:
    spec = encode_spec(JobSpec(new_job_id(), "a.b", "q", key="k"))
    frame = bytearray(codec.encode(m.Submit(1, 2, [spec] * 3)))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        codec.decode_from_peer(bytes(frame))


@pytest.mark.parametrize("filler", [b"\x80", b"\x90", b"\xc0", b"\xa0", b"\xc4\x00", b"\x93\x00\x00\x00"])
def test_a_megabyte_of_small_things_is_refused_quickly(filler: bytes) -> None:
    head = b"\x95\x04\x01\x02\xdd"
    count = (limits.FRAME_BYTES_MAX - 16) // len(filler)
    begun = time.process_time()
    with pytest.raises(WireError):
        codec.decode_from_peer(head + count.to_bytes(4, "big") + filler * count)
    assert time.process_time() - begun < 0.5  # generous: it takes a few milliseconds


def spec_with(**changes: object) -> bytes:
    fields = {name: getattr(JobSpec(new_job_id(), "t", "q"), name) for name in JobSpec.__struct_fields__}
    return msgspec.msgpack.encode(list((fields | changes).values()))


@pytest.mark.parametrize(
    "changes",
    [
        {"id": b"short"}, {"task": ""}, {"task": "two words"}, {"queue": "tab\there"}, {"queue": "x" * 201},
        {"priority": 10}, {"priority": -1}, {"max_retries": limits.RETRIES_MAX + 1}, {"delay_ms": -1},
        {"soft_limit_ms": 2, "hard_limit_ms": 1}, {"arguments": bytes(limits.ARGUMENTS_BYTES_MAX + 1)},
        {"key": "k" * 256},
    ],
)  # fmt: skip
def test_a_spec_out_of_range_is_a_value_error(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_spec(spec_with(**changes))


def test_a_spec_at_its_bounds_is_read() -> None:
    spec = decode_spec(
        spec_with(
            task="x" * 200, priority=9, max_retries=limits.RETRIES_MAX, key="k" * 255,
            arguments=bytes(limits.ARGUMENTS_BYTES_MAX), delay_ms=limits.DURATION_MS_MAX,
        )
    )  # fmt: skip
    assert decode_spec(encode_spec(spec)) == spec


def test_lists_are_cut_by_number_and_by_bytes() -> None:
    assert list(codec.split([], [])) == []
    many = list(range(limits.BATCH_ITEMS_MAX + 1))
    assert [len(part) for part in codec.split(many, [1] * len(many))] == [limits.BATCH_ITEMS_MAX, 1]
    half = limits.BATCH_BYTES_MAX // 2
    assert [list(p) for p in codec.split("abc", [half, half, 1])] == [["a", "b"], ["c"]]
    assert [list(p) for p in codec.split("ab", [limits.BATCH_BYTES_MAX + 1, 1])] == [["a"], ["b"]]
