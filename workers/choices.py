"""What a worker serves, with what and how, from its options and the configuration. Pure, and without the command line.

What `zq up` runs comes here without click, see `zq.supervised`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from zq.config import Config, ConfigError
from zq.protocol import limits
from zq.protocol.job import valid_name

SLOTS_MAX = limits.SLOTS_PER_WORKER_MAX


class WrongOptions(Exception):
    """The options do not say what to do, or contradict each other. The text says what to give."""


@dataclass(frozen=True)
class Plan:
    """What one worker is to do."""

    config: Config
    slots: dict[str, int]
    """queue → slots."""
    concurrency: dict[str, int]
    """queue → async tasks that each of its slots runs at once."""
    modules: list[str]
    """Where its tasks are."""
    name: str = ""
    """Empty: the first that is free of those made of host and queues."""


def choose(
    config: Config, queues: Sequence[str], slots: Sequence[int] = (), concurrency: Sequence[int] = (),
    modules: Sequence[str] = (), name: str = "",
) -> Plan:  # fmt: skip
    """The plan. Raises WrongOptions."""
    slots_of = choose_slots(config, queues, slots)
    at_once = choose_concurrency(config, slots_of, concurrency)
    return Plan(config, slots_of, at_once, choose_modules(config, queues, modules), name)


def choose_slots(config: Config, queues: Sequence[str], slots: Sequence[int]) -> dict[str, int]:
    """queue → slots. Raises WrongOptions when the options do not say which queues, or how many slots for which."""
    known = ", ".join(config.queues) or "none"
    if not queues:
        raise WrongOptions(f"name the queues to serve: --queue NAME; configured here: {known}")
    if len(set(queues)) != len(queues) or len(queues) > limits.QUEUES_PER_WORKER_MAX:
        raise WrongOptions(f"name each --queue once, and at most {limits.QUEUES_PER_WORKER_MAX}")
    for queue in queues:
        if not valid_name(queue):
            raise WrongOptions(f"--queue {queue!r} is no name; configured here: {known}")
    if slots and len(slots) != len(queues):
        raise WrongOptions(f"{len(queues)} --queue but {len(slots)} --slots: one for each, in order, or none")
    chosen = dict(zip(queues, slots, strict=True)) if slots else dict(_configured_slots(config, queues))
    if sum(chosen.values()) > SLOTS_MAX:
        raise WrongOptions(f"{sum(chosen.values())} slots; one worker has at most {SLOTS_MAX}: start several")
    return chosen


def _configured_slots(config: Config, queues: Sequence[str]) -> Iterator[tuple[str, int]]:
    for queue in queues:
        yield queue, config.queues[queue].slots if queue in config.queues else 1


def choose_concurrency(config: Config, slots: Mapping[str, int], given: Sequence[int]) -> dict[str, int]:
    """queue → async tasks at once in each of its slots. Raises WrongOptions where that is too much."""
    if given and len(given) != len(slots):
        raise WrongOptions(f"{len(slots)} --queue but {len(given)} --concurrency: one for each, in order, or none")
    configured = [config.queues[queue].concurrency if queue in config.queues else 1 for queue in slots]
    chosen = dict(zip(slots, given or configured, strict=True))
    jobs = sum(count * chosen[queue] for queue, count in slots.items())
    if jobs > SLOTS_MAX:
        raise WrongOptions(f"{jobs} jobs at once; one worker has at most {SLOTS_MAX}: start several")
    return chosen


def choose_modules(config: Config, queues: Sequence[str], modules: Sequence[str]) -> list[str]:
    """What to import: `modules`, else the queues' `tasks`; and worker.tasks. Raises WrongOptions for nothing."""
    of_queues = [module for queue in queues if queue in config.queues for module in config.queues[queue].tasks]
    chosen = list(dict.fromkeys([*(modules or of_queues), *config.worker.tasks]))
    if not chosen:
        raise WrongOptions(
            f"no task module for {', '.join(queues)}: give --tasks MODULE, or `tasks` under [queues.NAME] in zq.toml"
        )
    return chosen


def with_recycling(config: Config, max_tasks: int | None, max_memory_mib: int | None) -> Config:
    given = {"max_tasks_per_slot": max_tasks, "max_memory_per_slot_mib": max_memory_mib}
    changes = {name: value for name, value in given.items() if value is not None}
    return msgspec.structs.replace(config, worker=msgspec.structs.replace(config.worker, **changes))


def with_tags(config: Config, tags: Sequence[str]) -> Config:
    """The worker has the configured tags and these. Raises WrongOptions, or ConfigError for configured ones."""
    for tag in tags:
        if not valid_name(tag) or len(tag) > limits.TAG_CHARS_MAX:
            most = limits.TAG_CHARS_MAX
            raise WrongOptions(f"--tag {tag!r:.80}: 1 to {most} printable characters without blanks, as in disk=a")
    wrong = [tag for tag in config.worker.tags if not valid_name(tag)]
    if wrong:
        raise ConfigError(f"worker.tags has {wrong[0]!r}: a tag is printable characters without blanks")
    together = tuple(sorted({*config.worker.tags, *tags}))
    if len(together) > limits.WORKER_TAGS_MAX:
        raise WrongOptions(f"{len(together)} tags; a worker has at most {limits.WORKER_TAGS_MAX}")
    return msgspec.structs.replace(config, worker=msgspec.structs.replace(config.worker, tags=together))
