"""Writes docs/configuration.md from `zq.config`, so that the page has every key: `python docs/configuration_page.py`.

Types, bounds and defaults come from the structs, explanations from the text below each field in zq/config.py, and
where there is none (the name says it all there) from `WORDS` here. A test compares the page with what this makes.
"""

from __future__ import annotations

import ast
import inspect
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from zq import config

PAGE = Path(__file__).with_name("configuration.md")

WORDS = {
    "data_dir": "Where journal, logs, keys, token and, by default, the exams are. Relative to the file's folder.",
    "broker.bind": "Address that the broker listens on.",
    "broker.heartbeat_s": "How often a worker says that it lives.",
    "broker.result_ttl_s": "How long a result can be fetched after its job is done.",
    "client.broker": "Address at which programs, workers and the scheduler reach the broker.",
    "client.timeout_s": "How long a call waits for the broker before it raises `Unavailable`.",
    "worker.tasks": "Modules that every worker imports, whatever its queues.",
    "worker.soft_time_limit_s": "A job's soft limit where neither its task nor its submit says one.",
    "worker.time_limit_s": "A job's hard limit where neither its task nor its submit says one.",
    "worker.sample_s": "How often the process tree of each slot is measured.",
    "schedules.NAME.task": "Name of the task: `module.function`.",
    "schedules.NAME.queue": "Queue of the job.",
    "schedules.NAME.every_s": "Interval. Ticks lie on a grid aligned to 1970-01-01 00:00 UTC.",
    "schedules.NAME.args": "Positional arguments.",
    "schedules.NAME.kwargs": "Keyword arguments.",
    "scheduler.enabled": "Off: `zq scheduler` ends at once with code 0, and `zq up` does not wait for it.",
    "web.host": "Address that the web service listens on.",
    "web.port": "Its port.",
    "web.max_body_mib": "Largest JSON body.",
    "web.max_segment_mib": "Largest segment of a recording.",
    "web.header_timeout_s": "A request's headers must have arrived within this time.",
    "web.max_connections": "Connections at once; the process's limit of open files is raised for them.",
    "exams.offline_after_s": "A student who is not heard of for more than this is offline.",
    "exams.status_every_s": "Interval of the status check.",
    "merge.soft_time_limit_s": "Soft limit of a merge.",
    "merge.time_limit_s": "Hard limit of a merge.",
    "log.level": "The least level that is logged.",
    "log.json": "One JSON object a line instead of text.",
}
TITLES = {
    "": "Top of the file",
    "queues.NAME": "`[queues.NAME]`, one table a queue",
    "schedules.NAME": "`[schedules.NAME]`, one table a schedule",
}
INTRODUCTION = """\
# Configuration

<!-- Made by docs/configuration_page.py from zq/config.py. Do not edit here. -->

One file, `zq.toml`: the one that `--config` names, else `ZQ_CONFIG`, else `./zq.toml` if it is there, else the
defaults. Every key of a table with a fixed name can also be given as a variable, `ZQ_SECTION_KEY`, which wins over
the file; a list is written with commas. A relative `data_dir` is relative to the file's folder (without a file, to the
current one). Give all other paths as absolute ones.

Everything is checked before anything starts. A key that does not exist is an error that names the nearest one that
does, with exit code 78:

```
$ zq config check
zq: /srv/zq/zq.toml: unknown key 'broker.hartbeat_s'; did you mean 'heartbeat_s'?
```

`zq config check` says whether a configuration can be used, `zq config show` prints it as it is in force. Processes
read it when they start: after a change, `zq restart NAME` or `zq restart all`. A further queue, and a change of the
variables, take `zq down` and `zq up`. Two variables are not keys: `ZQ_CONFIG` names the file, `ZQ_FFMPEG` an ffmpeg.

The queues `status_check` and `video_merge` are always there; what a file says of one of them changes only that:

```toml
[queues.video_merge]
slots = 4                       # its task modules stay what they are

[queues.thumbnails]             # a further queue: zq up starts a worker for it
slots = 2
tasks = ["thumbnails"]
```
"""


def page() -> str:
    parts = [INTRODUCTION]
    for prefix, struct in tables():
        title = TITLES.get(prefix, f"`[{prefix}]`")
        rows = "\n".join(_row(prefix, struct, field) for field in _plain_fields(struct))
        parts.append(f"## {title}\n\n| Key | Default | Variable | What it is |\n|---|---|---|---|\n{rows}\n")
    return "\n".join(parts)


def keys() -> list[str]:
    """Every key, as `section.key`."""
    return [_name(prefix, field.name) for prefix, struct in tables() for field in _plain_fields(struct)]


def tables() -> Iterator[tuple[str, type[msgspec.Struct]]]:
    yield "", config.Config
    for field in msgspec.structs.fields(config.Config):
        inner = _struct(field.type)
        if inner is not None:
            yield field.name, inner
        elif typing.get_origin(field.type) is dict:
            entry = _struct(typing.get_args(field.type)[1])
            assert entry is not None
            yield f"{field.name}.NAME", entry


def _plain_fields(struct: type[msgspec.Struct]) -> list[Any]:
    if struct is config.Config:
        return [field for field in msgspec.structs.fields(struct) if field.name == "data_dir"]
    return list(msgspec.structs.fields(struct))


def _struct(hint: Any) -> type[msgspec.Struct] | None:
    return hint if isinstance(hint, type) and issubclass(hint, msgspec.Struct) else None


def _name(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def _row(prefix: str, struct: type[msgspec.Struct], field: Any) -> str:
    name = _name(prefix, field.name)
    variable = "" if "NAME" in prefix else f"`ZQ_{name.upper().replace('.', '_')}`"
    words = _said(struct).get(field.name) or WORDS.get(name)
    if words is None:
        raise SystemExit(f"{name} is not explained: put a text below the field in zq/config.py, or in WORDS here")
    said = " ".join(words.split())
    bounds = _bounds(field.type)
    return f"| `{field.name}` | {_default(field)} | {variable} | {said}{f' ({bounds})' if bounds else ''} |"


def _said(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The text below each field in the source."""
    (node,) = ast.parse(inspect.getsource(struct)).body
    assert isinstance(node, ast.ClassDef)
    found = {}
    for field, below in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = str(below.value.value)
    return found


def _default(field: Any) -> str:
    if field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT:
        return "required"
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}`" if value < 1e6 else f"`{value:.0f}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    return f"`{msgspec.json.encode(value).decode()}`"


def _bounds(hint: Any) -> str:
    for meta in getattr(hint, "__metadata__", ()):
        if isinstance(meta, msgspec.Meta):
            if meta.pattern and "|" in meta.pattern:
                return ", ".join(f"`{word}`" for word in meta.pattern.strip("^$()").split("|"))
            low = meta.ge if meta.ge is not None else meta.gt
            if low is None or (meta.gt == 0 and meta.le == 31_536_000):
                return ""
            return f"{low:g} to {meta.le}" if meta.le is not None else f"{low:g} or more"
    return ""


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
