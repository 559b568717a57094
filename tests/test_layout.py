"""The house: real folders, a link to each in zq/, and a wheel that holds all of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("broker", "exams", "monitor", "protocol", "scheduler", "web", "workers")


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_is_real_and_linked_into_zq_by_a_relative_link(folder: str) -> None:
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder).is_symlink()
    assert (ROOT / folder / "__init__.py").is_file()
    link = ROOT / "zq" / folder
    assert link.is_symlink(), f"git must keep links: zq/{folder} is none"
    assert str(link.readlink()) == f"../{folder}"


def test_zq_has_no_other_links_than_those_and_the_supervisor_configuration() -> None:
    links = {path.name for path in (ROOT / "zq").iterdir() if path.is_symlink()}
    assert links == {*FOLDERS, "supervisord.conf"}


def test_constraints_are_names_and_versions_only() -> None:
    pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", pin)] == []
    assert not any(pin.startswith("zq==") for pin in pins)


def test_each_dependency_has_a_pin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {re.split(r"[<>=\[]", requirement)[0].lower().replace("_", "-") for requirement in wanted} - {"zq"}
    pins = (ROOT / "constraints.txt").read_text("utf-8").lower().replace("_", "-").splitlines()
    assert names - {pin.partition("==")[0] for pin in pins} == set()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources: building leaves folders behind."""
    source = tmp_path_factory.mktemp("source")
    for name in ("zq", *FOLDERS):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "supervisord.conf"):
        shutil.copy2(ROOT / name, source / name)
    built = tmp_path_factory.mktemp("wheel")
    run = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(built), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (path,) = built.glob("*.whl")
    return path


def test_the_wheel_holds_every_source_file_and_nothing_outside_of_zq(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    own = (ROOT / "zq").glob("*.py"), (ROOT / "zq" / "client").rglob("*.py")
    sources = {str(path.relative_to(ROOT)) for paths in own for path in paths}
    for folder in FOLDERS:
        found = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        sources |= {f"zq/{path.relative_to(ROOT)}" for path in found}
    assert sources - names == set(), "missing in the wheel: package-data in pyproject.toml may lack a pattern"
    assert names - sources == {"zq/py.typed", "zq/supervisord.conf"}
