"""docs/promises.md names tests that are there, at least one for each of the seventeen promises."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROMISES = (ROOT / "docs/promises.md").read_text("utf-8")
NAMED = re.compile(r"`(?:(tests/[\w/]+\.py)(?:::(\w+))?|(test_\w+))`")


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)$", PROMISES, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def named(text: str) -> list[tuple[str, str]]:
    """(file, test) in order; a test without a file is of the file named before it, a file alone has no test."""
    found: list[tuple[str, str]] = []
    file = ""
    for path, test, alone in NAMED.findall(text):
        file = path or file
        found.append((file, test or alone))
    return found


def found_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("title", sections())
def test_every_test_that_is_named_is_there(title: str) -> None:
    for file, test in named(sections()[title]):
        assert (ROOT / file).is_file(), f"{title}: there is no {file}"
        assert not test or test in found_in(ROOT / file), f"{title}: there is no {file}::{test}"


def test_each_of_the_seventeen_promises_names_tests() -> None:
    numbers = {title.split()[0]: text for title, text in sections().items() if re.match(r"I\d+ ", title)}
    assert list(numbers) == [f"I{number}" for number in range(1, 18)]
    assert [number for number, text in numbers.items() if not any(test for _, test in named(text))] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.name)
def test_a_page_names_no_test_that_is_not_there(page: Path) -> None:
    for file, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text("utf-8")):
        assert (ROOT / file).is_file(), file
        assert not test or test in found_in(ROOT / file), f"{file}::{test}"
