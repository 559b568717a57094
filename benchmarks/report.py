"""The record as tables in markdown: who wins, by how much, and how far the machine's own limit is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.figures import Figure, number, with_spread
from benchmarks.peers import CONTESTANTS, Contestant
from benchmarks.run import Record


@dataclass(frozen=True)
class Workload:
    """One row of the comparison."""

    figure: str
    title: str
    unit: str
    more_is_better: bool
    goal: float | None
    """zq's own goal for it on two cores."""
    bound: str
    """What bounds zq's figure."""
    limit: str = ""
    """The machine's limit that it is measured against, if there is one."""
    of_limit: float | None = None
    """The share of that limit which zq is to reach."""
    of_durable_peers: float | None = None
    """The share of the best durable peer's figure which zq must not miss; 1 is to be ahead of it."""


WORKLOADS = (
    Workload(
        "confirmed_per_s", "one confirmed submit at a time, one client", "jobs/s", True, None,
        "one round trip over TCP and one synced commit, one after the other", "confirmed_limit_per_s",
        of_limit=0.8, of_durable_peers=1.0,
    ),
    Workload(
        "bulk_per_s", "bulk submit, one client", "jobs/s", True, 75_000,
        "the client's and the broker's Python for each job; the disk takes many times more", "lmdb_1000_per_s",
    ),
    Workload(
        "drain_one_per_s", "drain, one slot", "jobs/s", True, 10_000,
        "two steps of each job in the journal (dispatch, finish) and the way to the slot and back", "lmdb_100_per_s",
    ),
    Workload(
        "drain_all_per_s", "drain, all cores", "jobs/s", True, 20_000,
        "the broker's single thread, which shares the cores with the slots", "lmdb_100_per_s",
    ),
    Workload(
        "start_p50_ms", "submit → first line of the task, p50", "ms", False, 0.7,
        "one commit that holds accept and dispatch, a hop to the worker and one to its slot", "start_limit_ms",
        of_durable_peers=0.5,
    ),
    Workload("start_p99_ms", "submit → first line of the task, p99", "ms", False, 2.5, "the slowest sync of a hundred"),
    Workload(
        "result_p50_ms", "submit → result at the client, p50", "ms", False, 1.5,
        "as the start, then the commit of the end and the hops back", "result_limit_ms",
    ),
    Workload("result_p99_ms", "submit → result at the client, p99", "ms", False, None, "the slowest sync of a hundred"),
    Workload(
        "late_p50_ms", "job due in 2 s: lateness, p50", "ms", False, 1.0,
        "the broker's timer of 1 ms and the commit of the dispatch, behind the ends of the jobs before",
    ),
    Workload("late_p99_ms", "job due in 2 s: lateness, p99", "ms", False, 4.0, "the same"),
)  # fmt: skip

_TITLES = {contestant.name: contestant.title for contestant in CONTESTANTS}
_DURABLE = {contestant.name for contestant in CONTESTANTS if contestant.durable}


def markdown(record: Record) -> str:
    parts = [_header(record), _summary(record), _audit(record), *(_table(record, w) for w in WORKLOADS)]
    parts += [_limits(record), _alone(record), _systems(record), _settings(record), _failures(record)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _rows(rows: list[list[str]]) -> str:
    head, *rest = rows
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rest)])


def _header(record: Record) -> str:
    about = record.about
    load = f"load of the machine {about['load_before']:.2f} before, {about.get('load_after', 0.0):.2f} after"
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    changed = f" with {about['changed_files']} changed files" if about["changed_files"] else ""
    return (
        f"`{about['command']}` · {about['when']} · zq at {about['commit']}{changed} · {about['cores']} cores"
        f" ({about['cpu']}), kernel {about['kernel']}, Python {about['python']} · {about['repetitions']} repetitions,"
        f" scale {about['scale']:g} · {load}\n\n{versions}; {'; '.join(about['servers'])}"
    )


def _figure(record: Record, name: str, figure: str) -> Figure | None:
    values = record.contestants.get(name, {}).get("figures", {}).get(figure)
    return Figure(tuple(values)) if values else None


def standings(record: Record, workload: Workload) -> list[tuple[str, Figure]]:
    """Contestants, the best median first."""
    found = [(name, _figure(record, name, workload.figure)) for name in record.contestants]
    have = [(name, figure) for name, figure in found if figure is not None]
    return sorted(have, key=lambda item: _rank(workload, item[1]))


def _rank(workload: Workload, figure: Figure) -> tuple[bool, float]:
    """The smaller is better. Less than nothing is a job that has started before its time: that is wrong, and last."""
    return figure.median < 0, -figure.median if workload.more_is_better else figure.median


def _summary(record: Record) -> str:
    peers = ["best peer that syncs", "best peer that does not"]
    rows = [["workload", "zq", *peers, "first that syncs", "first of all", "goal"]]
    for workload in WORKLOADS:
        order = standings(record, workload)
        zq = next((figure for name, figure in order if name == "zq"), None)
        if zq is None:
            continue
        others = [(name, figure) for name, figure in order if name != "zq"]
        best = [
            next(((name, figure) for name, figure in others if (name in _DURABLE) is durable), None)
            for durable in (True, False)
        ]
        rows.append([
            workload.title,
            f"**{number(zq.median)}** {workload.unit}",
            *(_versus(workload, zq, item) for item in best),
            verdict(workload, zq, [item for item in others if item[0] in _DURABLE]),
            verdict(workload, zq, others),
            _goals(record, workload, zq, [item for item in others if item[0] in _DURABLE]),
        ])  # fmt: skip
    return "### Who wins\n\n" + _rows(rows) if len(rows) > 1 else ""


def _versus(workload: Workload, zq: Figure, other: tuple[str, Figure] | None) -> str:
    if other is None:
        return "–"
    name, figure = other
    title = _TITLES[name].replace(", fsync always", "")
    if figure.median <= 0 or zq.median <= 0:
        return f"{title} {number(figure.median)}"
    factor = zq.median / figure.median if workload.more_is_better else figure.median / zq.median
    return f"{title} {number(figure.median)} (zq {number(factor)} ×)"


def verdict(workload: Workload, zq: Figure, others: list[tuple[str, Figure]]) -> str:
    """Who is first by the median; whether the ranges of the two overlap, which leaves it open."""
    if not others:
        return "zq, alone"
    name, best = others[0]
    ahead = _rank(workload, zq) < _rank(workload, best)
    open_ = zq.low <= best.high and best.low <= zq.high
    return ("zq" if ahead else _TITLES[name]) + (" (ranges overlap)" if open_ else "")


def _goals(record: Record, workload: Workload, zq: Figure, durable: list[tuple[str, Figure]]) -> str:
    """Every goal of a row, and whether it is met."""
    goals = []
    sign = "≥" if workload.more_is_better else "≤"
    limit = record.figures.get(workload.limit)
    if workload.goal is not None:
        goals.append((f"{sign} {workload.goal:,g}", workload.goal))
    if workload.of_limit is not None and limit:
        bound = workload.of_limit * Figure(tuple(limit)).median
        goals.append((f"{sign} {workload.of_limit:g} of the limit ({number(bound)})", bound))
    if workload.of_durable_peers is not None and durable:
        bound = workload.of_durable_peers * durable[0][1].median
        goals.append((f"{sign} {workload.of_durable_peers:g} of the best peer that syncs ({number(bound)})", bound))
    told = [
        f"{text}: {'met' if (zq.median >= bound if workload.more_is_better else zq.median <= bound) else '**missed**'}"
        for text, bound in goals
    ]
    return "; ".join(told) or "–"


def _audit(record: Record) -> str:
    def total(name: str, kind: str) -> int:
        figures = record.contestants[name]["figures"]
        return int(sum(sum(values) for figure, values in figures.items() if figure.endswith(f"_{kind}")))

    wrong = [
        f"{_TITLES[name]}: {total(name, 'missing')} missing, {total(name, 'twice')} twice"
        for name in record.contestants
        if total(name, "missing") or total(name, "twice") or total(name, "unknown")
    ]
    if not record.contestants:
        return ""
    return "Every confirmed job was looked for: " + ("; ".join(wrong) if wrong else "none missing, none twice.")


def _table(record: Record, workload: Workload) -> str:
    order = standings(record, workload)
    if not order:
        return ""
    rows = [["", "median", "lowest – highest", "synced before the answer"]]
    for name, figure in order:
        title = f"**{_TITLES[name]}**" if name == "zq" else _TITLES[name]
        median, spread = with_spread(figure)
        rows.append([title, median, spread, "yes" if name in _DURABLE else "no"])
    notes = f"What bounds zq: {workload.bound}."
    limit = record.figures.get(workload.limit)
    zq = _figure(record, "zq", workload.figure)
    if limit and zq:
        bound = Figure(tuple(limit)).median
        reached = zq.median / bound if workload.more_is_better else bound / zq.median
        notes += f" This run's limit (`{workload.limit}`): {number(bound)}; zq reaches {reached:.0%} of it."
    return f"### {workload.title[:1].upper()}{workload.title[1:]} ({workload.unit})\n\n{_rows(rows)}\n\n{notes}"


_LIMITS = {
    "fdatasync_per_s": "4 KiB written over the same place and `fdatasync`, per second",
    "lmdb_1_per_s": "LMDB, one record and one index entry a commit: records per second",
    "lmdb_100_per_s": "LMDB, 100 records a commit: records per second",
    "lmdb_1000_per_s": "LMDB, 1,000 records a commit: records per second",
    "zmq_round_trip_us": "pyzmq DEALER–ROUTER round trip between two processes, p50, µs",
    "zmq_round_trip_p99_us": "the same, p99, µs",
    "zmq_echo_per_s": "pyzmq echo, 50 messages in flight, per second",
    "zmq_batched_jobs_per_s": "pyzmq echo, 50 jobs in a message, jobs per second",
    "durable_echo_per_s": "pyzmq echo that commits a record in LMDB before it answers, one at a time, per second",
    "rested_round_trip_ms": "pyzmq round trip, 12 ms of rest before each, p50, ms",
    "rested_synced_echo_ms": "the same with 4 KiB written and synced before the answer, p50, ms",
    "confirmed_limit_per_s": "one round trip and one commit, one after the other, per second",
    "start_limit_ms": "the same as a time, ms: no job can start sooner after its submit",
    "result_limit_ms": "two round trips and two commits, ms: no result can be there sooner",
}

_ALONE = {
    "pipelined_1_per_s": "single submits, one AsyncClient with 50 in flight, jobs/s (goal ≥ 30,000)",
    "pipelined_8_per_s": "8 client processes, 50 in flight each, jobs/s (goal ≥ 30,000)",
    "confirmed_8_per_s": "8 client processes, one submit at a time each, jobs/s",
    "idle_broker_cpu_percent": "idle broker, % of one core (goal < 0.5)",
    "idle_broker_rss_mib": "idle broker, RSS, MiB (goal < 60)",
    "idle_broker_pss_mib": "idle broker, PSS, MiB",
    "crowd_workers": "idle workers connected",
    "crowd_broker_cpu_percent": "broker with them, % of one core (goal < 5 with 2,000)",
    "crowd_broker_own_mib": "broker with them, anonymous memory, MiB",
    "crowd_start_p50_ms": "submit → first line among them, p50, ms (goal < 5)",
    "crowd_start_p99_ms": "the same, p99, ms",
    "backlog_jobs": "backlog, waiting jobs",
    "backlog_submit_empty_per_s": "bulk submit into an empty queue, median of 5 parts, jobs/s",
    "backlog_submit_full_per_s": "bulk submit with the backlog, median of 5 parts, jobs/s",
    "backlog_submit_change_percent": "the difference, % (goal: within 20)",
    "backlog_dispatch_empty_per_s": "jobs run by a worker on all cores, few waiting, jobs/s",
    "backlog_dispatch_full_per_s": "the same with the backlog, jobs/s",
    "backlog_dispatch_change_percent": "the difference, % (goal: within 20)",
    "backlog_own_mib": "broker with the backlog, anonymous memory, MiB",
    "backlog_rss_mib": "broker with the backlog, RSS with the mapped journal, MiB (goal < 300 with 10 M)",
    "backlog_restart_s": "stop, start and first answer with the backlog, s (goal < 5 with 10 M)",
    "backlog_restarted_own_mib": "broker after that restart, anonymous memory, MiB",
    "backlog_journal_mib": "journal on disk, MiB",
    "history_jobs": "finished jobs kept",
    "history_start_s": "start and first answer with them, s (goal < 2 with 1 M)",
    "history_page_ms": "a page of 100 of them, slowest of 20, ms (goal < 50)",
}


def _pairs(record: Record, title: str, known: dict[str, str]) -> str:
    rows = [["", "median", "lowest – highest"]]
    for name, text in known.items():
        if name in record.figures:
            figure = Figure(tuple(record.figures[name]))
            median, spread = with_spread(figure)
            rows.append([text, median, spread if len(figure.values) > 1 else "once"])
    return f"### {title}\n\n{_rows(rows)}" if len(rows) > 1 else ""


def _limits(record: Record) -> str:
    return _pairs(record, "This machine's limits, in the same run", _LIMITS)


def _alone(record: Record) -> str:
    return _pairs(record, "zq alone, every commit synced", _ALONE)


def _systems(record: Record) -> str:
    """The two whole systems side by side."""
    names = [name.removeprefix("system_zq_") for name in record.figures if name.startswith("system_zq_")]
    if not names:
        return ""

    def one(system: str, name: str) -> str:
        values = record.figures.get(f"system_{system}_{name}")
        return number(values[-1]) if values else "–"

    labels = {
        "cpu_percent": "CPU, % of one core, over one tick", "pss_mib": "**PSS, MiB**", "rss_mib": "sum of RSS, MiB",
        "own_mib": "anonymous memory, MiB", "processes": "processes", "server_pss_mib": "broker / Redis, PSS MiB",
        "scheduler_pss_mib": "scheduler / Beat, PSS MiB", "status-worker_pss_mib": "status worker, PSS MiB",
        "merge-worker_pss_mib": "merge worker, PSS MiB", "web_pss_mib": "web / Flower, PSS MiB",
    }  # fmt: skip
    other = {"scheduler_pss_mib": "beat_pss_mib", "web_pss_mib": "flower_pss_mib"}
    rows = [["", "zq", "Celery"]]
    rows += [[labels[name], one("zq", name), one("celery", other.get(name, name))] for name in names]
    return (
        "### The whole system at rest\n\n"
        "zq: broker, scheduler, status worker (1 slot), merge worker (2 slots), web. Celery: Redis, Beat, two prefork"
        " workers (1 and 2 processes), Flower; its tasks import nothing. By PSS over the process trees, one after the"
        f" other. Goal: at most half.\n\n{_rows(rows)}"
    )


def _settings(record: Record) -> str:
    rows = [["", "configuration", "bulk submit by"]]
    seen: set[str] = set()
    for contestant in CONTESTANTS:
        entry = record.contestants.get(contestant.name)
        if entry is not None and contestant.peer not in seen:
            seen.add(contestant.peer)
            rows.append([_title_of(contestant), entry["setting"], entry["bulk"] or "has none"])
    return "### How each was configured\n\n" + _rows(rows) if len(rows) > 1 else ""


def _title_of(contestant: Contestant) -> str:
    return contestant.title.partition(" + ")[0]


def _failures(record: Record) -> str:
    if not record.failures:
        return ""
    return "### What failed\n\n" + "\n".join(f"- {text.splitlines()[0]}" for text in record.failures)


def replaced(text: str, block: str, *, begin: str, end: str) -> str:
    """`text` with what stands between the two marks replaced. Raises ValueError without the marks."""
    before, found, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise ValueError(f"no {begin} … {end}")
    return f"{before}{begin}\n\n{block}\n{end}{after}"


def lines(record: Record, say: Callable[[str], Any]) -> None:
    """The summary, for the terminal."""
    for line in _brief(record):
        say(line)


def _brief(record: Record) -> Iterator[str]:
    for workload in WORKLOADS:
        order = standings(record, workload)
        if order:
            yield f"{workload.title} ({workload.unit})"
            yield from (f"    {_TITLES[name]:<34} {number(figure.median):>10}" for name, figure in order)
    for name, values in record.figures.items():
        yield f"{name:<36} {number(Figure(tuple(values)).median):>10}"
