"""What a caller asks to be run, checked here, before anything is sent, and turned into the bytes that travel."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec
from msgspec.structs import replace

from zq import payload
from zq.config import WorkerSection
from zq.exceptions import Invalid
from zq.protocol import job, limits

JobIdLike = str | bytes
"""A job id as text (a UUID) or as its 16 bytes."""
KeyPolicyName = Literal["refuse", "replace", "reschedule"]
"""What a submit does when a live job has its key. `refuse`: nothing, that job is the answer. `replace`: if it still
waits it is cancelled, and this one takes its place. `reschedule`: if it still waits it takes over this one's time, and
is the answer. One that runs already keeps the key in any case, and is the answer."""


def raw_id(job_id: JobIdLike) -> bytes:
    """The 16 bytes of a job id. Raises Invalid."""
    if isinstance(job_id, bytes):
        if len(job_id) != 16:
            raise Invalid(f"a job id is 16 bytes, not {len(job_id)}")
        return job_id
    try:
        return job.parse_id(job_id)
    except (ValueError, AttributeError):
        raise Invalid(f"{job_id!r} is not a job id (a UUID such as {job.format_id(bytes(16))})") from None


class JobRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One job to submit. Its id is made with it: the same request sent twice is one job.

    `countdown` (seconds) and `eta` (with a time zone) say when it may start at the earliest; `expires_s` by when it
    must have started. A higher `priority` (0–9) is sooner. At most one live job has the same non-empty `key`. Limits
    that are None come from the configuration (`worker.soft_time_limit_s`, `worker.time_limit_s`). Only workers that
    have all `tags` run it. Of the jobs with the same non-empty `concurrency_key`, at most `concurrency_limit` run at
    once, on all workers together; the others wait and hold up nobody else.

    It waits for a worker with `disk_bytes` of disk and `memory_bytes` of memory left; 0 means that it does not matter.
    Its process tree is ended when it is larger than `memory_limit_bytes` (0: than the worker's own limit, which holds
    in any case). After `stall_after_s` without a sign of life it gets its soft limit; 0 means never, None as the
    configuration says (`worker.stall_after_s`).
    """

    task: str
    queue: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] | None = None
    id: JobIdLike = msgspec.field(default_factory=job.new_job_id)
    priority: int = limits.PRIORITY_DEFAULT
    countdown: float | None = None
    eta: datetime | None = None
    expires_s: float | None = None
    max_retries: int = 3
    backoff_s: float = 60.0
    soft_time_limit_s: float | None = None
    time_limit_s: float | None = None
    key: str = ""
    trace: str = ""
    key_policy: KeyPolicyName = "refuse"
    concurrency_key: str = ""
    concurrency_limit: int = 1
    tags: Sequence[str] = ()
    disk_bytes: int = 0
    memory_bytes: int = 0
    memory_limit_bytes: int = 0
    stall_after_s: float | None = None


class Encoded(msgspec.Struct, frozen=True):
    """A job as it travels."""

    id: bytes
    spec: bytes


TEMPLATES_KEPT_MAX: Final = 1024
_SHARED: Final = (
    "task", "queue", "priority", "max_retries", "backoff_s", "soft_time_limit_s", "time_limit_s", "key_policy",
    "concurrency_limit", "disk_bytes", "memory_bytes", "memory_limit_bytes", "stall_after_s",
)  # fmt: skip
"""What many requests have in common: it is looked at once for all of them."""
_shared_of: Final = operator.attrgetter(*_SHARED)
_defaults_of: Final = operator.attrgetter("soft_time_limit_s", "time_limit_s", "stall_after_s")
_rare_of: Final = operator.attrgetter("countdown", "eta", "expires_s", "key", "trace", "concurrency_key", "tags")
_RARE_DEFAULTS: Final = (None, None, None, "", "", "", ())
_NO_ARGUMENTS: Final[Mapping[str, Any]] = {}


def encode(request: JobRequest, defaults: WorkerSection) -> Encoded:
    """The bytes of a request. Raises Invalid (PayloadError for its arguments) and says what to do."""
    try:
        template = _known_template(*_defaults_of(defaults), *_shared_of(request))
    except TypeError:  # something that cannot be hashed stands there: it is wrong, and the check says what it is
        template = _template(request, *_defaults_of(defaults))
    job_id = raw_id(request.id)
    kwargs = request.kwargs if request.kwargs is not None else _NO_ARGUMENTS
    spec = replace(template, id=job_id, arguments=payload.encode_arguments(request.args, kwargs))
    if _rare_of(request) != _RARE_DEFAULTS:
        spec = replace(spec, **_rare(request))
    return Encoded(job_id, job.encode_spec(spec))


def _rare(request: JobRequest) -> dict[str, Any]:
    """What most jobs leave as it is, and what differs from job to job if they do not."""
    if request.countdown is not None and request.eta is not None:
        raise Invalid("countdown and eta were both given; give one")
    return {
        "delay_ms": milliseconds("countdown", request.countdown) if request.countdown is not None else 0,
        "run_at_ms": _unix_ms(request.eta) if request.eta is not None else 0,
        "expires_ms": max(milliseconds("expires_s", request.expires_s), 1) if request.expires_s is not None else 0,
        "key": _text("key", request.key, limits.KEY_CHARS_MAX),
        "trace": _text("trace", request.trace, limits.TRACE_CHARS_MAX),
        "concurrency_key": _text("concurrency_key", request.concurrency_key, limits.KEY_CHARS_MAX),
        "tags": _tags(request.tags),
    }


@functools.lru_cache(maxsize=TEMPLATES_KEPT_MAX, typed=True)  # typed: True equals 1 and is no priority
def _known_template(soft_s: float, hard_s: float, stall_s: float, *shared: Any) -> job.JobSpec:
    return _template(JobRequest(**dict(zip(_SHARED, shared, strict=True))), soft_s, hard_s, stall_s)


def _template(request: JobRequest, default_soft_s: float, default_hard_s: float, default_stall_s: float) -> job.JobSpec:
    """A job with all that is _SHARED, and nothing of its own."""
    for what, name in (("task", request.task), ("queue", request.queue)):
        if not isinstance(name, str) or not job.valid_name(name):
            raise Invalid(
                f"{what} is {name!r:.220}; a name is 1 to {limits.NAME_CHARS_MAX} printable characters without blanks"
            )
    hard_s = request.time_limit_s if request.time_limit_s is not None else default_hard_s
    soft_s = request.soft_time_limit_s if request.soft_time_limit_s is not None else default_soft_s
    hard_ms, soft_ms = milliseconds("time_limit_s", hard_s), milliseconds("soft_time_limit_s", soft_s)
    if soft_ms > hard_ms and request.soft_time_limit_s is not None:
        raise Invalid(f"soft_time_limit_s is {soft_s:g} and time_limit_s only {hard_s:g}; the soft limit comes first")
    return job.JobSpec(
        id=bytes(16),
        task=request.task,
        queue=request.queue,
        priority=_whole("priority", request.priority, limits.PRIORITY_MIN, limits.PRIORITY_MAX),
        max_retries=_whole("max_retries", request.max_retries, 0, limits.RETRIES_MAX),
        backoff_ms=milliseconds("backoff_s", request.backoff_s),
        soft_limit_ms=min(soft_ms, hard_ms),
        hard_limit_ms=hard_ms,
        key_policy=_policy(request.key_policy),
        concurrency_limit=_whole("concurrency_limit", request.concurrency_limit, 1, limits.CREDIT_MAX),
        disk_bytes=_whole("disk_bytes", request.disk_bytes, 0, limits.NEED_BYTES_MAX),
        memory_bytes=_whole("memory_bytes", request.memory_bytes, 0, limits.NEED_BYTES_MAX),
        memory_limit_bytes=_whole("memory_limit_bytes", request.memory_limit_bytes, 0, limits.NEED_BYTES_MAX),
        stall_after_ms=milliseconds(
            "stall_after_s", default_stall_s if request.stall_after_s is None else request.stall_after_s
        ),
    )


def encode_all(requests: Iterable[JobRequest], defaults: WorkerSection) -> Iterable[Encoded]:
    """As `encode`: a list or tuple now, anything else as it is gone through."""
    if isinstance(requests, (list, tuple)):
        return [encode(request, defaults) for request in requests]
    return (encode(request, defaults) for request in requests)


def milliseconds(what: str, value_s: float) -> int:
    """Raises Invalid for what is no duration, or longer than the protocol's."""
    bound_s = limits.DURATION_MS_MAX // 1000
    if isinstance(value_s, bool) or not isinstance(value_s, (int, float)) or not 0 <= value_s <= bound_s:
        raise Invalid(f"{what} is {value_s!r:.60}; give seconds from 0 to {bound_s} (366 days)")
    return round(value_s * 1000)


def _whole(what: str, value: int, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Invalid(f"{what} is {value!r:.60}; give a whole number from {least} to {most}")
    return value


def _text(what: str, value: str, chars_max: int) -> str:
    if not isinstance(value, str) or len(value) > chars_max:
        raise Invalid(f"{what} is {value!r:.60}; give text of at most {chars_max} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Invalid(f"{what} has a lone surrogate, which UTF-8 cannot hold") from None
    return value


def _policy(name: str) -> job.KeyPolicy:
    try:
        return job.KeyPolicy[name.upper()]
    except (KeyError, AttributeError):
        known = ", ".join(policy.name.lower() for policy in job.KeyPolicy)
        raise Invalid(f"key_policy is {name!r:.60}; it is one of {known}") from None


def _tags(tags: Sequence[str]) -> tuple[str, ...]:
    """In one order, so that the same tags are the same job."""
    if isinstance(tags, (str, bytes)) or not isinstance(tags, (list, tuple, set, frozenset)):
        raise Invalid(f"tags is {tags!r:.60}; give a list of text, as in tags=('gpu',)")
    if len(tags) > limits.TAGS_MAX:
        raise Invalid(f"{len(tags)} tags; a job may require at most {limits.TAGS_MAX}")
    for tag in tags:
        if not isinstance(tag, str) or not job.valid_name(tag) or len(tag) > limits.TAG_CHARS_MAX:
            raise Invalid(
                f"tag {tag!r:.80}: a tag is 1 to {limits.TAG_CHARS_MAX} printable characters without blanks, such as"
                " gpu or disk=a"
            )
    return tuple(sorted(set(tags)))


def expires_in_s(expires: float | datetime) -> float:
    """Seconds from now; none are left for a moment that is past. Raises Invalid."""
    if not isinstance(expires, datetime):
        return expires
    if expires.utcoffset() is None:
        raise Invalid(f"expires {expires.isoformat()} has no time zone; give one, or seconds")
    return max(0.0, (expires - datetime.now(UTC)).total_seconds())


def _unix_ms(eta: datetime) -> int:
    if not isinstance(eta, datetime):
        raise Invalid(f"eta is {eta!r:.60}; give a datetime with a time zone")
    if eta.utcoffset() is None:
        raise Invalid(
            f"eta {eta.isoformat()} has no time zone; give one, as in"
            ' datetime(2025, 6, 1, 9, 0, tzinfo=ZoneInfo("Asia/Shanghai")), or use countdown'
        )
    value_ms = round(eta.timestamp() * 1000)
    if value_ms <= 0:
        raise Invalid(f"eta {eta.isoformat()} is not after 1970")
    return value_ms
