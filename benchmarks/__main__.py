"""`python -m benchmarks`: zq beside the job systems people use today, on this machine, in one run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click

from benchmarks import report, servers
from benchmarks.peer_venv import ROOT, PeerVenv
from benchmarks.run import Plan, Record, Runner, about, chosen

RESULTS = Path(__file__).with_name("RESULTS.md")
BEGIN, END = "<!-- run: begin -->", "<!-- run: end -->"


class Progress:
    """One line for each thing that is begun, with the time since the start."""

    def __init__(self) -> None:
        self._start_s = time.monotonic()

    def __call__(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._start_s), 60)
        click.echo(f"[{minutes:2}:{seconds:02}] {text}", err=True)


@click.command()
@click.option("--only", "only", multiple=True, metavar="NAME", help="A system or a part; may be given several times.")
@click.option("--quick", is_flag=True, help="A tenth of everything, once, to see that it works.")
@click.option("--repetitions", type=click.IntRange(1, 50), default=3, show_default=True)
@click.option("--scale", type=click.FloatRange(0.01, 20), default=1.0, show_default=True, help="Of the job counts.")
@click.option("--slots", type=click.IntRange(1, 64), default=os.cpu_count() or 1, help="Slots of the second drain.")
@click.option("--backlog", type=click.IntRange(1000, 20_000_000), default=10_000_000, show_default=True, metavar="N")
@click.option("--history", type=click.IntRange(100, 20_000_000), default=1_000_000, show_default=True, metavar="N")
@click.option("--sessions", type=click.IntRange(1, 10_000), default=2000, show_default=True, help="Idle workers.")
@click.option("--output", type=click.Path(path_type=Path), default=ROOT / "var" / "bench", help="Folder of the record.")
@click.option("--record", "into_results", is_flag=True, help="Put the tables into benchmarks/RESULTS.md, too.")
@click.option("--show", type=click.Path(path_type=Path, exists=True), help="Only print the tables of a record.")
def main(
    only: tuple[str, ...], quick: bool, repetitions: int, scale: float, slots: int, backlog: int, history: int,
    sessions: int, output: Path, into_results: bool, show: Path | None,
) -> None:  # fmt: skip
    """Measure zq, its peers and this machine. About half an hour, and 6 GiB of disk; leave the machine alone."""
    if show is not None:
        click.echo(report.markdown(Record.load(show)))
        return
    try:
        contestants, parts = chosen(only)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--only") from None
    if quick:
        repetitions, scale, backlog, history, sessions = 1, scale / 10, backlog // 100, history // 10, sessions // 10
    plan = Plan(contestants, parts, repetitions, scale, slots, backlog, history, max(sessions, 1))
    output.mkdir(parents=True, exist_ok=True)
    record = _measure(plan, output)
    (output / "tables.md").write_text(report.markdown(record), "utf-8")
    report.lines(record, click.echo)
    click.echo(f"tables: {output / 'tables.md'}; all values: {output / 'record.json'}")
    if into_results:
        text = report.replaced(RESULTS.read_text("utf-8"), report.markdown(record), begin=BEGIN, end=END)
        RESULTS.write_text(text, "utf-8")
    if record.failures:
        sys.exit(1)


def _measure(plan: Plan, output: Path) -> Record:
    say = Progress()
    venv = PeerVenv()
    if any(contestant.peer != "zq" for contestant in plan.contestants) or "system" in plan.parts:
        try:
            venv.make()
        except subprocess.CalledProcessError as error:
            raise click.ClickException(f"the peers cannot be installed: {error}") from None
    _install_missing(say)
    record = Record(about=about(plan, venv, " ".join(["python -m benchmarks", *sys.argv[1:]])))
    if record.about["load_before"] > 1:
        say(f"CAREFUL: the load is {record.about['load_before']:.2f}; these figures will be too low for everybody")
    folder = servers.work_folder()
    try:
        Runner(plan, record, folder, output, venv, say).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return record


def _install_missing(say: Progress) -> None:
    """The servers are Debian's packages; without the right to install them it is said which ones are missing."""
    missing = [
        package
        for package, there in (
            ("redis-server", shutil.which("redis-server") is not None),
            ("postgresql", bool(list(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or shutil.which("initdb"))),
        )
        if not there
    ]
    if not missing:
        return
    if os.geteuid() == 0 and shutil.which("apt-get") is not None:
        say(f"installing {', '.join(missing)}")
        for command in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
            subprocess.run(["apt-get", *command], check=False, capture_output=True)
    else:
        say(f"MISSING: {', '.join(missing)}; install them as root: apt-get install {' '.join(missing)}")


if __name__ == "__main__":
    main()
