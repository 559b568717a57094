from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from zq.client.requests import JobRequest, encode, expires_in_s, raw_id
from zq.config import WorkerSection
from zq.exceptions import Invalid
from zq.protocol import limits
from zq.protocol.job import KeyPolicy, decode_spec, format_id, new_job_id

DEFAULTS = WorkerSection()


def spec_of(**given: Any) -> Any:
    return decode_spec(encode(JobRequest(**{"task": "m.f", "queue": "q", **given}), DEFAULTS).spec)


def test_everything_travels_in_milliseconds() -> None:
    eta = datetime(2025, 6, 1, 9, 0, tzinfo=UTC)
    spec = spec_of(
        eta=eta, expires_s=1.5, backoff_s=0.25, soft_time_limit_s=30, time_limit_s=60, priority=9, max_retries=0,
        key="钥匙", trace="t",
    )  # fmt: skip
    assert spec.run_at_ms == 1748768400000
    assert (spec.expires_ms, spec.backoff_ms, spec.soft_limit_ms, spec.hard_limit_ms) == (1500, 250, 30_000, 60_000)
    assert (spec.priority, spec.max_retries, spec.key, spec.trace) == (9, 0, "钥匙", "t")
    assert spec_of(countdown=2.0).delay_ms == 2000


def test_limits_come_from_the_configuration_and_the_soft_one_never_follows_the_hard_one() -> None:
    spec = spec_of()
    assert (spec.soft_limit_ms, spec.hard_limit_ms) == (1_500_000, 1_800_000)
    spec = spec_of(time_limit_s=60)
    assert (spec.soft_limit_ms, spec.hard_limit_ms) == (60_000, 60_000)


def test_an_expiry_of_nothing_is_not_forever() -> None:
    assert spec_of(expires_s=0).expires_ms == 1
    assert spec_of().expires_ms == 0


def test_a_request_has_its_id_from_the_start() -> None:
    request = JobRequest(task="m.f", queue="q")
    assert encode(request, DEFAULTS).id == encode(request, DEFAULTS).id == request.id


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"task": ""}, "task"),
        ({"task": "a b"}, "without blanks"),
        ({"task": "x" * (limits.NAME_CHARS_MAX + 1)}, "200"),
        ({"queue": "a\n"}, "queue"),
        ({"queue": 7}, "queue"),
        ({"priority": 10}, "0 to 9"),
        ({"priority": -1}, "0 to 9"),
        ({"priority": True}, "priority"),
        ({"max_retries": 101}, "0 to 100"),
        ({"countdown": -1}, "countdown"),
        ({"countdown": float("nan")}, "countdown"),
        ({"countdown": float("inf")}, "countdown"),
        ({"countdown": "5"}, "countdown"),
        ({"countdown": 366 * 86400 + 1}, "366 days"),
        ({"eta": datetime(2025, 1, 1)}, "time zone"),  # noqa: DTZ001 - the mistake in question
        ({"eta": datetime(1969, 1, 1, tzinfo=UTC)}, "1970"),
        ({"eta": "2025-01-01"}, "datetime"),
        ({"eta": datetime(2025, 1, 1, tzinfo=UTC), "countdown": 1}, "give one"),
        ({"soft_time_limit_s": 61, "time_limit_s": 60}, "comes first"),
        ({"key": "x" * (limits.KEY_CHARS_MAX + 1)}, "255"),
        ({"key": "\ud800"}, "surrogate"),
        ({"id": "123"}, "not a job id"),
        ({"id": b"123"}, "16 bytes"),
        ({"id": 5}, "not a job id"),
        ({"args": [object()]}, "not plain"),
        ({"args": "text"}, "args"),
        ({"kwargs": [1]}, "kwargs"),
        ({"key_policy": "steal"}, "refuse, replace, reschedule"),
        ({"key_policy": 1}, "refuse, replace, reschedule"),
        ({"concurrency_key": "x" * (limits.KEY_CHARS_MAX + 1)}, "concurrency_key"),
        ({"concurrency_limit": 0}, "concurrency_limit"),
        ({"concurrency_limit": limits.CREDIT_MAX + 1}, "concurrency_limit"),
        ({"tags": "gpu"}, "list of text"),
        ({"tags": [1]}, "tag 1"),
        ({"tags": [""]}, "tag ''"),
        ({"tags": ["a b"]}, "without blanks"),
        ({"tags": ["x" * (limits.TAG_CHARS_MAX + 1)]}, "64"),
        ({"tags": [str(n) for n in range(limits.TAGS_MAX + 1)]}, "at most 8"),
    ],
)
def test_what_cannot_be_asked_for_is_said_before_anything_is_sent(given: dict[str, Any], said: str) -> None:
    with pytest.raises(Invalid, match=said):
        spec_of(**given)


@pytest.mark.parametrize(
    "wrong", [{"priority": True}, {"max_retries": 3.0}, {"concurrency_limit": True}, {"backoff_s": True}, {"queue": []}]
)
def test_what_equals_good_options_is_not_taken_for_them(wrong: dict[str, Any]) -> None:
    spec_of(priority=1, max_retries=3, concurrency_limit=1, backoff_s=1)
    with pytest.raises(Invalid, match=next(iter(wrong))):
        spec_of(**{"priority": 1, "max_retries": 3, "concurrency_limit": 1, "backoff_s": 1, **wrong})


def test_bounds_themselves_are_allowed() -> None:
    spec = spec_of(
        task="任" * limits.NAME_CHARS_MAX, key="x" * limits.KEY_CHARS_MAX, countdown=366 * 86400, max_retries=100
    )
    assert spec.delay_ms == limits.DURATION_MS_MAX


def test_what_a_job_asks_of_others_travels() -> None:
    asked = {"key_policy": "reschedule", "concurrency_key": "许可", "concurrency_limit": limits.CREDIT_MAX}
    spec = spec_of(**asked, tags=["b", "甲", "b"])
    assert (spec.key_policy, spec.concurrency_key, spec.concurrency_limit) == (KeyPolicy.RESCHEDULE, "许可", 4096)
    assert spec.tags == ("b", "甲")
    assert len(spec_of(tags=["x" * limits.TAG_CHARS_MAX, *"1234567"]).tags) == limits.TAGS_MAX
    one = JobRequest(task="m.f", queue="q", tags=("a", "b"))
    assert encode(one, DEFAULTS) == encode(replace(one, tags={"b", "a"}), DEFAULTS)


def test_ids_are_texts_or_bytes() -> None:
    raw = new_job_id()
    assert raw_id(raw) == raw_id(format_id(raw)) == raw_id(raw.hex()) == raw


def test_celerys_word_for_an_expiry_is_seconds_or_a_moment() -> None:
    assert expires_in_s(300) == 300
    assert 3590 < expires_in_s(datetime.now(UTC) + timedelta(hours=1)) <= 3600
    assert expires_in_s(datetime(2020, 1, 1, tzinfo=UTC)) == 0
    with pytest.raises(Invalid, match="time zone"):
        expires_in_s(datetime(2030, 1, 1))  # noqa: DTZ001 - the mistake in question
