"""Tasks that are a command line: a template of arguments, filled in for each job, run without a shell."""

from __future__ import annotations

import functools
import inspect
import re
import string
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from zq.context import JobContext, ProcessResult, current_job
from zq.exceptions import Invalid, Reject, ZqError

OUTPUT_CHARS_MAX: Final = 8192
"""Of standard output, its last lines, in the job's result."""


class CommandFailed(ZqError):
    """The program ended with a code that does not count as success; another attempt may do better."""


class Piece(NamedTuple):
    """A part of one argument: text, then the value of a parameter (none if `name` is empty)."""

    text: str
    name: str


class Template:
    """The arguments of a program. `{name}` stands for a parameter's value, `{{` and `}}` for braces."""

    def __init__(self, argv: Sequence[str]) -> None:
        if isinstance(argv, str | bytes) or not argv:
            raise Invalid("a command is a list of arguments, the program first: it never goes through a shell")
        self._arguments = [_pieces(argument) for argument in argv]
        self.names = {piece.name for argument in self._arguments for piece in argument if piece.name}

    def fill(self, values: Mapping[str, Any]) -> list[str]:
        """One argument each, whatever is in a value; a list in an argument of its own becomes several, None none.

        Raises Reject for a value that is no argument, or that the program could take for an option.
        """
        filled: list[str] = []
        options_end = False
        for pieces in self._arguments:
            if len(pieces) == 1 and not pieces[0].text and pieces[0].name:
                value = values[pieces[0].name]
                several = value if isinstance(value, list | tuple) else [] if value is None else [value]
                for one in several:
                    text = _text(pieces[0].name, one)
                    if text.startswith("-") and isinstance(one, str) and not options_end:
                        raise Reject(
                            f"{pieces[0].name}={text!r:.200} would be taken for an option;"
                            " put '--' before it in the command, or './' before a path"
                        )
                    filled.append(text)
                continue
            text = "".join(p.text + (_text(p.name, values[p.name]) if p.name else "") for p in pieces)
            options_end = options_end or text == "--"
            filled.append(text)
        return filled


def _pieces(argument: str) -> list[Piece]:
    try:
        parsed = list(string.Formatter().parse(argument))
    except (ValueError, TypeError) as error:
        raise Invalid(f"{argument!r} is no argument template: {error}; write {{{{ and }}}} for braces") from None
    for _, name, spec, conversion in parsed:
        if name is not None and (not name.isidentifier() or spec or conversion):
            raise Invalid(f"{argument!r}: between braces stands the name of a parameter and nothing else")
    return [Piece(text, name or "") for text, name, _, _ in parsed]


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float | Path):
        raise Reject(f"{name}={value!r:.200} cannot be an argument of a program; a text or a number can")
    text = str(value)
    if "\0" in text:
        raise Reject(f"{name}={text!r:.200} has a null character in it, which no argument can have")
    return text


class _Tail:
    """The last OUTPUT_CHARS_MAX characters of some lines."""

    def __init__(self) -> None:
        self.text = ""

    def add(self, line: str) -> None:
        self.text = f"{self.text}\n{line}"[-OUTPUT_CHARS_MAX:] if self.text else line[-OUTPUT_CHARS_MAX:]


class Command:
    """What a command task runs. Called with the values of its parameters."""

    def __init__(
        self, declared: Callable[..., Any], argv: Sequence[str], *, cwd: str | None, env: Mapping[str, str] | None,
        ok_codes: Sequence[int], reject_codes: Sequence[int], progress: str | None,
    ) -> None:  # fmt: skip
        """Raises Invalid for a template that does not fit the parameters of `declared`."""
        self._template = Template(argv)
        self._cwd = Template([cwd]) if cwd is not None else None
        self._env = dict(env) if env is not None else None
        self._ok_codes = frozenset(ok_codes)
        self._reject_codes = frozenset(reject_codes)
        self._signature = inspect.signature(declared)
        self._progress = _pattern(progress)
        names = self._template.names | (self._cwd.names if self._cwd is not None else set())
        parameters = set(self._signature.parameters)
        if names != parameters:
            odd = ", ".join(sorted(names ^ parameters))
            raise Invalid(f"command {declared.__qualname__}: {odd} must be both in its arguments and its parameters")
        functools.update_wrapper(self, declared)

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        argv = self._template.fill(bound.arguments)
        cwd = Path(self._cwd.fill(bound.arguments)[0]) if self._cwd is not None else None
        output = _Tail()
        job = _job()
        if job is None:
            ended = _run_here(argv, cwd, self._env, output)
        else:
            running = job  # for the closure: not None

            def on_line(line: str) -> None:
                output.add(line)
                self._tell(running, line)

            ended = job.run_process(argv, cwd=cwd, env=self._env, on_stdout_line=on_line)
        return self._judge(argv[0], ended, output.text)

    def _tell(self, job: JobContext, line: str) -> None:
        found = self._progress.search(line) if self._progress is not None else None
        if found is None:
            return
        groups = found.groupdict()
        try:
            job.progress(float(groups["done"]), float(groups.get("total") or 100), groups.get("message") or "")
        except ValueError:
            return  # N/A, as programs say before they know

    def _judge(self, program: str, ended: ProcessResult, output: str) -> dict[str, Any]:
        if ended.returncode in self._ok_codes:
            return {"exit_code": ended.returncode, "output": output}
        code = ended.returncode
        how = f"ended with exit code {code}" if code >= 0 else f"died: signal {-code}"
        if ended.returncode in self._reject_codes:
            raise Reject(f"{program} {how}: {ended.stderr_tail.strip()[-2000:]}")
        raise CommandFailed(f"{program} {how}")


def _pattern(progress: str | None) -> re.Pattern[str] | None:
    if progress is None:
        return None
    try:
        pattern = re.compile(progress)
    except re.error as error:
        raise Invalid(f"progress {progress!r} is no regular expression: {error}") from None
    if "done" not in pattern.groupindex:
        raise Invalid(f"progress {progress!r} needs a group (?P<done>…), and may have `total` and `message`")
    return pattern


def _job() -> JobContext | None:
    try:
        return current_job()
    except RuntimeError:
        return None


def _run_here(argv: Sequence[str], cwd: Path | None, env: Mapping[str, str] | None, output: _Tail) -> ProcessResult:
    """Outside of a job: what calling a task means."""
    done = subprocess.run(list(argv), cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    output.add(done.stdout.decode("utf-8", "replace").rstrip("\n"))
    return ProcessResult(done.returncode, done.stderr[-8192:].decode("utf-8", "replace"))
