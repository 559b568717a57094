"""The harness itself: what it counts, what it says of a record, and one small run of zq through the real driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import backlog, evidence, profile, report, servers
from benchmarks.driver import Turns
from benchmarks.evidence import Audit, Ran
from benchmarks.figures import number, percentile
from benchmarks.peers import CONTESTANTS, URL_VARIABLE
from benchmarks.processes import Started, tree, wait_until, weigh
from benchmarks.run import PARTS, Record, chosen

ROOT = Path(__file__).resolve().parent.parent.parent


def test_evidence_is_read_in_the_order_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(evidence.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(evidence, "_open", {})
    assert [evidence.record(n) for n in (7, 5, 7)] == [7, 5, 7]
    assert evidence.count(tmp_path) == 3
    ran = evidence.read(tmp_path)
    assert [item.number for item in ran] == [7, 5, 7]
    assert evidence.audit({5, 6, 7}, ran) == Audit(missing=1, twice=1, unknown=0)
    assert not evidence.audit({5, 6, 7}, ran).clean
    assert evidence.audit({5, 7}, ran[:2]).clean
    os.close(evidence._open.pop(os.getpid()))


def test_the_rate_leaves_out_both_ends() -> None:
    middle = [Ran(n, 1_000_000_000 + n * 1_000_000) for n in range(80)]
    ran = [Ran(-n, n) for n in range(10)] + middle + [Ran(n, 10**12 + n) for n in range(10)]
    assert evidence.rate_per_s(ran) == pytest.approx(1000)
    assert evidence.rate_per_s([]) == 0.0


def test_turns_measure_what_the_peer_does_between_two_numbers() -> None:
    turns = Turns(10)
    assert list(turns.paced(3, 0.0)) == [10, 11, 12]
    assert turns.numbers == range(10, 13)
    assert turns.rate_per_s() > 0
    assert len(turns.latencies_ms()) == 3


def test_percentiles_and_numbers() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 50), percentile(values, 99), percentile([3.0], 99)) == (51.0, 100.0, 3.0)
    assert [number(v) for v in (0.123, 12.34, 1234.5)] == ["0.12", "12.3", "1,234"]
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_names_choose_systems_and_parts() -> None:
    assert chosen([]) == (CONTESTANTS, frozenset(PARTS))
    contestants, parts = chosen(["huey", "limits"])
    assert {contestant.name for contestant in contestants} == {"huey", "huey-always"}
    assert parts == {"limits"}
    with pytest.raises(ValueError, match="unknown: huy; there are"):
        chosen(["huy"])


def _record(zq: list[float], huey: list[float]) -> Record:
    about = {
        "command": "c", "when": "w", "commit": "abc", "changed_files": 0, "cores": 2, "cpu": "x", "kernel": "k",
        "python": "3", "repetitions": 2, "scale": 1.0, "load_before": 0.1, "versions": {}, "servers": [],
    }  # fmt: skip
    contestants = {
        name: {"setting": "s", "bulk": "", "figures": {"confirmed_per_s": values, "drain_one_twice": [0, 0]}}
        for name, values in (("zq", zq), ("huey", huey))
    }
    return Record(about, contestants, {"confirmed_limit_per_s": [200.0]}, ["a: broke\nmore"])


@pytest.mark.parametrize(
    ("zq", "huey", "said"),
    [
        ([100.0, 102.0], [50.0, 51.0], "| zq |"),
        ([40.0, 42.0], [50.0, 51.0], "| zq, alone | Huey + Redis |"),
        ([40.0, 60.0], [48.0, 49.0], "| zq (ranges overlap) |"),
    ],
)
def test_the_report_says_who_wins_also_when_it_is_a_peer(zq: list[float], huey: list[float], said: str) -> None:
    text = report.markdown(_record(zq, huey))
    row = next(line for line in text.splitlines() if line.startswith("| one confirmed submit"))
    assert said in row
    assert "none missing, none twice" in text
    assert "of it." in text
    assert "- a: broke" in text


def test_every_goal_of_a_row_is_judged() -> None:
    record = _record([170.0], [165.0])
    record.contestants["huey-always"] = record.contestants.pop("huey")
    row = next(line for line in report.markdown(record).splitlines() if line.startswith("| one confirmed submit"))
    assert "≥ 0.8 of the limit (160): met" in row
    assert "≥ 1 of the best peer that syncs (165): met" in row
    record.contestants["zq"]["figures"]["confirmed_per_s"] = [159.0]
    row = next(line for line in report.markdown(record).splitlines() if line.startswith("| one confirmed submit"))
    assert row.count("**missed**") == 2


def test_who_starts_jobs_too_early_does_not_win() -> None:
    record = _record([1.0], [1.0])
    record.contestants["zq"]["figures"] = {"late_p50_ms": [0.9]}
    record.contestants["huey"]["figures"] = {"late_p50_ms": [-200.0]}
    row = next(line for line in report.markdown(record).splitlines() if line.startswith("| job due in 2 s"))
    assert "| zq, alone | zq |" in row


def test_what_ran_twice_is_told() -> None:
    record = _record([1.0], [1.0])
    record.contestants["huey"]["figures"]["drain_one_twice"] = [0, 3]
    assert "Huey + Redis: 0 missing, 3 twice" in report.markdown(record)


def test_a_record_is_kept_and_its_tables_replace_the_old_ones(tmp_path: Path) -> None:
    record = _record([1.0], [2.0])
    record.save(tmp_path / "record.json")
    assert Record.load(tmp_path / "record.json") == record
    assert report.replaced("x <b> old <e> y", "new", begin="<b>", end="<e>") == "x <b>\n\nnew\n<e> y"
    with pytest.raises(ValueError, match="no <b>"):
        report.replaced("x", "new", begin="<b>", end="<e>")


def test_a_profile_adds_up_functions_and_leaves_waiting_out() -> None:
    run = "Server.run (broker/server.py:10)"
    lines = profile.summary(
        f"main (a.py:1);{run};f (b.py:2);f (b.py:3) 3\n{run};g (c.py:4) 1\n{run};Poller.poll (p.py:1) 96"
    )
    assert lines[0].startswith("4 samples")
    assert "   75.0%  b.py f" in lines
    assert not any("a.py" in line or "p.py" in line for line in lines)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def test_a_started_process_ends_with_its_children(tmp_path: Path) -> None:
    code = "import subprocess, time; subprocess.Popen(['sleep', '60']); print('up', flush=True); time.sleep(60)"
    started = Started([sys.executable, "-c", code], tmp_path / "log")
    try:
        while "up" not in (tmp_path / "log").read_text():
            started.check()
        pids = tree(started.pid)
        assert len(pids) == 2
        assert weigh([started.pid]).pss_mib > 1
    finally:
        started.end()
    wait_until(lambda: not any(_lives(pid) for pid in pids), 5, "the end of both processes")


@pytest.mark.long
def test_a_backlog_is_measured_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "_DISPATCH_S", 0.2)
    figures = backlog.measure(tmp_path / "backlog", 20_000, 1)
    assert figures["backlog_jobs"] == 20_000
    assert all(value > 0 for name, value in figures.items() if not name.endswith("change_percent"))


def test_zq_goes_through_the_driver_with_small_counts(tmp_path: Path) -> None:
    server = servers.Zq(tmp_path / "server")
    try:
        folder = tmp_path / "run"
        folder.mkdir()
        env = {**os.environ, URL_VARIABLE: server.url, "PYTHONPATH": str(ROOT)}
        code = (
            "import sys, json, pathlib\n"
            "from benchmarks import driver, peers\n"
            "run = driver.Run(peers.make('zq'), pathlib.Path(sys.argv[1]), 1, driver.Scale(0.05, 0.001, 3, 3, 3))\n"
            "run.confirmed()\n"
            "run.idle_worker(late=False)\n"
            "run.drain(1, 'drain_one', run.fill(20))\n"
            "run.bulk()\n"
            "run.peer.close()\n"
            "json.dump(run.figures, sys.stdout)\n"
        )
        run = subprocess.run(
            [sys.executable, "-c", code, str(folder)], env=env, capture_output=True, text=True, check=False, timeout=100
        )
        assert run.returncode == 0, run.stderr
        figures = json.loads(run.stdout)
        assert (figures["drain_one_missing"], figures["drain_one_twice"]) == (0, 0)
        for name in ("confirmed_per_s", "bulk_per_s", "drain_one_per_s", "start_p50_ms", "result_p50_ms"):
            assert figures[name] > 0
    finally:
        server.end()


@pytest.mark.long
def test_the_merge_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.merging", "--only", "hour", "--only", "crowd", "--hours", "0.03"]
    command += ["--repetitions", "1", "--students", "2", "--segments", "3", "--segment-s", "1", "--json"]
    found = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    assert set(found) == {"hour", "crowd"}
    assert found["hour"]["merge_without_decode_s"] > 0
    assert found["crowd"]["students"] == 2
