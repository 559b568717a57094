"""`zq up`, `zq down`, `zq status`, `zq restart`: a whole system on this machine, over supervisord.

`zq up` returns when the system is ready to work, `zq down` when no process of it is left. Both can be repeated.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from zq import readiness
from zq.cli_options import config_option, json_option
from zq.config import Config, load
from zq.supervision import STOP_MARGIN_S, ControlError, Program, Supervisor, check_usable, worker_name
from zq.system_processes import SystemProcesses, tree_of, what_is
from zq.web.auth import ensure_token
from zq.workers.process import ProcessKey, send_signal

EXIT_NOT_RUNNING = 3
"""Of `zq status`, as for any service: something that should run does not (LSB)."""
_STEP_S = 0.1
_SERVES_WITHIN_S = 15.0
"""A worker that was started again should have said so to the broker."""
_FRESH_S = 5.0
_KILLED_WITHIN_S = 10.0
_TAIL_LINES = 15
_TAIL_BYTES = 16_384
_NOT_COMING = {"FATAL", "EXITED"}
"""States that supervisord does not leave by itself."""


def bring_up(config: Config, timeout_s: float, say: Any = click.echo) -> None:
    """Start what does not run and wait until the system is ready. Raises ControlError, with what a log says."""
    data_dir = config.data_path
    check_usable(data_dir)
    data_dir.mkdir(parents=True, exist_ok=True)
    supervisor = Supervisor(data_dir)
    with _one_at_a_time(data_dir):
        if supervisor.pid() is not None:
            say(f"zq is running already in {data_dir}")
            for program in supervisor.programs():
                if program.state in (_NOT_COMING | {"STOPPED", "UNKNOWN"}) and not _is_off(config, program):
                    say(f"  starting {program.name}, which was {program.state.lower()}")
                    supervisor.start_program(program.name)
        else:
            _end_leftovers(config, say)
            _require_free(config)
            say(f"starting zq in {data_dir}")
            supervisor.start(config, os.environ)
        _wait_ready(config, supervisor, timeout_s, say)


def take_down(config: Config, say: Any = click.echo) -> None:
    """Stop the system and return when none of its processes is left. Raises ControlError if one cannot be ended."""
    data_dir = config.data_path
    if not data_dir.is_dir():
        say(f"nothing to stop: there is no {data_dir}")
        return
    supervisor = Supervisor(data_dir)
    with _one_at_a_time(data_dir):
        try:
            pid = supervisor.pid()
        except ControlError as error:
            say(f"{error}; stopping its programs without it")
            pid = None
        processes = SystemProcesses(data_dir, pid)
        if not processes.living():
            say(f"nothing to stop: no process of {data_dir} is running")
            return
        if pid is not None:
            say(f"stopping zq in {data_dir}")
            supervisor.shut_down()
        else:
            say(f"supervisord of {data_dir} is gone: ending what is left")
            _terminate(processes.tops())
        _wait_gone(processes, config, say)
        say("zq is down: no process of it is left")


@contextlib.contextmanager
def _one_at_a_time(data_dir: Path) -> Iterator[None]:
    """Two people at the controls of one system take turns."""
    with open(data_dir / "control.lock", "a", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            click.echo("waiting for another zq up, down or restart of this system …", err=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_off(config: Config, program: Program) -> bool:
    return program.name == "scheduler" and not config.scheduler.enabled


def _end_leftovers(config: Config, say: Any) -> None:
    processes = SystemProcesses(config.data_path, None)
    tops = processes.tops()
    if tops:
        say(f"an earlier supervisord of {config.data_path} is gone; ending what it left")
        _terminate(tops)
        _wait_gone(processes, config, say)


def _require_free(config: Config) -> None:
    """Raises ControlError if somebody else listens where this system is to. Without it, programs would try for long."""
    host, _, port = config.broker.bind.removeprefix("tcp://").rpartition(":")
    wanted = [("web.port", config.web.host, config.web.port)]
    if config.broker.bind.startswith("tcp://") and port.isdigit():
        wanted.append(("broker.bind and client.broker", host.strip("[]"), int(port)))
    for key, address, number in wanted:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("" if address == "*" else address, number))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise ControlError(
                        f"port {number} is in use by another program (another zq?); stop that, or set {key} in zq.toml"
                    ) from None
                # A wrong address is the program's own to explain, in its log.


def _terminate(keys: Sequence[ProcessKey]) -> None:
    for key in keys:
        send_signal(key, signal.SIGTERM)


def _wait_gone(processes: SystemProcesses, config: Config, say: Any) -> None:
    worker = config.worker
    kill_from_s = time.monotonic() + worker.drain_s + worker.kill_grace_s + STOP_MARGIN_S
    said_at_s, said = time.monotonic(), ""
    while living := processes.living():
        now_s = time.monotonic()
        if now_s > kill_from_s + _KILLED_WITHIN_S:
            raise ControlError(f"cannot be ended, not even by KILL: {', '.join(map(what_is, living))}")
        if now_s > kill_from_s:
            for key in living:
                say(f"  ending by force: {what_is(key)}")
                send_signal(key, signal.SIGKILL)
        elif now_s > said_at_s + 1:
            waits = f"  waiting for {', '.join(map(what_is, living[:6]))}{' and more' if len(living) > 6 else ''}"
            if waits != said or now_s > said_at_s + 10:
                say(waits)
                said = waits
                said_at_s = now_s
        time.sleep(_STEP_S)


def _wait_ready(config: Config, supervisor: Supervisor, timeout_s: float, say: Any) -> None:
    token = ensure_token(config.data_path)
    until_s = time.monotonic() + timeout_s
    shown: dict[str, str] = {}
    why = "its programs have not started"
    while True:
        programs = supervisor.programs()
        wide = _name_width(programs)
        for program in programs:
            if program.state != shown.get(program.name):
                shown[program.name] = program.state
                trouble = f": {program.trouble}" if program.trouble else ""
                say(f"  {program.name:<{wide}} {program.state.lower()}{trouble}")
        for program in programs:
            if program.state in _NOT_COMING and not _is_off(config, program):
                raise ControlError(
                    f"{program.name} does not run (exit code {program.exit_code}). Its log, {program.log}, ends with:\n"
                    f"{tail(program.log)}"
                )
        # supervisord calls a program running after a second; the system is ready when it says so itself.
        if all(p.state == "RUNNING" or _is_off(config, p) for p in programs):
            ready = readiness.ask(config, token)
            if ready.ok:
                return
            why = "; ".join(ready.reasons)
        if time.monotonic() > until_s:
            late = [p for p in programs if p.state != "RUNNING"] or [p for p in programs if p.name in ("broker", "web")]
            raise ControlError(
                f"not ready after {timeout_s:g} s: {why}\n"
                + "\n".join(f"{p.log} ends with:\n{tail(p.log)}" for p in late)
                + "\nWhat has started goes on running: see `zq status`, and `zq down` to stop it."
            )
        time.sleep(_STEP_S)


def tail(path: str | Path, lines: int = _TAIL_LINES) -> str:
    """The last lines of a log, indented; what is wrong with it where it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError as error:
        text = f"(cannot be read: {error.strerror})"
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:]) or "    (it is empty)"


@click.command()
@config_option
@click.option("--timeout", "timeout_s", default=60.0, show_default=True, help="Seconds to wait until it is ready.")
def up(config_path: str | None, timeout_s: float) -> None:
    """Start the system and wait until it is ready."""
    config = load(config_path)
    bring_up(config, timeout_s)
    click.echo(f"zq is up. Page: {readiness.page_link(config)}")


@click.command()
@config_option
def down(config_path: str | None) -> None:
    """Stop the system; returns when no process of it is left."""
    take_down(load(config_path))


@click.command()
@config_option
@click.argument("names", metavar="NAME…", nargs=-1, required=True)
def restart(config_path: str | None, names: tuple[str, ...]) -> None:
    """Stop programs cleanly and start them again: broker, scheduler, web, a worker, `workers`, or `all`.

    One after the other: the next one is stopped when the one before it runs again, a worker when it serves its queue.
    A worker lets running jobs finish for worker.drain_s and hands back the others, which costs them no attempt.
    """
    config = load(config_path)
    supervisor = Supervisor(config.data_path)
    if supervisor.pid() is None:
        raise ControlError(f"zq is not running in {config.data_path}; `zq up` starts it")
    with _one_at_a_time(config.data_path):
        known = [program.name for program in supervisor.programs()]
        queues = {worker_name(queue): queue for queue in config.queues}
        groups = {"all": known, "workers": [name for name in known if name in queues]}
        for name in names:
            if name not in known and name not in groups:
                near = difflib.get_close_matches(name, [*known, *groups], n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}, workers, and all"
                raise ControlError(f"no program is called {name!r}; {hint}")
        for name in dict.fromkeys(one for given in names for one in groups.get(given, [given])):
            _restart(config, supervisor, name)
            if name in queues:
                _wait_serving(config, queues[name])


def _wait_serving(config: Config, queue: str) -> None:
    """Wait until a worker that has just come serves the queue. One that is late is said, and not waited for longer."""
    from zq.client.sync import Client
    from zq.exceptions import Refused, Unavailable

    began_s = time.monotonic()
    with Client(config, timeout_s=1.0) as client:
        while (waited_s := time.monotonic() - began_s) < _SERVES_WITHIN_S:
            with contextlib.suppress(Unavailable, Refused):
                for worker in client.workers():
                    fresh = worker.connected_ms <= (waited_s + _FRESH_S) * 1000
                    if fresh and any(served.queue == queue for served in worker.queues):
                        return
            time.sleep(_STEP_S)
    click.echo(f"queue {queue} has no new worker after {_SERVES_WITHIN_S:g} s: see `zq status`, `zq workers`", err=True)


def _restart(config: Config, supervisor: Supervisor, name: str) -> None:
    def now() -> Program:
        return next(program for program in supervisor.programs() if program.name == name)

    worker = config.worker
    click.echo(f"{name}: stopping")
    supervisor.stop_program(name)
    kill_from_s = time.monotonic() + worker.drain_s + worker.kill_grace_s + STOP_MARGIN_S
    while (program := now()).pid:
        if time.monotonic() > kill_from_s:
            for key in tree_of(program.pid):
                click.echo(f"{name}: ending by force: {what_is(key)}")
                send_signal(key, signal.SIGKILL)
        time.sleep(_STEP_S)
    supervisor.start_program(name)
    until_s = time.monotonic() + STOP_MARGIN_S
    while (program := now()).state != "RUNNING":
        if program.state in _NOT_COMING or time.monotonic() > until_s:
            raise ControlError(f"{name} is {program.state.lower()}; {program.log} ends with:\n{tail(program.log)}")
        time.sleep(_STEP_S)
    click.echo(f"{name}: running (pid {program.pid})")


@click.command()
@config_option
@json_option
def status(config_path: str | None, as_json: bool) -> None:
    """Show what runs. Exit code 0 when all of it does, 3 when not."""
    config = load(config_path)
    supervisor = Supervisor(config.data_path)
    programs = supervisor.programs() if supervisor.pid() is not None else []
    ready = readiness.ask(config, ensure_token(config.data_path)) if programs else readiness.Readiness(False, [])
    wanted = [program for program in programs if not _is_off(config, program)]
    running = bool(programs) and all(program.state == "RUNNING" for program in wanted)
    if as_json:
        facts = {
            "data_dir": config.data_dir,
            "running": running,
            "ready": ready.ok,
            "reasons": ready.reasons,
            "programs": [program._asdict() for program in programs],
        }
        click.echo(json.dumps(facts, ensure_ascii=False))
    elif not programs:
        click.echo(f"zq is not running in {config.data_dir}; `zq up` starts it")
    else:
        for program in programs:
            click.echo(_line(program, _name_width(programs)))
        click.echo("ready" if ready.ok else f"not ready: {'; '.join(ready.reasons)}")
    sys.exit(0 if running else EXIT_NOT_RUNNING)


def _name_width(programs: Sequence[Program]) -> int:
    return max(16, *(len(program.name) for program in programs))


def _line(program: Program, wide: int) -> str:
    hours, rest = divmod(program.uptime_s, 3600)
    since = f"pid {program.pid:<8} up {hours}:{rest // 60:02}:{rest % 60:02}" if program.pid else program.trouble
    return f"{program.name:<{wide}} {program.state.lower():<9} {since:<26} {program.log}"
