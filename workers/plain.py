"""Arguments and results are plain: None, bool, int, float, str, bytes, lists and dicts with text keys, nothing else.

Arguments come from whoever may submit, so they are decoded in the slot only: 256 KiB of them
cost at most some 20 MiB there. Results are checked before
they are packed, so that a task that returns something else hears where and what, not just that packing failed.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from zq.protocol import limits

DEPTH_MAX: Final = 64
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1


class NotPlain(ValueError):
    """The value cannot travel; the text says where in it and why."""


def decode_arguments(data: bytes) -> tuple[list[Any], dict[str, Any]]:
    """The positional and the keyword arguments of a call. Raises NotPlain for anything else."""
    if len(data) > limits.ARGUMENTS_BYTES_MAX:
        raise NotPlain(f"arguments of {len(data)} bytes; at most {limits.ARGUMENTS_BYTES_MAX} are allowed")
    try:
        value = msgspec.msgpack.decode(data)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError, TypeError) as error:
        raise NotPlain(f"the arguments are not msgpack of plain values: {type(error).__name__}: {error}") from None
    if not (isinstance(value, list) and len(value) == 2):
        raise NotPlain("the arguments are not a list of [positional, keyword]")
    positional, keyword = value
    if not isinstance(positional, list) or not isinstance(keyword, dict):
        raise NotPlain("the arguments are not [list, map]")
    if not all(isinstance(name, str) for name in keyword):
        raise NotPlain("a keyword argument's name is not text")
    check_plain(value, "arguments")
    return positional, keyword


def encode_result(value: object) -> bytes:
    """msgpack of what a task returned; empty for None. Raises NotPlain, also for one that is too large."""
    if value is None:
        return b""
    check_plain(value, "result")
    data = msgspec.msgpack.encode(value)
    if len(data) > limits.RESULT_BYTES_MAX:
        raise NotPlain(
            f"the result is {len(data)} bytes; at most {limits.RESULT_BYTES_MAX} are kept:"
            " write large data to a file or a bucket and return its name"
        )
    return data


def check_plain(value: object, where: str) -> None:
    """Raise NotPlain unless `value` is made of plain types only; tuples count as lists, subclasses do not count."""
    waiting: list[tuple[object, str, int]] = [(value, where, 0)]
    while waiting:
        part, place, depth = waiting.pop()
        kind = type(part)
        if part is None or kind in (bool, float, bytes):
            continue
        if kind is int:
            if not _INT_MIN <= part <= _INT_MAX:  # type: ignore[operator]
                raise NotPlain(f"{place} is an integer of more than 64 bits")
            continue
        if kind is str:
            _check_text(part, place)
            continue
        if depth >= DEPTH_MAX:
            raise NotPlain(f"{where} is nested more than {DEPTH_MAX} deep")
        if kind in (list, tuple):
            children = [(item, f"{place}[{index}]", depth + 1) for index, item in enumerate(part)]  # type: ignore[arg-type, var-annotated]
        elif kind is dict:
            children = []
            for key, item in part.items():  # type: ignore[attr-defined]
                if type(key) is not str:
                    raise NotPlain(f"{place} has the key {key!r:.40}, a {type(key).__name__}; keys are text")
                _check_text(key, f"a key of {place}")
                children.append((item, f"{place}[{key!r:.40}]", depth + 1))
        else:
            raise NotPlain(
                f"{place} is a {kind.__module__}.{kind.__qualname__}; plain values are None, bool, int, float, str,"
                " bytes, list, tuple and dict"
            )
        waiting.extend(children)


def _check_text(text: object, place: str) -> None:
    try:
        str.encode(text, "utf-8")  # type: ignore[arg-type]
    except UnicodeEncodeError:
        raise NotPlain(f"{place} is text with a lone surrogate, which UTF-8 cannot hold") from None
