"""Arguments and results as bytes: msgpack of plain values, checked on both sides of the wire.

Plain are None, bool, int of 64 bits, float, str, bytes, lists and dicts with text keys; a tuple travels as a list. A
subclass does not count: it would come back as something else. The broker never looks inside, so what arrives is as
good as what a stranger wrote: it is decoded with caps (`limits.ARGUMENTS_BYTES_MAX`, and the ones below), and the same
caps hold when it is encoded, so that whoever sends too much hears of it before anything is sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import msgpack  # type: ignore[import-untyped]
import msgspec

from zq.exceptions import Invalid
from zq.protocol import limits

DEPTH_MAX: Final = 64
LIST_ITEMS_MAX: Final = 1 << 16
DICT_ITEMS_MAX: Final = 1 << 14
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1
_SCALARS: Final = frozenset({type(None), bool, int, float, str, bytes})
_TEXT: Final = frozenset({str})

_ADVICE: Final = {
    "datetime": "pass .isoformat()",
    "date": "pass .isoformat()",
    "Decimal": "pass str(…)",
    "UUID": "pass str(…)",
    "PosixPath": "pass str(…)",
    "set": "pass sorted(…)",
    "frozenset": "pass sorted(…)",
    "bytearray": "pass bytes(…)",
    "memoryview": "pass bytes(…)",
}


_packer: Final = msgspec.msgpack.Encoder()
_TOLD_BY_THE_PACKER: Final = (OverflowError, UnicodeEncodeError)
"""Integers of more than 64 bits and lone surrogates: no decoded value has them, and the packer finds them by itself."""


class PayloadError(Invalid):
    """The value cannot travel, or the bytes are no payload; the text says where in it and why."""


def encode_arguments(args: Sequence[object], kwargs: Mapping[str, object]) -> bytes:
    """msgpack of [positional, keyword]. Raises PayloadError."""
    if type(args) is not tuple and type(args) is not list:
        if isinstance(args, (str, bytes)) or not isinstance(args, Sequence):
            raise PayloadError(f"args is {args!r:.60}; give a tuple or a list, for one argument args=(value,)")
        args = list(args)
    if type(kwargs) is not dict:
        if not isinstance(kwargs, Mapping):
            raise PayloadError(f"kwargs is {kwargs!r:.60}; give a dict")
        kwargs = dict(kwargs)
    if not _plain_at_a_glance(args):
        _walk(args, "args")
    if kwargs and not _plain_at_a_glance(kwargs):
        _walk(kwargs, "kwargs")
    try:
        data = _packer.encode((args, kwargs))
    except _TOLD_BY_THE_PACKER:
        _walk(args, "args")
        _walk(kwargs, "kwargs")
        raise
    return _bounded(data, "the arguments", limits.ARGUMENTS_BYTES_MAX)


def decode_arguments(data: bytes) -> tuple[list[Any], dict[str, Any]]:
    """The positional and the keyword arguments of a call. Raises PayloadError for anything else."""
    value = _unpack(data, "the arguments", limits.ARGUMENTS_BYTES_MAX)
    if not (isinstance(value, list) and len(value) == 2):
        raise PayloadError("the arguments are not [positional, keyword]")
    positional, keyword = value
    if not (isinstance(positional, list) and isinstance(keyword, dict)):
        raise PayloadError("the arguments are not [list, dict]")
    _check(positional, "args")
    _check(keyword, "kwargs")
    return positional, keyword


def encode_result(value: object) -> bytes:
    """msgpack of what a task returned; empty for None. Raises PayloadError."""
    if value is None:
        return b""
    _check(value, "result")
    try:
        data = _packer.encode(value)
    except _TOLD_BY_THE_PACKER:
        _walk(value, "result")
        raise
    return _bounded(data, "the result", limits.RESULT_BYTES_MAX)


def decode_result(data: bytes) -> Any:
    """What `encode_result` was given, tuples as lists. Raises PayloadError."""
    if not data:
        return None
    value = _unpack(data, "the result", limits.RESULT_BYTES_MAX)
    _check(value, "result")
    return value


def _bounded(data: bytes, what: str, size_bytes_max: int) -> bytes:
    if len(data) > size_bytes_max:
        raise PayloadError(
            f"{what} would be {len(data)} bytes; at most {size_bytes_max} are allowed:"
            " put large data into a file or a bucket and pass its name"
        )
    return data


def _unpack(data: bytes, what: str, size_bytes_max: int) -> Any:
    if len(data) > size_bytes_max:
        raise PayloadError(f"{what} are {len(data)} bytes; at most {size_bytes_max} are allowed")
    try:
        return msgpack.unpackb(
            data,
            max_array_len=LIST_ITEMS_MAX,
            max_map_len=DICT_ITEMS_MAX,
            max_str_len=size_bytes_max,
            max_bin_len=size_bytes_max,
            max_ext_len=0,
        )
    except Exception as error:  # hostile bytes raise a dozen types here, OverflowError and StackError among them
        raise PayloadError(f"{what} are not msgpack of plain values: {type(error).__name__}: {error}") from None


def _check(value: object, root: str) -> None:
    """Raise PayloadError unless `value` is plain, but for what `_TOLD_BY_THE_PACKER` tells."""
    if not _plain_at_a_glance(value):
        _walk(value, root)


def _plain_at_a_glance(value: Any) -> bool:
    """Whether it is a scalar, or holds nothing but scalars: what most calls pass, and told without a loop."""
    kind = type(value)
    if kind is tuple or kind is list:
        return len(value) <= LIST_ITEMS_MAX and _SCALARS.issuperset(map(type, value))
    if kind is dict:
        return (
            len(value) <= DICT_ITEMS_MAX
            and _TEXT.issuperset(map(type, value))
            and _SCALARS.issuperset(map(type, value.values()))
        )
    return kind in _SCALARS


def _walk(value: object, root: str) -> None:
    """Raise PayloadError unless `value` is plain. Places are spelled out only when something is wrong."""
    waiting: list[tuple[object, tuple[object, ...]]] = [(value, ())]
    while waiting:
        part, path = waiting.pop()
        kind = type(part)
        if part is None or kind is bool or kind is float or kind is bytes:
            continue
        if kind is str:
            _check_text(part, root, path)
        elif kind is int:
            if not _INT_MIN <= part <= _INT_MAX:  # type: ignore[operator]
                raise PayloadError(f"{_place(root, path)} is an integer of more than 64 bits; pass str(…)")
        elif kind is list or kind is tuple:
            _check_size(part, LIST_ITEMS_MAX, root, path)
            items = cast("list[object]", part)
            waiting.extend((item, (*path, index)) for index, item in enumerate(items))
        elif kind is dict:
            _check_size(part, DICT_ITEMS_MAX, root, path)
            for key, item in cast("dict[object, object]", part).items():
                if type(key) is not str:
                    raise PayloadError(f"{_place(root, path)} has the key {key!r:.40}; keys are text, pass str(…)")
                _check_text(key, root, path)
                waiting.append((item, (*path, key)))
        else:
            advice = _ADVICE.get(kind.__name__, "None, bool, int, float, str, bytes, list and dict can be passed")
            raise PayloadError(
                f"{_place(root, path)} is a {kind.__module__}.{kind.__qualname__}, which is not plain: {advice}"
            )


def _check_size(part: Any, items_max: int, root: str, path: tuple[object, ...]) -> None:
    if len(part) > items_max:
        raise PayloadError(f"{_place(root, path)} has {len(part)} items; at most {items_max} are allowed")
    if len(path) >= DEPTH_MAX:
        raise PayloadError(f"{root} is nested more than {DEPTH_MAX} deep")


def _check_text(text: Any, root: str, path: tuple[object, ...]) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise PayloadError(f"{_place(root, path)} is text with a lone surrogate; UTF-8 cannot hold it") from None


def _place(root: str, path: tuple[object, ...]) -> str:
    return root + "".join(f"[{step!r:.40}]" for step in path[:8]) + ("…" if len(path) > 8 else "")
