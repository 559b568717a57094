"""The README and the pages under docs/: links lead somewhere, commands and keys exist, examples are the code."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
from starlette.routing import Route

from zq import config
from zq.cli import main
from zq.web.app import create_app
from zq.web.auth import TOKEN_CHARS_MIN
from zq.web.services import Services

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
BY_NAME = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")
PROMPT = re.compile(r"^\s*(?:\$ )?(?:[A-Z_]+=\S+ )*((?:zq|zq-top|make)\s.*)$")


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """(language, code) of each fenced block."""
    for found in FENCE.finditer(text):
        yield found[2], found[3]


def prose(text: str) -> str:
    return FENCE.sub("", text)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: Path) -> list[str]:
    text = page.read_text("utf-8")
    lines = [line for language, code in blocks(text) if language in ("", "sh") for line in code.splitlines()]
    shown = [found[1] for line in lines if (found := PROMPT.match(line)) and ("$ " in line or "make" in line)]
    named = [span for span in SPAN.findall(prose(text)) if re.match(r"(zq|zq-top|make) [a-z\-]", span)]
    return [*shown, *named]


def words_of(command: str) -> list[str]:
    """Up to a comment, a pipe, or an ampersand."""
    own = re.split(r"\s+[#|&](?:\s|$)", command.replace("…", ""))[0]
    return shlex.split(own) if own.count("'") % 2 == 0 else own.split()


def check(words: list[str]) -> str:
    """What is wrong with a command; empty for nothing."""
    if words[0] == "make":
        targets = re.findall(r"^([a-z\-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        return "" if words[1].rstrip(",;:") in targets else f"the Makefile has no target {words[1]}"
    command: click.Command = main
    rest = ["top", *words[1:]] if words[0] == "zq-top" else words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(click.Context(command), rest[0])
        if found is None:
            return f"{command.name} has no command {rest[0]}"
        command, rest = found, rest[1:]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    wrong = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in options]
    return f"{command.name} has no option {', '.join(wrong)}" if wrong else ""


def configuration_page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("configuration_page", ROOT / "docs" / "configuration_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_in_the_readme_is_the_file() -> None:
    code = [code for language, code in blocks((ROOT / "README.md").read_text("utf-8")) if language == "python"]
    assert code == [(ROOT / "docs" / "examples" / "thumbnails.py").read_text("utf-8")]


@BY_NAME
def test_every_link_leads_somewhere(page: Path) -> None:
    for groups in LINK.findall(prose(page.read_text("utf-8"))):
        target = groups[0] or groups[1]
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT), f"{target} leads out of the repository"
        assert file.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading"


@BY_NAME
def test_every_command_exists_with_its_options(page: Path) -> None:
    wrong = [f"{command}: {problem}" for command in commands(page) if (problem := check(words_of(command)))]
    assert wrong == []


def test_commands_are_found_and_wrong_ones_too() -> None:
    assert len(commands(ROOT / "docs" / "quickstart.md")) > 10
    assert check(["zq", "lenn"]) == "zq has no command lenn"
    assert check(["zq", "journal", "chek"]) == "journal has no command chek"
    assert check(["zq", "len", "--jason"]) == "len has no option --jason"
    assert check(["make", "tea"]) == "the Makefile has no target tea"
    assert check(["zq-top", "--once", "--json"]) == ""


@BY_NAME
def test_python_in_the_pages_is_python(page: Path) -> None:
    for language, code in blocks(page.read_text("utf-8")):
        if language == "python":
            compile(code, str(page), "exec")


@BY_NAME
def test_every_test_that_a_page_names_is_there(page: Path) -> None:
    """`file::test`, and `test` alone behind it for a further one of the same file."""
    file = ""
    for name in re.findall(r"`((?:tests/[\w/]+\.py)?(?:::)?(?:test_\w+)?)`", page.read_text("utf-8")):
        path, _, test = name.partition("::") if "::" in name else (name, "", "")
        if not name.startswith("tests/"):
            path, test = file, name
        if not path:
            continue
        file = path
        assert (ROOT / path).is_file(), f"{path} is not there"
        assert not test or f"def {test}(" in (ROOT / path).read_text("utf-8"), f"{path} has no {test}"


def test_every_key_of_the_configuration_is_on_its_page() -> None:
    made = configuration_page()
    assert (ROOT / "docs" / "configuration.md").read_text("utf-8") == made.page(), (
        "docs/configuration.md is not what zq/config.py says: run python docs/configuration_page.py"
    )
    assert len(made.keys()) > 40


@BY_NAME
def test_keys_that_are_named_exist(page: Path) -> None:
    made = configuration_page()
    keys = set(made.keys())
    sections = "|".join(sorted({key.partition(".")[0] for key in keys if "." in key} - {"queues", "schedules"}))
    for key in re.findall(rf"`((?:{sections})\.[a-z_]+)`", prose(page.read_text("utf-8"))):
        assert key in keys or key.endswith((".py", ".toml", ".md", ".db")), f"there is no key {key}"


def test_every_call_on_the_page_of_http_is_described(tmp_path: Path) -> None:
    services = Services(config.load(None, {"ZQ_DATA_DIR": str(tmp_path)}), "x" * TOKEN_CHARS_MIN)
    found = [route.path for route in create_app(services).routes if isinstance(route, Route)]
    routes = {path.replace(":anything}", "}") for path in found}
    named = re.findall(r"`(?:GET|POST|PUT|PATCH|DELETE) (/[^`? ]*)", (ROOT / "docs" / "http.md").read_text("utf-8"))
    assert len(named) > 10
    assert set(named) - routes == set()
    services.store.close()


def test_decisions_are_numbered_without_a_gap_and_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    pages = sorted(path.name for path in folder.glob("0*.md"))
    assert [name[:4] for name in pages] == [f"{number:04}" for number in range(1, len(pages) + 1)]
    assert re.findall(r"\]\((0[^)]+)\)", (folder / "README.md").read_text("utf-8")) == pages


def test_every_page_is_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    todo = [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in seen or page.suffix != ".md" or not page.exists():
            continue
        seen.add(page)
        for groups in LINK.findall(prose(page.read_text("utf-8"))):
            target = (groups[0] or groups[1]).partition("#")[0]
            if target and "://" not in target:
                todo.append((page.parent / target).resolve())
    assert set(PAGES) - seen == set()
