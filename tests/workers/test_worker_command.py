"""What `zq worker`'s options mean: slots and async tasks per queue, and when slots are replaced."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from zq.config import Config, ConfigError, QueueSection, WorkerSection, load
from zq.workers.__main__ import command
from zq.workers.begin import import_own
from zq.workers.choices import SLOTS_MAX, WrongOptions, choose_concurrency, choose_slots, with_recycling

CONFIG = Config(queues={"a": QueueSection(slots=3, concurrency=20), "b": QueueSection()})


def test_each_queue_has_its_own_slots() -> None:
    assert choose_slots(CONFIG, ["a", "b"], []) == {"a": 3, "b": 1}
    assert choose_slots(CONFIG, ["b", "a", "新"], [2, 1, 4]) == {"b": 2, "a": 1, "新": 4}


@pytest.mark.parametrize(
    ("queues", "slots"), [([], []), (["a", "a"], []), (["a", "b"], [1]), (["a b"], [1]), (["a"], [SLOTS_MAX + 1])]
)
def test_slots_that_do_not_fit_the_queues_are_refused(queues: Sequence[str], slots: Sequence[int]) -> None:
    with pytest.raises(WrongOptions):
        choose_slots(CONFIG, queues, slots)


def test_async_tasks_at_once_are_configured_or_given() -> None:
    slots = {"a": 3, "b": 1, "unknown": 1}
    assert choose_concurrency(CONFIG, slots, []) == {"a": 20, "b": 1, "unknown": 1}
    assert choose_concurrency(CONFIG, slots, [1, 2, 3]) == {"a": 1, "b": 2, "unknown": 3}
    with pytest.raises(WrongOptions, match="one for each"):
        choose_concurrency(CONFIG, slots, [1])
    with pytest.raises(WrongOptions, match="at most"):
        choose_concurrency(CONFIG, {"a": 60}, [])


def test_what_is_not_given_stays_as_configured() -> None:
    config = Config(worker=WorkerSection(max_tasks_per_slot=7, max_memory_per_slot_mib=300))
    assert with_recycling(config, None, None) == config
    assert with_recycling(config, 0, None).worker.max_tasks_per_slot == 0
    assert with_recycling(config, None, 5).worker.max_memory_per_slot_mib == 5


def test_a_concurrency_beyond_what_a_slot_takes_is_refused(tmp_path: Path) -> None:
    run = CliRunner().invoke(command, ["--queue", "a", "--concurrency", "513"])
    assert run.exit_code == 2
    assert "513" in run.output
    (tmp_path / "zq.toml").write_text("[queues.a]\nconcurrency = 513\n")
    with pytest.raises(ConfigError, match="concurrency: expected"):
        load(tmp_path / "zq.toml", {})


def test_before_the_fork_the_worker_imports_task_modules_of_ours_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zq_theirs.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "zq.exams.at_rest", raising=False)
    import_own(["zq_theirs", "zq.exams.at_rest", "zq.no_such_module"])
    assert "zq.exams.at_rest" in sys.modules
    assert "zq_theirs" not in sys.modules
