"""The only code that sees frames: one message is one frame, and one frame is msgpack of [tag, field, …].

Decoding checks tags, types, ranges and lengths in C while it reads (msgspec), so no hostile frame builds more than a
small multiple of its own size, and a frame is at most `limits.FRAME_BYTES_MAX`. It returns a message or raises
WireError, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import msgspec

from zq.protocol import limits
from zq.protocol.errors import Code, WireError
from zq.protocol.messages import BrokerMessage, PeerMessage

_encoder = msgspec.msgpack.Encoder()
_peer_decoder: msgspec.msgpack.Decoder[PeerMessage] = msgspec.msgpack.Decoder(PeerMessage)
_broker_decoder: msgspec.msgpack.Decoder[BrokerMessage] = msgspec.msgpack.Decoder(BrokerMessage)


def encode(message: PeerMessage | BrokerMessage) -> bytes:
    """The frame of a message. Raises ValueError if it is too large: the caller should have split its list."""
    frame = _encoder.encode(message)
    if len(frame) > limits.FRAME_BYTES_MAX:
        raise ValueError(f"{type(message).__name__} is {len(frame)} bytes; a frame is at most {limits.FRAME_BYTES_MAX}")
    return frame


def decode_from_peer(frame: bytes) -> PeerMessage:
    """What a client or worker sent. Raises WireError."""
    return _decode(_peer_decoder, frame)


def decode_from_broker(frame: bytes) -> BrokerMessage:
    """What the broker sent. Raises WireError."""
    return _decode(_broker_decoder, frame)


T = TypeVar("T")


def _decode(decoder: msgspec.msgpack.Decoder[T], frame: bytes) -> T:
    if len(frame) > limits.FRAME_BYTES_MAX:
        raise WireError(Code.TOO_LARGE, f"a frame of {len(frame)} bytes; at most {limits.FRAME_BYTES_MAX}")
    try:
        return decoder.decode(frame)
    except msgspec.ValidationError as error:
        raise WireError(Code.INVALID, str(error)[: limits.MESSAGE_CHARS_MAX]) from None
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise WireError(Code.MALFORMED, str(error)[: limits.MESSAGE_CHARS_MAX]) from None


def split(items: Sequence[T], size_of: Sequence[int]) -> Iterator[Sequence[T]]:
    """Cut a list so that each part fits into one message, in number and in bytes (`size_of[i]` is item i's)."""
    start = 0
    total_bytes = 0
    for index, size_bytes in enumerate(size_of):
        full = total_bytes + size_bytes > limits.BATCH_BYTES_MAX or index - start >= limits.BATCH_ITEMS_MAX
        if full and index > start:
            yield items[start:index]
            start, total_bytes = index, 0
        total_bytes += size_bytes
    if start < len(items):
        yield items[start:]
