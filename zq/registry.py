"""The tasks this process knows: name → function. `zq.App` fills it on import of a task module; slots look into it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zq.exceptions import ZqError
from zq.protocol import limits


class TaskNameTaken(ZqError):
    """Two different functions were registered under one task name."""


@dataclass(frozen=True, slots=True)
class RegisteredTask:
    name: str
    function: Callable[..., Any]
    options: object = None
    """What `App.task` was given; opaque here."""
    is_async: bool = False


_tasks: dict[str, RegisteredTask] = {}


def register(name: str, function: Callable[..., Any], options: object = None) -> RegisteredTask:
    """Make `function` runnable as `name`. The same function (a module imported again) replaces itself.

    Raises TaskNameTaken if another function has the name: which of the two ran would depend on the import order;
    ValueError for a name that cannot travel.
    """
    if not 0 < len(name) <= limits.NAME_CHARS_MAX or not name.isprintable() or any(c.isspace() for c in name):
        raise ValueError(f"{name!r} cannot name a task: up to {limits.NAME_CHARS_MAX} printable characters, no blanks")
    known = _tasks.get(name)
    if known is not None and _origin(known.function) != _origin(function):
        raise TaskNameTaken(
            f"task name '{name}' is used by {_origin(known.function)} and by {_origin(function)};"
            " give one of them another name"
        )
    task = RegisteredTask(name, function, options, inspect.iscoroutinefunction(function))
    _tasks[name] = task
    return task


def _origin(function: Callable[..., Any]) -> str:
    module = getattr(function, "__module__", "?")
    return f"{module}.{getattr(function, '__qualname__', repr(function))}"


def lookup(name: str) -> RegisteredTask | None:
    return _tasks.get(name)


def names() -> list[str]:
    return sorted(_tasks)


_hooks: dict[str, dict[str, Callable[[], Any]]] = {"start": {}, "stop": {}}


def register_hook(moment: str, function: Callable[[], Any]) -> None:
    """Call `function` when a slot process starts ("start") or ends in order ("stop"). A module that is imported again
    replaces its own.
    """
    _hooks[moment][_origin(function)] = function


def hooks(moment: str) -> list[Callable[[], Any]]:
    """In the order in which they were registered."""
    return list(_hooks[moment].values())
