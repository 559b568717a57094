"""`zq schedules` against a real broker and a real scheduler's step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.conftest import LiveBroker
from zq.cli import main
from zq.client.sync import Client
from zq.config import Config, load
from zq.scheduler.service import Service, schedules_of


@pytest.fixture
def config(live_broker: LiveBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    path = tmp_path / "zq.toml"
    path.write_text(
        f'[client]\nbroker = "{live_broker.address}"\n'
        "[schedules.nightly]\n"
        'task = "报告.夜间"\nqueue = "reports"\ncron = "30 3 * * *"\noverlap = "skip"\n',
        "utf-8",
    )
    monkeypatch.setenv("ZQ_CONFIG", str(path))
    return load(path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["schedules", *arguments])


def listed() -> dict[str, dict[str, object]]:
    return {one["name"]: one for one in json.loads(run("--json").output)["schedules"]}


def test_schedules_are_listed_paused_resumed_and_run(config: Config) -> None:
    with Client(config, role="scheduler") as client:
        Service(client, schedules_of(config)).step()
    found = listed()
    assert (found["exam-status"]["ticks"], found["nightly"]["ticks"]) == (1, 0)
    assert (found["nightly"]["rule"], found["nightly"]["paused"]) == ("cron 30 3 * * * (Asia/Shanghai)", False)
    assert "paused" in run("pause", "nightly").output
    assert "paused" in run().output
    assert listed()["nightly"]["next_ms"] is None
    assert json.loads(run("resume", "nightly", "--json").output)["paused"] is False
    job_id = json.loads(run("run", "nightly", "--json").output)["job_id"]
    with Client(config) as client:
        assert client.detail(job_id).job.task == "报告.夜间"
    again = run("run", "nightly")
    assert (again.exit_code, "still there" in again.output) == (1, True)


def test_a_name_that_is_none(config: Config) -> None:
    for verb in ("pause", "resume", "run"):
        done = run(verb, "nihgtly")
        assert (done.exit_code, "did you mean nightly?" in done.output) == (2, True)
