"""`zq exam`: what an administrator does to the exam store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from zq.cli_options import config_option, json_option
from zq.cli_text import print_json
from zq.config import load

if TYPE_CHECKING:
    from zq.config import Config
    from zq.exams.migrate import Plan


@click.group("exam")
def exam() -> None:
    """The exam service: its database, and a load test of it."""


@exam.command("migrate")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@click.option("--merge-duplicates", is_flag=True, help="Make one row of a student's rows in the same exam.")
@config_option
@json_option
def migrate(dry_run: bool, merge_duplicates: bool, config_path: str | None, as_json: bool) -> None:
    """Bring the exam database to the schema of this zq.

    Every process of zq does so when it starts; this command does it beforehand, and says what it found. A database of
    an older exam system is used as it is: its tables get what is missing (indexes, a unique pair of exam and student)
    and zq's own tables beside them; no column of theirs is changed.
    """
    from zq.exams import times
    from zq.exams.database import Database, plan

    config = load(config_path)
    found = plan(config.database_url)
    if not dry_run:
        Database(config.database_url, times.zone(config.exams.time_zone), merge_duplicates=merge_duplicates).close()
    if as_json:
        print_json(_as_json(found, dry_run))
        return
    for line in _lines(found, dry_run):
        click.echo(line)


def _as_json(found: Plan, dry_run: bool) -> dict[str, object]:
    from zq.exams.migrate import HEAD

    return {
        "from": found.version or None,
        "to": HEAD,
        "changed": not dry_run and not found.up_to_date,
        "adopted": list(found.adopted),
        "duplicates": [{"exam": exam, "student": student, "rows": rows} for exam, student, rows in found.duplicates],
    }


def _lines(found: Plan, dry_run: bool) -> list[str]:
    from zq.exams.migrate import HEAD

    if found.up_to_date:
        return [f"the exam database is at revision {HEAD}: nothing to do"]
    lines = [f"{'would go' if dry_run else 'went'} from {found.version or 'nothing'} to revision {HEAD}"]
    if found.adopted:
        lines.append(f"uses the tables that are there: {', '.join(found.adopted)}")
    if found.duplicates:
        told = "needs --merge-duplicates for" if dry_run else "made one row each of"
        lines.append(f"{told} {len(found.duplicates)} students who are in an exam more than once")
    return lines


@exam.command("load")
@click.option("--students", type=click.IntRange(1, 20_000), default=500, show_default=True)
@click.option("--minutes", type=click.FloatRange(0.05, 1440), default=2.0, show_default=True)
@click.option("--heartbeat-s", type=click.FloatRange(0.1, 3600), default=30.0, show_default=True)
@click.option("--segment-s", type=click.FloatRange(0.1, 3600), default=60.0, show_default=True)
@click.option(
    "--segment-kib", type=click.IntRange(0, 200 << 10), default=1500, show_default=True,
    help="Size of a segment; 0 for as large as the recording is.",
)  # fmt: skip
@click.option("--segment", "segment_file", type=click.Path(exists=True, dir_okay=False), help="An .mp4 to upload.")
@click.option("--exits", type=click.IntRange(0), help="Students who finish, in the last minute (default: up to 500).")
@click.option("--login-s", type=click.FloatRange(0, 3600), help="Logins are spread over this (default: 100 a second).")
@click.option("--wait-s", type=click.FloatRange(0), default=600.0, show_default=True, help="For the merges at the end.")
@click.option("--url", help="The system (default: web.host and web.port).")
@click.option("--token", envvar="ZQ_TOKEN", help="Its token, or ZQ_TOKEN (default: data_dir/token).")
@config_option
@json_option
def load_command(
    students: int,
    minutes: float,
    heartbeat_s: float,
    segment_s: float,
    segment_kib: int,
    segment_file: str | None,
    exits: int | None,
    login_s: float | None,
    wait_s: float,
    url: str | None,
    token: str | None,
    config_path: str | None,
    as_json: bool,
) -> None:
    """Play an exam of many students against a running system.

    Each logs in, sends heartbeats and real segments, and some finish, so that their recordings are merged. Then the
    system is asked for all of it. Exit code 1 if a call failed, a segment was lost, a merge failed, or a job is not
    accounted for. The exam and its recordings stay.
    """
    import asyncio
    import time
    from urllib.parse import urlsplit

    from zq import exam_load, readiness
    from zq.exam_load_figures import lines, report
    from zq.web.auth import ensure_token

    config = load(config_path)
    place = urlsplit(url or readiness.base_url(config))
    if place.scheme != "http" or place.hostname is None:
        raise exam_load.LoadError(f"{url!r} is not the address of a system; write it like http://127.0.0.1:5555")
    plan = exam_load.Plan(
        host=place.hostname,
        port=place.port or 80,
        token=token or ensure_token(config.data_path),
        students=students,
        minutes=minutes,
        heartbeat_s=heartbeat_s,
        segment_s=segment_s,
        exits=min(students, 500 if exits is None else exits),
        login_s=students / 100 if login_s is None else login_s,
        wait_s=wait_s,
        time_zone=config.exams.time_zone,
        exam_id=f"load-{int(time.time())}",
    )
    segment = _segment(config, plan.segment_s, segment_kib, segment_file)
    if url is None:
        _check_room(config, exam_load.needed_bytes(plan, len(segment)))
    run = exam_load.Load(plan, segment, lambda text: click.echo(text, err=True))
    stopped = False
    try:
        asyncio.run(run.run())
    except KeyboardInterrupt:
        stopped = True
        click.echo("stopped: what was seen until then, and nothing was looked up", err=True)
    facts = {
        "exam": plan.exam_id, "students": students, "minutes": minutes, "heartbeat_s": heartbeat_s,
        "segment_s": segment_s, "segment_bytes": len(segment) + exam_load.TAIL_BYTES,
    }  # fmt: skip
    found = report(run.figures, run.outcome, facts)
    if as_json:
        print_json(found)
    else:
        for line in lines(found):
            click.echo(line)
    if stopped:
        raise click.Abort
    if not found["ok"]:
        raise exam_load.LoadError(f"exam {plan.exam_id} did not go as it must")


def _segment(config: Config, length_s: float, size_kib: int, file: str | None) -> bytes:
    from pathlib import Path

    from zq import exam_load
    from zq.workers.ffmpeg import FfmpegMissing, find_ffmpeg

    if file is not None:
        video = Path(file).read_bytes()
    else:
        try:
            video = exam_load.make_video(find_ffmpeg(config.merge.ffmpeg), length_s)
        except FfmpegMissing as error:
            raise exam_load.LoadError(f"{error}; or give a recording with --segment FILE") from None
    return exam_load.padded(video, size_kib << 10)


def _check_room(config: Config, needed_bytes: int) -> None:
    import shutil

    from zq import exam_load

    folder = config.storage_path if config.storage_path.exists() else config.data_path
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes * 0.9:
        raise exam_load.LoadError(
            f"the recordings would take {needed_bytes / 1e9:.0f} GB, and {folder} has {free_bytes / 1e9:.0f} GB free; "
            "give a smaller --segment-kib, or fewer --minutes"
        )
