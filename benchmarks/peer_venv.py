"""The peers' own virtual environment, so that what they need is no part of zq's."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
_PACKAGES: Final = (
    "celery[redis]", "flower", "redis", "dramatiq[redis]", "rq", "huey", "saq[redis]", "taskiq>=0.12,<0.13",
    "taskiq-redis", "procrastinate", "psycopg[binary,pool]", "py-spy",
)  # fmt: skip
"""taskiq 0.13 has moved what taskiq-redis imports from it."""
_SHOWN: Final = (
    "celery", "redis", "dramatiq", "rq", "huey", "saq", "taskiq", "taskiq-redis", "procrastinate", "psycopg",
)  # fmt: skip


class PeerVenv:
    def __init__(self, folder: Path = ROOT / ".venv-bench") -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"

    def make(self) -> None:
        """Make it unless it is there with these packages. Raises CalledProcessError if a package cannot be had."""
        done = self.folder / "installed.txt"
        wanted = "\n".join(_PACKAGES)
        if self.python.exists() and done.exists() and done.read_text() == wanted:
            return
        print(f"making {self.folder.name} with {', '.join(_PACKAGES)}", file=sys.stderr, flush=True)
        if not self.python.exists():
            venv.create(self.folder, with_pip=True)
        (self.folder / ".gitignore").write_text("*\n")
        pip = [str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *_PACKAGES], check=True)
        done.write_text(wanted)

    def environment(self) -> dict[str, str]:
        """For processes of this environment: `benchmarks` can be imported, zq's settings are left behind."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("ZQ_")}
        return env | {"PYTHONPATH": str(ROOT)}

    def versions(self) -> dict[str, str]:
        code = "import importlib.metadata as m, sys\nfor name in sys.argv[1:]: print(name, m.version(name))"
        run = subprocess.run([str(self.python), "-c", code, *_SHOWN], capture_output=True, text=True, check=True)
        return dict(line.split() for line in run.stdout.splitlines())
