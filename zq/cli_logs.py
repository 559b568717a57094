"""`zq logs`: what the tasks of a job have logged, from the log files of this machine's workers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from zq.cli_options import connected, json_option, open_client
from zq.client.requests import raw_id
from zq.client.sync import Client
from zq.config import Config
from zq.exceptions import Refused, Unavailable
from zq.protocol.job import ENDED, format_id
from zq.workers.identity import lock_file_name

POLL_S: Final = 0.25
ASK_S: Final = 1.0
"""How often `--follow` asks whether the job has ended."""
LINE_BYTES_MAX: Final = 1 << 20
_TEXT = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}) (\w+) +([^ :]+): (.*)", re.DOTALL)
_CONTINUED: Final = b"    "


class Entry(NamedTuple):
    """One event of a log: its line, and those that go on below it."""

    at_s: float
    """0 where it cannot be told."""
    text: str


class LogFile:
    """A log that is being written to, and one day moved away and begun anew, as supervisord does."""

    def __init__(self, path: Path, mark: bytes) -> None:
        self.path = path
        self._mark = mark
        self._file = path.open("rb")
        self._half = b""

    def read(self) -> Iterator[bytes]:
        """The job's events that have come since the last time, each with the lines that go on below it."""
        event = b""
        while True:
            for line in self._file:
                if not line.endswith(b"\n") and len(self._half) < LINE_BYTES_MAX:
                    self._half += line
                    continue
                line, self._half = self._half + line, b""
                if line.startswith(_CONTINUED) and event and len(event) < LINE_BYTES_MAX:
                    event += line
                    continue
                if self._mark in event:
                    yield event
                event = line
            if not self._moved():
                break
        # A writer writes an event at once: what has come of it is all of it.
        if self._mark in event:
            yield event

    def _moved(self) -> bool:
        """Whether a new file has its name; that one is read from now on."""
        try:
            now = os.stat(self.path)
        except FileNotFoundError:
            return False
        was = os.fstat(self._file.fileno())
        if (now.st_ino, now.st_dev) == (was.st_ino, was.st_dev) and now.st_size >= self._file.tell():
            return False
        self._file.close()
        self._file = self.path.open("rb")
        return True

    def close(self) -> None:
        self._file.close()


def entries(events: Iterator[bytes]) -> list[Entry]:
    texts = [event.decode("utf-8", "replace").rstrip("\n") for event in events]
    return [Entry(_time_of(text), text) for text in texts]


def _time_of(text: str) -> float:
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        if text.startswith("{"):
            return datetime.fromisoformat(json.loads(text)["time"]).timestamp()
        if (found := _TEXT.match(text)) is not None:
            return datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S.%f").astimezone().timestamp()
    return 0.0


def as_object(entry: Entry, job_id: str) -> dict[str, Any]:
    """The event as a worker with log.json writes it, whatever wrote it."""
    if entry.text.startswith("{"):
        with contextlib.suppress(ValueError):
            event: dict[str, Any] = json.loads(entry.text)
            return event
    found = _TEXT.match(entry.text)
    if found is None:
        return {"message": entry.text, "job_id": job_id}
    when = datetime.fromtimestamp(entry.at_s).astimezone().isoformat(timespec="milliseconds")
    event = {"time": when, "level": found[2], "logger": found[3], "message": found[4], "job_id": job_id}
    # At the end of the message, below which a traceback may stand.
    facts = re.search(rf"  ((?:\S+=\S+ )*job_id={re.escape(job_id)}(?: \S+=\S+)*)$", found[4], re.MULTILINE)
    if facts is not None:
        event["message"] = found[4][: facts.start()] + found[4][facts.end() :]
        event |= dict(fact.split("=", 1) for fact in facts[1].split())
    if str(event.get("attempt", "")).isdecimal():
        event["attempt"] = int(event["attempt"])
    return event


class JobLogs:
    """All log files of this machine's workers under data_dir, the ones that were moved away included."""

    def __init__(self, folder: Path, mark: bytes) -> None:
        self._folder = folder
        self._mark = mark
        self._files: dict[Path, LogFile] = {}

    def past(self) -> list[Entry]:
        """What there is, oldest first."""
        found: list[Entry] = []
        for path in sorted(self._folder.glob("*.log.*")):
            with contextlib.suppress(FileNotFoundError), contextlib.closing(LogFile(path, self._mark)) as file:
                found += entries(file.read())
        return sorted([*found, *self.news()], key=lambda entry: entry.at_s)

    def news(self) -> list[Entry]:
        """What has come since the last time."""
        found: list[Entry] = []
        for path in sorted(self._folder.glob("*.log")):
            if path not in self._files:
                with contextlib.suppress(FileNotFoundError):
                    self._files[path] = LogFile(path, self._mark)
        for file in self._files.values():
            found += entries(file.read())
        return sorted(found, key=lambda entry: entry.at_s)

    def close(self) -> None:
        for file in self._files.values():
            file.close()


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until the job has ended or Ctrl-C.")
@click.option("--lines", "-n", type=click.IntRange(0), metavar="N", help="Only the last N events there are.")
@json_option
@connected
def logs(
    job_id: str, follow: bool, lines: int | None, as_json: bool, config_path: str | None, broker: str | None
) -> None:
    """Print what a job's tasks have logged, and printed: all attempts, oldest first, also when the job has ended.

    The lines come from the log files of the workers that `zq up` runs on this machine; what was logged elsewhere is
    said. With --json, each line is one JSON object.
    """
    config, client = open_client(config_path, broker)
    job_id = format_id(raw_id(job_id))
    with client, contextlib.closing(JobLogs(config.data_path / "log", job_id.encode())) as found:
        ended = _ended(client, job_id)
        there = found.past()
        for entry in there if lines is None else there[len(there) - min(lines, len(there)) :]:
            _print(entry, job_id, as_json)
        with contextlib.suppress(KeyboardInterrupt):
            while follow:
                asked_s = time.monotonic()
                while time.monotonic() < asked_s + ASK_S:
                    for entry in found.news():
                        there.append(entry)
                        _print(entry, job_id, as_json)
                    if ended:
                        break
                    time.sleep(POLL_S)
                if ended:
                    break
                ended = _ended(client, job_id)
        _say_what_is_missing(client, config, job_id, nothing=not there)


def _print(entry: Entry, job_id: str, as_json: bool) -> None:
    click.echo(json.dumps(as_object(entry, job_id), ensure_ascii=False) if as_json else entry.text)


def _ended(client: Client, job_id: str) -> bool:
    """Also for a job the broker has forgotten, or while it is away: the files may still know it."""
    try:
        return client.detail(job_id).job.state in ENDED
    except Refused:
        return True
    except Unavailable:
        return False


def _say_what_is_missing(client: Client, config: Config, job_id: str, *, nothing: bool) -> None:
    """On standard error, so that the lines alone can go on to another program."""
    try:
        detail = client.detail(job_id)
    except Refused:
        if nothing:
            raise
        click.echo("zq logs: the broker does not know this job any more", err=True)
        return
    except Unavailable as error:
        if nothing:
            raise
        click.echo(f"zq logs: whether there are more lines on other machines is not known: {error}", err=True)
        return
    workers = dict.fromkeys(attempt.worker for attempt in detail.attempts if attempt.worker)
    elsewhere = [worker for worker in workers if not (config.data_path / "run" / lock_file_name(worker)).exists()]
    for worker in elsewhere:
        ran = "it ran" if nothing else "it also ran"
        click.echo(f"zq logs: {ran} in worker {worker}, whose log is on another machine, or elsewhere", err=True)
    if nothing and not workers:
        click.echo("zq logs: it has not run yet", err=True)
    elif nothing and len(elsewhere) < len(workers):
        click.echo(
            f"zq logs: nothing of it in {config.data_path / 'log'}: it has logged nothing, its log files are gone, or"
            " its worker was not started by `zq up`",
            err=True,
        )
