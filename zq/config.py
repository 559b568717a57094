"""Configuration: `zq.toml`, overridden by `ZQ_SECTION_KEY`, checked as a whole before anything starts.

A key that does not exist is an error that names the nearest key that does; a value of the wrong type or out of
range is an error that names the key, what is wrong and where the value came from. Relative paths in a file are
relative to that file, so that every process sees the same folder wherever it was started.

This module imports nothing of zq's, so every layer may read it.
"""

from __future__ import annotations

import os
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

EXIT_CONFIG = 78
"""Exit code for a configuration that a restart cannot mend (EX_CONFIG, sysexits(3)); supervisord does not retry it."""

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$", max_length=64)]
Tag = Annotated[str, Meta(pattern=r"^\S+$", max_length=64)]
Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Slots = Annotated[int, Meta(ge=1, le=1024)]
Origin = Annotated[str, Meta(pattern=r"^(\*|https?://[^/\s]+)$", max_length=255)]
Network = Annotated[str, Meta(pattern=r"^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$", max_length=64)]


BUCKET_URL = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9])(?:/(?P<prefix>[^?#]*))?")


class ConfigError(Exception):
    """The configuration cannot be used. The text says which key, what is wrong with it, and what would be right."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every table in `zq.toml`."""


class BrokerSection(Section, frozen=True):
    bind: str = "tcp://127.0.0.1:5570"
    curve: bool = False
    """Encrypt and authenticate with CURVE, with the keys of `zq keys`. Anything but loopback requires it."""
    heartbeat_s: Seconds = 2.0
    session_timeout_s: Seconds = 15.0
    """A worker that is not heard for this long has lost its leases."""
    resume_grace_s: Seconds = 60.0
    """After a broker start, running jobs wait this long for their worker to claim them again."""
    retention_s: Seconds = 604_800.0
    """How long ended jobs are kept; within this window a repeated job id is recognised."""
    retention_jobs: Annotated[int, Meta(ge=0)] = 2_000_000
    """How many ended jobs are kept at most."""
    result_ttl_s: Seconds = 3_600.0
    map_size_gib: Annotated[int, Meta(ge=1, le=4096)] = 64
    """Address space for the journal, not disk space."""
    disk_reserve_mib: Annotated[int, Meta(ge=1)] = 256
    """Submits are refused below this much free disk; acknowledgements go on."""
    ballast_mib: Annotated[int, Meta(ge=0)] = 32
    """Size of a file that is deleted when less than a quarter of the reserve is left, for them; 0 means none."""
    memory_limit_mib: Annotated[int, Meta(ge=256, le=1 << 20)] = 1024
    """What the broker allocates at most. A peer that makes it reach that is cut off, or the broker ends and is started
    again; what it has said stays true."""


class ClientSection(Section, frozen=True):
    broker: str = "tcp://127.0.0.1:5570"
    key: str = ""
    """Path of this machine's key file (from `zq keys new`); empty means no CURVE, unless broker.curve is set."""
    timeout_s: Seconds = 10.0


class QueueSection(Section, frozen=True):
    slots: Slots = 1
    """Slots that `zq up` gives its worker for this queue."""
    concurrency: Annotated[int, Meta(ge=1, le=512)] = 1
    """Async tasks that each of its slots runs at once; above 1 the queue is for async tasks alone."""
    tasks: tuple[str, ...] = ()
    """Modules that hold the queue's tasks, imported by its worker."""


class WorkerSection(Section, frozen=True):
    tasks: tuple[str, ...] = ()
    tags: Annotated[tuple[Tag, ...], Meta(max_length=32)] = ()
    """What this machine's workers have, such as `gpu` or `disk=a`; jobs may require it. `zq worker --tag` adds more."""
    soft_time_limit_s: Seconds = 1500.0
    time_limit_s: Seconds = 1800.0
    kill_grace_s: Seconds = 1.0
    """Between TERM and KILL when a tree is ended."""
    drain_s: Seconds = 30.0
    """After SIGTERM, how long running jobs may finish before they are handed back without costing an attempt."""
    sample_s: Seconds = 1.0
    memory_limit_mib: Annotated[int, Meta(ge=0)] = 0
    """A job whose process tree is larger is ended; 0 means no limit. A task's own limit may be lower."""
    stall_after_s: Annotated[float, Meta(ge=0, le=31_536_000)] = 0.0
    """A job that shows no sign of life (CPU, bytes, progress) for so long gets its soft limit; 0 means never."""
    disk_folder: str = ""
    """Where jobs write: what is free there is for jobs that need disk. Empty means `exams.storage`, or `data_dir`."""
    disk_reserve_mib: Annotated[int, Meta(ge=0)] = 256
    """Of that, what jobs that need disk leave free."""
    max_tasks_per_slot: Annotated[int, Meta(ge=0)] = 10_000
    """A slot is replaced by a fresh process after so many jobs; 0 means never."""
    max_memory_per_slot_mib: Annotated[int, Meta(ge=0)] = 0
    """A slot that is larger after a job is replaced by a fresh process; 0 means never."""


class ScheduleSection(Section, frozen=True):
    task: str
    queue: Name
    every_s: Seconds | None = None
    cron: Annotated[str, Meta(max_length=100)] = ""
    """Five fields: minute, hour, day, month, weekday; six: seconds first."""
    at: Annotated[str, Meta(max_length=40)] = ""
    """One moment, such as `2026-06-30 09:00:00`. Exactly one of `every_s`, `cron` and `at` is given."""
    zone: str = ""
    """IANA name of the zone of `cron` and `at`; empty means exams.time_zone."""
    expires_s: Seconds | None = None
    """A tick that has not started by then is dropped; default: until the next tick, so ticks never pile up (a day with
    misfire `all`, and for `at`)."""
    misfire: Annotated[str, Meta(pattern="^(once|skip|all)$")] = "once"
    """Ticks missed while no scheduler ran: make up for the newest of them, for none, or for all."""
    misfire_max: Annotated[int, Meta(ge=1, le=1000)] = 100
    """With misfire `all`: for so many of the newest."""
    overlap: Annotated[str, Meta(pattern="^(queue|skip)$")] = "queue"
    """A tick while the job of the last one is still there: its job waits behind, or is left out."""
    jitter_s: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    """Each tick comes up to so much later, so that many schedules do not start at the same moment."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}


class SchedulerSection(Section, frozen=True):
    enabled: bool = True


class WebSection(Section, frozen=True):
    host: str = "127.0.0.1"
    port: Port = 5555
    max_body_mib: Annotated[int, Meta(ge=1, le=4096)] = 1
    max_segment_mib: Annotated[int, Meta(ge=1, le=65536)] = 200
    body_timeout_s: Seconds = 120.0
    """A request body must have arrived within this time."""
    header_timeout_s: Seconds = 10.0
    max_connections: Annotated[int, Meta(ge=1, le=65536)] = 10_000
    requests_per_minute: Annotated[int, Meta(ge=1, le=100_000_000)] = 120_000
    """Of one token; a token may have a bound of its own (`zq tokens new --requests-per-minute`)."""
    idempotency_s: Seconds = 86_400.0
    """How long the first answer to an Idempotency-Key is kept. The same key and body stay the same job for longer, as
    long as the broker knows it (`broker.retention_s`)."""
    cors_origins: Annotated[tuple[Origin, ...], Meta(max_length=64)] = ()
    """Origins, such as `https://exam.example.edu`, whose pages may call the API from a browser; none by default."""
    exam_client_networks: Annotated[tuple[Network, ...], Meta(max_length=64)] = ()
    """Networks, such as `10.0.0.0/8`, whose exam clients may use the calls under `/api/` without a token."""
    trusted_proxies: Annotated[tuple[Network, ...], Meta(max_length=64)] = ()
    """Addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed; none by default."""


class ExamsSection(Section, frozen=True):
    database: str = ""
    """SQLAlchemy URL; empty means SQLite in `data_dir`/exams.db."""
    presence: str = ""
    """Where signs of life are kept: empty means the exam database; else a Redis, such as `redis://127.0.0.1:6379/0`."""
    storage: str = ""
    """Folder of the recordings, or a bucket: `s3://BUCKET/PREFIX`; empty means `data_dir`/exams."""
    storage_endpoint: Annotated[str, Meta(pattern=r"^(https?://[^/\s]+)?$", max_length=255)] = ""
    """Address of the bucket's server, such as `https://minio.example.edu:9000`; empty means that of AWS."""
    storage_region: Annotated[str, Meta(pattern=r"^[a-z0-9\-]*$", max_length=64)] = ""
    """Region of the bucket; empty means AWS_REGION, else us-east-1. The keys come from the environment
    (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)."""
    time_zone: str = "Asia/Shanghai"
    """Zone in which naive times are read and in which times are shown."""
    offline_after_s: Seconds = 60.0
    status_every_s: Seconds = 30.0
    merge_quiet_s: Annotated[float, Meta(ge=0)] = 0.0
    """Wait this long after finish before the merge, for segments still on their way."""


class MergeSection(Section, frozen=True):
    ffmpeg: str = ""
    """Path of ffmpeg; empty means ZQ_FFMPEG, then PATH, then the imageio-ffmpeg wheel."""
    soft_time_limit_s: Seconds = 1500.0
    time_limit_s: Seconds = 1800.0
    stall_after_s: Annotated[float, Meta(ge=0, le=31_536_000)] = 120.0
    """A merge that shows no sign of life (CPU, bytes, progress) for so long is ended and tried again; 0 means never."""
    memory_limit_mib: Annotated[int, Meta(ge=0)] = 2048
    """Address space of one ffmpeg; 0 means no limit."""
    full_decode: bool = False
    """Decode every frame and all sound when verifying, not just the key frames; always done after encoding."""
    gaps: Annotated[str, Meta(pattern="^(refuse|merge)$")] = "refuse"
    """A recording with missing sequence numbers: refuse it, or merge what is there and report the gaps."""
    trash_keep_s: Annotated[float, Meta(ge=0)] = 86_400.0
    """So long merged segments stay in the trash, from where a late segment's merge takes them; 0: deleted at once."""


class LogSection(Section, frozen=True):
    level: Annotated[str, Meta(pattern="^(debug|info|warning|error)$")] = "info"
    json: bool = False


def _default_queues() -> dict[str, QueueSection]:
    return {
        "status_check": QueueSection(slots=1, tasks=("zq.workers.status",)),
        "video_merge": QueueSection(slots=2, tasks=("zq.workers.merge",)),
    }


class Config(Section, frozen=True):
    """The whole configuration, immutable. `data_dir` is absolute."""

    data_dir: str = "./var"
    broker: BrokerSection = BrokerSection()
    client: ClientSection = ClientSection()
    worker: WorkerSection = WorkerSection()
    queues: dict[Name, QueueSection] = msgspec.field(default_factory=_default_queues)
    scheduler: SchedulerSection = SchedulerSection()
    schedules: dict[Name, ScheduleSection] = {}
    web: WebSection = WebSection()
    exams: ExamsSection = ExamsSection()
    merge: MergeSection = MergeSection()
    log: LogSection = LogSection()
    source: str = ""
    """The file this was read from; empty for defaults. Not a key of the file."""

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir)

    @property
    def database_url(self) -> str:
        return self.exams.database or f"sqlite:///{self.data_path / 'exams.db'}"

    @property
    def jobs_path(self) -> Path:
        """The folder whose disk counts for jobs that need some."""
        if self.worker.disk_folder:
            return Path(self.worker.disk_folder).expanduser()
        return self.data_path if self.bucket_url else self.storage_path

    @property
    def storage_path(self) -> Path:
        """Folder of the recordings; with a bucket, of what is on its way to it or from it."""
        if not self.exams.storage or self.bucket_url:
            return self.data_path / "exams"
        return Path(self.exams.storage)

    @property
    def bucket_url(self) -> str:
        """Where the recordings are, if not in a folder."""
        return self.exams.storage if "://" in self.exams.storage else ""


_INTERNAL = {"source"}


def load(path: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """Read the configuration from `path`, else `ZQ_CONFIG`, else `./zq.toml` if it exists, else defaults.

    Raises ConfigError for a missing file that was named, TOML errors, unknown keys and wrong values.
    """
    env = os.environ if environ is None else environ
    named = os.fspath(path) if path else env.get("ZQ_CONFIG", "")
    file = Path(named or "zq.toml")
    table: dict[str, Any] = {}
    base = Path.cwd()
    source = ""
    if named or file.exists():
        table = _read(file)
        base = file.resolve().parent
        source = str(file.resolve())
    _refuse_unknown(table, Config, where=source or "configuration", prefix="")
    from_env = dict(_environment(env))
    for (section, key), (variable, text) in from_env.items():
        target = table.setdefault(section, {}) if section else table
        if isinstance(target, dict):  # what else stands there is told of below
            target[key] = _parse(text, variable, _field_type(section, key))
    _add_built_in_queues(table)
    try:
        config = msgspec.convert(table, Config, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(error, source, from_env)) from None
    _check_networks(config.web)
    data_dir = (base / Path(config.data_dir).expanduser()).resolve()
    exams = _absolute(config.exams, base)
    return msgspec.structs.replace(config, data_dir=str(data_dir), exams=exams, source=source)


def _absolute(exams: ExamsSection, base: Path) -> ExamsSection:
    """Every process sees the same recordings and the same SQLite file, wherever it was started."""
    storage, database = exams.storage, exams.database
    if "://" in storage and not BUCKET_URL.fullmatch(storage):
        raise ConfigError(f"exams.storage is {storage!r}; name a folder, or a bucket as s3://BUCKET or s3://BUCKET/PREFIX")
    if storage and "://" not in storage:
        storage = str((base / Path(storage).expanduser()).resolve())
    scheme, _, path = database.partition(":///")
    if scheme.partition("+")[0] == "sqlite" and path and path != ":memory:" and not path.startswith(("/", "file:")):
        database = f"{scheme}:///{(base / path).resolve()}"
    return msgspec.structs.replace(exams, storage=storage, database=database)


def _check_networks(web: WebSection) -> None:
    if not (web.exam_client_networks or web.trusted_proxies):
        return
    import ipaddress  # few have any

    for key in ("exam_client_networks", "trusted_proxies"):
        for text in getattr(web, key):
            try:
                ipaddress.ip_network(text)
            except ValueError as error:
                raise ConfigError(f"web.{key}: {error}; write it like 10.0.0.0/8 or 192.168.1.7") from None


def _add_built_in_queues(table: dict[str, Any]) -> None:
    """zq's own queues are always there; what the file says of one changes only that."""
    given = table.get("queues", {})
    if isinstance(given, dict):
        built_in: dict[str, Any] = msgspec.to_builtins(_default_queues())
        for name, said in given.items():
            built_in[name] = {**built_in.get(name, {}), **said} if isinstance(said, dict) else said
        table["queues"] = built_in


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file; give --config a path that exists, or leave it out") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    import tomllib

    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None


def _nearest(word: str, known: list[str]) -> str:
    import difflib  # only a configuration that is wrong needs it

    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; known here: {', '.join(sorted(known))}"


def _keys(struct: type) -> dict[str, Any]:
    hints = typing.get_type_hints(struct, include_extras=True)
    return {name: hint for name, hint in hints.items() if name not in _INTERNAL}


def _struct_of(hint: Any) -> type | None:
    return hint if isinstance(hint, type) and issubclass(hint, msgspec.Struct) else None


def _refuse_unknown(table: Mapping[str, Any], struct: type, *, where: str, prefix: str) -> None:
    known = _keys(struct)
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key '{prefix}{key}'{_nearest(key, list(known))}")
        inner = _struct_of(known[key])
        if inner is not None and isinstance(value, dict):
            _refuse_unknown(value, inner, where=where, prefix=f"{prefix}{key}.")
        elif typing.get_origin(known[key]) is dict and isinstance(value, dict):
            entry = _struct_of(typing.get_args(known[key])[1])
            if entry is None:
                continue
            for name, item in value.items():
                if isinstance(item, dict):
                    _refuse_unknown(item, entry, where=where, prefix=f"{prefix}{key}.{name}.")


_NOT_SETTINGS = {"ZQ_CONFIG", "ZQ_FFMPEG", "ZQ_WORKER"}


def _environment(env: Mapping[str, str]) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """The settings among the variables: ((section, key), (variable, text)).

    A variable ZQ_<known section>_… with an unknown key is an error; other ZQ_ names are left alone
    (zq marks its own processes with some).
    """
    top = _keys(Config)
    sections = {name: _keys(s) for name, hint in top.items() if (s := _struct_of(hint)) is not None}
    for variable, text in sorted(env.items()):
        if not variable.startswith("ZQ_") or variable in _NOT_SETTINGS:
            continue
        name = variable[3:].lower()
        if name in top and name not in sections and typing.get_origin(top[name]) is not dict:
            yield ("", name), (variable, text)
            continue
        section, _, key = name.partition("_")
        if section in sections:
            if key not in sections[section]:
                raise ConfigError(f"environment: unknown setting {variable}{_nearest(key, list(sections[section]))}")
            yield (section, key), (variable, text)


def _field_type(section: str, key: str) -> Any:
    struct = _struct_of(_keys(Config)[section]) if section else Config
    assert struct is not None
    return typing.get_type_hints(struct)[key]


def _parse(text: str, variable: str, hint: Any) -> Any:
    if hint is str:
        return text
    if typing.get_origin(hint) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return msgspec.convert(text, hint, strict=False)
    except msgspec.ValidationError:
        raise ConfigError(f"environment: {variable}={text!r} is not a {getattr(hint, '__name__', hint)}") from None


def _explain(error: msgspec.ValidationError, source: str, from_env: Mapping[tuple[str, str], tuple[str, str]]) -> str:
    text = str(error)
    what, _, place = text.partition(" - at `$")
    key = place.rstrip("`").lstrip(".")
    section, _, name = key.partition(".")
    where = source or "configuration"
    for (s, k), (variable, _text) in from_env.items():
        if (s, k) == (section, name) or (not s and k == section):
            where = f"environment: {variable}"
    return f"{where}: {key or 'file'}: {what[:1].lower()}{what[1:]}"
