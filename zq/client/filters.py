"""Which jobs of a listing are meant: by task, error, arguments and age. Pure; the broker never reads arguments, so
whoever asks filters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final

from zq import payload
from zq.exceptions import Invalid
from zq.protocol.job import decode_spec
from zq.protocol.messages import JobInfo

LISTED_ERROR_CHARS: Final = 300
"""A listing holds so much of an error; the whole of it is in the job's detail."""


@dataclass(frozen=True)
class Condition:
    """An argument that must have a value. `name` is a keyword argument's, or the place of a positional one from 0.

    The text is compared as JSON where it reads as JSON, and as text: `n=3` is the number 3 and the text "3".
    """

    name: str
    text: str
    value: Any

    def holds(self, positional: Sequence[Any], keyword: dict[str, Any]) -> bool:
        if self.name in keyword:
            return self._is(keyword[self.name])
        if self.name.isascii() and self.name.isdigit() and int(self.name) < len(positional):
            return self._is(positional[int(self.name)])
        return False

    def _is(self, found: Any) -> bool:
        if isinstance(found, str):
            return found in (self.text, self.value)
        if isinstance(found, bool) or isinstance(self.value, bool):
            return found is self.value
        return bool(found == self.value)


@dataclass(frozen=True)
class JobFilter:
    """All that is given must hold. `task` may have the wildcards * and ?; `error` is a part of the error's text, in any
    case of letters; `ended_before_ms` is Unix milliseconds of the broker's clock."""

    task: str = ""
    error: str = ""
    where: Sequence[Condition] = field(default=())
    ended_before_ms: int | None = None

    @property
    def needs_specs(self) -> bool:
        return bool(self.where)

    def matches(self, job: JobInfo, spec: bytes = b"", error: str | None = None) -> bool:
        """`spec` is the encoded job, needed for `where`; `error` the whole error, where the listing's is cut."""
        if self.task and not fnmatchcase(job.task, self.task):
            return False
        if self.ended_before_ms is not None and not 0 < job.ended_ms < self.ended_before_ms:
            return False
        if self.error and self.error.casefold() not in (job.error if error is None else error).casefold():
            return False
        return not self.where or self._where_holds(spec)

    def is_open(self, job: JobInfo, spec: bytes = b"") -> bool:
        """Whether just the rest of a cut error can tell: ask for the job's detail, and give its error to `matches`."""
        return (
            bool(self.error)
            and len(job.error) >= LISTED_ERROR_CHARS
            and not self.matches(job, spec)
            and self.matches(job, spec, self.error)
        )

    def _where_holds(self, spec: bytes) -> bool:
        try:
            positional, keyword = payload.decode_arguments(decode_spec(spec).arguments)
        except ValueError:
            return False  # what cannot be read has no such argument
        return all(condition.holds(positional, keyword) for condition in self.where)


def condition(text: str) -> Condition:
    """`name=value`. Raises Invalid."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise Invalid(f"--where {text!r}: write it as name=value, as in --where student_id=42")
    return Condition(name, value, json_or_text(value))


def json_or_text(text: str) -> Any:
    """The value that a user means who writes it on a command line or in a query."""
    try:
        return strict_json(text)
    except ValueError:
        return text


def strict_json(text: str) -> Any:
    """Raises ValueError, also for NaN and Infinity, which are not JSON, and for what is nested without end."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
