"""Sets up a system of its own, plays the exam, tears everything down. Exit code 0 only if all went as it must."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType

from demo.http_api import Api, Deviation
from demo.story import Story
from zq.config import Config, ConfigError, load
from zq.control import bring_up, tail, take_down
from zq.readiness import base_url
from zq.supervision import ControlError
from zq.web.auth import ensure_token

VIDEOS = Path("var") / "demo"
READY_S = 60.0

_SETTINGS = """\
data_dir = "data"

[broker]
bind = "tcp://127.0.0.1:{broker}"

[client]
broker = "tcp://127.0.0.1:{broker}"

[web]
port = {web}

# Quicker than in real life, where a student is offline after 60 s and the check comes every 30 s.
[exams]
offline_after_s = 4
status_every_s = 2

# Segments go for good as soon as they are merged; in real life they stay in a trash for a day.
[merge]
trash_keep_s = 0

# One merge after the other, so that there is a running one to kill a process under.
[queues.video_merge]
slots = 1
"""


class _Narrator:
    """Prints with the time since the start."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began_s

    def __call__(self, text: str) -> None:
        print(f"[{self.elapsed_s:6.1f} s] {text}", flush=True)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _configure(home: Path) -> Config:
    # What the caller has set for another system is not for this one.
    for name in [name for name in os.environ if name.startswith("ZQ_") and name != "ZQ_FFMPEG"]:
        del os.environ[name]
    broker, web = _free_ports(2)
    file = home / "zq.toml"
    file.write_text(_SETTINGS.format(broker=broker, web=web), "utf-8")
    return load(file)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _play(config: Config, say: _Narrator) -> None:
    say("offline after 4 s and a status check every 2 s here, so that you need not wait")
    bring_up(config, READY_S, say)
    VIDEOS.mkdir(parents=True, exist_ok=True)
    for old in VIDEOS.iterdir():
        if old.is_file():
            old.unlink()
    api = Api(base_url(config).removeprefix("http://"), ensure_token(config.data_path))
    story = Story(config, api, say, VIDEOS)
    try:
        story.play()
    finally:
        story.stop()


def _run(config: Config, say: _Narrator) -> int:
    try:
        _play(config, say)
        code = 0
    except KeyboardInterrupt:
        say("interrupted")
        code = 130
    except (Deviation, ControlError, ConfigError) as error:
        say(f"FAILED: {error}")
        code = 1
    except Exception:
        say(f"FAILED:\n{traceback.format_exc()}")
        code = 1
    # What was started is stopped, whatever happens: a second Ctrl-C must not leave it running.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        take_down(config, say)
    except ControlError as error:
        say(f"FAILED: {error}")
        code = 1
    return code


def main() -> int:
    signal.signal(signal.SIGTERM, _interrupt)
    say = _Narrator()
    home = Path(tempfile.mkdtemp(prefix="zq-demo-"))
    config = _configure(home)
    code = _run(config, say)
    if code == 1:
        for log in sorted((config.data_path / "log").glob("*.log")):
            print(f"{log} ends with:\n{tail(log)}", file=sys.stderr)
        say(f"everything is kept in {home}")
        return code
    shutil.rmtree(home)
    if code == 0:
        say(f"all as it must be, in {say.elapsed_s:.0f} s. The videos: {VIDEOS.resolve()}")
    return code


if __name__ == "__main__":
    sys.exit(main())
