"""The programs that tests use and pip does not bring; run by `make test`, it installs what is missing.

Where apt-get and root are at hand, the Debian packages are installed; anywhere else, and should that fail, it is said
what is missing and which tests will be reported as skipped for it. `ZQ_TESTS_INSTALL=no` installs nothing. Standard
library only: it runs before anything else can be relied on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

UPDATE_S, INSTALL_S = 120, 420
"""How long apt-get may take."""


class Program(NamedTuple):
    package: str
    """Debian's name."""
    names: tuple[str, ...]
    """Any of them will do."""
    tests: str
    """What is not tested without it."""
    folders: tuple[str, ...] = ()
    """Where else than on PATH it may be; each a pattern below /."""

    def find(self) -> Path | None:
        for name in self.names:
            if on_path := shutil.which(name):
                return Path(on_path).resolve()
            for pattern in self.folders:
                # The newest version: its folder's name is the longest, then the greatest.
                found = sorted(Path("/").glob(f"{pattern}/{name}"), key=lambda path: (len(str(path)), str(path)))
                if found:
                    return found[-1].resolve()
        return None


SYSTEM = ("usr/sbin", "usr/local/sbin")
"""Not on everybody's PATH."""
POSTGRES = Program("postgresql", ("initdb",), "the exam store on PostgreSQL", ("usr/lib/postgresql/*/bin",))
MARIADB = Program("mariadb-server-core", ("mariadbd",), "the exam store on MariaDB", SYSTEM)
MARIADB_CLIENT = Program("mariadb-client-core", ("mariadb",), "the exam store on MariaDB")
REDIS = Program("redis-server", ("redis-server",), "presence in Redis")
CHROMIUM = Program("chromium", ("chromium", "chromium-browser", "google-chrome"), "the page in a browser")
TIME = Program("time", ("time",), "the watchdog's figures against GNU time's", ("usr/bin",))
STRACE = Program("strace", ("strace",), "what a crash leaves of the journal")
IP = Program("iproute2", ("ip",), "workers on a second machine", SYSTEM)
FFMPEG = Program("ffmpeg", ("ffmpeg",), "merges with the distribution's own FFmpeg")
ALL = (POSTGRES, MARIADB, MARIADB_CLIENT, REDIS, CHROMIUM, TIME, STRACE, IP, FFMPEG)

CHINESE_FONT = "fonts-noto-cjk"
"""A package without a program: pictures of the page and of zq-top need its characters."""


def has_chinese_font() -> bool:
    folders = ("/usr/share/fonts", "/usr/local/share/fonts", str(Path.home() / ".fonts"))
    names = [path.name.lower() for folder in folders for path in Path(folder).rglob("*.[to]t[fc]")]
    return any(part in name for name in names for part in ("cjk", "wqy", "droidsansfallback", "uming", "ukai"))


def missing() -> dict[str, str]:
    """By package, what is not tested without it."""
    found = {program.package: program.tests for program in ALL if program.find() is None}
    if not has_chinese_font():
        found[CHINESE_FONT] = "the page in a browser, in Chinese"
    return found


def install(packages: Sequence[str]) -> str:
    """The reason why not all of them are there now; empty if they are."""
    if os.environ.get("ZQ_TESTS_INSTALL") == "no":
        return "ZQ_TESTS_INSTALL=no"
    if shutil.which("apt-get") is None:
        return "there is no apt-get on this machine"
    if os.geteuid() != 0:
        return "only root may install"
    print(f"installing what the tests need: {' '.join(packages)}", flush=True)
    until_s = time.monotonic() + INSTALL_S
    with NoServiceStarts():
        apt_get("update", within_s=UPDATE_S)  # if it fails, what is known may still do
        reason = _install(packages, until_s)
        if reason and len(packages) > 1:
            # One that this distribution does not have must not keep the others away.
            reason = "; ".join(filter(None, [_install([package], until_s) for package in packages]))
    return reason


def _install(packages: Sequence[str], until_s: float) -> str:
    # --no-remove: a server that is in the way of one of these stays, and its tests are skipped.
    options = ("-y", "--no-install-recommends", "--no-remove")
    return apt_get("install", *options, *packages, within_s=max(1.0, until_s - time.monotonic()))


def apt_get(*words: str, within_s: float) -> str:
    """The reason why it failed; empty if it did not."""
    command = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=60", *words]
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, check=False, timeout=within_s, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return f"`{' '.join(command)}` took longer than {within_s:.0f} s"
    return f"`{' '.join(command)}` failed: {done.stderr.strip()[-400:]}" if done.returncode else ""


class NoServiceStarts:
    """Debian starts a server as soon as it is installed; the tests start their own, and nobody asked for another."""

    path = Path("/usr/sbin/policy-rc.d")

    def __enter__(self) -> None:
        self.made = not self.path.exists()
        if self.made:
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False) as file:
                file.write("#!/bin/sh\nexit 101\n")
            os.chmod(file.name, 0o755)
            os.rename(file.name, self.path)

    def __exit__(self, *exc: object) -> None:
        if self.made:
            self.path.unlink()


def main() -> int:
    lacking = missing()
    if not lacking:
        return 0
    reason = install(list(lacking))
    lacking = missing()
    for package, tests in lacking.items():
        print(f"NOT TESTED: {tests}. Debian's package {package} is not installed.", flush=True)
    if lacking:
        print(f"Not installed, because: {reason}. As root: apt-get install {' '.join(lacking)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
